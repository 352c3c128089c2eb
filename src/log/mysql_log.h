// The log in a MySQL or MariaDB database. Schema, with a worked example: docs/formats/sql.md.
//
//   whycache_logs       one row per instance: uuid, base, chain and token of the base
//   whycache_updates    (instance, id), bytes: one row per update
//   whycache_parts      the parts of the bases, and of bases being written
//
// How it is safe between any number of machines:
//
// - append() is one INSERT ... SELECT ... WHERE base < id, a transaction of its own: the primary
// key is the
//   insert-if-absent. At the isolation we set it locks the row it reads of whycache_logs, shared, until it is
//   committed, so that the base cannot move within it; and that of the update before, so that one which is not
//   committed yet is waited for.
// - read() takes rows and extent in one statement, and so from one view, a page at a time, as it
// comes from the server. No
//   lock is held, and nothing is under way, while `visit` runs.
// - rewrite() inserts the parts in a transaction each, under (base, random token), so that
// rewriters never meet; then
//   one UPDATE switches if all parts are there and the base grows; then rows are deleted in batches, by conditions that
//   hold whoever deletes.
//
// Deadlocks and the like, of which the server says that nothing was done, are tried again until the
// deadline. A lost connection is opened anew; what was only read is read again, and so is deleted
// what was to be deleted. An append or a switch whose answer was lost is uncertain.
//
// A replica, if there is one, is where look() has updates from, for who follows. It may be behind,
// or of another history, so the primary is asked first which update is the newest, and with which
// chain: the replica is believed if its updates end with this one, and else the primary asked for
// all. So it spares the primary sending updates, and changes nothing of what is seen. All other
// calls ask the primary alone.
//
// fork(): a connection must never be touched in a child: in it every call throws but reopen() and
// the destructor.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <whycache/log.h>

#include "base/clock.h"
#include "base/mutex.h"
#include "log/log_checks.h"
#include "log/mysql_server.h"
#include "log/row_buffer.h"

namespace whycache {

class MysqlConnection;
class MysqlRows;
struct LogMetadata;
struct MysqlFailure;

struct MysqlLogOptions {
  MysqlServer server;
  std::optional<MysqlServer> replica;
  std::string instance = "default";
  std::string name;  // for messages
  // How long to wait for the server, and for the locks of others; in whole seconds for the server.
  std::chrono::milliseconds deadline{10'000};
  // Refuse a server that may forget what it acknowledged when it, or its machine, crashes.
  bool durable = true;
};

class MysqlLog final : public Log {
 public:
  // Makes tables and log if they are not there, but not the database. Throws Error.
  explicit MysqlLog(MysqlLogOptions options);
  ~MysqlLog() override;

  std::string name() const override { return options_.name; }
  Extent extent() override;
  // An append whose predecessor is not there, or to a log that was replaced since the last call,
  // answers `taken`: reading again will tell. After a connection was lost the address may lead to
  // another server, whose updates differ: appends are then `unavailable` until the update before
  // them was read from there, by whichever thread. And so they are while the update that was read
  // there last is the one before them, but not the one that they continue (as their chains say, if
  // these are a cache's updates): that another thread has read it does not mean that this writer
  // knows.
  Appended append(UpdateId id, std::string_view bytes) override;
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override;
  PollResult poll(UpdateId first, std::optional<std::chrono::nanoseconds> age_max,
                  const VisitUpdate& visit) override;
  void read_base(const VisitPart& visit) override;
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override;
  void release_idle_connections() noexcept override;
  std::unique_ptr<Log> reopen() override;

 private:
  struct PrimaryHead;
  struct MysqlLogRow;
  // What a statement whose answer was lost is: done again, or in doubt.
  enum class IfLost { retry, uncertain };

  MysqlLog(MysqlLogOptions options, IfMissing absent);

  template <typename Work>
  auto with_connection(IfLost if_lost, const char* what, const Work& work);
  void connect() WHYCACHE_REQUIRES(mutex_);
  bool is_log_deleted() const WHYCACHE_REQUIRES(mutex_);
  Error connect_error(const MysqlServer& server, const MysqlFailure& failure) const;
  Error error(const char* what, const MysqlFailure& failure, IfLost if_lost) const;

  bool has_log(MysqlConnection& connection) const;
  void create_log(MysqlConnection& connection) const;
  void check_server(MysqlConnection& connection);
  void check_tables(MysqlConnection& connection) WHYCACHE_REQUIRES(mutex_);

  MysqlLogRow to_log_row(const MysqlRows& rows) const;
  MysqlLogRow read_log_row();
  MysqlLogRow read_log_row(MysqlConnection& connection) const;
  Extent read_updates(MysqlConnection& connection, UpdateId first, UpdateId last,
                      bool is_first_page, RowBuffer& page) WHYCACHE_REQUIRES(mutex_);
  bool read_replica(UpdateId first, const PrimaryHead& newest, RowBuffer& page);
  std::optional<PollResult> poll_replica(UpdateId first, const VisitUpdate& visit);
  void record_read(UpdateId id, std::optional<std::uint64_t> chain) WHYCACHE_REQUIRES(mutex_);
  bool has_read_predecessor(UpdateId id) const WHYCACHE_REQUIRES(mutex_);
  void check_predecessor(UpdateId id, std::string_view bytes) const WHYCACHE_REQUIRES(mutex_);

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
  std::uint64_t owner_fork_count_ = 0;  // which process: fork_count()

  // One thread at a time uses the connections, and knows what was read over them.
  Mutex mutex_;
  std::unique_ptr<MysqlConnection> connection_ WHYCACHE_GUARDED_BY(mutex_);
  std::unique_ptr<MysqlConnection> replica_connection_ WHYCACHE_GUARDED_BY(mutex_);
  std::optional<Deadline> replica_unavailable_until_ WHYCACHE_GUARDED_BY(mutex_);
  // The uuid of the log at the primary.
  Uuid uuid_seen_ WHYCACHE_GUARDED_BY(mutex_){};
  // The least id at which a read over this connection has begun. 0: this is the first connection,
  // over which any append is allowed.
  UpdateId earliest_read_id_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  // The greatest id that was read or appended over this connection, and its chain if it is known.
  UpdateId newest_read_id_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  std::optional<std::uint64_t> newest_read_chain_ WHYCACHE_GUARDED_BY(mutex_);
  bool is_open_ WHYCACHE_GUARDED_BY(mutex_) = false;
  // How many rows to ask for at once; adapts to how large they are.
  std::uint64_t rows_per_query_ WHYCACHE_GUARDED_BY(mutex_);
  std::size_t update_column_bytes_max_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  std::size_t part_column_bytes_max_ WHYCACHE_GUARDED_BY(mutex_) = 0;
};

}  // namespace whycache
