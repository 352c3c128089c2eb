#include "histories/faulty_store.h"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <thread>

#if WHYCACHE_WITH_MYSQL
#include "support/mariadb_server.h"
#endif
#if WHYCACHE_WITH_POSTGRES
#include "support/postgres_server.h"
#endif
#include "support/tcp_proxy.h"
#include "support/tier_server.h"

namespace whycache::testing {
namespace {

class PlainStore final : public FaultyStore {
 public:
  explicit PlainStore(std::string url) : url_(std::move(url)) {}
  std::string url() const override { return url_; }

 private:
  std::string url_;
};

[[maybe_unused]] TcpProxy::ConnectionFaults cut_within(double bytes_max, std::mt19937_64& random) {
  TcpProxy::ConnectionFaults faults;
  const double size =
      std::exp(std::uniform_real_distribution<double>(0, std::log(bytes_max))(random));
  (random() % 2 == 0 ? faults.to_server : faults.to_client).cut_after =
      static_cast<std::uint64_t>(size);
  faults.cut_by_reset = random() % 2 == 0;
  return faults;
}

// The server receives every request, but from some byte on no answer arrives: an append whose
// deadline then passes is in doubt. The first answers are left alone, since they open the log.
[[maybe_unused]] TcpProxy::ConnectionFaults lose_answers_within(std::uint64_t bytes_max,
                                                                std::mt19937_64& random) {
  TcpProxy::ConnectionFaults faults;
  faults.to_client.drop_after = 1'000 + random() % bytes_max;
  return faults;
}

// A database server that is killed and restarted now and then, behind a proxy that cuts most
// connections and loses the answers of some.
template <typename Server>
class FaultyDatabaseServer : public FaultyStore {
 public:
  // `place`: scheme and user of a URL. `bytes_max`: within which connections are cut.
  FaultyDatabaseServer(std::uint64_t seed, std::string place, double bytes_max)
      : random_(seed),
        place_(std::move(place)),
        database_(server_.make_database()),
        proxy_(server_.port()),
        slow_proxy_(server_.port()) {
    proxy_.set_fault_chooser([this, bytes_max](std::uint64_t) {
      return random_() % 10 == 0 ? lose_answers_within(5'000, random_)
                                 : cut_within(bytes_max, random_);
    });
    slow_proxy_.set_faults({.to_client = {.delay = std::chrono::milliseconds(10)}});
  }

  std::string url() const override { return server_.url(database_); }
  std::string worker_url() const override { return url_by_way_of(proxy_); }
  std::string hurried_url() const override { return url_by_way_of(slow_proxy_); }
  bool needs_flaky_log() const override { return false; }
  void inject_fault() override {
    server_.kill();
    server_.start();
    ++kills_;
  }
  void stop_faults() override {
    for (TcpProxy* const proxy : {&proxy_, &slow_proxy_}) {
      proxy->set_faults({});
      proxy->cut_all();
    }
    for (int i = 0; i < 2000; ++i) {
      if (end_other_connections() == 0) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    throw std::runtime_error("the server does not finish its earlier statements");
  }
  std::vector<std::pair<std::string, std::uint64_t>> fault_counts() override {
    return {{"cuts", proxy_.cuts()}, {"server_kills", kills_}};
  }

 protected:
  // Ends the connections to database(), and returns how many are left.
  virtual std::uint64_t end_other_connections() = 0;

  const Server& server() const { return server_; }
  const std::string& database() const { return database_; }

 private:
  std::string url_by_way_of(const TcpProxy& proxy) const {
    return place_ + "@127.0.0.1:" + std::to_string(proxy.port()) + '/' + database_ +
           "?deadline_ms=3000";
  }

  std::mt19937_64 random_;  // used only by the thread of proxy_
  Server server_;
  const std::string place_;
  std::string database_;
  TcpProxy proxy_;
  TcpProxy slow_proxy_;
  std::uint64_t kills_ = 0;
};

#if WHYCACHE_WITH_POSTGRES

class FaultyPostgres final : public FaultyDatabaseServer<PostgresTestServer> {
 public:
  explicit FaultyPostgres(std::uint64_t seed)
      : FaultyDatabaseServer(seed, "postgres://postgres", 400'000) {}

 private:
  std::uint64_t end_other_connections() override {
    return std::stoull(PostgresClient(server()).run(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '" +
        database() + "'"));
  }
};

#endif

#if WHYCACHE_WITH_MYSQL

class FaultyMysql : public FaultyDatabaseServer<MariadbServer> {
 public:
  explicit FaultyMysql(std::uint64_t seed) : FaultyDatabaseServer(seed, "mysql://root", 200'000) {}

 private:
  std::uint64_t end_other_connections() override {
    MariadbClient client(server());
    const std::string others = " FROM information_schema.PROCESSLIST WHERE DB = '" + database() +
                               "' AND ID <> CONNECTION_ID()";
    for (const std::string& id : client.rows("SELECT ID" + others)) {
      try {
        client.run("KILL " + id);
      } catch (const std::runtime_error&) {  // the connection has just closed
      }
    }
    return std::stoull(client.run("SELECT count(*)" + others));
  }
};

// FaultyMysql with a tier in front. The server of the tier is in turn killed and restarted empty,
// flushed, and paused for longer than its timeout. Its proxy cuts some connections, too.
class FaultyTier final : public FaultyMysql {
 public:
  FaultyTier(TierKind kind, std::uint64_t seed)
      : FaultyMysql(seed), random_(~seed), server_(TierServer::start_new(kind)), proxy_(port()) {
    proxy_.set_fault_chooser([this](std::uint64_t) {
      // After a failure the tier is left out for a while, so most connections must work for it to
      // be used at all.
      return random_() % 4 == 0 ? cut_within(200'000, random_) : TcpProxy::ConnectionFaults{};
    });
  }

  std::string worker_url() const override { return with_tier(FaultyMysql::worker_url()); }
  std::string hurried_url() const override { return with_tier(FaultyMysql::hurried_url()); }
  void inject_fault() override {
    switch (fault_count_++ % 4) {
      case 0:
        hits_before_ += server_->hits();
        server_->kill();
        server_->start();
        ++kills_;
        return;
      case 1:
        server_->flush_all();
        ++flushes_;
        return;
      case 2:
        server_->pause();
        std::this_thread::sleep_for(std::chrono::milliseconds(500));
        server_->resume();
        ++pauses_;
        return;
      default: FaultyMysql::inject_fault();
    }
  }
  std::chrono::milliseconds quiet_period_min() const override { return std::chrono::seconds(2); }
  std::vector<std::pair<std::string, std::uint64_t>> fault_counts() override {
    auto counts = FaultyMysql::fault_counts();
    counts.emplace_back("tier_cuts", proxy_.cuts());
    counts.emplace_back("tier_kills", kills_);
    counts.emplace_back("tier_flushes", flushes_);
    counts.emplace_back("tier_pauses", pauses_);
    counts.emplace_back("tier_hits", hits_before_ + server_->hits());
    return counts;
  }

 private:
  std::uint16_t port() const {
    const std::string address = server_->address();
    return static_cast<std::uint16_t>(std::stoul(address.substr(address.rfind(':') + 1)));
  }
  std::string with_tier(const std::string& mysql_url) const {
    return tiered_url(server_->kind(), mysql_url, "127.0.0.1:" + std::to_string(proxy_.port()));
  }

  std::mt19937_64 random_;  // used only by the thread of the proxy
  std::unique_ptr<TierServer> server_;
  TcpProxy proxy_;
  std::uint64_t fault_count_ = 0;
  std::uint64_t kills_ = 0;
  std::uint64_t flushes_ = 0;
  std::uint64_t pauses_ = 0;
  std::uint64_t hits_before_ = 0;  // of killed servers
};

#endif

}  // namespace

std::unique_ptr<FaultyStore> make_faulty_store(const std::string& log, const std::string& directory,
                                               std::uint64_t seed) {
  const std::map<std::string, std::function<std::unique_ptr<FaultyStore>()>> makers {
    {"file",
     [&] {
       std::filesystem::create_directory(directory + "/log");
       return std::make_unique<PlainStore>("file://" + directory + "/log");
     }},
        {"sqlite",
         [&] { return std::make_unique<PlainStore>("sqlite://" + directory + "/log.db"); }},
#if WHYCACHE_WITH_POSTGRES
        {"postgres", [&] { return std::make_unique<FaultyPostgres>(seed); }},
#endif
#if WHYCACHE_WITH_MYSQL
        {"mysql", [&] { return std::make_unique<FaultyMysql>(seed); }},
        {"memcached", [&] { return std::make_unique<FaultyTier>(TierKind::memcached, seed); }},
        {"redis", [&] { return std::make_unique<FaultyTier>(TierKind::redis, seed); }},
#endif
  };
  const auto found = makers.find(log);
  if (found != makers.end()) return found->second();
  std::string known;
  for (const auto& [name, make] : makers) known += ' ' + name;
  throw std::runtime_error("unknown log: " + log + " (known:" + known + ")");
}

}  // namespace whycache::testing
