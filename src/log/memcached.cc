#include "log/memcached.h"

#include <libmemcached/memcached.h>

#include <new>
#include <unordered_map>
#include <utility>

#include <whycache/error.h>

#include "base/call_limit.h"
#include "base/fork_handlers.h"

namespace whycache {
namespace {

constexpr std::uint16_t memcached_port = 11211;
// How long all servers are unavailable after a failure.
constexpr std::chrono::milliseconds retry_delay{2'000};

Error invalid_server_error(std::size_t number) {
  return Error(ErrorKind::invalid,
               "option memcached has an invalid server: number=" + std::to_string(number) +
                   " (write host:port, [address]:port or /path/of/socket, with commas between)");
}

// The answers to one get, one after another.
class GetResults {
 public:
  explicit GetResults(memcached_st* client) : client_(client) {
    memcached_result_create(client, &result_);
  }
  GetResults(const GetResults&) = delete;
  GetResults& operator=(const GetResults&) = delete;
  ~GetResults() { memcached_result_free(&result_); }

  bool next() { return memcached_fetch_result(client_, &result_, &code_) != nullptr; }
  std::string key() const {
    return {memcached_result_key_value(&result_), memcached_result_key_length(&result_)};
  }
  Memcached::CachedItem item() const {
    return {{memcached_result_value(&result_), memcached_result_length(&result_)},
            memcached_result_flags(&result_),
            memcached_result_cas(&result_)};
  }
  bool succeeded() const {
    return code_ == MEMCACHED_SUCCESS || code_ == MEMCACHED_END || code_ == MEMCACHED_NOTFOUND;
  }

 private:
  memcached_st* client_;
  memcached_result_st result_;
  memcached_return_t code_ = MEMCACHED_SUCCESS;
};

// Returns the items of `keys`, in their order; nullopt if the request failed.
std::optional<std::vector<std::optional<Memcached::CachedItem>>> fetch(
    memcached_st* client, const std::vector<std::string>& keys) {
  std::vector<const char*> names;
  std::vector<std::size_t> sizes;
  std::unordered_map<std::string_view, std::size_t> index_of_key;
  for (const std::string& key : keys) {
    index_of_key.emplace(key, names.size());
    names.push_back(key.data());
    sizes.push_back(key.size());
  }
  std::vector<std::optional<Memcached::CachedItem>> items(keys.size());
  const memcached_return_t sent = memcached_mget(client, names.data(), sizes.data(), names.size());
  GetResults answers(client);
  if (sent == MEMCACHED_SUCCESS) {
    while (answers.next()) {
      // Ignores an item that was not requested.
      if (const auto found = index_of_key.find(answers.key()); found != index_of_key.end())
        items[found->second] = answers.item();
    }
  }
  if (sent != MEMCACHED_SUCCESS || !answers.succeeded()) return std::nullopt;
  return items;
}

}  // namespace

std::vector<MemcachedServer> parse_memcached_servers(std::string_view text) {
  std::vector<MemcachedServer> servers;
  for (;;) {
    const std::size_t comma = text.find(',');
    const auto server = parse_server_address(text.substr(0, comma), memcached_port);
    if (!server) throw invalid_server_error(servers.size() + 1);
    servers.push_back(*server);
    if (comma == std::string_view::npos) return servers;
    text.remove_prefix(comma + 1);
  }
}

Memcached::Memcached(const std::vector<MemcachedServer>& servers, std::chrono::milliseconds timeout)
    : timeout_(timeout), owner_fork_count_(fork_count()) {
  // A child leaks the client: freeing it would send quit over its parent's connections.
  client_.reset(memcached_create(nullptr), [owner = owner_fork_count_](memcached_st* client) {
    if (client != nullptr && fork_count() == owner) memcached_free(client);
  });
  if (client_ == nullptr) throw std::bad_alloc();
  const auto behave = [&](memcached_behavior_t behavior, std::uint64_t value) {
    memcached_behavior_set(client_.get(), behavior, value);
  };
  const auto timeout_ms = static_cast<std::uint64_t>(timeout.count());
  behave(MEMCACHED_BEHAVIOR_KETAMA, 1);
  behave(MEMCACHED_BEHAVIOR_TCP_NODELAY, 1);
  behave(MEMCACHED_BEHAVIOR_SUPPORT_CAS, 1);
  behave(MEMCACHED_BEHAVIOR_CONNECT_TIMEOUT, timeout_ms);
  behave(MEMCACHED_BEHAVIOR_POLL_TIMEOUT, timeout_ms);
  behave(MEMCACHED_BEHAVIOR_SND_TIMEOUT, timeout_ms * 1000);
  behave(MEMCACHED_BEHAVIOR_RCV_TIMEOUT, timeout_ms * 1000);
  // A server that does not answer keeps its keys: if they moved to other servers and back, they
  // would return with old items.
  behave(MEMCACHED_BEHAVIOR_RETRY_TIMEOUT, 1);
  for (const MemcachedServer& server : servers) {
    if (server.socket.empty()) {
      memcached_server_add(client_.get(), server.host.c_str(), server.port);
    } else {
      memcached_server_add_unix_socket(client_.get(), server.socket.c_str());
    }
  }
}

bool Memcached::is_available() const noexcept {
  return fork_count() == owner_fork_count_ &&
         (!unavailable_until_ || unavailable_until_->passed()) && !worker_.is_busy();
}

void Memcached::mark_unavailable() { unavailable_until_.emplace(retry_delay); }

template <typename Result>
std::optional<Result> Memcached::request(std::function<Result(memcached_st*)> function) {
  const std::int64_t began_ns = boot_time_ns();
  std::optional<Result> result = worker_.call<Result>(
      [client = client_, function = std::move(function)] { return function(client.get()); },
      CallLimit::deadline(timeout_));
  // A limit of the caller that is shorter tells nothing of the server. While the worker is busy, no
  // further request is made.
  if (!result && boot_time_ns() - began_ns >= std::chrono::nanoseconds(timeout_).count())
    mark_unavailable();
  return result;
}

std::optional<std::vector<std::optional<Memcached::CachedItem>>> Memcached::get(
    const std::vector<std::string>& keys) {
  using Items = std::vector<std::optional<CachedItem>>;
  if (!is_available()) return std::nullopt;
  const auto answer =
      request<std::optional<Items>>([keys](memcached_st* client) { return fetch(client, keys); });
  if (!answer) return std::nullopt;
  if (!*answer) mark_unavailable();
  return *answer;
}

Memcached::StoreResult Memcached::store(std::function<int(memcached_st*)> function) {
  if (!is_available()) return StoreResult::failed;
  const std::optional<int> result = request<int>(std::move(function));
  if (!result) return StoreResult::failed;
  switch (*result) {
    case MEMCACHED_SUCCESS: return StoreResult::stored;
    case MEMCACHED_NOTSTORED:
    case MEMCACHED_DATA_EXISTS:
    case MEMCACHED_NOTFOUND: return StoreResult::not_stored;
    case MEMCACHED_E2BIG: return StoreResult::too_large;
    case MEMCACHED_SERVER_ERROR:  // it answered: other items may fit
    case MEMCACHED_SERVER_MEMORY_ALLOCATION_FAILURE: return StoreResult::failed;
    default: mark_unavailable(); return StoreResult::failed;
  }
}

Memcached::StoreResult Memcached::set(const std::string& key, std::string_view bytes,
                                      std::uint32_t flags, std::chrono::seconds seconds) {
  return store([key, bytes = std::string(bytes), flags, seconds](memcached_st* client) {
    return memcached_set(client, key.data(), key.size(), bytes.data(), bytes.size(),
                         seconds.count(), flags);
  });
}

Memcached::StoreResult Memcached::add(const std::string& key, std::string_view bytes,
                                      std::chrono::seconds seconds) {
  return store([key, bytes = std::string(bytes), seconds](memcached_st* client) {
    return memcached_add(client, key.data(), key.size(), bytes.data(), bytes.size(),
                         seconds.count(), 0);
  });
}

Memcached::StoreResult Memcached::compare_and_swap(const std::string& key, std::string_view bytes,
                                                   std::uint64_t version,
                                                   std::chrono::seconds seconds) {
  return store([key, bytes = std::string(bytes), version, seconds](memcached_st* client) {
    return memcached_cas(client, key.data(), key.size(), bytes.data(), bytes.size(),
                         seconds.count(), 0, version);
  });
}

}  // namespace whycache
