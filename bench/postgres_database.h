// A PostgreSQL server for the benchmark, on a unix socket in a directory of its own; both end with
// the object. Acknowledged commits are durable: fsync and synchronous_commit are on, the defaults.
#pragma once

#include <fmt/format.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/server.h"
#include "bench/temporary_directory.h"

namespace bench {

struct ClearPostgresResult {
  void operator()(PGresult* result) const { ::PQclear(result); }
};
using PostgresResult = std::unique_ptr<PGresult, ClearPostgresResult>;

// libpq without anything in between.
class BarePostgres {
 public:
  explicit BarePostgres(const std::string& parameters)
      : connection_(::PQconnectdb(parameters.c_str())) {
    if (::PQstatus(get()) != CONNECTION_OK) fail();
  }

  PGconn* get() const { return connection_.get(); }
  PostgresResult run(const std::string& sql) const { return check(::PQexec(get(), sql.c_str())); }
  PostgresResult check(PGresult* answer) const {
    PostgresResult result(answer);
    const ExecStatusType status = ::PQresultStatus(result.get());
    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK) fail();
    return result;
  }
  [[noreturn]] void fail() const {
    throw std::runtime_error(std::string("postgres: ") + ::PQerrorMessage(get()));
  }

 private:
  struct Finish {
    void operator()(PGconn* connection) const { ::PQfinish(connection); }
  };
  std::unique_ptr<PGconn, Finish> connection_;
};

class PostgresDatabase {
 public:
  // `counts_statements`: whether the server counts them, which makes each a little slower.
  PostgresDatabase(const std::string& parent_directory, std::size_t connections_max,
                   bool counts_statements = false)
      : directory_(parent_directory) {
    const std::string programs = program_directory();
    const std::string data = directory_.path() + "/data";
    std::vector<std::string> as_user;
    if (::geteuid() == 0) {  // it refuses to run as root
      const passwd* const user = ::getpwnam("postgres");
      if (user == nullptr || ::chown(directory_.path().c_str(), user->pw_uid, user->pw_gid) != 0)
        throw std::runtime_error("there is no user postgres");
      as_user = {"setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups",
                 "--pdeathsig=KILL"};
    }
    std::vector<std::string> install = as_user;
    install.insert(install.end(), {programs + "/initdb", "-D", data, "-U", "postgres", "-A",
                                   "trust", "--no-sync", "-E", "UTF8", "--locale=C"});
    run_command(install, "postgresql");
    std::vector<std::string> serve = as_user;
    serve.insert(serve.end(), {programs + "/postgres", "-D", data});
    std::vector<std::string> settings = {
        "listen_addresses=", "unix_socket_directories=" + directory_.path(), "shared_buffers=64MB",
        // A server that is killed leaves segments in /dev/shm.
        "dynamic_shared_memory_type=mmap", fmt::format("max_connections={}", connections_max + 10)};
    if (counts_statements) {
      settings.emplace_back("shared_preload_libraries=pg_stat_statements");
      settings.emplace_back("pg_stat_statements.track=top");
    }
    for (const std::string& setting : settings) serve.insert(serve.end(), {"-c", setting});
    server_ = std::make_unique<Server>(serve);
    server_->wait_until([&] {
      try {
        BarePostgres(parameters("postgres")).run("CREATE DATABASE bench");
        return true;
      } catch (const std::runtime_error&) {
        return false;
      }
    });
    if (!counts_statements) return;
    monitor_.emplace(parameters("postgres"));
    monitor_->run("CREATE EXTENSION pg_stat_statements");
  }

  // Returns the URL of a log in it; each instance is another log.
  std::string url(const std::string& instance) const {
    return "postgres://postgres@/bench?socket=" + directory_.path() + "&instance=" + instance;
  }
  // Returns what libpq connects to.
  std::string parameters(const std::string& database = "bench") const {
    return "user=postgres dbname=" + database + " host=" + directory_.path();
  }

  // The server's own counters, for the database of the logs.
  double statements() const {
    return number(
        "SELECT COALESCE(sum(calls), 0) FROM pg_stat_statements "
        "WHERE dbid = (SELECT oid FROM pg_database WHERE datname = 'bench')");
  }
  double connections() const {
    return number("SELECT count(*) FROM pg_stat_activity WHERE datname = 'bench'");
  }

 private:
  static std::string program_directory() {
    std::string newest;
    std::error_code ignored;
    for (const auto& version : std::filesystem::directory_iterator("/usr/lib/postgresql", ignored))
      newest = std::max(newest, version.path().string() + "/bin");
    if (newest.empty()) throw std::runtime_error("there is no PostgreSQL (Debian: postgresql)");
    return newest;
  }
  double number(const std::string& sql) const {
    const PostgresResult result = monitor_->run(sql);
    return std::strtod(::PQgetvalue(result.get(), 0, 0), nullptr);
  }

  TemporaryDirectory directory_;
  std::unique_ptr<Server> server_;
  std::optional<BarePostgres> monitor_;
};

}  // namespace bench
