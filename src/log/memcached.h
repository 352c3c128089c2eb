// Some memcached servers: libmemcached, wrapped so that it never throws, and leaves servers alone
// for a while that do not answer. An answer is waited for no longer than `patience` at each piece
// of it: a server that drips takes longer. Nothing that stands in a memcached is ever needed, so
// nothing here is an error: what cannot be had is not there.
//
// Keys are spread over the servers by consistent hashing (ketama). A server that does not answer
// keeps its keys: whoever needs one of them finds that memcached failed, which is then left alone
// for a while, all of it.
//
// Used by one thread at a time. In a forked child nothing is there, and nothing is kept: the
// connections are the parent's.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"

struct memcached_st;

namespace whycache {

// Where one listens: host and port, or a unix socket.
struct MemcachedServer {
  std::string host;
  std::uint16_t port = 11211;
  std::string socket;
};

// "10.0.0.5:11211,[::1],/run/memcached.sock". Throws Error invalid.
std::vector<MemcachedServer> parse_memcached_servers(std::string_view text);

class Memcached {
 public:
  struct CachedItem {
    std::string bytes;
    std::uint32_t flags = 0;
    std::uint64_t cas_version = 0;  // which of all items that had this key; for replace()
  };
  enum class StoreResult {
    stored,
    not_stored,  // there is an item, or none, or another version of it, so that it was not to be
                 // stored
    too_large,
    failed,
  };

  // `patience`: how long to wait for one answer of a server.
  Memcached(const std::vector<MemcachedServer>& servers, std::chrono::milliseconds patience);
  Memcached(const Memcached&) = delete;
  Memcached& operator=(const Memcached&) = delete;
  ~Memcached();

  // Whether it is worth asking: not for a while after a failure, and not in a forked child.
  bool is_available() const noexcept;

  // What is there under `keys`, in their order. nullopt: failed, as opposed to: not there. Of
  // several servers, what one that fails while it answers had may be not there instead.
  std::optional<std::vector<std::optional<CachedItem>>> get(const std::vector<std::string>& keys);
  // For `seconds`; it may be forgotten at any time.
  StoreResult set(const std::string& key, std::string_view bytes, std::uint32_t flags,
                  std::chrono::seconds seconds);
  // If there is none.
  StoreResult add(const std::string& key, std::string_view bytes, std::chrono::seconds seconds);
  // If it is still the one with that version.
  StoreResult compare_and_swap(const std::string& key, std::string_view bytes,
                               std::uint64_t version, std::chrono::seconds seconds);

 private:
  StoreResult to_store_result(int result);
  void mark_unavailable();

  memcached_st* client_ = nullptr;
  std::uint64_t owner_fork_count_;  // which process: fork_count()
  std::optional<Deadline> unavailable_until_;
};

}  // namespace whycache
