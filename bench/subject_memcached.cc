// memcached, a server on the same machine, reached by a unix socket. It has enough memory to keep
// all items, and one thread for the one client. Writes do not wait for replies; one request reads
// several keys.
#include <libmemcached/memcached.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <stdexcept>

#include "bench/subject.h"
#include "bench/subject_kinds.h"
#include "bench/tier_servers.h"

namespace bench {
namespace {

class Memcached {
 public:
  static constexpr const char* server_name = MemcachedServer::program;

  Memcached(const std::string& directory, std::uint64_t items_max)
      : server_(directory,
                {"--disable-evictions",
                 "--memory-limit=" + std::to_string(64 + items_max * 2048 / 1'000'000)}) {
    open();
  }
  Memcached(const Memcached&) = delete;
  Memcached& operator=(const Memcached&) = delete;
  ~Memcached() { close(); }

  void open() {
    if (!connect()) throw std::runtime_error("memcached: cannot connect");
  }
  void close() {
    if (client_ == nullptr) return;
    memcached_result_free(&result_);
    memcached_free(client_);
    memcached_free(writer_);
    client_ = nullptr;
    writer_ = nullptr;
  }

  void set(std::span<const Item> items) {
    for (const Item& item : items) {
      const memcached_return_t result = memcached_set(writer_, item.key.data(), item.key.size(),
                                                      item.value.data(), item.value.size(), 0, 0);
      if (result != MEMCACHED_SUCCESS && result != MEMCACHED_BUFFERED) fail(result);
    }
    // The server processes the requests of a connection in order, so the reply to this one means
    // that all earlier ones are done.
    std::string value;
    if (!get_from(writer_, items.back().key, value))
      throw std::runtime_error("memcached: an item was not kept");
  }

  bool get(std::string_view key, std::string& value) const { return get_from(client_, key, value); }
  std::size_t get_multi(std::span<const std::string_view> keys,
                        std::span<std::optional<std::string>> values) {
    std::array<const char*, keys_per_multi_get> words = {};
    std::array<std::size_t, keys_per_multi_get> sizes = {};
    for (std::size_t i = 0; i < keys.size(); ++i) {
      words[i] = keys[i].data();
      sizes[i] = keys[i].size();
    }
    memcached_return_t result = memcached_mget(client_, words.data(), sizes.data(), keys.size());
    if (result != MEMCACHED_SUCCESS) fail(result);
    // Replies come in the order of the keys; absent keys have none.
    std::size_t found = 0;
    std::size_t i = 0;
    while (memcached_fetch_result(client_, &result_, &result) != nullptr) {
      const std::string_view key(memcached_result_key_value(&result_),
                                 memcached_result_key_length(&result_));
      while (i < keys.size() && keys[i] != key) ++i;
      if (i == keys.size()) throw std::runtime_error("memcached: an answer to no question");
      values[i++]->assign(memcached_result_value(&result_), memcached_result_length(&result_));
      ++found;
    }
    return found;
  }

  std::uint64_t external_bytes() const { return server_.server().resident_growth_bytes(); }

 private:
  bool get_from(memcached_st* client, std::string_view key, std::string& value) const {
    std::size_t size = 0;
    std::uint32_t flags = 0;
    memcached_return_t result = MEMCACHED_FAILURE;
    char* const found = memcached_get(client, key.data(), key.size(), &size, &flags, &result);
    if (result == MEMCACHED_NOTFOUND) return false;
    if (result != MEMCACHED_SUCCESS) fail(result);
    value.assign(found, size);
    std::free(found);
    return true;
  }
  bool connect() {
    close();
    client_ = memcached_create(nullptr);
    writer_ = memcached_create(nullptr);
    memcached_result_create(client_, &result_);
    memcached_server_add_unix_socket(client_, server_.socket().c_str());
    memcached_server_add_unix_socket(writer_, server_.socket().c_str());
    memcached_behavior_set(writer_, MEMCACHED_BEHAVIOR_NOREPLY, 1);
    memcached_behavior_set(writer_, MEMCACHED_BEHAVIOR_BUFFER_REQUESTS, 1);
    memcached_return_t result = MEMCACHED_FAILURE;
    std::size_t size = 0;
    std::uint32_t flags = 0;
    std::free(memcached_get(client_, "user:", 5, &size, &flags, &result));
    return result == MEMCACHED_NOTFOUND;
  }
  [[noreturn]] void fail(memcached_return_t result) const {
    throw std::runtime_error(std::string("memcached: ") + memcached_strerror(client_, result));
  }

  MemcachedServer server_;
  memcached_st* client_ = nullptr;
  memcached_st* writer_ =
      nullptr;  // does not wait for replies; switching that on a connection would close it
  memcached_result_st result_;
};

}  // namespace

std::unique_ptr<Subject> make_memcached(const std::string& directory, std::uint64_t items_max) {
  return std::make_unique<StoreSubject<Memcached>>(directory, items_max);
}

}  // namespace bench
