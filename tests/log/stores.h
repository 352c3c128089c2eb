// The stores of the project's own logs, and changes that tests make to them from outside the log.
#pragma once

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include <whycache/log.h>

#include "log/file_log.h"
#include "log/log_store.h"
#include "log/memory_log.h"
#include "support/memory_directory.h"
#include "support/temporary_directory.h"
#if WHYCACHE_WITH_SQLITE
#include <sqlite3.h>

#include "log/sqlite_log.h"
#endif
#if WHYCACHE_WITH_MYSQL
#include "log/mysql_log.h"
#include "support/mariadb_server.h"
#endif

namespace whycache {

// In memory if possible: these tests check order, not disks.
class StoreDirectory : public testing::TemporaryDirectory {
 public:
  StoreDirectory() : TemporaryDirectory(testing::memory_directory()) {}
};

class MemoryStore final : public LogStore {
 public:
  std::unique_ptr<Log> open() override { return MemoryLog::shared(name_); }
  std::unique_ptr<Log> open_other_instance() override {
    return MemoryLog::shared(name_ + "?instance=other");
  }
  bool must_notify() const override { return true; }

 private:
  static std::string new_name() {
    static std::atomic<int> count{0};
    return "test" + std::to_string(++count);
  }
  std::string name_ = new_name();
};

class FileStore final : public LogStore {
 public:
  std::unique_ptr<Log> open() override { return open("default"); }
  std::unique_ptr<Log> open_other_instance() override { return open("other"); }
  bool is_shared_by_processes() const override { return true; }
  bool must_notify() const override { return true; }
  bool delete_externally() override { return std::filesystem::remove_all(directory()) > 0; }
  bool put_stray(UpdateId id, std::string_view bytes) override {
    FileStore other;
    const auto log = other.open();
    for (UpdateId each = 1; each <= id; ++each) log->append(each, bytes);
    std::filesystem::copy_file(other.update_path(id), update_path(id));
    return true;
  }
  std::optional<std::uint64_t> stored_updates() override {
    return static_cast<std::uint64_t>(
        std::distance(std::filesystem::directory_iterator(root() + "/updates"), {}));
  }

  std::string directory() const { return directory_.file("log"); }
  std::string root() const { return directory() + "/default"; }
  std::string update_path(UpdateId id) const {
    const std::string digits = std::to_string(id);
    return root() + "/updates/" + std::string(20 - digits.size(), '0') + digits;
  }
  std::unique_ptr<FileLog> open(const std::string& instance) const {
    return std::make_unique<FileLog>(
        FileLogOptions{.directory = directory(), .instance = instance, .name = "file:" + instance});
  }

 private:
  StoreDirectory directory_;
};

#if WHYCACHE_WITH_SQLITE

// A separate connection, as any other program would open.
class Database {
 public:
  explicit Database(const std::string& path) {
    if (sqlite3_open(path.c_str(), &database_) != SQLITE_OK)
      throw std::runtime_error("cannot open " + path);
    sqlite3_busy_timeout(database_, 10'000);
  }
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;
  ~Database() { sqlite3_close(database_); }

  // Runs SQL; returns the last value of the last row as text.
  std::string run(const std::string& sql) {
    std::string value;
    char* message = nullptr;
    const auto keep = [](void* to, int columns, char** values, char**) {
      *static_cast<std::string*>(to) =
          values[columns - 1] == nullptr ? "NULL" : values[columns - 1];
      return 0;
    };
    if (sqlite3_exec(database_, sql.c_str(), keep, &value, &message) != SQLITE_OK) {
      const std::string text = message == nullptr ? "?" : message;
      sqlite3_free(message);
      throw std::runtime_error(sql + ": " + text);
    }
    return value;
  }

 private:
  sqlite3* database_ = nullptr;
};

class SqliteStore final : public LogStore {
 public:
  // `sqlite_version`: see SqliteLogOptions.
  explicit SqliteStore(int sqlite_version = 0) : sqlite_version_(sqlite_version) {}

  std::unique_ptr<Log> open() override { return open("default"); }
  std::unique_ptr<Log> open_other_instance() override { return open("other"); }
  bool is_shared_by_processes() const override { return true; }
  bool must_notify() const override { return true; }
  bool delete_externally() override {
    for (const char* suffix : {"", "-journal", "-wal", "-shm"})
      std::filesystem::remove(path() + suffix);
    return true;
  }
  bool put_stray(UpdateId id, std::string_view) override {
    Database(path()).run("INSERT INTO whycache_updates_default VALUES (" + std::to_string(id) +
                         ", x'73')");
    return true;
  }
  std::optional<std::uint64_t> stored_updates() override {
    return std::stoull(Database(path()).run("SELECT count(*) FROM whycache_updates_default"));
  }

  std::string path() const { return directory_.file("log.db"); }
  std::unique_ptr<SqliteLog> open(const std::string& instance, std::chrono::milliseconds deadline =
                                                                   std::chrono::seconds(30)) const {
    return std::make_unique<SqliteLog>(SqliteLogOptions{.path = path(),
                                                        .instance = instance,
                                                        .name = "sqlite:" + instance,
                                                        .deadline = deadline,
                                                        .sqlite_version = sqlite_version_});
  }

 private:
  int sqlite_version_;
  StoreDirectory directory_;
};

#endif

#if WHYCACHE_WITH_MYSQL

// A database in a server that all tests of a process share.
class MysqlStore final : public LogStore {
 public:
  explicit MysqlStore(testing::MariadbServer& server = testing::MariadbServer::shared())
      : server_(server), database_(server.make_database()), owner_pid_(::getpid()) {}
  ~MysqlStore() override {
    if (::getpid() != owner_pid_) return;
    try {
      client().run("DROP DATABASE " + database_);
    } catch (const std::runtime_error&) {  // the server and its data are already deleted
    }
  }

  std::unique_ptr<Log> open() override { return open("default"); }
  std::unique_ptr<Log> open_other_instance() override { return open("other"); }
  bool is_shared_by_processes() const override { return true; }
  bool outlives_killed_clients() const override { return true; }
  bool delete_externally() override {
    client().run(
        "DROP TABLE whycache_logs; DROP TABLE whycache_updates; DROP TABLE whycache_parts");
    return true;
  }
  bool put_stray(UpdateId id, std::string_view) override {
    client().run("INSERT INTO whycache_updates VALUES ('default', " + std::to_string(id) +
                 ", 's')");
    return true;
  }
  std::optional<std::uint64_t> stored_updates() override {
    return std::stoull(
        client().run("SELECT count(*) FROM whycache_updates WHERE instance = 'default'"));
  }

  const std::string& database() const { return database_; }
  testing::MariadbServer& server() const { return server_; }
  std::string run(const std::string& sql) const { return client().run(sql); }
  testing::MariadbClient client(const std::string& user = "root") const {
    return testing::MariadbClient(server_, database_, user);
  }
  MysqlLogOptions options(std::chrono::milliseconds deadline = std::chrono::seconds(30)) const {
    MysqlLogOptions options;
    options.server.host = "127.0.0.1";
    options.server.port = server_.port();
    options.server.user = "root";
    options.server.database = database_;
    options.name = "mysql";
    options.deadline = deadline;
    return options;
  }
  std::unique_ptr<MysqlLog> open(const std::string& instance, std::chrono::milliseconds deadline =
                                                                  std::chrono::seconds(30)) const {
    MysqlLogOptions with_instance = options(deadline);
    with_instance.instance = instance;
    return std::make_unique<MysqlLog>(with_instance);
  }

 private:
  testing::MariadbServer& server_;
  std::string database_;
  pid_t owner_pid_;
};

#endif

}  // namespace whycache
