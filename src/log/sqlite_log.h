// The log in an SQLite database. Schema, with a worked example: docs/formats/sql.md.
//
//   whycache_logs                one row per instance: uuid, base, chain and token of the base
//   whycache_updates_INSTANCE    id INTEGER PRIMARY KEY, bytes: one row per update
//   whycache_parts_INSTANCE      the parts of the base, and of bases being written
//
// Any number of processes may use the log:
//
// - append() is one INSERT ... SELECT ... WHERE base < id. The primary key makes it insert if
//   absent, and the base cannot change within the statement.
// - read() takes rows and extent in one transaction, a buffer of rows at a time. It holds no lock
//   while `visit` runs.
// - rewrite() inserts each part in a transaction of its own, under (base, random token), so that
//   rewriters never interfere. One UPDATE then switches, if all parts are there and the base
//   grows. Last, it deletes rows in small batches, under conditions that hold for any process that
//   deletes. It returns their pages to the file system in small batches too: a database that this
//   class creates has auto_vacuum=INCREMENTAL.
//
// Journal: SQLite 3.7.0 to 3.51.2 can corrupt a database in WAL mode when two processes write and
// checkpoint at once (the "WAL-reset bug"), which is this log's normal load. With such a library
// the journal is a rollback journal (PERSIST). A database in WAL mode is then switched back, or
// refused while that is impossible. With a library without the bug a new database gets WAL, and an
// existing one keeps its mode. Always synchronous=FULL: an acknowledged append is on the disk.
//
// fork(): a child must never touch a connection, not even to close it. It also gets a copy of
// SQLite's record of its locks, in whatever state that is. fork() therefore waits until no thread
// is inside SQLite through this file. In the child every call throws, except reopen() and the
// destructor, which leaks the connection on purpose.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <whycache/log.h>

#include "base/timed_mutex.h"
#include "log/log_checks.h"
#include "log/update_watch.h"

namespace whycache {

struct LogMetadata;

struct SqliteLogOptions {
  std::string path;  // its directory must exist
  std::string instance = "default";
  std::string name;  // for messages
  // How long a call waits for the locks of other connections.
  std::chrono::milliseconds deadline{10'000};
  // The version of SQLite that the choice of the journal assumes; 0: the library's own. For tests.
  int sqlite_version = 0;
};

// Whether this version (a sqlite3_libversion_number()) can corrupt a database in WAL mode.
constexpr bool has_wal_reset_bug(int version) noexcept {
  const bool fixed_in_branch = (version >= 3'044'006 && version < 3'045'000) ||
                               (version >= 3'050'007 && version < 3'051'000);
  return version >= 3'007'000 && version < 3'051'003 && !fixed_in_branch;
}

class SqliteLog final : public Log {
 public:
  // Creates file, tables and log if they do not exist, or throws LogMissing. Throws Error.
  explicit SqliteLog(SqliteLogOptions options, IfMissing if_missing = IfMissing::create);
  ~SqliteLog() override;

  std::string name() const override { return options_.name; }
  Extent extent() override;
  // Returns `taken` if the previous update is missing, or if the log was replaced since the last
  // call; reading the log again shows which.
  Appended append(UpdateId id, std::string_view bytes) override;
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override;
  // Woken when a process of this machine appends, or otherwise writes to the database.
  bool wait(UpdateId after, std::chrono::nanoseconds at_most) override;
  bool notifies() const noexcept override { return watch_.notifies(); }
  void read_base(const VisitPart& visit) override;
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override;
  std::unique_ptr<Log> reopen() override;

 private:
  class Connection;
  class Statement;

  template <typename Work>
  auto with_connection(const Work& work);
  std::unique_ptr<Connection> connect(IfMissing if_missing) const;
  std::unique_ptr<Connection> connect_again() const;
  bool has_log_row(Connection& connection) const;
  void create_tables(Connection& connection) const;
  LogMissing log_missing(Connection& connection) const;
  bool has_log(Connection& connection) const noexcept;
  LogMetadata read_log_row(Connection& connection) const;
  Extent read_extent(Connection& connection) WHYCACHE_REQUIRES(mutex_);

  template <typename Database>
  friend bool rewrite_in_database(Database& database, UpdateId base, std::uint64_t base_chain,
                                  const NextPart& next_part);
  void write_part(const LogMetadata& next, std::string_view part);
  void delete_unused_parts(const LogMetadata& next);
  bool switch_base(const LogMetadata& next);
  void delete_below_base();
  void delete_in_batches(const char* sql, std::int64_t rows);
  void vacuum_incrementally();

  SqliteLogOptions options_;
  UpdateWatch watch_;
  std::uint64_t owner_fork_count_ = 0;  // fork_count() of the process that opened it

  TimedMutex mutex_;
  std::unique_ptr<Connection> connection_ WHYCACHE_GUARDED_BY(mutex_);
  std::optional<Uuid> uuid_seen_ WHYCACHE_GUARDED_BY(mutex_);
};

}  // namespace whycache
