// A client of memcached servers: libmemcached, wrapped so that it does not throw, and pauses after
// a failure. The library's timeout holds for each piece of an answer. A thread of the client
// therefore makes the requests, and the caller waits for it no longer than the timeout. No item of
// memcached is ever needed, so no failure is an error: the item is absent.
//
// Consistent hashing (ketama) distributes the keys over the servers. A server that does not answer
// keeps its keys: a request for one of them fails, and then all servers are unavailable for a
// while.
//
// One thread at a time may use a client. In a forked child every request fails: the connections
// belong to the parent.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/worker.h"
#include "log/server_address.h"

struct memcached_st;

namespace whycache {

using MemcachedServer = ServerAddress;

// Parses "10.0.0.5:11211,[::1],/run/memcached.sock". Throws Error(invalid).
std::vector<MemcachedServer> parse_memcached_servers(std::string_view text);

class Memcached {
 public:
  struct CachedItem {
    std::string bytes;
    std::uint32_t flags = 0;
    // Differs in every item that the key ever had; for compare_and_swap().
    std::uint64_t cas_version = 0;
  };
  enum class StoreResult {
    stored,
    not_stored,  // the condition of add() or compare_and_swap() does not hold
    too_large,
    failed,
  };

  // `timeout`: how long a request may take.
  Memcached(const std::vector<MemcachedServer>& servers, std::chrono::milliseconds timeout);
  Memcached(const Memcached&) = delete;
  Memcached& operator=(const Memcached&) = delete;

  // Whether a request may succeed: not for a while after a failure, and not in a forked child.
  bool is_available() const noexcept;

  // Returns the items of `keys`, in their order; nullopt if the request failed. If one of several
  // servers fails while it answers, its items may be reported as absent instead.
  std::optional<std::vector<std::optional<CachedItem>>> get(const std::vector<std::string>& keys);
  // Stores an item for `seconds`. memcached may evict it at any time.
  StoreResult set(const std::string& key, std::string_view bytes, std::uint32_t flags,
                  std::chrono::seconds seconds);
  // Stores an item if the key has none.
  StoreResult add(const std::string& key, std::string_view bytes, std::chrono::seconds seconds);
  // Stores an item if the key still has the one with that version.
  StoreResult compare_and_swap(const std::string& key, std::string_view bytes,
                               std::uint64_t version, std::chrono::seconds seconds);

 private:
  // Makes a request on the worker. Returns nullopt if it does not finish in time.
  template <typename Result>
  std::optional<Result> request(std::function<Result(memcached_st*)> function);
  StoreResult store(std::function<int(memcached_st*)> function);
  void mark_unavailable();

  const std::chrono::milliseconds timeout_;
  Worker worker_;
  std::shared_ptr<memcached_st> client_;
  // fork_count() of the process that opened the connections.
  std::uint64_t owner_fork_count_;
  std::optional<Deadline> unavailable_until_;
};

}  // namespace whycache
