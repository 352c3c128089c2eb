#include "service.h"

#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

namespace service {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using whycache::ErrorKind;

constexpr milliseconds longest_deadline{10'000};
constexpr const char* retry_after_s = "1";

std::string flag_key(const httplib::Request& request) {
  return "flags/" + request.matches[1].str();
}
std::string product_key(const httplib::Request& request) {
  return catalogue_prefix + request.matches[1].str();
}

void answer(httplib::Response& response, int status, const json& body) {
  response.status = status;
  // Names, values and messages may contain bytes that are no UTF-8.
  response.set_content(body.dump(-1, ' ', false, json::error_handler_t::replace) + '\n',
                       "application/json");
}

void answer_not_found(httplib::Response& response) {
  answer(response, 404, {{"error", "not_found"}});
}

// What a failure means to a client.
struct Failure {
  int status;
  const char* written;  // whether a write took effect: "no" or "unknown"
  bool try_again;
  // Null: the message of the error, which is about the request. Other messages name servers and
  // files, which concern the operator: /health has them.
  const char* message;
};

Failure failure_of_read(ErrorKind kind) {
  if (kind == ErrorKind::corrupt)  // the next update() rebuilds the state
    return {500, "no", true, "the data of this machine is damaged and will be rebuilt"};
  return {503, "no", true, "this machine cannot read its data now"};
}

Failure failure_of_write(const whycache::Error& error) {
  // A full disk or a missing permission: nothing is wrong with the request.
  const bool is_of_machine = error.system_error() != 0;
  switch (error.kind()) {
    case ErrorKind::invalid:
    case ErrorKind::limit:
      if (is_of_machine) return {507, "no", true, "this machine cannot store it"};
      return {error.kind() == ErrorKind::invalid ? 400 : 413, "no", false, nullptr};
    case ErrorKind::refused: return {422, "no", false, nullptr};
    case ErrorKind::conflict: return {409, "no", true, "other writes were first"};
    case ErrorKind::unavailable: return {503, "no", true, "the log did not answer in time"};
    case ErrorKind::uncertain:
      return {504, "unknown", false,
              "it is not known whether the write takes effect, now or soon: read the value before "
              "you repeat it"};
    case ErrorKind::corrupt:
      return {500, "unknown", true, "the data of this machine is damaged and will be rebuilt"};
  }
  return {500, "unknown", false, "unknown kind of error"};
}

void report(const httplib::Request& request, const char* message) {
  std::fprintf(stderr, "service: %s %s: %s\n", request.method.c_str(), request.path.c_str(),
               message);
}

void answer_failure(const httplib::Request& request, httplib::Response& response,
                    const whycache::Error& error) {
  const bool is_write = request.method == "PUT";
  const Failure failure = is_write ? failure_of_write(error) : failure_of_read(error.kind());
  json body = {{"error", to_string(error.kind())},
               {"message", failure.message != nullptr ? failure.message : error.what()}};
  if (is_write) body["written"] = failure.written;
  if (failure.try_again) response.set_header("Retry-After", retry_after_s);
  // An operator can do something about these, or look for the write.
  if (failure.status == 507 || error.kind() == ErrorKind::uncertain) report(request, error.what());
  answer(response, failure.status, body);
}

void answer_exception(const httplib::Request& request, httplib::Response& response,
                      const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const whycache::Error& error) {
    answer_failure(request, response, error);
  } catch (const std::invalid_argument& error) {
    json body = {{"error", "invalid"}, {"message", error.what()}};
    if (request.method == "PUT") body["written"] = "no";
    answer(response, 400, body);
  } catch (const std::exception& error) {
    report(request, error.what());
    answer(response, 500, {{"error", "internal"}});
  }
}

// Answers that httplib gives by itself, without a body: a path that is not known, a body that is
// too large.
void explain(const httplib::Request& request, httplib::Response& response) {
  if (!response.body.empty()) return;
  json body = {{"error", "http"}, {"message", "the request cannot be parsed, or is refused"}};
  if (response.status == 404) body = {{"error", "not_found"}};
  if (response.status == 413) {
    body = {{"error", "limit"},
            {"message",
             "the body is too large: at most 1 MiB, and 8 KiB if its type is "
             "application/x-www-form-urlencoded, which curl -d sends (give it another one: "
             "-H 'Content-Type: text/plain')"}};
  }
  if (request.method == "PUT") body["written"] = "no";
  answer(response, response.status, body);
}

template <typename Number>
Number parse_number(std::string_view name, std::string_view text) {
  Number number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size())
    throw std::invalid_argument(std::string(name) + " is no number: " + std::string(text));
  return number;
}

std::string etag_of(whycache::UpdateId version) { return '"' + std::to_string(version) + '"'; }

// Returns the version that the product must have, 0 if it must be absent, or nullopt if the request
// has no such condition.
std::optional<whycache::UpdateId> expected_version(const httplib::Request& request) {
  if (request.get_header_value("If-None-Match") == "*") return 0;
  const std::string etag = request.get_header_value("If-Match");
  if (etag.size() < 3 || etag.front() != '"' || etag.back() != '"') return std::nullopt;
  return parse_number<whycache::UpdateId>("If-Match",
                                          std::string_view(etag).substr(1, etag.size() - 2));
}

// Measures the requests of a server.
void measure(httplib::Server& server, Metrics& metrics) {
  using std::chrono::steady_clock;
  static thread_local std::optional<steady_clock::time_point> began;
  server.set_pre_routing_handler([](const httplib::Request&, httplib::Response&) {
    began = steady_clock::now();
    return httplib::Server::HandlerResponse::Unhandled;
  });
  server.set_post_routing_handler(
      [&metrics](const httplib::Request& request, httplib::Response& response) {
        const auto now = steady_clock::now();
        const auto time = now - began.value_or(now);  // none: the request could not be parsed
        began.reset();
        metrics.count_request(request.path, response.status, time);
        const double time_ms = std::chrono::duration<double, std::milli>(time).count();
        response.set_header("Server-Timing", "total;dur=" + std::to_string(time_ms));
      });
}

}  // namespace

Service::Service(whycache::Cache& cache, Metrics& metrics, const Follower& follower,
                 const Settings& settings)
    : cache_(cache),
      metrics_(metrics),
      follower_(follower),
      settings_(settings),
      catalogue_(cache),
      free_writes_(settings.writes_max) {}

void Service::add_routes(httplib::Server& server) {
  server.Get("/flags/([^/]+)",
             [this](auto& request, auto& response) { get_flag(request, response); });
  server.Put("/flags/([^/]+)", limited([this](auto& request, auto& response, auto& options) {
               put_flag(request, response, options);
             }));
  server.Get("/catalogue",
             [this](auto& request, auto& response) { get_catalogue(request, response); });
  server.Get("/catalogue/([^/]+)",
             [this](auto& request, auto& response) { get_product(request, response); });
  server.Put("/catalogue/([^/]+)", limited([this](auto& request, auto& response, auto& options) {
               put_product(request, response, options);
             }));
  server.Get("/health", [this](auto&, auto& response) { get_health(response); });
  server.Get("/metrics", [this](auto&, auto& response) { get_metrics(response); });
  server.set_exception_handler(answer_exception);
  server.set_error_handler(explain);
  measure(server, metrics_);
}

// --- Flags ---

void Service::get_flag(const Request& request, Response& response) const {
  const std::optional<std::string> value = cache_.get(flag_key(request));
  if (!value) return answer_not_found(response);
  response.set_content(*value, "text/plain");
}

void Service::put_flag(const Request& request, Response& response,
                       const whycache::WriteOptions& options) {
  const whycache::UpdateId id = cache_.set(flag_key(request), request.body, options);
  answer(response, 200, {{"update", id}});
}

// --- Catalogue ---

void Service::get_catalogue(const Request& request, Response& response) {
  double price_max = std::numeric_limits<double>::infinity();
  if (request.has_param("price_max"))
    price_max = parse_number<double>("price_max", request.get_param_value("price_max"));
  const std::shared_ptr<const Catalogue> catalogue = catalogue_.current();
  json products = json::object();
  for (const auto& [name, entry] : catalogue->entries) {
    const json& fields = entry.product->fields;
    if (fields["price"].get<double>() <= price_max) products[name] = fields;
  }
  answer(response, 200,
         {{"update", catalogue->id},
          {"invalid", catalogue->invalid_count},
          {"products", std::move(products)}});
}

void Service::get_product(const Request& request, Response& response) {
  const std::shared_ptr<const Catalogue> catalogue = catalogue_.current();
  const auto found = catalogue->entries.find(request.matches[1].str());
  if (found == catalogue->entries.end()) return answer_not_found(response);
  response.set_header("ETag", etag_of(found->second.version));
  response.set_content(found->second.product->text, "application/json");
}

void Service::put_product(const Request& request, Response& response,
                          const whycache::WriteOptions& options) {
  const std::optional<whycache::UpdateId> expected = expected_version(request);
  if (!expected) {
    return answer(
        response, 428,
        {{"error", "no_condition"}, {"message", "give the ETag as If-Match, or If-None-Match: *"}});
  }
  const std::optional<whycache::UpdateId> id =
      cache_.set_if_version(product_key(request), *expected, request.body, options);
  if (!id) {
    return answer(response, 412,
                  {{"error", "changed"}, {"message", "the product has another version now"}});
  }
  response.set_header("ETag", etag_of(*id));
  answer(response, 200, {{"update", *id}});
}

// --- Operation ---

// Answers 200 also while the log is away: this service still serves what it has, and a load
// balancer that took it out of service would take out all others with it.
void Service::get_health(Response& response) const {
  if (!cache_.ready()) {
    response.set_header("Retry-After", retry_after_s);
    json body = {{"status", "starting"}};
    if (std::string error = follower_.error(); !error.empty()) body["update_error"] = error;
    return answer(response, 503, body);
  }
  const whycache::Stats stats = cache_.stats();
  const bool was_asked = stats.staleness != std::chrono::nanoseconds::max();
  const bool is_degraded = !stats.log_is_up || stats.staleness > settings_.stale_after;
  const std::string update_error = follower_.error();
  json body = {{"status", is_degraded ? "degraded" : "ok"},
               {"applied_id", stats.applied_id},
               {"lag", stats.lag},
               {"staleness_ms", nullptr},
               {"log_is_up", stats.log_is_up}};
  if (was_asked)
    body["staleness_ms"] = std::chrono::duration_cast<milliseconds>(stats.staleness).count();
  if (!stats.log_is_up) body["log_error"] = stats.log_error;
  if (!update_error.empty()) body["update_error"] = update_error;
  answer(response, 200, body);
}

void Service::get_metrics(Response& response) const {
  std::string text = metrics_.counts();
  if (cache_.ready()) text += gauges(cache_.stats());
  response.set_content(text, "text/plain; version=0.0.4");
}

// --- Writes ---

httplib::Server::Handler Service::limited(Write write) {
  return [this, write = std::move(write)](const Request& request, Response& response) {
    const whycache::WriteOptions options{.note = "service", .deadline = deadline_of(request)};
    if (!free_writes_.try_acquire()) {
      response.set_header("Retry-After", retry_after_s);
      return answer(
          response, 503,
          {{"error", "busy"}, {"message", "too many writes are waiting"}, {"written", "no"}});
    }
    const auto release = [](auto* writes) { writes->release(); };
    const std::unique_ptr<std::counting_semaphore<>, decltype(release)> slot(&free_writes_,
                                                                             release);
    write(request, response, options);
  };
}

milliseconds Service::deadline_of(const Request& request) const {
  if (!request.has_param("deadline_ms")) return settings_.write_deadline;
  const milliseconds deadline(
      parse_number<std::int64_t>("deadline_ms", request.get_param_value("deadline_ms")));
  if (deadline <= milliseconds(0) || deadline > longest_deadline)
    throw std::invalid_argument("deadline_ms is not between 1 and " +
                                std::to_string(longest_deadline.count()));
  return deadline;
}

}  // namespace service
