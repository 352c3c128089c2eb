// The store of a log in PostgreSQL, for tests.
#pragma once

#include <unistd.h>

#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "log/log_store.h"
#include "log/postgres_log.h"
#include "support/postgres_server.h"

namespace whycache {

// A database in a server that all tests of a process share.
class PostgresStore final : public LogStore {
 public:
  explicit PostgresStore(
      testing::PostgresTestServer& server = testing::PostgresTestServer::shared())
      : server_(server), database_(server.make_database()), owner_pid_(::getpid()) {}
  ~PostgresStore() override {
    if (::getpid() != owner_pid_) return;
    try {
      testing::PostgresClient(server_).run("DROP DATABASE " + database_ + " WITH (FORCE)");
    } catch (const std::runtime_error&) {  // the server and its data are already deleted
    }
  }

  std::unique_ptr<Log> open() override { return open("default"); }
  std::unique_ptr<Log> open_other_instance() override { return open("other"); }
  bool is_shared_by_processes() const override { return true; }
  bool must_notify() const override { return true; }
  bool outlives_killed_clients() const override { return true; }
  bool delete_externally() override {
    run("DROP TABLE whycache_logs; DROP TABLE whycache_updates; DROP TABLE whycache_parts");
    return true;
  }
  bool put_stray(UpdateId id, std::string_view) override {
    run("INSERT INTO whycache_updates VALUES ('default', " + std::to_string(id) + ", 's')");
    return true;
  }
  std::optional<std::uint64_t> stored_updates() override {
    return std::stoull(run("SELECT count(*) FROM whycache_updates WHERE instance = 'default'"));
  }

  const std::string& database() const { return database_; }
  testing::PostgresTestServer& server() const { return server_; }
  std::string url(const std::string& options = "") const {
    return server_.url(database_) + options;
  }
  std::string run(const std::string& sql) const { return client().run(sql); }
  testing::PostgresClient client(const std::string& user = "postgres") const {
    return testing::PostgresClient(server_, database_, user);
  }
  PostgresLogOptions options(std::chrono::milliseconds deadline = std::chrono::seconds(30)) const {
    PostgresLogOptions options;
    options.server.addresses = {{"127.0.0.1", server_.port(), false}};
    options.server.user = "postgres";
    options.server.database = database_;
    options.name = "postgres";
    options.deadline = deadline;
    return options;
  }
  std::unique_ptr<PostgresLog> open(
      const std::string& instance,
      std::chrono::milliseconds deadline = std::chrono::seconds(30)) const {
    PostgresLogOptions with_instance = options(deadline);
    with_instance.instance = instance;
    return std::make_unique<PostgresLog>(with_instance);
  }

 private:
  testing::PostgresTestServer& server_;
  std::string database_;
  pid_t owner_pid_;
};

}  // namespace whycache
