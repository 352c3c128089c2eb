// A prefork HTTP service with feature flags and a catalogue. README.md explains it.
#include <httplib.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include <whycache/cache.h>

#include "catalogue.h"
#include "follower.h"
#include "metrics.h"
#include "prefork.h"
#include "service.h"
#include "settings.h"

namespace service {
namespace {

// How long the master asks the log before it starts the workers without it.
constexpr std::chrono::milliseconds first_look{500};
constexpr std::chrono::seconds stop_grace{15};  // more than the longest deadline of a request
constexpr std::size_t body_bytes_max = std::size_t{1} << 20;

whycache::Options cache_options(const Settings& settings) {
  return {.state_path = settings.state_path,
          // The service starts without its database, and answers 503 until it has read it once.
          .open = whycache::OpenMode::now,
          .deadline = settings.write_deadline,
          .guards = {.validate = find_fault},
          .on_event = [](const whycache::Event& event) {
            // The follower reports the others' cause once, not at each attempt.
            if (event.kind != whycache::Event::Kind::retried)
              std::fprintf(stderr, "service: %s\n", event.message.c_str());
          }};
}

// The socket on which the workers accept connections, and which the master stops for all of them.
class Listener {
 public:
  Listener(const std::string& host, int port) {
    server_.set_socket_options([this](int socket) {
      const int on = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
      socket_ = socket;
    });
    const bool bound =
        port == 0 ? server_.bind_to_any_port(host) > 0 : server_.bind_to_port(host, port);
    // httplib lets 5 connections wait. Others would be delayed for a second in a burst.
    if (!bound || ::listen(socket_, SOMAXCONN) != 0)
      throw std::runtime_error("cannot listen on " + host + ':' + std::to_string(port));
  }

  httplib::Server& server() { return server_; }
  int port() const {
    sockaddr_storage address{};
    socklen_t bytes = sizeof address;
    ::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &bytes);
    return ntohs(address.ss_family == AF_INET6
                     ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                     : reinterpret_cast<const sockaddr_in&>(address).sin_port);
  }
  // No worker accepts another connection, and none that has not begun to will.
  void stop() const { ::shutdown(socket_, SHUT_RDWR); }

 private:
  httplib::Server server_;
  int socket_ = -1;
};

// Asks the log once. Throws if that cannot help however often it is repeated: for a log that does
// not exist and cannot be created, a wrong password, a missing permission. If the log is only away,
// the service starts with what this machine has.
void look_at_log(whycache::Cache& cache) {
  try {
    cache.update({.deadline = first_look});
  } catch (const whycache::Error& error) {
    if (error.kind() == whycache::ErrorKind::invalid) throw;
    std::fprintf(stderr, "service: starting without the log: %s\n", error.what());
  }
}

// Answers requests until the listener is stopped, and finishes those that it has begun.
void run_worker(int number, httplib::Server& server, whycache::Cache& cache, Metrics& metrics,
                const Settings& settings) {
  const Follower follower(cache, metrics, settings.update_interval);
  Service service(cache, metrics, follower, settings);
  service.add_routes(server);
  server.set_default_headers({{"Worker", std::to_string(number)}});
  server.set_payload_max_length(body_bytes_max);
  server.set_tcp_nodelay(true);
  // A connection that waits for its next request would keep one of the threads.
  server.set_keep_alive_max_count(1);
  server.new_task_queue = [&] {
    return new httplib::ThreadPool(static_cast<std::size_t>(settings.threads));
  };
  server.listen_after_bind();
}

void run(const Settings& settings) {
  Metrics& metrics = Metrics::create_shared();
  // Opened before the workers exist, so that a mistake in the settings ends the service, once, and
  // not each of its workers. After fork(), every method of a cache works in the child.
  whycache::Cache cache(settings.log_url, cache_options(settings));
  look_at_log(cache);
  Listener listener(settings.host, settings.port);
  std::printf("listening on %s:%d\n", settings.host.c_str(), listener.port());
  std::fflush(stdout);
  run_workers(
      settings.workers,
      [&](int number) { run_worker(number, listener.server(), cache, metrics, settings); },
      [&] { listener.stop(); }, stop_grace);
}

}  // namespace
}  // namespace service

int main(int argc, char** argv) {
  try {
    if (service::asks_for_help(argc, argv)) {
      std::fputs(service::help_text, stdout);
      return 0;
    }
    service::run(service::parse_settings(argc, argv));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "service: %s\n", error.what());
    return 1;
  }
}
