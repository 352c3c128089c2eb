#include "histories/stage.h"

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
#include "support/tcp_proxy.h"
#endif

namespace whycache::testing {
namespace {

class UrlStage final : public Stage {
 public:
  explicit UrlStage(std::string url) : url_(std::move(url)) {}
  std::string url() const override { return url_; }

 private:
  std::string url_;
};

#if WHYCACHE_WITH_MYSQL

// A MariaDB server, which is killed and started again now and then, behind a proxy that cuts most connections
// somewhere.
class MysqlStage final : public Stage {
 public:
  explicit MysqlStage(std::uint64_t seed) : random_(seed), database_(server_.make_database()), proxy_(server_.port()) {
    proxy_.treat([this](std::uint64_t) {
      TcpProxy::Treatment treatment;
      // From the first byte to some hundred statements, as many of each size.
      const double size = std::exp(std::uniform_real_distribution<double>(0, std::log(200'000))(random_));
      (random_() % 2 == 0 ? treatment.to_server : treatment.to_client).cut_after = static_cast<std::uint64_t>(size);
      treatment.cut_by_reset = random_() % 2 == 0;
      return treatment;
    });
  }

  std::string url() const override { return server_.url(database_); }
  std::string players_url() const override {
    return "mysql://root@127.0.0.1:" + std::to_string(proxy_.port()) + '/' + database_ + "?deadline_ms=3000";
  }
  bool wants_flaky_log() const override { return false; }
  void disturb() override {
    server_.kill();
    server_.start();
    ++disturbances_;
  }
  void calm_down() override {
    proxy_.treat_all({});
    proxy_.cut_all();
    MariadbClient client(server_);
    const std::string others =
        " FROM information_schema.PROCESSLIST WHERE DB = '" + database_ + "' AND ID <> CONNECTION_ID()";
    for (const std::string& id : client.rows("SELECT ID" + others)) {
      try {
        client.run("KILL " + id);
      } catch (const std::runtime_error&) {  // it has just ended
      }
    }
    for (int i = 0; i < 2000; ++i) {
      if (client.run("SELECT count(*)" + others) == "0") return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    throw std::runtime_error("the server does not come to the end of what it was asked for");
  }
  std::uint64_t cuts() const override { return proxy_.cuts(); }
  std::uint64_t disturbances() const override { return disturbances_; }

 private:
  std::mt19937_64 random_;
  MariadbServer server_;
  std::string database_;
  TcpProxy proxy_;
  std::uint64_t disturbances_ = 0;
};

#endif

}  // namespace

std::unique_ptr<Stage> make_stage(const std::string& log, const std::string& folder, std::uint64_t seed) {
  const std::map<std::string, std::function<std::unique_ptr<Stage>()>> stages {
    {"file",
     [&] {
       std::filesystem::create_directory(folder + "/log");
       return std::make_unique<UrlStage>("file://" + folder + "/log");
     }},
        {"sqlite", [&] { return std::make_unique<UrlStage>("sqlite://" + folder + "/log.db"); }},
#if WHYCACHE_WITH_MYSQL
        {"mysql", [&] { return std::make_unique<MysqlStage>(seed); }},
#endif
  };
  const auto found = stages.find(log);
  if (found != stages.end()) return found->second();
  std::string known;
  for (const auto& [name, make] : stages) known += ' ' + name;
  throw std::runtime_error("there is no stage for this log: " + log + " (known:" + known + ")");
}

}  // namespace whycache::testing
