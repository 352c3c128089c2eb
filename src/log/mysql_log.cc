#include "log/mysql_log.h"

#include <errmsg.h>
#include <mysqld_error.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "base/backoff.h"
#include "base/call_limit.h"
#include "base/fork_handlers.h"
#include "base/hash.h"
#include "base/random.h"
#include "log/log_table_row.h"
#include "log/mysql_connection.h"
#include "log/rewrite_in_database.h"
#include "log/server_options.h"
#include "log/socket_timeout.h"
#include "log/tls_failure.h"
#include "update/update.h"

namespace whycache {
namespace {

constexpr std::size_t buffer_bytes_max = std::size_t{4} << 20;
constexpr std::uint64_t rows_per_query_min = 1;
constexpr std::uint64_t rows_per_query_initial = 64;
constexpr std::uint64_t rows_per_query_max = 4096;
// An update, or a part of a base, of a cache with default options, and some room.
constexpr std::size_t packet_bytes_min = std::size_t{2} << 20;
constexpr std::size_t column_bytes_min = packet_bytes_min;
// The rest of the packet that carries an update.
constexpr std::size_t statement_overhead_bytes = 4096;
constexpr std::chrono::seconds replica_timeout_max{2};
constexpr std::chrono::seconds replica_retry_delay{5};
// After a lost connection, or a prepared statement that the server forgot.
constexpr int immediate_retries_max = 2;
// After a deadlock: random pauses, so that the same transactions do not meet again.
constexpr Backoff::Pauses retry_pauses{std::chrono::milliseconds(1), std::chrono::milliseconds(64),
                                       1.0};

// Error codes that the headers of some client libraries do not have.
constexpr unsigned record_has_changed = 1020;  // ER_CHECKREAD: MariaDB, innodb_snapshot_isolation
constexpr unsigned rolled_back_during_commit = 3101;       // MySQL group replication
constexpr unsigned statement_timed_out_in_mariadb = 1969;  // ER_STATEMENT_TIMEOUT
constexpr unsigned statement_timed_out_in_mysql = 3024;    // ER_QUERY_TIMEOUT
constexpr unsigned read_only_mode = 1836;
constexpr unsigned innodb_read_only = 1874;
constexpr unsigned galera_not_ready = 1047;  // ER_UNKNOWN_COM_ERROR, which Galera uses for it
constexpr unsigned account_is_locked = 4151;
constexpr unsigned account_is_locked_in_mysql = 3118;

// --- The meaning of failures. ---

// Whether the client library may have failed while it read the answer to a statement that was
// executed. The rest of the answer is still to come over the connection.
bool is_answer_unread(const MysqlFailure& failure) {
  return failure.code == CR_OUT_OF_MEMORY || failure.code == CR_NET_PACKET_TOO_LARGE;
}

// Whether nothing was done, and another attempt may succeed.
bool is_retryable(unsigned code) {
  return code == ER_LOCK_DEADLOCK || code == record_has_changed ||
         code == rolled_back_during_commit;
}

// Whether the server is a former primary, or a node that lost its cluster: a new connection may
// reach another one.
bool is_wrong_server(unsigned code) {
  return code == ER_OPTION_PREVENTS_STATEMENT || code == ER_OPEN_AS_READONLY ||
         code == innodb_read_only || code == read_only_mode || code == galera_not_ready;
}

// Returns the errno of connect() at the end of "Can't connect to ... (111)"; 0 if there is none.
int connect_errno(const MysqlFailure& failure) {
  if (failure.code != CR_CONNECTION_ERROR && failure.code != CR_CONN_HOST_ERROR) return 0;
  const std::size_t begin = failure.reason.rfind('(');
  if (!failure.reason.starts_with("Can't connect") || begin == std::string::npos) return 0;
  int number = 0;
  std::from_chars(failure.reason.data() + begin + 1, failure.reason.data() + failure.reason.size(),
                  number);
  return number;
}

bool is_account_locked(unsigned code) {
  return code == account_is_locked || code == account_is_locked_in_mysql;
}

// Whether a limit of this user was reached, which the reason names, not one of the server.
bool is_limit_of_user(unsigned code) {
  return code == ER_USER_LIMIT_REACHED || code == ER_TOO_MANY_USER_CONNECTIONS;
}

bool is_permission_failure(unsigned code) {
  switch (code) {
    case ER_DBACCESS_DENIED_ERROR:
    case ER_ACCESS_DENIED_ERROR:
    case ER_ACCESS_DENIED_NO_PASSWORD_ERROR:
    case ER_TABLEACCESS_DENIED_ERROR:
    case ER_COLUMNACCESS_DENIED_ERROR:
    case ER_SPECIFIC_ACCESS_DENIED_ERROR:
    case ER_HOST_NOT_PRIVILEGED:
    case ER_MUST_CHANGE_PASSWORD:
    case ER_MUST_CHANGE_PASSWORD_LOGIN:
    case account_is_locked:
    case account_is_locked_in_mysql: return true;
    default: return false;
  }
}

// Returns the error for a limit that the server, or this process, has reached.
std::optional<Error> shortage_error(unsigned code, const std::string& message) {
  switch (code) {
    case CR_OUT_OF_MEMORY:
    case ER_OUTOFMEMORY:
    case ER_OUT_OF_RESOURCES:
      return Error(ErrorKind::limit, message + " (the server, or this process, has no memory left)",
                   ENOMEM);
    case ER_DISK_FULL:
    case ER_RECORD_FILE_FULL:
      return Error(ErrorKind::limit, message + " (free space on the disk of the server)", ENOSPC);
    case CR_NET_PACKET_TOO_LARGE:
    case ER_NET_PACKET_TOO_LARGE:
    case ER_TRANS_CACHE_FULL:
    case ER_TOO_BIG_ROWSIZE:
    case ER_DATA_TOO_LONG: return Error(ErrorKind::limit, message);
    default: return std::nullopt;
  }
}

}  // namespace

// --- Connection and failures. ---

void MysqlLog::connect(const Deadline& deadline) {
  if (connection_ && !connection_->is_alive()) connection_.reset();
  if (connection_) return;
  connection_ = connect_mysql(options_.server, options_.deadline, deadline, pending_connection_);
  store_.store(store_at(*connection_), std::memory_order_relaxed);
  read_position_.restart(!is_open_);
}

template <typename Work>
auto MysqlLog::with_connection(IfLost if_lost, const char* what, const Work& work) {
  if (fork_count() != owner_fork_count_) {
    throw Error(ErrorKind::invalid,
                "log was opened before a fork (use reopen() in the child): log=" + name());
  }
  const Deadline deadline = CallLimit::deadline(options_.deadline);
  const LogCallLock lock(mutex_, deadline, name());
  Backoff backoff(deadline, retry_pauses);
  for (int attempt = 0;; ++attempt) {
    // A stop that is requested later cuts the connection.
    if (deadline.stop().stop_requested())
      throw Error(ErrorKind::unavailable, "call was stopped: log=" + name());
    try {
      connect(deadline);
    } catch (const MysqlFailure& failure) {
      throw connect_error(options_.server, failure);
    }
    try {
      const SocketTimeout timeout(connection_->socket(), deadline);
      connection_->limit_statements(
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline.time_left()));
      return work(*connection_);
    } catch (const MysqlFailure& failure) {
      const bool lost = is_connection_lost(failure);
      const bool forgotten =
          failure.code == ER_UNKNOWN_STMT_HANDLER || failure.code == ER_NEED_REPREPARE;
      if (lost || forgotten || is_answer_unread(failure) || is_wrong_server(failure.code))
        connection_.reset();
      const bool can_repeat =
          forgotten || (lost && if_lost == IfLost::retry && !backoff.deadline().passed());
      if (can_repeat && attempt < immediate_retries_max) continue;
      if (failure.code == ER_NO_SUCH_TABLE && is_log_deleted(deadline))
        throw log_deleted_error(name());
      if (failure.code == ER_TABLEACCESS_DENIED_ERROR && !uses_procedures_ &&
          may_use_procedures(deadline)) {
        uses_procedures_ = true;
        continue;
      }
      if (!is_retryable(failure.code) || !backoff.pause())
        throw error(what, failure, if_lost, deadline);
    }
  }
}

// Whether tables are missing because an operator deleted the log.
bool MysqlLog::is_log_deleted(const Deadline& deadline) const {
  if (!connection_->is_alive()) return false;  // nor has it a socket if it was aborted
  try {
    const SocketTimeout timeout(connection_->socket(), deadline);
    return !has_log(*connection_);
  } catch (const MysqlFailure&) {
    return false;  // something else is wrong
  }
}

// Whether this user may read by the procedures.
bool MysqlLog::may_use_procedures(const Deadline& deadline) const {
  if (!connection_->is_alive()) return false;  // nor has it a socket if it was aborted
  try {
    const SocketTimeout timeout(connection_->socket(), deadline);
    MysqlRows rows = connection_->query(statements_.call_read_log());
    while (rows.next()) {
    }
    return true;
  } catch (const MysqlFailure&) {
    return false;  // the caller reports that SELECT is denied
  }
}

// Returns what to add to the message of a call that has waited in vain: the transactions that hold
// locks, or how to find them. The server does not keep which of them the statement has waited for.
std::string MysqlLog::lock_holders(const Deadline& deadline) const {
  std::string holders;
  if (!connection_->is_alive()) return holders;  // nor has it a socket if it was aborted
  try {
    const SocketTimeout timeout(connection_->socket(), deadline);
    MysqlRows rows = connection_->query(MysqlStatements::select_lock_holders());
    while (rows.next()) {
      holders += holders.empty() ? "" : ", ";
      holders.append(rows.at(0).value_or("")).append(" of ").append(rows.at(1).value_or(""));
      holders.append("@").append(rows.at(2).value_or(""));
    }
  } catch (const MysqlFailure&) {  // this user lacks PROCESS, or there is no time left
    return " (a transaction may hold a lock: docs/logs.md tells how to find and end it)";
  }
  if (holders.empty()) return "";
  return " connections_with_locks=\"" + holders + "\" (KILL ends a connection and its transaction)";
}

// The error of a server that cannot be reached. `number` is the errno of connect().
Error MysqlLog::unreachable_error(const MysqlServer& server, int number,
                                  const std::string& message) const {
  const bool is_socket = server.host.empty();
  if (number == EACCES && is_socket) {
    // Once a log is open, its url was right: the server's permissions have changed.
    return Error(is_open_ ? ErrorKind::unavailable : ErrorKind::invalid,
                 message + closed_socket_hint, EACCES);
  }
  // The client library reports a refused connection as EINPROGRESS.
  if (number == ETIMEDOUT || number == EHOSTUNREACH || number == ENETUNREACH)
    return Error(ErrorKind::unavailable, message + unreachable_host_hint);
  return Error(ErrorKind::unavailable,
               message + " (start the server, or correct host, port or socket in the url)");
}

Error MysqlLog::connect_error(const MysqlServer& server, const MysqlFailure& failure) {
  const std::string message = "cannot connect to database: log=" + name() +
                              " server=" + server.address() + " reason=\"" + failure.reason +
                              "\" code=" + std::to_string(failure.code);
  // The server knows the user, whose password was right.
  if (failure.code == ER_DBACCESS_DENIED_ERROR) {
    return Error(ErrorKind::invalid,
                 message +
                     " (correct the database in the url, or grant what `whycache init` prints for "
                     "this user)",
                 EACCES);
  }
  if (is_account_locked(failure.code)) {
    return Error(ErrorKind::invalid,
                 message + " (unlock it at the server: ALTER USER ... ACCOUNT UNLOCK)", EACCES);
  }
  if (is_permission_failure(failure.code)) {
    return Error(
        ErrorKind::invalid,
        message + " (check user and password: password_file, option_file, WHYCACHE_MYSQL_PASSWORD)",
        EACCES);
  }
  if (failure.code == ER_BAD_DB_ERROR) {
    return Error(ErrorKind::invalid,
                 message + " (correct the database in the url, or create it: CREATE DATABASE `" +
                     server.database + "`)");
  }
  if (failure.code == CR_UNKNOWN_HOST) {
    return Error(ErrorKind::unavailable,
                 message + " (correct the host in the url, or the name service of this machine)");
  }
  if (const int number = connect_errno(failure); number != 0)
    return unreachable_error(server, number, message);
  if (failure.code == ER_CON_COUNT_ERROR)
    return Error(ErrorKind::unavailable, message + too_many_connections_hint);
  if (is_limit_of_user(failure.code)) {
    return Error(ErrorKind::unavailable,
                 message +
                     " (raise that limit of the user at the server: ALTER USER ... WITH, or end "
                     "connections of the user)");
  }
  if (failure.code == CR_AUTH_PLUGIN_CANNOT_LOAD) return Error(ErrorKind::invalid, message);
  if (failure.code == CR_SSL_CONNECTION_ERROR && is_tls_refusal(failure.reason)) {
    // Once a log is open, its url was right: it is the server that has changed.
    const bool is_servers_fault = is_open_ || is_expired_certificate(failure.reason);
    return Error(is_servers_fault ? ErrorKind::unavailable : ErrorKind::invalid,
                 message + next_step_for_tls(failure.reason, "ssl_cert, ssl_key"));
  }
  return Error(ErrorKind::unavailable, message);
}

Error MysqlLog::error(const char* what, const MysqlFailure& failure, IfLost if_lost,
                      const Deadline& deadline) const {
  const std::string message = std::string(what) + ": log=" + name() + " reason=\"" +
                              failure.reason + "\" code=" + std::to_string(failure.code);
  const ErrorKind if_unanswered =
      if_lost == IfLost::uncertain ? ErrorKind::uncertain : ErrorKind::unavailable;
  const bool may_have_run = if_lost == IfLost::uncertain && is_answer_unread(failure);
  if (may_have_run || is_connection_lost(failure)) return Error(if_unanswered, message);
  if (is_permission_failure(failure.code)) {
    return Error(ErrorKind::invalid,
                 message + " (docs/logs.md lists the privileges that each role needs)", EACCES);
  }
  if (const std::optional<Error> shortage = shortage_error(failure.code, message)) return *shortage;
  switch (failure.code) {
    case ER_LOCK_DEADLOCK:
    case record_has_changed:
    case rolled_back_during_commit:
    case ER_LOCK_WAIT_TIMEOUT:
    case statement_timed_out_in_mariadb:
    case statement_timed_out_in_mysql: {
      const std::string holders = lock_holders(deadline);
      return Error(
          ErrorKind::unavailable,
          message + " waited_ms_max=" + std::to_string(options_.deadline.count()) + holders,
          failure.code == ER_LOCK_WAIT_TIMEOUT || !holders.empty() ? EBUSY : 0);
    }
    case ER_QUERY_INTERRUPTED:
    case ER_CON_COUNT_ERROR:
    case ER_USER_LIMIT_REACHED:
    case ER_TOO_MANY_USER_CONNECTIONS:
    case ER_MAX_PREPARED_STMT_COUNT_REACHED:
    case galera_not_ready: return Error(ErrorKind::unavailable, message);
    case ER_OPTION_PREVENTS_STATEMENT:
      if (failure.reason.find("read-only") == std::string::npos &&
          failure.reason.find("read_only") == std::string::npos)
        return Error(ErrorKind::unavailable, message);
      [[fallthrough]];
    case ER_OPEN_AS_READONLY:
    case innodb_read_only:
    case read_only_mode:
      return Error(ErrorKind::unavailable,
                   message + " (the server is read-only: the url must name the primary)");
    case ER_NO_SUCH_TABLE:
    case ER_BAD_FIELD_ERROR:
    case ER_WRONG_VALUE_COUNT_ON_ROW:
    case ER_NO_DEFAULT_FOR_FIELD:
    case ER_WARN_DATA_OUT_OF_RANGE:
      return Error(ErrorKind::corrupt,
                   message + " (a table is missing, or not as whycache creates it)");
    case ER_NO_SUCH_TABLE_IN_ENGINE:
    case ER_CRASHED_ON_USAGE:
    case ER_NOT_KEYFILE:
    case ER_INDEX_CORRUPT: return Error(ErrorKind::corrupt, message + restore_log_hint);
    case ER_PARSE_ERROR:
    case ER_NOT_SUPPORTED_YET:
      return Error(
          ErrorKind::invalid,
          message + " (this server cannot hold a log: use MariaDB 10.3 or MySQL 8, or later)");
    case ER_UNKNOWN_STORAGE_ENGINE:
      return Error(ErrorKind::invalid, message + " (whycache needs InnoDB)");
    // The server answered, so nothing was done; except for a failure of the commit itself.
    default: return Error(if_unanswered, message);
  }
}

// --- Opening. ---

MysqlLog::MysqlLog(MysqlLogOptions options, IfMissing if_missing)
    : options_(std::move(options)),
      owner_fork_count_(fork_count()),
      rows_per_query_(rows_per_query_initial) {
  with_connection(IfLost::retry, "cannot open log",
                  [&](MysqlConnection& connection) WHYCACHE_REQUIRES(mutex_) {
                    check_server(connection);
                    if (!has_log(connection)) {
                      if (if_missing == IfMissing::fail) throw log_missing(connection);
                      create_log(connection);
                    }
                    check_tables(connection);
                    const LogTableRow row = read_log_row(connection);
                    uuid_seen_ = row.uuid;
                    return true;
                  });
  is_open_ = true;
}

MysqlLog::~MysqlLog() {
  if (fork_count() == owner_fork_count_) return;
  MysqlConnection::abandon(std::move(connection_));
  MysqlConnection::abandon(std::move(replica_connection_));
  // Attempts that have finished would close connections of the parent.
  if (pending_connection_) pending_connection_->leak_result();
  if (pending_replica_connection_) pending_replica_connection_->leak_result();
}

void MysqlLog::release_idle_connections() noexcept {
  if (fork_count() != owner_fork_count_) return;
  if (!mutex_.try_lock()) return;
  connection_.reset();
  replica_connection_.reset();
  mutex_.unlock();
}

std::unique_ptr<Log> MysqlLog::reopen() {
  try {
    return std::make_unique<MysqlLog>(options_, IfMissing::fail);
  } catch (const LogMissing&) {
    throw log_deleted_error(name());
  }
}

// Refuses a server that cannot keep what the log promises.
void MysqlLog::check_server(MysqlConnection& connection) {
  if (connection.packet_bytes_max() < packet_bytes_min) {
    throw Error(ErrorKind::invalid,
                "server accepts packets that are too small: log=" + name() +
                    " max_allowed_packet=" + std::to_string(connection.packet_bytes_max()) +
                    " needed=" + std::to_string(packet_bytes_min) +
                    " (raise max_allowed_packet on the server)");
  }
  if (!options_.durable) return;
  const auto refuse = [&](const std::string& variable, const std::string& value) {
    throw Error(ErrorKind::invalid,
                "server may lose acknowledged writes when it crashes: log=" + name() + " " +
                    variable + "=" + value + " (set " + variable +
                    "=1 on the server; durable=off accepts the risk)");
  };
  const std::string& flush = connection.variable("innodb_flush_log_at_trx_commit");
  if (flush != "1" && flush != "3") refuse("innodb_flush_log_at_trx_commit", flush);
  const std::string& sync_binlog = connection.variable("sync_binlog");
  if (connection.variable("log_bin") == "ON" && sync_binlog != "1")
    refuse("sync_binlog", sync_binlog);
}

// Whether the log exists. Opening a log that exists must not need permission to write.
bool MysqlLog::has_log(MysqlConnection& connection) const {
  try {
    MysqlRows rows = connection.query(uses_procedures_ ? statements_.call_read_log()
                                                       : statements_.select_whether_log_exists());
    bool found = false;
    while (rows.next()) found = true;
    return found;
  } catch (const MysqlFailure& failure) {
    if (failure.code == ER_NO_SUCH_TABLE) return false;
    throw;
  }
}

namespace {

// Returns the instances in the database, one more than describe_instances() shows.
std::vector<std::string> read_instances(MysqlConnection& connection) {
  MysqlRows rows = connection.query(MysqlStatements::select_instances(described_instances_max + 1));
  std::vector<std::string> instances;
  while (rows.next()) instances.emplace_back(rows.at(0).value_or(""));
  return instances;
}

}  // namespace

LogMissing MysqlLog::log_missing(MysqlConnection& connection) const {
  // A user that may only call the procedures cannot see other instances.
  if (uses_procedures_) return {name(), "no log of this instance"};
  try {
    return {name(), describe_instances(read_instances(connection))};
  } catch (const MysqlFailure& failure) {
    if (failure.code != ER_NO_SUCH_TABLE) throw;
    return {name(), "a database without whycache's tables"};
  }
}

// Returns the statements that create the tables that are missing. CREATE TABLE IF NOT EXISTS needs
// the CREATE privilege even if the table exists, and a user that adds an instance has no such
// privilege.
std::vector<std::string> MysqlLog::statements_to_create_tables(MysqlConnection& connection) {
  std::map<std::string, std::string> missing = MysqlStatements::create_tables();
  MysqlRows rows = connection.query(MysqlStatements::select_columns());
  while (rows.next()) missing.erase(std::string(rows.at(0).value_or("")));
  std::vector<std::string> statements;
  statements.reserve(missing.size());
  for (auto& [table, statement] : missing) statements.push_back(std::move(statement));
  return statements;
}

void MysqlLog::create_log(MysqlConnection& connection) const {
  std::vector<std::string> statements = statements_to_create_tables(connection);
  statements.push_back(statements_.insert_log(random_uuid()));
  std::size_t done = 0;
  try {
    std::uint64_t inserted = 0;
    for (; done < statements.size(); ++done) inserted = connection.run(statements[done]);
    if (inserted == 1) return;
  } catch (const MysqlFailure& failure) {
    if (failure.code == ER_DUP_ENTRY) return;  // another process just created it
    if (!is_permission_failure(failure.code)) throw;
    // Names the statements that are left to run, for an operator who may.
    std::vector<std::string> instances;
    try {
      instances = read_instances(connection);
    } catch (const MysqlFailure&) {  // this user may not know
    }
    if (!instances.empty()) {
      throw Error(
          ErrorKind::invalid,
          "there is no log of this instance, and this user cannot create one: log=" + name() +
              " reason=\"" + failure.reason + "\" code=" + std::to_string(failure.code) +
              " (correct instance in the url; the database has " + describe_instances(instances) +
              ")",
          EACCES);
    }
    std::string left;
    for (; done < statements.size(); ++done) left += statements[done] + "; ";
    left.pop_back();
    std::replace(left.begin(), left.end(), '\n', ' ');  // a message is one line
    throw Error(ErrorKind::invalid,
                "cannot create log: log=" + name() + " reason=\"" + failure.reason + "\" code=" +
                    std::to_string(failure.code) + " (run as a privileged user: " + left + ")",
                EACCES);
  }
  throw Error(ErrorKind::corrupt,
              "log has updates, but no row in whycache_logs: log=" + name() + restore_log_hint);
}

void MysqlLog::check_tables(MysqlConnection& connection) {
  MysqlRows rows = connection.query(MysqlStatements::select_columns());
  while (rows.next()) {
    const std::string table(rows.at(0).value_or(""));
    const std::string engine(rows.at(1).value_or("none"));
    if (engine != "InnoDB") {
      std::string message = "table must use InnoDB: log=";
      message.append(name()).append(" table=").append(table).append(" engine=").append(engine);
      message.append(" (ALTER TABLE ").append(table).append(" ENGINE = InnoDB)");
      throw Error(ErrorKind::invalid, message);
    }
    if (table == "whycache_logs") continue;
    const std::string type(rows.at(2).value_or("none"));
    const std::size_t bytes_max = rows.number(3);
    const bool binary = type.ends_with("blob") || type == "varbinary";
    if (!binary || bytes_max < column_bytes_min) {
      std::string message = "column is too small, or not binary: log=";
      message.append(name()).append(" column=").append(table).append(".bytes type=").append(type);
      message.append(" bytes_max=").append(std::to_string(bytes_max));
      message.append(" (ALTER TABLE ").append(table).append(" MODIFY bytes LONGBLOB NOT NULL)");
      throw Error(ErrorKind::invalid, message);
    }
    (table == "whycache_updates" ? update_column_bytes_max_ : part_column_bytes_max_) = bytes_max;
  }
}

// --- Reading. ---

std::uint64_t MysqlLog::store_at(const MysqlConnection& connection) const {
  return hash64(options_.server.database + '/' + options_.instance, connection.server_id());
}

LogTableRow MysqlLog::to_log_row(const MysqlRows& rows, const MysqlConnection& connection) const {
  const std::uint64_t format = rows.number(MysqlStatements::format_column);
  const std::optional<Uuid> uuid = to_uuid(rows.at(MysqlStatements::uuid_column));
  const std::optional<Uuid> token = to_uuid(rows.at(MysqlStatements::token_column));
  if (format != MysqlStatements::schema_version || !uuid || !token) {
    throw unknown_log_row_error(name(), format, MysqlStatements::schema_version);
  }
  return {{*uuid, rows.number(MysqlStatements::base_column),
           rows.number(MysqlStatements::base_chain_column), *token,
           rows.number(MysqlStatements::part_count_column)},
          rows.number(MysqlStatements::head_column),
          store_at(connection)};
}

LogTableRow MysqlLog::read_log_row(MysqlConnection& connection) const {
  MysqlRows rows =
      connection.query(uses_procedures_ ? statements_.call_read_log() : statements_.select_log());
  if (!rows.next()) throw log_deleted_error(name());
  const LogTableRow row = to_log_row(rows, connection);
  while (rows.next()) {
  }
  return row;
}

LogTableRow MysqlLog::read_log_row() {
  return with_connection(IfLost::retry, "cannot read whycache_logs",
                         [&](MysqlConnection& connection)
                             WHYCACHE_REQUIRES(mutex_) { return read_log_row(connection); });
}

Extent MysqlLog::extent() {
  return with_connection(IfLost::retry, "cannot read extent",
                         [&](MysqlConnection& connection) WHYCACHE_REQUIRES(mutex_) {
                           const LogTableRow row = read_log_row(connection);
                           uuid_seen_ = row.uuid;
                           return row.extent();
                         });
}

Extent MysqlLog::read_updates(MysqlConnection& connection, UpdateId first, UpdateId last,
                              bool is_first_read, RowBuffer& buffer) {
  buffer.clear();
  LogTableRow row;
  const std::uint64_t rows_max = rows_per_query_;
  {
    MysqlRows rows =
        connection.query(uses_procedures_ ? statements_.call_read(first, last, rows_max)
                                          : statements_.select_updates(first, last, rows_max));
    if (!rows.next() || rows.at(MysqlStatements::id_column)) throw log_deleted_error(name());
    row = to_log_row(rows, connection);
    const bool overtaken = !is_first_read && row.base >= first;
    UpdateId expected = std::max(first, row.base + 1);
    while (!buffer.is_full() && rows.next()) {
      if (overtaken) continue;
      const UpdateId id = rows.number(MysqlStatements::id_column);
      if (id != expected) throw missing_update_error(name(), expected, row.extent().head);
      buffer.add(id, rows.at(MysqlStatements::bytes_column).value_or(""));
      ++expected;
    }
    if (!buffer.is_full() && !overtaken && buffer.row_count() < rows_max &&
        expected <= std::min(last, row.extent().head)) {
      throw missing_update_error(name(), expected, row.extent().head);
    }
    // The destructor of `rows` aborts the connection if rows are left. After the last one, fetch
    // the end.
    if (buffer.is_full() &&
        (buffer.row_count() == rows_max || expected > std::min(last, row.extent().head)))
      rows.next();
  }
  // Next time, ask for as many rows as the buffer has room for, but at most four times as many.
  const std::uint64_t fitting =
      buffer_bytes_max / std::max<std::size_t>(buffer.largest_row_bytes(), 1);
  if (buffer.is_full() || buffer.row_count() == rows_max) {
    rows_per_query_ =
        std::clamp(std::min(fitting, rows_max * 4), rows_per_query_min, rows_per_query_max);
  }
  return row.extent();
}

// Reads the updates from `first` to the primary's head. Returns false if the replica does not
// answer, does not have exactly these, or they do not fit into one buffer.
bool MysqlLog::read_replica(UpdateId first, const PrimaryHead& primary, RowBuffer& buffer) {
  // Half of what is left at most, so that the primary can still be asked.
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      CallLimit::deadline(options_.deadline).remaining() / 2);
  const Deadline deadline =
      CallLimit::deadline(std::min<std::chrono::milliseconds>(left, replica_timeout_max));
  if (!mutex_.try_lock_until(deadline)) return false;
  const LogCallLock lock(mutex_);
  if (first > primary.extent.head || primary.extent.head - first >= rows_per_query_) return false;
  if (replica_unavailable_until_ && !replica_unavailable_until_->passed()) return false;
  replica_unavailable_until_.reset();
  try {
    if (replica_connection_ && !replica_connection_->is_alive()) replica_connection_.reset();
    if (!replica_connection_) {
      const auto timeout =
          std::min<std::chrono::milliseconds>(options_.deadline, replica_timeout_max);
      replica_connection_ =
          connect_mysql(*options_.replica, timeout, deadline, pending_replica_connection_);
    }
    const SocketTimeout timeout(replica_connection_->socket(), deadline);
    const Extent& extent = primary.extent;
    const Extent replica = read_updates(*replica_connection_, first, extent.head, true, buffer);
    return replica.uuid == extent.uuid && replica.base == extent.base &&
           replica.base_chain == extent.base_chain && !buffer.empty() &&
           buffer.last_id() == extent.head &&
           chain_of(extent.head, buffer.last_update()) == primary.chain;
  } catch (const MysqlFailure&) {
    replica_connection_.reset();
    replica_unavailable_until_.emplace(replica_retry_delay);
  } catch (const Error&) {
    // The replica does not have all of the log yet, or another log. The primary decides.
  }
  return false;
}

// Asks the primary for its newest update and the chain there. Since chains tie updates together,
// updates of the replica that end with this one are the primary's.
std::optional<PollResult> MysqlLog::poll_replica(UpdateId first, const VisitUpdate& visit) {
  const PrimaryHead primary = with_connection(
      IfLost::retry, "cannot read extent",
      [&](MysqlConnection& connection) WHYCACHE_REQUIRES(mutex_) {
        MysqlRows rows = connection.query(uses_procedures_ ? statements_.call_read_log()
                                                           : statements_.select_newest());
        if (!rows.next()) throw log_deleted_error(name());
        const LogTableRow row = to_log_row(rows, connection);
        const Extent extent = row.extent();
        const PrimaryHead found{
            extent, chain_of(extent.head, rows.at(MysqlStatements::bytes_column).value_or(""))};
        while (rows.next()) {
        }
        uuid_seen_ = row.uuid;
        return found;
      });
  RowBuffer buffer(buffer_bytes_max);
  if (primary.extent.head > primary.extent.base &&
      (!primary.chain || !read_replica(first, primary, buffer))) {
    return std::nullopt;
  }
  buffer.visit_all(visit);
  // Not 0: the updates did not come from the primary.
  return PollResult{primary.extent, std::chrono::nanoseconds(1)};
}

PollResult MysqlLog::poll(UpdateId first, std::optional<std::chrono::nanoseconds> staleness_max,
                          const VisitUpdate& visit) {
  if (options_.replica && !staleness_max && fork_count() == owner_fork_count_) {
    if (const std::optional<PollResult> result = poll_replica(std::max<UpdateId>(first, 1), visit))
      return *result;
  }
  return Log::poll(first, staleness_max, visit);
}

Extent MysqlLog::read(UpdateId first, UpdateId last, const VisitUpdate& visit) {
  first = std::max<UpdateId>(first, 1);
  RowBuffer buffer(buffer_bytes_max);
  for (bool is_first_read = true;; is_first_read = false) {
    const Extent extent = with_connection(
        IfLost::retry, "cannot read updates",
        [&](MysqlConnection& connection) WHYCACHE_REQUIRES(mutex_) {
          const Extent now = read_updates(connection, first, last, is_first_read, buffer);
          uuid_seen_ = now.uuid;
          read_position_.note_read_from(first);
          if (!buffer.empty()) {
            read_position_.record(buffer.last_id(),
                                  chain_of(buffer.last_id(), buffer.last_update()));
          } else if (now.head == now.base) {
            read_position_.record(now.base, std::nullopt);
          }
          return now;
        });
    if (!buffer.visit_all(visit) || buffer.empty() ||
        buffer.last_id() >= std::min(last, extent.head))
      return extent;
    first = buffer.last_id() + 1;
  }
}

void MysqlLog::read_base(const VisitPart& visit) {
  const LogTableRow row = read_log_row();
  for (std::uint64_t number = 0; number < row.part_count; ++number) {
    const std::string part = with_connection(
        IfLost::retry, "cannot read part of the base",
        [&](MysqlConnection& connection) WHYCACHE_REQUIRES(mutex_) {
          {
            MysqlRows rows =
                connection.query(uses_procedures_ ? statements_.call_read_part(row, number)
                                                  : statements_.select_part(row, number));
            std::optional<std::string> found;
            while (rows.next()) found = std::string(rows.at(0).value_or(""));
            if (found) return std::move(*found);
          }
          if (read_log_row(connection).token != row.token) throw base_replaced_error(name());
          throw Error(ErrorKind::corrupt, "part of the base is missing: log=" + name() +
                                              " base=" + std::to_string(row.base) + " number=" +
                                              std::to_string(number) + restore_log_hint);
        });
    if (!visit(part)) return;
  }
}

// --- Writing. ---

void MysqlLog::check_size(const MysqlConnection& connection, const char* what, const char* table,
                          std::size_t bytes, std::size_t column_bytes_max) const {
  const auto refuse = [&](const std::string& limit, std::size_t limit_bytes,
                          const std::string& raise) {
    throw Error(ErrorKind::limit, std::string(what) + " is too large for the server: log=" +
                                      name() + " bytes=" + std::to_string(bytes) + ' ' + limit +
                                      '=' + std::to_string(limit_bytes) + " (" + raise + ")");
  };
  if (bytes + statement_overhead_bytes > connection.packet_bytes_max()) {
    refuse("max_allowed_packet", connection.packet_bytes_max(),
           "raise max_allowed_packet on the server");
  }
  if (bytes > column_bytes_max && column_bytes_max != 0) {
    refuse("column_bytes_max", column_bytes_max,
           std::string("ALTER TABLE ") + table + " MODIFY bytes LONGBLOB NOT NULL");
  }
}

Log::Appended MysqlLog::append(UpdateId id, std::string_view bytes) {
  check_update(id, bytes);
  const bool inserted = with_connection(
      IfLost::uncertain, "cannot append update",
      [&](MysqlConnection& connection) WHYCACHE_REQUIRES(mutex_) {
        check_size(connection, "update", "whycache_updates", bytes.size(),
                   update_column_bytes_max_);
        read_position_.check_append(id, bytes, name());
        try {
          const bool done = connection.run(statements_.append(), {id, bytes, as_bytes(uuid_seen_),
                                                                  id, id - 1, id - 1}) == 1;
          if (done) read_position_.record(id, chain_of(id, bytes));
          return done;
        } catch (const MysqlFailure& failure) {
          if (failure.code == ER_DUP_ENTRY) return false;
          throw;
        }
      });
  if (inserted) return Appended::yes;
  const LogTableRow row = read_log_row();
  return id <= row.base ? Appended::below_base : Appended::taken;
}

// The server checks the privileges of a statement before it looks for rows. These match none.
void MysqlLog::check_may_rewrite() {
  with_connection(IfLost::retry, "cannot rewrite history", [&](MysqlConnection& connection) {
    for (const std::string& statement : statements_.check_may_rewrite()) connection.run(statement);
    return true;
  });
}

bool MysqlLog::rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) {
  return rewrite_in_database(*this, base, base_chain, next_part);
}

void MysqlLog::write_part(const LogMetadata& next, std::string_view part) {
  with_connection(IfLost::retry, "cannot write part of a base",
                  [&](MysqlConnection& connection) WHYCACHE_REQUIRES(mutex_) {
                    check_size(connection, "part of a base", "whycache_parts", part.size(),
                               part_column_bytes_max_);
                    try {
                      connection.run(statements_.insert_part(),
                                     {next.base, as_bytes(next.token), next.part_count, part});
                    } catch (const MysqlFailure& failure) {
                      // No other process has this token: this one inserted the part, and lost the
                      // answer.
                      if (failure.code != ER_DUP_ENTRY) throw;
                    }
                    return true;
                  });
}

// Deletes nothing if these parts are the base, even if the outcome of the switch is unknown.
void MysqlLog::delete_unused_parts(const LogMetadata& next) {
  with_connection(IfLost::retry, "cannot delete parts of a base", [&](MysqlConnection& connection) {
    return connection.run(statements_.delete_unused_parts(next));
  });
}

// Returns false if the base of the log is already at or beyond that of `next`.
bool MysqlLog::switch_base(const LogMetadata& next) {
  const bool switched = with_connection(
      IfLost::uncertain, "cannot switch to another base", [&](MysqlConnection& connection) {
        {  // In the same connection: another one may lead to another server.
          MysqlRows rows = connection.query(statements_.select_update_header(next.base));
          std::string bytes;
          while (rows.next()) bytes = rows.at(0).value_or("");
          check_base_chain(name(), next.base, bytes, next.base_chain);
        }
        return connection.run(statements_.switch_base(next)) == 1;
      });
  if (switched) return true;
  const LogTableRow current = read_log_row();
  if (current.uuid != next.uuid) throw log_deleted_error(name());
  if (current.base >= next.base) return false;
  throw Error(
      ErrorKind::unavailable,
      "parts of the new base disappeared while it was written (rewrite again): log=" + name());
}

void MysqlLog::delete_below_base() {
  const LogTableRow row = read_log_row();
  delete_in_batches(statements_.delete_updates_below_base(row));
  delete_in_batches(statements_.delete_parts_below_base(row));
}

void MysqlLog::delete_in_batches(const std::string& sql) {
  const auto delete_some = [&] {
    return with_connection(IfLost::retry, "cannot delete rows",
                           [&](MysqlConnection& connection) { return connection.run(sql) > 0; });
  };
  // The pauses let other transactions in.
  while (delete_some()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace whycache
