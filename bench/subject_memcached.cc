// memcached, a server on the same machine, over a unix socket. It has as much memory as it needs to forget nothing, and
// one thread, since one client asks. Items are written without waiting for answers; several keys are read with one
// request.
#include <libmemcached/memcached.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <stdexcept>

#include "bench/kinds.h"
#include "bench/server.h"
#include "bench/subject.h"

namespace bench {
namespace {

class Memcached {
 public:
  static constexpr const char* server_name = "memcached";

  Memcached(const std::string& folder, std::uint64_t items_max)
      : socket_(folder + "/socket"),
        server_({server_name, "--unix-socket=" + socket_, "--user=" + std::string(::geteuid() == 0 ? "root" : ""),
                 "--threads=1", "--disable-evictions",
                 "--memory-limit=" + std::to_string(64 + items_max * 2048 / 1'000'000)}) {
    server_.wait_until([&] { return connect(); });
  }
  Memcached(const Memcached&) = delete;
  Memcached& operator=(const Memcached&) = delete;
  ~Memcached() { close(); }

  void open() {
    if (!connect()) throw std::runtime_error("memcached: cannot connect");
  }
  void close() {
    if (client_ != nullptr) {
      memcached_result_free(&result_);
      memcached_free(client_);
    }
    client_ = nullptr;
  }

  void set(std::span<const Item> items) {
    wait_for_answers(false);
    for (const Item& item : items) {
      const memcached_return_t result =
          memcached_set(client_, item.key.data(), item.key.size(), item.value.data(), item.value.size(), 0, 0);
      if (result != MEMCACHED_SUCCESS && result != MEMCACHED_BUFFERED) fail(result);
    }
    const memcached_return_t result = memcached_flush_buffers(client_);
    if (result != MEMCACHED_SUCCESS) fail(result);
    wait_for_answers(true);
  }

  bool get(std::string_view key, std::string& value) const {
    std::size_t size = 0;
    std::uint32_t flags = 0;
    memcached_return_t result = MEMCACHED_FAILURE;
    char* const found = memcached_get(client_, key.data(), key.size(), &size, &flags, &result);
    if (result == MEMCACHED_NOTFOUND) return false;
    if (result != MEMCACHED_SUCCESS) fail(result);
    value.assign(found, size);
    std::free(found);
    return true;
  }
  std::size_t get_multi(std::span<const std::string_view> keys, std::span<std::string> values) {
    std::array<const char*, keys_together> words = {};
    std::array<std::size_t, keys_together> sizes = {};
    for (std::size_t i = 0; i < keys.size(); ++i) {
      words[i] = keys[i].data();
      sizes[i] = keys[i].size();
    }
    memcached_return_t result = memcached_mget(client_, words.data(), sizes.data(), keys.size());
    if (result != MEMCACHED_SUCCESS) fail(result);
    // Answers come in the order of the keys; those that are not there have none.
    std::size_t found = 0;
    std::size_t i = 0;
    while (memcached_fetch_result(client_, &result_, &result) != nullptr) {
      const std::string_view key(memcached_result_key_value(&result_), memcached_result_key_length(&result_));
      while (i < keys.size() && keys[i] != key) ++i;
      if (i == keys.size()) throw std::runtime_error("memcached: an answer to no question");
      values[i++].assign(memcached_result_value(&result_), memcached_result_length(&result_));
      ++found;
    }
    return found;
  }

  std::uint64_t bytes_outside() const { return server_.grown_bytes(); }

 private:
  bool connect() {
    close();
    client_ = memcached_create(nullptr);
    memcached_result_create(client_, &result_);
    if (memcached_server_add_unix_socket(client_, socket_.c_str()) != MEMCACHED_SUCCESS) return false;
    return memcached_exist(client_, "user:", 5) == MEMCACHED_NOTFOUND;
  }
  void wait_for_answers(bool wait) {
    memcached_behavior_set(client_, MEMCACHED_BEHAVIOR_NOREPLY, wait ? 0 : 1);
    memcached_behavior_set(client_, MEMCACHED_BEHAVIOR_BUFFER_REQUESTS, wait ? 0 : 1);
  }
  [[noreturn]] void fail(memcached_return_t result) const {
    throw std::runtime_error(std::string("memcached: ") + memcached_strerror(client_, result));
  }

  std::string socket_;
  Server server_;
  memcached_st* client_ = nullptr;
  memcached_result_st result_;
};

}  // namespace

std::unique_ptr<Subject> make_memcached(const std::string& folder, std::uint64_t items_max) {
  return std::make_unique<SubjectOf<Memcached>>(folder, items_max);
}

}  // namespace bench
