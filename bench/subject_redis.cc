// Redis, a server on the same machine, reached by a unix socket, the fastest way to connect. Every
// read is a request and a reply. Each update is one pipeline; MGET reads several keys.
#include <hiredis/hiredis.h>

#include <array>
#include <stdexcept>

#include "bench/subject.h"
#include "bench/subject_kinds.h"
#include "bench/tier_servers.h"

namespace bench {
namespace {

struct FreeReply {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using Reply = std::unique_ptr<redisReply, FreeReply>;

class Redis {
 public:
  static constexpr const char* server_name = RedisServer::program;

  Redis(const std::string& directory, std::uint64_t) : server_(directory) { open(); }
  Redis(const Redis&) = delete;
  Redis& operator=(const Redis&) = delete;
  ~Redis() { close(); }

  void open() {
    if (!connect()) throw std::runtime_error("redis: cannot connect");
  }
  void close() {
    if (connection_ != nullptr) redisFree(connection_);
    connection_ = nullptr;
  }

  void set(std::span<const Item> items) {
    for (const Item& item : items) {
      std::array<const char*, 3> words = {"SET", item.key.data(), item.value.data()};
      const std::array<std::size_t, 3> sizes = {3, item.key.size(), item.value.size()};
      if (redisAppendCommandArgv(connection_, 3, words.data(), sizes.data()) != REDIS_OK) fail();
    }
    for (std::size_t i = 0; i < items.size(); ++i) next_reply();
  }

  bool get(std::string_view key, std::string& value) const {
    std::array<const char*, 2> words = {"GET", key.data()};
    const std::array<std::size_t, 2> sizes = {3, key.size()};
    const Reply reply = command(2, words.data(), sizes.data());
    return copy(*reply, value);
  }
  std::size_t get_multi(std::span<const std::string_view> keys,
                        std::span<std::optional<std::string>> values) const {
    std::array<const char*, keys_per_multi_get + 1> words = {"MGET"};
    std::array<std::size_t, keys_per_multi_get + 1> sizes = {4};
    for (std::size_t i = 0; i < keys.size(); ++i) {
      words[i + 1] = keys[i].data();
      sizes[i + 1] = keys[i].size();
    }
    const Reply reply = command(static_cast<int>(keys.size()) + 1, words.data(), sizes.data());
    std::size_t found = 0;
    for (std::size_t i = 0; i < reply->elements; ++i)
      found += copy(*reply->element[i], *values[i]) ? 1 : 0;
    return found;
  }

  std::uint64_t external_bytes() const { return server_.server().resident_growth_bytes(); }

 private:
  static bool copy(const redisReply& reply, std::string& value) {
    if (reply.type != REDIS_REPLY_STRING) return false;
    value.assign(reply.str, reply.len);
    return true;
  }

  bool connect() {
    close();
    connection_ = redisConnectUnix(server_.socket().c_str());
    return connection_ != nullptr && connection_->err == 0;
  }
  Reply command(int count, const char** words, const std::size_t* sizes) const {
    return check_reply(redisCommandArgv(connection_, count, words, sizes));
  }
  Reply next_reply() const {
    void* reply = nullptr;
    if (redisGetReply(connection_, &reply) != REDIS_OK) fail();
    return check_reply(reply);
  }
  Reply check_reply(void* pointer) const {
    Reply reply(static_cast<redisReply*>(pointer));
    if (!reply) fail();
    if (reply->type == REDIS_REPLY_ERROR)
      throw std::runtime_error(std::string("redis: ") + reply->str);
    return reply;
  }
  [[noreturn]] void fail() const {
    throw std::runtime_error(std::string("redis: ") + connection_->errstr);
  }

  RedisServer server_;
  redisContext* connection_ = nullptr;
};

}  // namespace

std::unique_ptr<Subject> make_redis(const std::string& directory, std::uint64_t items_max) {
  return std::make_unique<StoreSubject<Redis>>(directory, items_max);
}

}  // namespace bench
