#include "log/postgres_log.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <system_error>
#include <thread>
#include <utility>

#include "base/backoff.h"
#include "base/call_limit.h"
#include "base/fork_handlers.h"
#include "base/hash.h"
#include "base/random.h"
#include "log/log_table_row.h"
#include "log/postgres_connection.h"
#include "log/rewrite_in_database.h"
#include "log/server_options.h"
#include "log/tls_failure.h"

namespace whycache {
namespace {

constexpr std::uint64_t schema_version = 1;
constexpr std::size_t buffer_bytes_max = std::size_t{4} << 20;
constexpr std::uint64_t rows_per_query_max = 4096;
// What a replica may be asked for: more is faster from the primary, and needs no second look.
constexpr std::uint64_t replica_rows_max = 4096;
constexpr std::uint64_t updates_per_deletion = 256;
constexpr std::uint64_t parts_per_deletion = 8;
constexpr std::chrono::seconds replica_timeout_max{2};
constexpr std::chrono::seconds replica_retry_delay{5};
// A call that begins when its deadline has just passed gets this long: a server that is well
// answers in time.
constexpr std::chrono::milliseconds shortest_wait{10};
constexpr std::chrono::milliseconds listen_time_min{100};
constexpr std::chrono::seconds listen_retry_delay{1};
// After a lost connection, or a prepared statement that the server forgot.
constexpr int immediate_retries_max = 2;
// After a deadlock: random pauses, so that the same transactions do not meet again.
constexpr Backoff::Pauses retry_pauses{std::chrono::milliseconds(1), std::chrono::milliseconds(64),
                                       1.0};

constexpr char logs_table[] = "whycache_logs";
constexpr char updates_table[] = "whycache_updates";
constexpr char parts_table[] = "whycache_parts";

// {} is the quoted name of the schema.
constexpr std::string_view create_logs_sql = R"(CREATE TABLE IF NOT EXISTS {}.whycache_logs (
  instance    text COLLATE "C" NOT NULL PRIMARY KEY,
  format      integer NOT NULL,
  uuid        bytea NOT NULL CHECK (length(uuid) = 16),
  base        bigint NOT NULL CHECK (base >= 0),
  base_chain  bigint NOT NULL,
  token       bytea NOT NULL CHECK (length(token) = 16),
  part_count  bigint NOT NULL CHECK (part_count >= 0),
  append_lock smallint NOT NULL DEFAULT 0
))";
constexpr std::string_view create_updates_sql = R"(CREATE TABLE IF NOT EXISTS {}.whycache_updates (
  instance text COLLATE "C" NOT NULL,
  id       bigint NOT NULL CHECK (id > 0),
  bytes    bytea NOT NULL,
  PRIMARY KEY (instance, id)
))";
constexpr std::string_view create_parts_sql = R"(CREATE TABLE IF NOT EXISTS {}.whycache_parts (
  instance text COLLATE "C" NOT NULL,
  base     bigint NOT NULL,
  token    bytea NOT NULL,
  number   bigint NOT NULL,
  bytes    bytea NOT NULL,
  PRIMARY KEY (instance, base, token, number)
))";
constexpr std::string_view store_updates_sql =
    "ALTER TABLE {}.whycache_updates ALTER bytes SET STORAGE EXTERNAL";
constexpr std::string_view store_parts_sql =
    "ALTER TABLE {}.whycache_parts ALTER bytes SET STORAGE EXTERNAL";

// The order of the columns that describe a log, before those of an update.
enum PostgresColumn : int {
  format_column,
  uuid_column,
  base_column,
  base_chain_column,
  token_column,
  part_count_column,
  head_column,
  id_column,
  bytes_column
};

std::string in_schema(std::string_view sql, const std::string& schema) {
  std::string text(sql);
  const std::size_t at = text.find("{}");
  return text.replace(at, 2, schema);
}

std::string quoted_name(const std::string& name) {
  std::string quoted = "\"";
  for (const char c : name) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + '"';
}

std::string describe(const PostgresFailure& failure) {
  return " reason=\"" + failure.reason + '"' +
         (failure.sqlstate.empty() ? "" : " code=" + failure.sqlstate);
}

using Value = PostgresValue;

// Channels are per database.
std::string channel_of(const std::string& instance) { return "whycache_" + instance; }

// --- The meaning of failures. ---

bool is_out_of_date_plan(const PostgresFailure& failure) {
  return failure.is("26000") || failure.is("0A000");
}

// Whether nothing was done, and another attempt may succeed.
bool is_retryable(const PostgresFailure& failure) {
  return failure.is("40001") || failure.is("40P01");
}

// Whether the server, or what answers in its place, knows no LISTEN. It may accept later what it
// refuses for other reasons: it starts, is read-only, has too many connections, or another
// password.
bool cannot_listen(const PostgresFailure& failure) {
  return failure.is("0A000") || failure.is_of_class("42");
}

bool is_permission_failure(const PostgresFailure& failure) {
  return failure.is("42501") || failure.is_of_class("28");
}

bool contains(const std::string& text, std::string_view words) {
  return text.find(words) != std::string::npos;
}

// Whether connect() failed at each address or socket. If the url names several servers, the reason
// has a part for each; one that refuses TLS matters more.
bool is_unreachable(const PostgresFailure& failure) {
  return contains(failure.reason, "Is the server running") && !contains(failure.reason, "SSL") &&
         !contains(failure.reason, "certificate");
}

// Whether connect() failed with this errno. The client library asks about the server after any.
bool has_errno(const PostgresFailure& failure, int number) {
  return contains(failure.reason, std::generic_category().message(number));
}

// Returns the next step if the server has no connection left. A role or a database may have a limit
// of its own.
std::string connections_hint(const std::string& reason) {
  for (const auto& [words, object] :
       {std::pair{"for role", "ROLE"}, {"for database", "DATABASE"}}) {
    if (!contains(reason, words)) continue;
    return std::string(" (raise the limit at the server: ALTER ") + object +
           " ... CONNECTION LIMIT, or end connections there)";
  }
  return too_many_connections_hint;
}

// Returns the error for a limit that the server, or this process, has reached.
std::optional<Error> shortage_error(const PostgresFailure& failure, const std::string& message) {
  if (failure.is("53100"))
    return Error(ErrorKind::limit, message + " (free space on the disk of the server)", ENOSPC);
  if (failure.is("53200")) {
    return Error(ErrorKind::limit, message + " (the server, or this process, has no memory left)",
                 ENOMEM);
  }
  if (failure.is_of_class("54")) return Error(ErrorKind::limit, message);
  return std::nullopt;
}

}  // namespace

// --- Connection and failures. ---

void PostgresLog::connect(const Deadline& deadline) {
  if (connection_ && !connection_->is_alive()) connection_.reset();
  if (connection_) return;
  connection_ = connect_postgres(options_.server, options_.deadline, deadline, pending_connection_);
  store_.store(store_at(*connection_), std::memory_order_relaxed);
  server_start_ = connection_->server_start();
  read_position_.restart(!is_open_);
  if (connection_->is_pooled()) notifies_.store(false, std::memory_order_relaxed);
}

void PostgresLog::note_server(const PostgresConnection& connection) {
  if (connection.server_start() == server_start_) return;
  server_start_ = connection.server_start();
  read_position_.restart(false);
}

template <typename Work>
auto PostgresLog::with_connection(IfAnswerLost if_lost, const char* what, const Work& work) {
  if (fork_count() != owner_fork_count_) {
    throw Error(ErrorKind::invalid,
                "log was opened before a fork (use reopen() in the child): log=" + name());
  }
  const Deadline call_deadline = CallLimit::deadline(options_.deadline);
  const LogCallLock lock(mutex_, call_deadline, name());
  Backoff backoff(call_deadline, retry_pauses);
  for (int attempt = 0;; ++attempt) {
    // A stop that is requested later cuts the connection.
    if (call_deadline.stop().stop_requested())
      throw Error(ErrorKind::unavailable, "call was stopped: log=" + name());
    try {
      connect(call_deadline);
    } catch (const PostgresFailure& failure) {
      throw connect_error(options_.server, failure);
    }
    const Deadline deadline = call_deadline.time_left() < shortest_wait
                                  ? Deadline(shortest_wait, call_deadline.stop())
                                  : call_deadline;
    try {
      return work(*connection_, deadline);
    } catch (const PostgresFailure& failure) {
      const bool lost = is_connection_lost(failure);
      const bool forgotten = is_out_of_date_plan(failure) && attempt == 0;
      const bool wrong_server = failure.is("25006");
      if (lost || forgotten || wrong_server) connection_.reset();
      const bool can_repeat =
          forgotten || (lost && if_lost == IfAnswerLost::retry && !call_deadline.passed());
      if (can_repeat && attempt < immediate_retries_max) continue;
      if (failure.is("42P01") && is_log_deleted(deadline)) throw log_deleted_error(name());
      if (!is_retryable(failure) || !backoff.pause()) throw error(what, failure, if_lost, deadline);
    }
  }
}

// Whether tables are missing because an operator deleted the log.
bool PostgresLog::is_log_deleted(const Deadline& deadline) {
  if (!connection_) return false;
  try {
    return !has_log(*connection_, deadline);
  } catch (const PostgresFailure&) {
    return false;  // something else is wrong
  }
}

// Returns what to add to the message of a call that has waited in vain: the transactions that hold
// locks on the tables. The server does not keep which of them the statement has waited for.
std::string PostgresLog::lock_holders(const Deadline& deadline) {
  if (!connection_) return "";
  const std::string logs = table(logs_table);
  const std::string updates = table(updates_table);
  std::string holders;
  try {
    const PostgresRows rows = connection_->query(
        {"SELECT DISTINCT a.pid::text, a.usename::text, CASE WHEN a.client_port = -1 "
         "THEN 'socket' ELSE COALESCE(pg_catalog.host(a.client_addr), '?') END "
         "FROM pg_catalog.pg_locks AS k JOIN pg_catalog.pg_stat_activity AS a ON a.pid = k.pid "
         "WHERE k.locktype = 'relation' AND k.granted AND k.relation IN "
         "(pg_catalog.to_regclass($1), pg_catalog.to_regclass($2)) "
         "AND k.mode <> 'AccessShareLock' AND k.pid <> pg_catalog.pg_backend_pid() LIMIT 3",
         {Value::text(logs), Value::text(updates)}},
        deadline);
    for (int row = 0; row < rows.count(); ++row) {
      holders += holders.empty() ? "" : ", ";
      holders.append(rows.at(row, 0).value_or("")).append(" of ");
      holders.append(rows.at(row, 1).value_or("?")).append("@");
      holders.append(rows.at(row, 2).value_or("?"));
    }
  } catch (const PostgresFailure&) {  // there is no time left
    return " (a transaction may hold a lock: docs/logs.md tells how to find and end it)";
  }
  if (holders.empty()) return "";
  return " connections_with_locks=\"" + holders +
         "\" (pg_terminate_backend() ends a connection and its transaction)";
}

Error PostgresLog::unreachable_error(const PostgresFailure& failure,
                                     const std::string& message) const {
  if (has_errno(failure, ECONNREFUSED) || has_errno(failure, ENOENT)) {
    return Error(ErrorKind::unavailable,
                 message + " (start the server, or correct host, port or socket in the url)");
  }
  if (has_errno(failure, EACCES)) {
    // Once a log is open, its url was right: the server's permissions have changed.
    return Error(is_open_ ? ErrorKind::unavailable : ErrorKind::invalid,
                 message + closed_socket_hint, EACCES);
  }
  return Error(ErrorKind::unavailable, message + unreachable_host_hint);
}

Error PostgresLog::connect_error(const PostgresServer& server, const PostgresFailure& failure) {
  const std::string message = "cannot connect to database: log=" + name() +
                              " server=" + server.address() + describe(failure);
  if (is_permission_failure(failure) || contains(failure.reason, "no password supplied")) {
    return Error(ErrorKind::invalid,
                 message +
                     " (check user and password: password_file, passfile, service, "
                     "WHYCACHE_POSTGRES_PASSWORD; and pg_hba.conf on the server)",
                 EACCES);
  }
  if (failure.is("3D000")) {
    return Error(ErrorKind::invalid,
                 message + " (correct the database in the url, or create it: CREATE DATABASE " +
                     quoted_name(server.database) + ")");
  }
  if (failure.is("53300"))
    return Error(ErrorKind::unavailable, message + connections_hint(failure.reason));
  if (failure.is("25006")) {
    return Error(ErrorKind::unavailable,
                 message + " (no server in the url accepts writes: promote one of them)");
  }
  if (failure.is_of_class("42") || failure.is("0A000")) {
    return Error(ErrorKind::invalid,
                 message + " (this server cannot hold a log: use PostgreSQL 12 or later)");
  }
  if (contains(failure.reason, "definition of service") || contains(failure.reason, "service file"))
    return Error(ErrorKind::invalid, message + " (correct the option service, or the file)");
  if (contains(failure.reason, "invalid response to SSL negotiation") ||
      contains(failure.reason, "expected authentication request")) {
    return Error(ErrorKind::invalid, message + " (this is not a PostgreSQL server)");
  }
  if (is_unreachable(failure)) return unreachable_error(failure, message);
  if (contains(failure.reason, "could not translate host name")) {
    return Error(ErrorKind::unavailable,
                 message + " (correct the host in the url, or the name service of this machine)");
  }
  if (failure.sqlstate.empty() && is_tls_refusal(failure.reason)) {
    // Once a log is open, its url was right: it is the server that has changed.
    const bool is_servers_fault = is_open_ || is_expired_certificate(failure.reason);
    return Error(is_servers_fault ? ErrorKind::unavailable : ErrorKind::invalid,
                 message + next_step_for_tls(failure.reason, "ssl, ssl_cert_file, ssl_key_file"));
  }
  return Error(ErrorKind::unavailable, message);
}

Error PostgresLog::error(const char* what, const PostgresFailure& failure, IfAnswerLost if_lost,
                         const Deadline& deadline) {
  const std::string message = std::string(what) + ": log=" + name() + describe(failure);
  const ErrorKind if_unanswered =
      if_lost == IfAnswerLost::uncertain ? ErrorKind::uncertain : ErrorKind::unavailable;
  if (is_connection_lost(failure)) {
    const bool is_disk_full = failure.is("53100");
    return Error(if_unanswered,
                 message + (is_disk_full ? " (free space on the disk of the server)" : ""),
                 is_disk_full ? ENOSPC : 0);
  }
  if (is_permission_failure(failure)) {
    return Error(ErrorKind::invalid,
                 message + " (docs/logs.md lists the privileges that each role needs)", EACCES);
  }
  if (const std::optional<Error> shortage = shortage_error(failure, message)) return *shortage;
  if (is_retryable(failure) || failure.is("57014") || failure.is("55P03")) {
    const std::string holders = lock_holders(deadline);
    return Error(ErrorKind::unavailable,
                 message + " waited_ms_max=" + std::to_string(options_.deadline.count()) + holders,
                 holders.empty() ? 0 : EBUSY);
  }
  if (failure.is("25006")) {
    return Error(ErrorKind::unavailable,
                 message + " (the server is read-only: the url must name the primary)");
  }
  if (failure.is_of_class("53") || failure.is("25P03"))
    return Error(ErrorKind::unavailable, message);
  if (failure.is("3F000"))
    return Error(ErrorKind::invalid,
                 message + " (create the schema, or correct schema in the url)");
  if (failure.is("42601") || failure.is("0A000") || failure.is("42883")) {
    return Error(ErrorKind::invalid,
                 message + " (this server cannot hold a log: use PostgreSQL 12 or later)");
  }
  if (failure.is_of_class("42") || failure.is_of_class("22") || failure.is_of_class("23")) {
    return Error(ErrorKind::corrupt,
                 message + " (a table is missing, or not as whycache creates it)");
  }
  if (failure.is_of_class("XX")) return Error(ErrorKind::corrupt, message + restore_log_hint);
  // The server answered, so nothing was done; except for a failure of the commit itself.
  return Error(if_unanswered, message);
}

// --- Opening. ---

PostgresLog::PostgresLog(PostgresLogOptions options, IfMissing if_missing)
    : options_(std::move(options)),
      schema_(quoted_name(options_.schema)),
      append_sql_(append_sql()),
      owner_fork_count_(fork_count()) {
  with_connection(IfAnswerLost::retry, "cannot open log",
                  [&](PostgresConnection& connection, const Deadline& deadline)
                      WHYCACHE_REQUIRES(mutex_) {
                        check_server(connection);
                        if (!has_log(connection, deadline)) {
                          if (if_missing == IfMissing::fail)
                            throw log_missing(connection, deadline);
                          create_log(connection, deadline);
                        }
                        check_tables(connection, deadline);
                        uuid_seen_ = read_log_row(connection, deadline).uuid;
                        return true;
                      });
  const LogCallLock lock(mutex_, Deadline(options_.deadline), name());
  is_open_ = true;
  notifies_.store(options_.notify && connection_ && !connection_->is_pooled(),
                  std::memory_order_relaxed);
}

PostgresLog::~PostgresLog() {
  if (fork_count() == owner_fork_count_) return;
  PostgresConnection::abandon(std::move(connection_));
  PostgresConnection::abandon(std::move(replica_connection_));
  PostgresConnection::abandon(std::move(listener_));
  // Attempts that have finished would close connections of the parent.
  if (pending_connection_) pending_connection_->leak_result();
  if (pending_replica_connection_) pending_replica_connection_->leak_result();
  if (pending_listener_) pending_listener_->leak_result();
  forget_waiters_of_parent(waiters_changed_);
}

void PostgresLog::release_idle_connections() noexcept {
  if (fork_count() != owner_fork_count_) return;
  if (!mutex_.try_lock()) return;
  connection_.reset();
  replica_connection_.reset();
  mutex_.unlock();
  if (!listener_mutex_.try_lock()) return;
  listener_.reset();
  listener_mutex_.unlock();
}

std::unique_ptr<Log> PostgresLog::reopen() {
  try {
    return std::make_unique<PostgresLog>(options_, IfMissing::fail);
  } catch (const LogMissing&) {
    throw log_deleted_error(name());
  }
}

// Refuses a server that cannot keep what the log promises.
void PostgresLog::check_server(const PostgresConnection& connection) const {
  if (!options_.durable) return;
  const PostgresServerFacts& facts = connection.facts();
  const auto refuse = [&](const std::string& variable) {
    throw Error(ErrorKind::invalid, "server may lose acknowledged writes when it crashes: log=" +
                                        name() + " " + variable + "=off (set " + variable +
                                        "=on on the server; durable=off accepts the risk)");
  };
  if (facts.fsync == "off") refuse("fsync");
  if (facts.full_page_writes == "off") refuse("full_page_writes");
  if (facts.synchronous_commit == "off") refuse("synchronous_commit");
}

// Whether the log exists. Opening a log that exists must not need permission to write.
bool PostgresLog::has_log(PostgresConnection& connection, const Deadline& deadline) const {
  try {
    return connection
               .query({"SELECT 1 FROM " + table(logs_table) + " WHERE instance = $1",
                       {Value::text(options_.instance)}},
                      deadline)
               .count() > 0;
  } catch (const PostgresFailure& failure) {
    if (failure.is("42P01") || failure.is("3F000")) return false;
    throw;
  }
}

std::vector<std::string> PostgresLog::instances(PostgresConnection& connection,
                                                const Deadline& deadline) const {
  const PostgresRows rows = connection.query(
      {"SELECT instance FROM " + table(logs_table) + " ORDER BY instance"}, deadline);
  std::vector<std::string> found;
  found.reserve(static_cast<std::size_t>(rows.count()));
  for (int row = 0; row < rows.count(); ++row) found.emplace_back(rows.at(row, 0).value_or(""));
  return found;
}

LogMissing PostgresLog::log_missing(PostgresConnection& connection,
                                    const Deadline& deadline) const {
  try {
    return {name(), describe_instances(instances(connection, deadline))};
  } catch (const PostgresFailure& failure) {
    if (!failure.is("42P01") && !failure.is("3F000")) throw;
    return {name(), "a database without whycache's tables"};
  }
}

// Returns the statements that create the tables that are missing. CREATE TABLE IF NOT EXISTS needs
// the CREATE privilege even if the table exists, and a user that adds an instance has no such
// privilege.
std::vector<PostgresStatement> PostgresLog::statements_to_create_tables(
    PostgresConnection& connection, const Deadline& deadline) const {
  std::vector<PostgresStatement> statements;
  const auto create_if_missing = [&](const char* name, std::string_view create,
                                     std::string_view store) {
    const std::string full_name = table(name);
    const PostgresRows rows = connection.query(
        {"SELECT pg_catalog.to_regclass($1) IS NULL", {Value::text(full_name)}}, deadline);
    if (rows.number(0, 0) == 0) return;
    statements.push_back({in_schema(create, schema_)});
    if (!store.empty()) statements.push_back({in_schema(store, schema_)});
  };
  create_if_missing(logs_table, create_logs_sql, "");
  create_if_missing(updates_table, create_updates_sql, store_updates_sql);
  create_if_missing(parts_table, create_parts_sql, store_parts_sql);
  return statements;
}

void PostgresLog::create_log(PostgresConnection& connection, const Deadline& deadline) const {
  std::vector<PostgresStatement> statements = {
      // Two processes that create one table at once would fail.
      {"SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('whycache create'))"}};
  std::vector<PostgresStatement> create = statements_to_create_tables(connection, deadline);
  statements.insert(statements.end(), create.begin(), create.end());
  const Uuid uuid = random_uuid();
  const Uuid no_token{};
  statements.push_back({"INSERT INTO " + table(logs_table) +
                            " (instance, format, uuid, base, base_chain, token, part_count) "
                            "SELECT $1, " +
                            std::to_string(schema_version) +
                            ", $2, 0, 0, $3, 0 WHERE NOT EXISTS (SELECT 1 FROM " +
                            table(updates_table) + " WHERE instance = $1) ON CONFLICT DO NOTHING",
                        {Value::text(options_.instance), Value::bytes(as_bytes(uuid)),
                         Value::bytes(as_bytes(no_token))}});
  try {
    const auto answers = connection.transact(PostgresAccess::write, statements, deadline);
    if (answers.back().changed() == 1 || has_log(connection, deadline)) return;
  } catch (const PostgresFailure& failure) {
    if (!is_permission_failure(failure)) throw;
    // Names the statements to run, for an operator who may.
    std::string left;
    for (const PostgresStatement& statement : create) left.append(statement.sql).append("; ");
    std::replace(left.begin(), left.end(), '\n', ' ');  // a message is one line
    std::string next = "(run as a privileged user: `whycache init`";
    if (!left.empty()) next += ", or: " + left.substr(0, left.size() - 1);
    if (left.empty()) {
      next = "(grant INSERT on " + table(logs_table) + ", or correct instance in the url; found: " +
             describe_instances(instances(connection, deadline));
    }
    throw Error(ErrorKind::invalid,
                "cannot create log: log=" + name() + describe(failure) + ' ' + next + ")", EACCES);
  }
  throw Error(ErrorKind::corrupt,
              "log has updates, but no row in whycache_logs: log=" + name() + restore_log_hint);
}

void PostgresLog::check_tables(PostgresConnection& connection, const Deadline& deadline) const {
  const PostgresRows rows = connection.query(
      {"SELECT c.relname::text, c.relpersistence::text, c.relkind::text, "
       "COALESCE((SELECT pg_catalog.format_type(a.atttypid, NULL) FROM pg_catalog.pg_attribute AS "
       "a WHERE a.attrelid = c.oid AND a.attname = 'bytes' AND NOT a.attisdropped), 'none') "
       "FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
       "WHERE n.nspname = $1 AND c.relname IN ('whycache_logs', 'whycache_updates', "
       "'whycache_parts')",
       {Value::text(options_.schema)}},
      deadline);
  const auto refuse = [&](const std::string& name_of_table, const std::string& what,
                          const std::string& next) {
    throw Error(ErrorKind::invalid,
                what + ": log=" + name() + " table=" + name_of_table + " (" + next + ")");
  };
  for (int row = 0; row < rows.count(); ++row) {
    const std::string name_of_table(rows.at(row, 0).value_or(""));
    if (rows.at(row, 1) == "u" && options_.durable) {
      refuse(name_of_table, "table is emptied when the server crashes",
             "ALTER TABLE " + table(name_of_table.c_str()) + " SET LOGGED");
    }
    if (name_of_table == logs_table) continue;
    const std::string type(rows.at(row, 3).value_or("none"));
    if (type != "bytea") {
      refuse(name_of_table, "column bytes is not binary: type=" + type,
             "ALTER TABLE " + table(name_of_table.c_str()) + " ALTER bytes TYPE bytea");
    }
  }
}

// --- Reading. ---

std::uint64_t PostgresLog::store_at(const PostgresConnection& connection) const {
  return hash64(options_.server.database + '/' + options_.schema + '/' + options_.instance,
                connection.facts().server_id);
}

// The columns that describe a log. Value: $1, the instance.
std::string PostgresLog::log_columns() const {
  return "format, uuid, base, base_chain, token, part_count, (SELECT id FROM " +
         table(updates_table) + " WHERE instance = $1 ORDER BY id DESC LIMIT 1) AS head";
}

LogTableRow PostgresLog::to_log_row(const PostgresRows& rows, const PostgresConnection& connection,
                                    int row) const {
  const std::uint64_t format = rows.number(row, format_column);
  const std::optional<Uuid> uuid = to_uuid(rows.at(row, uuid_column));
  const std::optional<Uuid> token = to_uuid(rows.at(row, token_column));
  if (format != schema_version || !uuid || !token)
    throw unknown_log_row_error(name(), format, schema_version);
  return {{*uuid, rows.number(row, base_column), rows.number(row, base_chain_column), *token,
           rows.number(row, part_count_column)},
          rows.number(row, head_column),
          store_at(connection)};
}

LogTableRow PostgresLog::read_log_row(PostgresConnection& connection,
                                      const Deadline& deadline) const {
  const PostgresRows rows = connection.query(
      {"SELECT " + log_columns() + " FROM " + table(logs_table) + " WHERE instance = $1",
       {Value::text(options_.instance)}},
      deadline);
  if (rows.count() != 1) throw log_deleted_error(name());
  return to_log_row(rows, connection);
}

LogTableRow PostgresLog::read_log_row() {
  return with_connection(IfAnswerLost::retry, "cannot read whycache_logs",
                         [&](PostgresConnection& connection, const Deadline& deadline)
                             WHYCACHE_REQUIRES(mutex_) {
                               const LogTableRow row = read_log_row(connection, deadline);
                               note_server(connection);
                               return row;
                             });
}

Extent PostgresLog::extent() {
  const std::uint64_t claims_before = claim_count_.load(std::memory_order_relaxed);
  return with_connection(IfAnswerLost::retry, "cannot read extent",
                         [&](PostgresConnection& connection, const Deadline& deadline)
                             WHYCACHE_REQUIRES(mutex_) {
                               const LogTableRow row = read_log_row(connection, deadline);
                               note_server(connection);
                               uuid_seen_ = row.uuid;
                               note_head(row.extent().head, claims_before);
                               return row.extent();
                             });
}

// The server counts the bytes: rows whose preceding rows have fewer than the buffer holds. It knows
// the sizes of values that are stored out of line without reading them.
Extent PostgresLog::read_updates(PostgresConnection& connection, UpdateId first, UpdateId last,
                                 std::size_t rows_max, bool is_first_read, RowBuffer& buffer,
                                 const Deadline& deadline) const {
  buffer.clear();
  const std::string logs = table(logs_table);
  const std::string sql =
      "SELECT " + log_columns() + ", NULL::bigint AS id, NULL::bytea AS bytes FROM " + logs +
      " WHERE instance = $1 UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, id, bytes "
      "FROM (SELECT id, bytes, sum(length(bytes)) OVER (ORDER BY id) - length(bytes) AS preceding "
      "FROM (SELECT id, bytes FROM " +
      table(updates_table) +
      " WHERE instance = $1 AND id BETWEEN $2 AND $3 AND id > (SELECT base "
      "FROM " +
      logs + " WHERE instance = $1) ORDER BY id LIMIT $4) AS page) AS sized WHERE preceding < $5";
  const PostgresRows rows = connection.query(
      {sql,
       {Value::text(options_.instance), Value::number(std::min(first, update_id_max)),
        Value::number(std::min(last, update_id_max)), Value::number(rows_max),
        Value::number(buffer_bytes_max)}},
      deadline);
  // Parallel workers may return it after the updates, whose own order stays.
  int row_of_log = 0;
  while (row_of_log < rows.count() && rows.at(row_of_log, id_column)) ++row_of_log;
  if (row_of_log == rows.count()) throw log_deleted_error(name());
  const LogTableRow row = to_log_row(rows, connection, row_of_log);
  if (!is_first_read && row.base >= first) return row.extent();
  UpdateId expected = std::max(first, row.base + 1);
  for (int i = 0; i < rows.count(); ++i) {
    if (i == row_of_log) continue;
    const UpdateId id = rows.number(i, id_column);
    if (id != expected) throw missing_update_error(name(), expected, row.extent().head);
    buffer.add(id, rows.at(i, bytes_column).value_or(""));
    ++expected;
  }
  if (!buffer.is_full() && buffer.row_count() < rows_max &&
      expected <= std::min(last, row.extent().head))
    throw missing_update_error(name(), expected, row.extent().head);
  return row.extent();
}

// Reads the updates from `first` to the primary's head. Returns false if the replica does not
// answer, does not have exactly these, or they do not fit into one buffer.
bool PostgresLog::read_replica(UpdateId first, const PrimaryHead& primary, RowBuffer& buffer) {
  // Half of what is left at most, so that the primary can still be asked.
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      CallLimit::deadline(options_.deadline).remaining() / 2);
  const Deadline deadline =
      CallLimit::deadline(std::min<std::chrono::milliseconds>(left, replica_timeout_max));
  if (!mutex_.try_lock_until(deadline)) return false;
  const LogCallLock lock(mutex_);
  if (first > primary.extent.head || primary.extent.head - first >= replica_rows_max) return false;
  if (replica_unavailable_until_ && !replica_unavailable_until_->passed()) return false;
  replica_unavailable_until_.reset();
  try {
    if (replica_connection_ && !replica_connection_->is_alive()) replica_connection_.reset();
    if (!replica_connection_) {
      const auto timeout =
          std::min<std::chrono::milliseconds>(options_.deadline, replica_timeout_max);
      replica_connection_ =
          connect_postgres(*options_.replica, timeout, deadline, pending_replica_connection_);
    }
    const Extent& extent = primary.extent;
    const Extent replica = read_updates(*replica_connection_, first, extent.head, replica_rows_max,
                                        true, buffer, deadline);
    return replica.uuid == extent.uuid && replica.base == extent.base &&
           replica.base_chain == extent.base_chain && !buffer.empty() &&
           buffer.last_id() == extent.head &&
           chain_of(extent.head, buffer.last_update()) == primary.chain;
  } catch (const PostgresFailure&) {
    replica_connection_.reset();
    replica_unavailable_until_.emplace(replica_retry_delay);
  } catch (const Error&) {
    // The replica does not have all of the log yet, or another log. The primary decides.
  }
  return false;
}

// Asks the primary for its newest update and the chain there. Since chains tie updates together,
// updates of the replica that end with this one are the primary's.
std::optional<PollResult> PostgresLog::poll_replica(UpdateId first, const VisitUpdate& visit) {
  const std::string sql = "SELECT " + log_columns() +
                          ", NULL::bigint, (SELECT substring(bytes FROM "
                          "1 FOR " +
                          std::to_string(header_peek_bytes) + ") FROM " + table(updates_table) +
                          " WHERE instance = $1 ORDER BY id DESC LIMIT 1) FROM " +
                          table(logs_table) + " WHERE instance = $1";
  const std::uint64_t claims_before = claim_count_.load(std::memory_order_relaxed);
  const PrimaryHead primary = with_connection(
      IfAnswerLost::retry, "cannot read extent",
      [&](PostgresConnection& connection, const Deadline& deadline) WHYCACHE_REQUIRES(mutex_) {
        const PostgresRows rows =
            connection.query({sql, {Value::text(options_.instance)}}, deadline);
        if (rows.count() != 1) throw log_deleted_error(name());
        const LogTableRow row = to_log_row(rows, connection);
        note_server(connection);
        uuid_seen_ = row.uuid;
        const Extent extent = row.extent();
        note_head(extent.head, claims_before);
        return PrimaryHead{extent, chain_of(extent.head, rows.at(0, bytes_column).value_or(""))};
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

PollResult PostgresLog::poll(UpdateId first, std::optional<std::chrono::nanoseconds> staleness_max,
                             const VisitUpdate& visit) {
  if (options_.replica && !staleness_max && fork_count() == owner_fork_count_) {
    if (const std::optional<PollResult> result = poll_replica(std::max<UpdateId>(first, 1), visit))
      return *result;
  }
  return Log::poll(first, staleness_max, visit);
}

Extent PostgresLog::read(UpdateId first, UpdateId last, const VisitUpdate& visit) {
  first = std::max<UpdateId>(first, 1);
  RowBuffer buffer(buffer_bytes_max);
  for (bool is_first_read = true;; is_first_read = false) {
    const std::uint64_t claims_before = claim_count_.load(std::memory_order_relaxed);
    const Extent extent = with_connection(
        IfAnswerLost::retry, "cannot read updates",
        [&](PostgresConnection& connection, const Deadline& deadline) WHYCACHE_REQUIRES(mutex_) {
          const Extent now = read_updates(connection, first, last, rows_per_query_max,
                                          is_first_read, buffer, deadline);
          note_server(connection);
          uuid_seen_ = now.uuid;
          note_head(now.head, claims_before);
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

void PostgresLog::read_base(const VisitPart& visit) {
  const LogTableRow row = read_log_row();
  const std::string sql = "SELECT bytes FROM " + table(parts_table) +
                          " WHERE instance = $1 AND base = $2 AND token = $3 AND number = $4";
  for (std::uint64_t number = 0; number < row.part_count; ++number) {
    const std::string part = with_connection(
        IfAnswerLost::retry, "cannot read part of the base",
        [&](PostgresConnection& connection, const Deadline& deadline) WHYCACHE_REQUIRES(mutex_) {
          const PostgresRows rows =
              connection.query({sql,
                                {Value::text(options_.instance), Value::number(row.base),
                                 Value::bytes(as_bytes(row.token)), Value::number(number)}},
                               deadline);
          note_server(connection);
          if (rows.count() == 1) return std::string(rows.at(0, 0).value_or(""));
          if (read_log_row(connection, deadline).token != row.token)
            throw base_replaced_error(name());
          throw Error(ErrorKind::corrupt, "part of the base is missing: log=" + name() +
                                              " base=" + std::to_string(row.base) + " number=" +
                                              std::to_string(number) + restore_log_hint);
        });
    if (!visit(part)) return;
  }
}

// --- Waiting. ---

bool PostgresLog::may_be_beyond(UpdateId after) const {
  return head_seen_.load(std::memory_order_relaxed) > after ||
         claimed_head_.load(std::memory_order_relaxed) > after;
}

// `claims_before`: claim_count_ before the read that found `head` began. Claims that have arrived
// since stay.
void PostgresLog::note_head(UpdateId head, std::uint64_t claims_before) {
  head_seen_.store(head, std::memory_order_relaxed);
  if (claimed_head_.load(std::memory_order_relaxed) <= head) return;
  const MutexLock lock(waiters_mutex_);
  if (claim_count_.load(std::memory_order_relaxed) == claims_before)
    claimed_head_.store(0, std::memory_order_relaxed);
}

// Notifications of several writers may arrive in another order than their updates.
void PostgresLog::note_claim(UpdateId claimed) {
  const MutexLock lock(waiters_mutex_);
  claim_count_.fetch_add(1, std::memory_order_relaxed);
  if (claimed > claimed_head_.load(std::memory_order_relaxed))
    claimed_head_.store(claimed, std::memory_order_relaxed);
}

// Opens the connection that listens. Returns true if there was none.
bool PostgresLog::listen(const Deadline& deadline) {
  if (listener_ && !listener_->is_alive()) listener_.reset();
  if (listener_) return false;
  listener_ = connect_postgres(options_.server, options_.deadline, deadline, pending_listener_);
  if (listener_->is_pooled()) {
    notifies_.store(false, std::memory_order_relaxed);
    listener_.reset();
    return true;
  }
  // It was worth connecting for, even if there is no time left.
  const Deadline limit = deadline.time_left() < listen_time_min
                             ? Deadline(listen_time_min, deadline.stop())
                             : deadline;
  listener_->run({"LISTEN " + quoted_name(channel_of(options_.instance))}, limit);
  return true;
}

bool PostgresLog::wait(UpdateId after, std::chrono::nanoseconds at_most) {
  if (fork_count() != owner_fork_count_ || !notifies()) return Log::wait(after, at_most);
  if (may_be_beyond(after)) return true;
  const Deadline deadline = CallLimit::deadline(
      std::chrono::ceil<std::chrono::milliseconds>(std::clamp<std::chrono::nanoseconds>(
          at_most, std::chrono::nanoseconds(0), std::chrono::hours(24))));
  {
    const std::stop_callback on_stop(deadline.stop(), [&] {
      const MutexLock lock(waiters_mutex_);
      waiters_changed_.notify_all();
    });
    MutexLock lock(waiters_mutex_);
    while (is_listening_ && !may_be_beyond(after)) {
      const std::chrono::nanoseconds left = deadline.remaining();
      if (left.count() == 0) return false;
      waiters_changed_.wait_for(lock.native(), left);
    }
    if (may_be_beyond(after)) return true;
    if (deadline.passed()) return false;
    is_listening_ = true;
  }
  const auto stop_listening = [&] {
    const MutexLock lock(waiters_mutex_);
    is_listening_ = false;
    waiters_changed_.notify_all();
  };
  try {
    const bool woken = wait_for_notification(after, deadline);
    stop_listening();
    return woken;
  } catch (...) {
    stop_listening();
    throw;
  }
}

// The caller is the one thread that listens.
bool PostgresLog::wait_for_notification(UpdateId after, const Deadline& deadline) {
  if (!listener_mutex_.try_lock_until(deadline)) return false;  // it is being released
  const LogCallLock lock(listener_mutex_);
  try {
    if (listen(deadline)) {
      // Anything may have been appended since the last read of any waiter.
      note_claim(update_id_max);
      return true;
    }
    while (!deadline.passed()) {
      for (const std::string& payload : listener_->wait_for_notifications(deadline)) {
        UpdateId claimed = update_id_max;  // not of this version, or forged
        std::from_chars(payload.data(), payload.data() + payload.size(), claimed);
        note_claim(claimed);
      }
      if (may_be_beyond(after)) return true;
      // This thread may have read that update already, and others not.
      const MutexLock waiters_lock(waiters_mutex_);
      waiters_changed_.notify_all();
    }
    return false;
  } catch (const PostgresFailure& failure) {
    const bool was_lost = is_connection_lost(failure) && listener_;
    listener_.reset();
    if (!cannot_listen(failure)) {
      // The log is asked at once what is wrong, and now and then while it stays away.
      if (!was_lost) deadline.sleep(listen_retry_delay);
      return !deadline.passed();
    }
    notifies_.store(false, std::memory_order_relaxed);
    throw Error(ErrorKind::unavailable,
                "cannot listen for updates (the log is polled): log=" + name() + describe(failure));
  }
}

// --- Writing. ---

// Through a pooler, the transaction may reach another server than the one that was read.
std::string PostgresLog::append_sql() const {
  const std::string updates = table(updates_table);
  return "INSERT INTO " + updates + " (instance, id, bytes) SELECT l.instance, $2, $3 FROM " +
         table(logs_table) +
         " AS l WHERE l.instance = $1 AND l.uuid = $4 AND l.base < $2 AND (l.base = $5 OR EXISTS "
         "(SELECT 1 FROM " +
         updates +
         " AS before_it WHERE before_it.instance = $1 AND before_it.id = $5)) AND "
         "pg_catalog.pg_postmaster_start_time() = $6 AND " +
         PostgresConnection::settings_condition("$7") + " FOR SHARE OF l ON CONFLICT DO NOTHING";
}

Log::Appended PostgresLog::append(UpdateId id, std::string_view bytes) {
  check_update(id, bytes);
  const bool inserted = with_connection(
      IfAnswerLost::uncertain, "cannot append update",
      [&](PostgresConnection& connection, const Deadline& deadline) WHYCACHE_REQUIRES(mutex_) {
        read_position_.check_append(id, bytes, name());
        if (options_.notify)
          connection.notify_after_commit(channel_of(options_.instance), std::to_string(id));
        const std::uint64_t expected_server = server_start_;
        const bool done =
            connection.run_with_settings(
                {append_sql_,
                 {Value::text(options_.instance), Value::number(id), Value::bytes(bytes),
                  Value::bytes(as_bytes(uuid_seen_)), Value::number(id - 1),
                  Value::time(expected_server), connection.settings_mark()}},
                deadline) == 1;
        note_server(connection);
        if (!done && server_start_ != expected_server) {
          throw Error(ErrorKind::unavailable,
                      "the pooler led to another server, and the update before this one was not "
                      "read there, nothing was written: id=" +
                          std::to_string(id) + " log=" + name());
        }
        if (done) {
          read_position_.record(id, chain_of(id, bytes));
          head_seen_.store(id, std::memory_order_relaxed);
        }
        return done;
      });
  if (inserted) return Appended::yes;
  const LogTableRow row = read_log_row();
  return id <= row.base ? Appended::below_base : Appended::taken;
}

// The server checks the privileges of a statement before it looks for rows. These match none.
void PostgresLog::check_may_rewrite() {
  const std::string no_row = " WHERE instance = $1 AND 1 = 0";
  const std::string logs = table(logs_table);
  const std::string parts = table(parts_table);
  const std::vector<PostgresValue> values = {Value::text(options_.instance)};
  const PostgresStatement statements[] = {
      {"UPDATE " + logs +
           " SET base = base, base_chain = base_chain, token = token, part_count = part_count" +
           no_row,
       values},
      {"INSERT INTO " + parts +
           " (instance, base, token, number, bytes) SELECT instance, base, "
           "token, 0, token FROM " +
           logs + no_row,
       values},
      {"DELETE FROM " + table(updates_table) + no_row, values},
      {"DELETE FROM " + parts + no_row, values}};
  with_connection(IfAnswerLost::retry, "cannot rewrite history",
                  [&](PostgresConnection& connection, const Deadline& deadline) {
                    connection.transact(PostgresAccess::write, statements, deadline);
                    return true;
                  });
}

bool PostgresLog::rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) {
  return rewrite_in_database(*this, base, base_chain, next_part);
}

void PostgresLog::write_part(const LogMetadata& next, std::string_view part) {
  // No other process has this token: a part that exists was inserted by this one, which lost the
  // answer.
  const std::string sql = "INSERT INTO " + table(parts_table) +
                          " (instance, base, token, number, bytes) VALUES ($1, $2, $3, $4, $5) ON "
                          "CONFLICT DO NOTHING";
  with_connection(IfAnswerLost::retry, "cannot write part of a base",
                  [&](PostgresConnection& connection, const Deadline& deadline) {
                    return connection.run(
                        {sql,
                         {Value::text(options_.instance), Value::number(next.base),
                          Value::bytes(as_bytes(next.token)), Value::number(next.part_count),
                          Value::bytes(part)}},
                        deadline);
                  });
}

// Deletes nothing if these parts are the base, even if the outcome of the switch is unknown: the
// lock waits for a switch in progress, and the second statement sees what it did.
void PostgresLog::delete_unused_parts(const LogMetadata& next) {
  const std::string logs = table(logs_table);
  const PostgresStatement statements[] = {
      {"SELECT 1 FROM " + logs + " WHERE instance = $1 FOR SHARE",
       {Value::text(options_.instance)}},
      {"DELETE FROM " + table(parts_table) +
           " WHERE instance = $1 AND base = $2 AND token = $3 AND token <> (SELECT token FROM " +
           logs + " WHERE instance = $1)",
       {Value::text(options_.instance), Value::number(next.base),
        Value::bytes(as_bytes(next.token))}}};
  with_connection(IfAnswerLost::retry, "cannot delete parts of a base",
                  [&](PostgresConnection& connection, const Deadline& deadline) {
                    connection.transact(PostgresAccess::write, statements, deadline);
                    return true;
                  });
}

// Returns false if the base of the log is already at or beyond that of `next`.
bool PostgresLog::switch_base(const LogMetadata& next) {
  const std::string logs = table(logs_table);
  const std::string updates = table(updates_table);
  const PostgresStatement look{"SELECT substring(bytes FROM 1 FOR " +
                                   std::to_string(header_peek_bytes) + ") FROM " + updates +
                                   " WHERE instance = $1 AND id = $2",
                               {Value::text(options_.instance), Value::number(next.base)}};
  // An UPDATE alone takes its snapshot before it waits for the lock, and would not see that the
  // parts were deleted meanwhile.
  const PostgresStatement change[] = {
      {"SELECT 1 FROM " + logs + " WHERE instance = $1 FOR NO KEY UPDATE",
       {Value::text(options_.instance)}},
      {"UPDATE " + logs +
           " SET base = $2, base_chain = $3, token = $4, part_count = $5 WHERE instance = $1 AND "
           "uuid = $6 AND base < $2 AND EXISTS (SELECT 1 FROM " +
           updates + " WHERE instance = $1 AND id = $2) AND (SELECT count(*) FROM " +
           table(parts_table) + " WHERE instance = $1 AND base = $2 AND token = $4) = $5",
       {Value::text(options_.instance), Value::number(next.base), Value::number(next.base_chain),
        Value::bytes(as_bytes(next.token)), Value::number(next.part_count),
        Value::bytes(as_bytes(next.uuid))}}};
  const bool switched = with_connection(
      IfAnswerLost::uncertain, "cannot switch to another base",
      [&](PostgresConnection& connection, const Deadline& deadline) {
        {  // In the same transaction: another one may reach another server.
          const PostgresRows rows = std::move(connection.begin({&look, 1}, deadline)[0]);
          try {
            check_base_chain(name(), next.base,
                             rows.count() == 1 ? rows.at(0, 0).value_or("") : std::string_view(),
                             next.base_chain);
          } catch (...) {
            connection.roll_back(deadline);
            throw;
          }
        }
        return connection.commit(change, deadline)[1].changed() == 1;
      });
  if (switched) return true;
  const LogTableRow current = read_log_row();
  if (current.uuid != next.uuid) throw log_deleted_error(name());
  if (current.base >= next.base) return false;
  throw Error(
      ErrorKind::unavailable,
      "parts of the new base disappeared while it was written (rewrite again): log=" + name());
}

void PostgresLog::delete_below_base() {
  const LogTableRow row = read_log_row();
  const std::string logs = table(logs_table);
  const std::string updates = table(updates_table);
  const std::string parts = table(parts_table);
  const auto delete_some = [&](const PostgresStatement& statement) {
    return with_connection(IfAnswerLost::retry, "cannot delete rows",
                           [&](PostgresConnection& connection, const Deadline& deadline) {
                             const auto answers = connection.transact(PostgresAccess::write,
                                                                      {&statement, 1}, deadline);
                             return std::pair(answers[0].number(0, 0), answers[0].number(0, 1));
                           });
  };
  // The pauses let other transactions in.
  const auto pause = [] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };
  // Only while the log is still this one: its base never falls. Each batch begins where the one
  // before ended, since rows that were deleted stay in the index for a while.
  const std::string delete_updates =
      "WITH deleted AS (DELETE FROM " + updates +
      " WHERE instance = $1 AND id IN (SELECT id FROM " + updates +
      " WHERE instance = $1 AND id > $4 AND id <= $2 ORDER BY id LIMIT " +
      std::to_string(updates_per_deletion) + ") AND EXISTS (SELECT 1 FROM " + logs +
      " WHERE instance = $1 AND uuid = $3) RETURNING id) SELECT count(*), max(id) FROM deleted";
  for (UpdateId after = 0;; pause()) {
    const auto [count, newest] =
        delete_some({delete_updates,
                     {Value::text(options_.instance), Value::number(row.base),
                      Value::bytes(as_bytes(row.uuid)), Value::number(after)}});
    if (count == 0) break;
    after = newest;
  }
  // Parts of a greater base stay: a rewrite may still switch to it.
  const std::string delete_parts =
      "WITH deleted AS (DELETE FROM " + parts +
      " WHERE instance = $1 AND (base, token, number) IN (SELECT base, token, number FROM " +
      parts + " WHERE instance = $1 AND base <= $2 AND token <> (SELECT token FROM " + logs +
      " WHERE instance = $1 AND uuid = $3) ORDER BY base, token, number LIMIT " +
      std::to_string(parts_per_deletion) + ") RETURNING 1) SELECT count(*), 0::bigint FROM deleted";
  for (;; pause()) {
    const auto deleted = delete_some({delete_parts,
                                      {Value::text(options_.instance), Value::number(row.base),
                                       Value::bytes(as_bytes(row.uuid))}});
    if (deleted.first == 0) break;
  }
}

}  // namespace whycache
