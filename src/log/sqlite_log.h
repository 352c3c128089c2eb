// The log in an SQLite database. Schema, with a worked example: docs/formats/sql.md.
//
//   whycache_logs                one row per instance: uuid, base, chain and token of the base
//   whycache_updates_INSTANCE    id INTEGER PRIMARY KEY, bytes: one row per update
//   whycache_parts_INSTANCE      the parts of the base, and of bases being written
//
// How it is safe between any number of processes:
//
// - append() is one INSERT ... SELECT ... WHERE base < id: the primary key is the insert-if-absent,
// and the base cannot
//   move within the statement.
// - read() takes rows and extent in one transaction, a page at a time. No lock is held while
// `visit` runs.
// - rewrite() inserts the parts in a transaction each, under (base, random token), so that
// rewriters never meet; then
//   one UPDATE switches if all parts are there and the base grows; then rows are deleted in small batches, by
//   conditions that hold whoever deletes, and their pages given back to the file system (auto_vacuum=INCREMENTAL, which
//   a database that we make gets), in small batches too.
//
// Journal: SQLite 3.7.0 to 3.51.2 can corrupt a database in WAL mode when two processes write and
// checkpoint at once (the "WAL-reset bug"), which is what we do all day. With such a library the
// journal is a rollback journal (PERSIST), and a database somebody put in WAL mode is switched
// back, or refused while that cannot be done. With a library that is free of the bug a new database
// gets WAL, an existing one keeps what it has. Always synchronous=FULL: what append() acknowledged
// is on the disk.
//
// fork(): a connection must never be touched in a child, not even closed, and SQLite's books of
// locks are copied into the child as they stand. So fork() waits until no thread is inside SQLite
// through this file; in the child every call throws but reopen() and the destructor, which leaks
// the connection on purpose.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <whycache/log.h>

#include "base/mutex.h"
#include "log/log_checks.h"

namespace whycache {

struct LogMetadata;

struct SqliteLogOptions {
  std::string path;  // its folder has to exist
  std::string instance = "default";
  std::string name;  // for messages
  // How long to wait for the locks of others.
  std::chrono::milliseconds deadline{10'000};
  // What to take the SQLite library for when choosing the journal; 0: what it says it is. For
  // tests.
  int sqlite_version = 0;
};

// Whether WAL mode can corrupt a database with this version (as of sqlite3_libversion_number()).
constexpr bool has_wal_reset_bug(int version) noexcept {
  const bool mended_in_branch = (version >= 3'044'006 && version < 3'045'000) ||
                                (version >= 3'050'007 && version < 3'051'000);
  return version >= 3'007'000 && version < 3'051'003 && !mended_in_branch;
}

class SqliteLog final : public Log {
 public:
  // Makes file, tables and log if they are not there. Throws Error.
  explicit SqliteLog(SqliteLogOptions options);
  ~SqliteLog() override;

  std::string name() const override { return options_.name; }
  Extent extent() override;
  // An append whose predecessor is not there, or to a log that was replaced since the last call,
  // answers `taken`: reading again will tell.
  Appended append(UpdateId id, std::string_view bytes) override;
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override;
  void read_base(const VisitPart& visit) override;
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override;
  std::unique_ptr<Log> reopen() override;

 private:
  class Connection;
  class Statement;

  SqliteLog(SqliteLogOptions options, IfMissing absent);

  template <typename Work>
  auto with_connection(const Work& work);
  std::unique_ptr<Connection> connect(IfMissing absent) const;
  void create_tables(Connection& connection) const;
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
  std::uint64_t owner_fork_count_ = 0;  // which process: fork_count()

  Mutex mutex_;
  std::unique_ptr<Connection> connection_ WHYCACHE_GUARDED_BY(mutex_);
  std::optional<Uuid> uuid_seen_ WHYCACHE_GUARDED_BY(mutex_);
};

}  // namespace whycache
