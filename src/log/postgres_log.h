// The log in a PostgreSQL database. Schema, with a worked example: docs/formats/sql.md.
//
//   whycache_logs       one row per instance: uuid, base, chain and token of the base
//   whycache_updates    (instance, id), bytes: one row per update
//   whycache_parts      the parts of the bases, and of bases being written
//
// Why it is safe between any number of machines:
//
// - At READ COMMITTED each statement has a snapshot of its own, which it takes before it writes.
//   The base could therefore move between the two. append() is one INSERT ... SELECT ... FOR SHARE:
//   it locks the row of whycache_logs until it is committed. If that row has changed since the
//   snapshot, the server evaluates the condition again with the new row. A switch of the base
//   changes the row, so it waits for appends in progress, and later appends see it.
// - The settings that append() depends on are in its condition.
// - An update n + 1 is inserted only if update n is committed: ids become visible in order.
// - read() takes rows and extent in one statement, and so from one snapshot, a limited number of
//   rows and bytes at a time. While `visit` runs, no transaction is open.
// - rewrite() inserts each part in a transaction of its own, under (base, random token). The switch
//   locks the row of whycache_logs in one statement, and checks and updates in the next, whose
//   snapshot is newer than the lock: a transaction that deletes unused parts has locked it, too.
//
// Followers need no right but SELECT. In PostgreSQL this does not include the right to lock rows,
// so they cannot delay writers.
//
// Failures. If the server reports that nothing was done, as after a deadlock, the call tries again
// until the deadline. If the connection is lost, the call opens another, and repeats what it read
// or deleted. An append or a switch whose answer was lost is uncertain.
//
// Wake-ups. After an append is committed, a transaction of its own sends NOTIFY with the id: its
// lock on the whole database is never held by an append. wait() has a connection that LISTENs. A
// pooler would not keep one: then, the caller polls. A notification is a claim that anybody may
// forge. It wakes waiters until a read that began after it shows that there is no such update.
//
// Replica. As for the log in MySQL (log/mysql_log.h): poll() takes updates from it if they end with
// the newest update of the primary.
//
// fork(). A child must never touch a connection: every call in it throws, except for reopen() and
// the destructor.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <whycache/log.h>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/timed_mutex.h"
#include "log/connection_attempt.h"
#include "log/log_checks.h"
#include "log/postgres_server.h"
#include "log/read_position.h"
#include "log/row_buffer.h"

namespace whycache {

class PostgresConnection;
class PostgresRows;
struct LogMetadata;
struct LogTableRow;
struct PrimaryHead;
struct PostgresFailure;
struct PostgresStatement;

struct PostgresLogOptions {
  PostgresServer server;
  std::optional<PostgresServer> replica;
  std::string schema = "public";
  std::string instance = "default";
  // For messages.
  std::string name;
  // How long to wait for the server and for locks, at most.
  std::chrono::milliseconds deadline{10'000};
  // Whether to refuse a server that may lose acknowledged writes when it, or its machine, crashes.
  bool durable = true;
  // Whether appends notify listeners.
  bool notify = true;
};

class PostgresLog final : public Log {
 public:
  // Creates tables and log if they do not exist, but not the database or the schema; or throws
  // LogMissing. Throws Error.
  explicit PostgresLog(PostgresLogOptions options, IfMissing if_missing = IfMissing::create);
  ~PostgresLog() override;

  std::string name() const override { return options_.name; }
  Extent extent() override;
  // Returns `taken` also if the previous update is missing, or if the log was replaced since the
  // last call: the caller finds out when it reads again.
  //
  // After a lost connection, the address may lead to another server with other updates. Throws
  // Error(unavailable) then until a thread has read the previous update over the new connection.
  // Throws it, too, if that update is not the one that `bytes` continue, by their chains. A pooler
  // may lead each transaction to another server: the append itself checks that it is the one that
  // the previous update was read from.
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
  // Also returns true, for all waiters, after its connection was opened, until the log is read; and
  // when it is lost: notifications may have been missed.
  bool wait(UpdateId after, std::chrono::nanoseconds at_most) override;
  bool notifies() const noexcept override { return notifies_.load(std::memory_order_relaxed); }

 private:
  // How to handle a statement whose answer was lost: repeat it, or report that it is uncertain.
  enum class IfAnswerLost { retry, uncertain };

  template <typename Work>
  auto with_connection(IfAnswerLost if_lost, const char* what, const Work& work);
  void connect(const Deadline& deadline) WHYCACHE_REQUIRES(mutex_);
  // Records which server answered.
  void note_server(const PostgresConnection& connection) WHYCACHE_REQUIRES(mutex_);
  bool is_log_deleted(const Deadline& deadline) WHYCACHE_REQUIRES(mutex_);
  Error unreachable_error(const PostgresFailure& failure, const std::string& message) const
      WHYCACHE_REQUIRES(mutex_);
  Error connect_error(const PostgresServer& server, const PostgresFailure& failure)
      WHYCACHE_REQUIRES(mutex_);
  Error error(const char* what, const PostgresFailure& failure, IfAnswerLost if_lost,
              const Deadline& deadline) WHYCACHE_REQUIRES(mutex_);
  std::string lock_holders(const Deadline& deadline) WHYCACHE_REQUIRES(mutex_);

  bool has_log(PostgresConnection& connection, const Deadline& deadline) const;
  LogMissing log_missing(PostgresConnection& connection, const Deadline& deadline) const;
  std::vector<std::string> instances(PostgresConnection& connection,
                                     const Deadline& deadline) const;
  std::vector<PostgresStatement> statements_to_create_tables(PostgresConnection& connection,
                                                             const Deadline& deadline) const;
  void create_log(PostgresConnection& connection, const Deadline& deadline) const;
  void check_server(const PostgresConnection& connection) const;
  void check_tables(PostgresConnection& connection, const Deadline& deadline) const;

  std::string table(const char* name) const { return schema_ + '.' + name; }
  std::string log_columns() const;
  std::uint64_t store_at(const PostgresConnection& connection) const;
  LogTableRow to_log_row(const PostgresRows& rows, const PostgresConnection& connection,
                         int row = 0) const;
  LogTableRow read_log_row();
  LogTableRow read_log_row(PostgresConnection& connection, const Deadline& deadline) const;
  Extent read_updates(PostgresConnection& connection, UpdateId first, UpdateId last,
                      std::size_t rows_max, bool is_first_read, RowBuffer& buffer,
                      const Deadline& deadline) const;
  bool read_replica(UpdateId first, const PrimaryHead& primary, RowBuffer& buffer);
  std::optional<PollResult> poll_replica(UpdateId first, const VisitUpdate& visit);

  bool may_be_beyond(UpdateId after) const;
  void note_head(UpdateId head, std::uint64_t claims_before) WHYCACHE_EXCLUDES(waiters_mutex_);
  void note_claim(UpdateId claimed) WHYCACHE_EXCLUDES(waiters_mutex_);
  bool listen(const Deadline& deadline) WHYCACHE_REQUIRES(listener_mutex_);
  bool wait_for_notification(UpdateId after, const Deadline& deadline);

  template <typename Database>
  friend bool rewrite_in_database(Database& database, UpdateId base, std::uint64_t base_chain,
                                  const NextPart& next_part);
  std::string append_sql() const;
  void write_part(const LogMetadata& next, std::string_view part);
  void delete_unused_parts(const LogMetadata& next);
  bool switch_base(const LogMetadata& next);
  void delete_below_base();

  PostgresLogOptions options_;
  // The name of the schema, quoted.
  const std::string schema_;
  const std::string append_sql_;  // put together once, since each write needs it
  // fork_count() of the process that opened the log.
  std::uint64_t owner_fork_count_ = 0;

  // Stored after connecting. Relaxed: nothing is published with it.
  std::atomic<std::uint64_t> store_{0};
  // Whether wait() is woken. Relaxed: see above.
  std::atomic<bool> notifies_{false};
  // The head that the last answer of the server had. Relaxed: a hint for wait().
  std::atomic<UpdateId> head_seen_{0};
  // The greatest id that was notified, or 0 once a read that began later has disproved it; and how
  // many notifications have arrived. A connection that begins to listen counts as a notification
  // of all ids. Written under waiters_mutex_. Relaxed.
  std::atomic<UpdateId> claimed_head_{0};
  std::atomic<std::uint64_t> claim_count_{0};
  // One thread waits for notifications, for all that wait: the others wait for it to be done.
  Mutex waiters_mutex_;
  std::condition_variable waiters_changed_;
  bool is_listening_ WHYCACHE_GUARDED_BY(waiters_mutex_) = false;
  // Held by the thread that listens.
  TimedMutex listener_mutex_;
  std::unique_ptr<PostgresConnection> listener_ WHYCACHE_GUARDED_BY(listener_mutex_);
  std::optional<ConnectionAttempt<PostgresConnection>> pending_listener_
      WHYCACHE_GUARDED_BY(listener_mutex_);
  // Held during a transaction: one thread at a time uses a connection.
  TimedMutex mutex_;
  std::unique_ptr<PostgresConnection> connection_ WHYCACHE_GUARDED_BY(mutex_);
  std::unique_ptr<PostgresConnection> replica_connection_ WHYCACHE_GUARDED_BY(mutex_);
  // Attempts to connect that took longer than the call that began them.
  std::optional<ConnectionAttempt<PostgresConnection>> pending_connection_
      WHYCACHE_GUARDED_BY(mutex_);
  std::optional<ConnectionAttempt<PostgresConnection>> pending_replica_connection_
      WHYCACHE_GUARDED_BY(mutex_);
  std::optional<Deadline> replica_unavailable_until_ WHYCACHE_GUARDED_BY(mutex_);
  // The uuid of the log at the primary.
  Uuid uuid_seen_ WHYCACHE_GUARDED_BY(mutex_){};
  // When the server was started that the last transaction ran on. 0: there was none yet.
  std::uint64_t server_start_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  ReadPosition read_position_ WHYCACHE_GUARDED_BY(mutex_);
  bool is_open_ WHYCACHE_GUARDED_BY(mutex_) = false;
};

}  // namespace whycache
