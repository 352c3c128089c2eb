// The log in a MySQL or MariaDB database. Schema, with a worked example: docs/formats/sql.md.
//
//   whycache_logs       one row per instance: uuid, base, chain and token of the base
//   whycache_updates    (instance, id), bytes: one row per update
//   whycache_parts      the parts of the bases, and of bases being written
//
// Why it is safe between any number of machines:
//
// - append() is one INSERT ... SELECT ... WHERE base < id, a transaction of its own. The primary
//   key makes it insert-if-absent. Every session sets REPEATABLE READ: the statement then locks
//   what it reads, shared, until it is committed. The lock on the row of whycache_logs keeps the
//   base from moving meanwhile; the lock on the previous update waits until that is committed.
// - read() takes rows and extent in one statement, and so from one view of the database, a limited
//   number of rows at a time. While `visit` runs, no lock is held and no statement is open.
// - rewrite() inserts each part in a transaction of its own, under (base, random token), so that
//   two rewriters never touch the same rows. Then one UPDATE switches the base, if all parts are
//   there and the base grows. Then rows are deleted in batches, by conditions that hold whichever
//   process deletes.
//
// Failures. If the server reports that nothing was done, as after a deadlock, the call tries again
// until the deadline. If the connection is lost, the call opens another, and repeats what it read
// or deleted. An append or a switch whose answer was lost is uncertain.
//
// Replica. If there is one, poll() reads updates from it. It may be behind, or have another
// history, so poll() first asks the primary for the id and the chain of its newest update. If the
// updates from the replica end with that one, they are the primary's; otherwise poll() reads the
// primary. The replica only saves the primary from sending updates. All other calls use the primary
// alone.
//
// Privileges. A user that may SELECT can lock what it reads, and so keep writers from appending. A
// user that may only EXECUTE the procedures of docs/formats/sql.md cannot: these end the
// transaction of the caller, and lock nothing. The log uses them if SELECT is denied.
//
// fork(). A child must never touch a connection: every call in it throws, except for reopen() and
// the destructor.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <whycache/log.h>

#include "base/clock.h"
#include "base/timed_mutex.h"
#include "log/connection_attempt.h"
#include "log/log_checks.h"
#include "log/mysql_server.h"
#include "log/mysql_statements.h"
#include "log/read_position.h"
#include "log/row_buffer.h"

namespace whycache {

class MysqlConnection;
class MysqlRows;
struct LogMetadata;
struct LogTableRow;
struct PrimaryHead;
struct MysqlFailure;

struct MysqlLogOptions {
  MysqlServer server;
  std::optional<MysqlServer> replica;
  std::string instance = "default";
  // For messages.
  std::string name;
  // How long to wait for the server and for locks, at most. The server counts whole seconds.
  std::chrono::milliseconds deadline{10'000};
  // Whether to refuse a server that may lose acknowledged writes when it, or its machine, crashes.
  bool durable = true;
};

class MysqlLog final : public Log {
 public:
  // Creates tables and log if they do not exist, but not the database; or throws LogMissing. Throws
  // Error.
  explicit MysqlLog(MysqlLogOptions options, IfMissing if_missing = IfMissing::create);
  ~MysqlLog() override;

  std::string name() const override { return options_.name; }
  Extent extent() override;
  // Returns `taken` also if the previous update is missing, or if the log was replaced since the
  // last call: the caller finds out when it reads again.
  //
  // After a lost connection, the address may lead to another server with other updates. Throws
  // Error(unavailable) then until a thread has read the previous update over the new connection.
  // Throws it, too, if that update is not the one that `bytes` continue, by their chains: one
  // thread has read it, but this writer may not know it.
  Appended append(UpdateId id, std::string_view bytes) override;
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override;
  PollResult poll(UpdateId first, std::optional<std::chrono::nanoseconds> staleness_max,
                  const VisitUpdate& visit) override;
  void read_base(const VisitPart& visit) override;
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override;
  void check_may_rewrite() override;
  std::uint64_t store_id() const noexcept override {
    return store_.load(std::memory_order_relaxed);
  }
  void release_idle_connections() noexcept override;
  std::unique_ptr<Log> reopen() override;

 private:
  // How to handle a statement whose answer was lost: repeat it, or report that it is uncertain.
  enum class IfLost { retry, uncertain };

  template <typename Work>
  auto with_connection(IfLost if_lost, const char* what, const Work& work);
  void connect(const Deadline& deadline) WHYCACHE_REQUIRES(mutex_);
  bool is_log_deleted(const Deadline& deadline) const WHYCACHE_REQUIRES(mutex_);
  Error unreachable_error(const MysqlServer& server, int number, const std::string& message) const
      WHYCACHE_REQUIRES(mutex_);
  Error connect_error(const MysqlServer& server, const MysqlFailure& failure)
      WHYCACHE_REQUIRES(mutex_);
  Error error(const char* what, const MysqlFailure& failure, IfLost if_lost,
              const Deadline& deadline) const WHYCACHE_REQUIRES(mutex_);
  std::string lock_holders(const Deadline& deadline) const WHYCACHE_REQUIRES(mutex_);
  bool may_use_procedures(const Deadline& deadline) const WHYCACHE_REQUIRES(mutex_);

  bool has_log(MysqlConnection& connection) const WHYCACHE_REQUIRES(mutex_);
  static std::vector<std::string> statements_to_create_tables(MysqlConnection& connection);
  LogMissing log_missing(MysqlConnection& connection) const WHYCACHE_REQUIRES(mutex_);
  void create_log(MysqlConnection& connection) const;
  void check_server(MysqlConnection& connection);
  void check_tables(MysqlConnection& connection) WHYCACHE_REQUIRES(mutex_);

  std::uint64_t store_at(const MysqlConnection& connection) const;
  LogTableRow to_log_row(const MysqlRows& rows, const MysqlConnection& connection) const;
  LogTableRow read_log_row();
  LogTableRow read_log_row(MysqlConnection& connection) const WHYCACHE_REQUIRES(mutex_);
  Extent read_updates(MysqlConnection& connection, UpdateId first, UpdateId last,
                      bool is_first_read, RowBuffer& buffer) WHYCACHE_REQUIRES(mutex_);
  bool read_replica(UpdateId first, const PrimaryHead& primary, RowBuffer& buffer);
  std::optional<PollResult> poll_replica(UpdateId first, const VisitUpdate& visit);

  void check_size(const MysqlConnection& connection, const char* what, const char* table,
                  std::size_t bytes, std::size_t column_bytes_max) const;
  template <typename Database>
  friend bool rewrite_in_database(Database& database, UpdateId base, std::uint64_t base_chain,
                                  const NextPart& next_part);
  void write_part(const LogMetadata& next, std::string_view part);
  void delete_unused_parts(const LogMetadata& next);
  bool switch_base(const LogMetadata& next);
  void delete_below_base();
  void delete_in_batches(const std::string& sql);

  MysqlLogOptions options_;
  const MysqlStatements statements_{options_.instance};
  // fork_count() of the process that opened the log.
  std::uint64_t owner_fork_count_ = 0;

  // Stored after connecting. Relaxed: nothing is published with it.
  std::atomic<std::uint64_t> store_{0};
  // Held during a statement: one thread at a time uses a connection.
  TimedMutex mutex_;
  std::unique_ptr<MysqlConnection> connection_ WHYCACHE_GUARDED_BY(mutex_);
  std::unique_ptr<MysqlConnection> replica_connection_ WHYCACHE_GUARDED_BY(mutex_);
  // Attempts to connect that took longer than the call that began them.
  std::optional<ConnectionAttempt<MysqlConnection>> pending_connection_ WHYCACHE_GUARDED_BY(mutex_);
  std::optional<ConnectionAttempt<MysqlConnection>> pending_replica_connection_
      WHYCACHE_GUARDED_BY(mutex_);
  std::optional<Deadline> replica_unavailable_until_ WHYCACHE_GUARDED_BY(mutex_);
  // The uuid of the log at the primary.
  Uuid uuid_seen_ WHYCACHE_GUARDED_BY(mutex_){};
  ReadPosition read_position_ WHYCACHE_GUARDED_BY(mutex_);
  bool is_open_ WHYCACHE_GUARDED_BY(mutex_) = false;
  // Whether to read by the procedures, as SELECT was denied.
  bool uses_procedures_ WHYCACHE_GUARDED_BY(mutex_) = false;
  // How many rows to ask for at once; adapts to how large they are.
  std::uint64_t rows_per_query_ WHYCACHE_GUARDED_BY(mutex_);
  std::size_t update_column_bytes_max_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  std::size_t part_column_bytes_max_ WHYCACHE_GUARDED_BY(mutex_) = 0;
};

}  // namespace whycache
