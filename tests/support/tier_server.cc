#include "support/tier_server.h"

#include <cstdio>
#include <stdexcept>
#include <utility>

#if WHYCACHE_WITH_MEMCACHED
#include "log/memcached_store.h"
#endif
#if WHYCACHE_WITH_REDIS
#include "log/redis_store.h"
#endif
#include "support/memcached_server.h"
#include "support/redis_server.h"

namespace whycache::testing {
namespace {

std::runtime_error not_built(TierKind kind) {
  return std::runtime_error("whycache was built without " + name_of(kind));
}

#if WHYCACHE_WITH_MEMCACHED

class MemcachedTierServer final : public TierServer {
 public:
  MemcachedTierServer(std::vector<std::string> options, bool by_socket)
      : server_(std::move(options), by_socket) {}

  TierKind kind() const override { return TierKind::memcached; }
  std::string address() const override { return server_.address(); }
  void start() override { server_.start(); }
  void kill() override { server_.kill(); }
  void pause() override { server_.pause(); }
  void resume() override { server_.resume(); }

  std::optional<std::string> head(const std::string& prefix) override {
    return client().get(prefix + "head");
  }
  void set_head(const std::string& prefix, const std::string& bytes) override {
    client().set(prefix + "head", bytes);
  }
  void remove_head(const std::string& prefix) override { client().remove(prefix + "head"); }
  std::optional<std::string> update(const std::string& prefix, UpdateId id) override {
    return client().get(update_key(prefix, id));
  }
  void set_update(const std::string& prefix, UpdateId id, const std::string& bytes) override {
    client().set(update_key(prefix, id), bytes);
  }
  void remove_update(const std::string& prefix, UpdateId id) override {
    client().remove(update_key(prefix, id));
  }
  void remove_fill_lease(const std::string& prefix, UpdateId id) override {
    client().remove(prefix + "fill:" + std::to_string(id));
  }

  void flush_all() override { client().flush_all(); }
  std::uint64_t item_count() override { return client().statistic("curr_items"); }
  std::uint64_t evictions() override { return client().statistic("evictions"); }
  std::uint64_t hits() override { return client().statistic("get_hits"); }

 private:
  static std::string update_key(const std::string& prefix, UpdateId id) {
    return prefix + "u:" + std::to_string(id);
  }
  MemcachedClient client() const { return MemcachedClient(server_); }

  MemcachedServer server_;
};

#endif

#if WHYCACHE_WITH_REDIS

class RedisTierServer final : public TierServer {
 public:
  RedisTierServer(std::vector<std::string> options, bool by_socket)
      : server_(std::move(options), by_socket) {}

  TierKind kind() const override { return TierKind::redis; }
  std::string address() const override { return server_.address(); }
  void start() override { server_.start(); }
  void kill() override { server_.kill(); }
  void pause() override { server_.pause(); }
  void resume() override { server_.resume(); }

  std::optional<std::string> head(const std::string& prefix) override {
    return client().get(keys(prefix) + "head");
  }
  void set_head(const std::string& prefix, const std::string& bytes) override {
    client().run({"SET", keys(prefix) + "head", bytes});
  }
  void remove_head(const std::string& prefix) override {
    client().run({"DEL", keys(prefix) + "head"});
  }
  std::optional<std::string> update(const std::string& prefix, UpdateId id) override {
    const std::string entry = std::to_string(id) + "-0";
    // The id, then the fields.
    const std::vector<std::string> found =
        client().run({"XRANGE", keys(prefix) + "updates", entry, entry});
    if (found.empty()) return std::nullopt;
    if (found.size() == 5) return found.at(2);
    const std::vector<std::string> apart =
        client().run({"HGET", keys(prefix) + "bodies", std::to_string(id)});
    return apart.empty() ? std::nullopt : std::optional(apart.at(0));
  }
  // Redis cannot replace an entry of a stream, nor add one before the last.
  void set_update(const std::string& prefix, UpdateId id, const std::string& bytes) override {
    const std::string stream = keys(prefix) + "updates";
    RedisClient redis(server_);
    const std::vector<std::string> found = redis.run({"XRANGE", stream, "-", "+"});
    redis.run({"DEL", stream});
    const auto add = [&](const std::string& name, const std::vector<std::string>& fields) {
      std::vector<std::string> words = {"XADD", stream, name};
      words.insert(words.end(), fields.begin(), fields.end());
      redis.run(words);
    };
    bool is_set = false;
    for (std::size_t i = 0; i + 4 < found.size();) {
      const bool is_apart = i + 6 < found.size() && found[i + 5] == "k";
      const auto begin = found.begin() + static_cast<std::ptrdiff_t>(i);
      const UpdateId entry_id = std::stoull(found[i]);
      if (entry_id >= id && !is_set) {
        add(std::to_string(id) + "-0", {"b", bytes, "t", found[i + 4]});
        is_set = true;
      }
      if (entry_id != id) add(found[i], {begin + 1, begin + (is_apart ? 7 : 5)});
      i += is_apart ? 7 : 5;
    }
    if (!is_set) add(std::to_string(id) + "-0", {"b", bytes, "t", "0"});
  }
  void remove_update(const std::string& prefix, UpdateId id) override {
    client().run({"XDEL", keys(prefix) + "updates", std::to_string(id) + "-0"});
  }
  void remove_fill_lease(const std::string& prefix, UpdateId id) override {
    client().run({"DEL", keys(prefix) + "fill:" + std::to_string(id)});
  }

  void flush_all() override { client().run({"FLUSHALL"}); }
  std::uint64_t item_count() override { return std::stoull(client().run({"DBSIZE"}).at(0)); }
  std::uint64_t evictions() override { return std::stoull(client().info("evicted_keys")); }
  std::uint64_t hits() override { return std::stoull(client().info("keyspace_hits")); }

 private:
  RedisClient client() const { return RedisClient(server_); }
  std::string keys(const std::string& prefix) const {
    RedisServer server;
    server.address = *parse_server_address(server_.address(), 0);
    return RedisConnection(server, Deadline(std::chrono::seconds(20))).keys_of(prefix);
  }

  RedisTestServer server_;
};

#endif

}  // namespace

std::string name_of(TierKind kind) { return kind == TierKind::memcached ? "memcached" : "redis"; }

std::vector<TierKind> tier_kinds() {
  std::vector<TierKind> kinds;
#if WHYCACHE_WITH_MEMCACHED
  if (MemcachedServer::is_installed()) {
    kinds.push_back(TierKind::memcached);
  } else {
    std::fprintf(stderr,
                 "\n*** SKIPPED: memcached is not installed, so that the memcached+ tier is not "
                 "tested ***\n\n");
  }
#endif
#if WHYCACHE_WITH_REDIS
  if (RedisTestServer::is_installed()) {
    kinds.push_back(TierKind::redis);
  } else {
    std::fprintf(stderr,
                 "\n*** SKIPPED: redis-server is not installed, so that the redis+ tier is not "
                 "tested ***\n\n");
  }
#endif
  return kinds;
}

std::vector<TierKind> only(TierKind kind) {
  std::vector<TierKind> kinds = tier_kinds();
  std::erase_if(kinds, [&](TierKind each) { return each != kind; });
  return kinds;
}

MakeTierStore make_tier(TierKind kind, [[maybe_unused]] const std::string& addresses,
                        [[maybe_unused]] std::chrono::milliseconds timeout) {
#if WHYCACHE_WITH_MEMCACHED
  if (kind == TierKind::memcached) {
    return [servers = parse_memcached_servers(addresses), timeout] {
      return std::make_unique<MemcachedStore>(servers, timeout);
    };
  }
#endif
#if WHYCACHE_WITH_REDIS
  if (kind == TierKind::redis) {
    RedisServer server;
    server.address = parse_server_address(addresses, 6379).value();
    return [server, timeout] { return std::make_unique<RedisStore>(server, timeout); };
  }
#endif
  throw not_built(kind);
}

std::string tiered_url(TierKind kind, const std::string& url, const std::string& address) {
  return name_of(kind) + '+' + url + (url.find('?') == std::string::npos ? '?' : '&') +
         name_of(kind) + '=' + address;
}

std::unique_ptr<TierServer> TierServer::start_new(TierKind kind,
                                                  [[maybe_unused]] std::vector<std::string> options,
                                                  [[maybe_unused]] bool by_socket) {
#if WHYCACHE_WITH_MEMCACHED
  if (kind == TierKind::memcached)
    return std::make_unique<MemcachedTierServer>(std::move(options), by_socket);
#endif
#if WHYCACHE_WITH_REDIS
  if (kind == TierKind::redis)
    return std::make_unique<RedisTierServer>(std::move(options), by_socket);
#endif
  throw not_built(kind);
}

TierServer& TierServer::shared(TierKind kind) {
  static std::unique_ptr<TierServer> servers[2];
  std::unique_ptr<TierServer>& server = servers[static_cast<int>(kind)];
  if (server == nullptr) server = start_new(kind);
  return *server;
}

}  // namespace whycache::testing
