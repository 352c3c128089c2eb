#include "log/sqlite_log.h"

#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <string_view>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/backoff.h"
#include "base/call_limit.h"
#include "base/file.h"
#include "base/fork_exclusion.h"
#include "base/fork_handlers.h"
#include "base/lock_holders.h"
#include "base/random.h"
#include "base/signals.h"
#include "log/rewrite_in_database.h"
#include "log/row_buffer.h"

namespace whycache {
namespace {

constexpr int sqlite_version_min = 3'037'000;  // STRICT tables
constexpr std::int64_t schema_version = 1;
constexpr std::size_t buffer_bytes_max = std::size_t{1} << 20;
constexpr std::size_t buffer_rows_max = 4096;
constexpr char restore_hint[] =
    " (restore it from a backup, or move it away to begin an empty log)";

// {log} is the condition that selects the instance's row; {updates} and {parts} are its tables.
constexpr char create_logs_sql[] = R"(
  CREATE TABLE IF NOT EXISTS whycache_logs (
    instance   TEXT    NOT NULL PRIMARY KEY COLLATE NOCASE )"
                                   R"(CHECK (length(instance) BETWEEN 1 AND 48),
    format     INTEGER NOT NULL,
    uuid       BLOB    NOT NULL CHECK (length(uuid) = 16),
    base       INTEGER NOT NULL CHECK (base >= 0),
    base_chain INTEGER NOT NULL,
    token      BLOB    NOT NULL CHECK (length(token) = 16),
    part_count INTEGER NOT NULL CHECK (part_count >= 0)
  ) STRICT)";
constexpr char create_updates_sql[] = R"(
  CREATE TABLE {updates} (
    id    INTEGER NOT NULL PRIMARY KEY CHECK (id > 0),
    bytes BLOB    NOT NULL CHECK (length(bytes) > 0)
  ) STRICT)";
constexpr char create_parts_sql[] = R"(
  CREATE TABLE {parts} (
    base   INTEGER NOT NULL CHECK (base > 0),
    token  BLOB    NOT NULL CHECK (length(token) = 16),
    number INTEGER NOT NULL CHECK (number >= 0),
    bytes  BLOB    NOT NULL,
    PRIMARY KEY (base, token, number)
  ) STRICT)";
constexpr char insert_log_sql[] =
    "INSERT INTO whycache_logs VALUES (?1, ?2, ?3, 0, 0, zeroblob(16), 0)";

constexpr char select_logs_table_sql[] =
    "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'whycache_logs'";
constexpr char select_log_sql[] = R"(
  SELECT instance, format, uuid, base, base_chain, token, part_count
  FROM whycache_logs WHERE {log})";
constexpr char select_instances_sql[] = "SELECT instance FROM whycache_logs ORDER BY instance";
constexpr char select_head_sql[] = "SELECT id FROM {updates} ORDER BY id DESC LIMIT 1";
constexpr char select_updates_sql[] =
    "SELECT id, bytes FROM {updates} WHERE id BETWEEN ?1 AND ?2 ORDER BY id";
constexpr char select_part_sql[] =
    "SELECT bytes FROM {parts} WHERE base = ?1 AND token = ?2 AND number = ?3";

constexpr char append_sql[] = R"(
  INSERT INTO {updates} (id, bytes)
  SELECT ?1, ?2 FROM whycache_logs
  WHERE {log} AND (?3 IS NULL OR uuid = ?3) AND base < ?1
    AND (base = ?1 - 1 OR EXISTS (SELECT 1 FROM {updates} WHERE id = ?1 - 1)))";
constexpr char insert_part_sql[] =
    "INSERT INTO {parts} (base, token, number, bytes) VALUES (?1, ?2, ?3, ?4)";
constexpr char select_update_prefix_sql[] =
    "SELECT substr(bytes, 1, ?2) FROM {updates} WHERE id = ?1";
constexpr char switch_base_sql[] = R"(
  UPDATE whycache_logs SET base = ?1, base_chain = ?2, token = ?3, part_count = ?4
  WHERE {log} AND uuid = ?5 AND base < ?1
    AND EXISTS (SELECT 1 FROM {updates} WHERE id = ?1)
    AND (SELECT count(*) FROM {parts} WHERE base = ?1 AND token = ?3) = ?4)";
constexpr char delete_updates_sql[] = R"(
  DELETE FROM {updates} WHERE id IN (
    SELECT id FROM {updates} WHERE id <= (SELECT base FROM whycache_logs WHERE {log})
    ORDER BY id LIMIT ?1))";
// Keeps parts of a base greater than the current one: a rewriter may still switch to it.
constexpr char delete_parts_sql[] = R"(
  DELETE FROM {parts} WHERE rowid IN (
    SELECT p.rowid FROM {parts} AS p, (SELECT base, token FROM whycache_logs WHERE {log}) AS l
    WHERE p.base <= l.base AND p.token <> l.token LIMIT ?1))";
// Correct even after a switch whose outcome is unknown.
constexpr char delete_own_parts_sql[] = R"(
  DELETE FROM {parts} WHERE base = ?1 AND token = ?2
    AND token <> (SELECT token FROM whycache_logs WHERE {log}))";

// SQLite writes to files, which may reach RLIMIT_FSIZE. By default that ends the process.
struct SigxfszBlocker : ThreadSignalBlocker {
  SigxfszBlocker() : ThreadSignalBlocker(SIGXFSZ) {}
};

// SQLite turns a read that failed with one of these into SQLITE_CORRUPT.
bool is_taken_for_damage(int error) { return error == EIO || error == ENXIO || error == ERANGE; }

// --- fork() and SQLite. ---

ForkExclusion& fork_exclusion() {
  static auto* const instance = new ForkExclusion;
  return *instance;
}
// Created before there are threads, see register_fork_handler(); or earlier, if a log is opened
// before main().
[[maybe_unused]] const ForkExclusion& early_fork_exclusion = fork_exclusion();

void create_file_if_missing(const std::string& path) {
  // SQLite must not have the file open in this process yet: closing a second descriptor would drop
  // its locks.
  const FileDescriptor file(
      ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (file || errno == EEXIST) return;
  if (errno == ENOENT) {
    throw Error(ErrorKind::invalid,
                "directory for the log does not exist: path=" + parent_directory(path), ENOENT);
  }
  throw system_error("cannot create database", path, errno);
}

}  // namespace

// A prepared statement in use. Its destructor resets it for the next use.
class SqliteLog::Statement {
 public:
  Statement(Connection& connection, sqlite3_stmt* statement)
      : connection_(connection), statement_(statement) {}
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  ~Statement() {
    sqlite3_reset(statement_);
    sqlite3_clear_bindings(statement_);
  }

  // Bytes are not copied: they must outlive this object.
  Statement& bind(int index, std::int64_t number);
  Statement& bind(int index, UpdateId id) { return bind(index, static_cast<std::int64_t>(id)); }
  Statement& bind(int index, std::string_view bytes);
  Statement& bind(int index, const Uuid& uuid) { return bind(index, as_bytes(uuid)); }
  Statement& bind_text(int index, std::string_view text);

  // Returns whether there is a row. Throws Error.
  bool step(const char* what);
  // Returns SQLite's code.
  int try_step();

  std::int64_t number(int column) const { return sqlite3_column_int64(statement_, column); }
  std::string_view bytes(int column) const {
    const auto* data = static_cast<const char*>(sqlite3_column_blob(statement_, column));
    return {data, data == nullptr
                      ? 0
                      : static_cast<std::size_t>(sqlite3_column_bytes(statement_, column))};
  }
  // In UTF-8, whatever the encoding of the database.
  std::string_view text(int column) const {
    const unsigned char* const data = sqlite3_column_text(statement_, column);
    return {
        reinterpret_cast<const char*>(data),
        data == nullptr ? 0 : static_cast<std::size_t>(sqlite3_column_bytes(statement_, column))};
  }
  std::optional<Uuid> uuid(int column) const {
    Uuid uuid;
    const std::string_view value = bytes(column);
    if (value.size() != uuid.size()) return std::nullopt;
    std::copy(value.begin(), value.end(), uuid.begin());
    return uuid;
  }

 private:
  static std::string_view as_bytes(const Uuid& uuid) {
    return {reinterpret_cast<const char*>(uuid.data()), uuid.size()};
  }
  void check(int code);

  Connection& connection_;
  sqlite3_stmt* statement_;
};

// An open database with its settings and the statements prepared so far.
class SqliteLog::Connection {
 public:
  Connection(const SqliteLogOptions& options, IfMissing if_missing)
      : options_(options),
        backoff_(CallLimit::deadline(options.deadline), lock_pauses),
        version_(options.sqlite_version) {
    if (version_ == 0) version_ = sqlite3_libversion_number();
    if (sqlite3_libversion_number() < sqlite_version_min || sqlite3_threadsafe() == 0) {
      throw Error(ErrorKind::invalid, std::string("this SQLite cannot hold a log (3.37 or newer, "
                                                  "built thread-safe, is needed): version=") +
                                          sqlite3_libversion());
    }
    // "./" keeps SQLite from taking the path for a special name such as ":memory:".
    const std::string path = options.path[0] == '/' ? options.path : "./" + options.path;
    const int code = sqlite3_open_v2(
        path.c_str(), &database_,
        SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, nullptr);
    try {
      if (code != SQLITE_OK) throw error("cannot open database", code);
      sqlite3_busy_handler(database_, wait_before_retry, this);
      run("PRAGMA trusted_schema = OFF");
      run("PRAGMA cell_size_check = ON");
      const bool is_new = is_empty();
      if (is_new)
        run("PRAGMA auto_vacuum = INCREMENTAL");  // can be chosen for an empty database only
      // A database without a log belongs to another program.
      if (if_missing == IfMissing::create || has_logs_table()) choose_journal_mode(is_new);
      // In WAL mode, a user that may only read needs the files that the last writer would delete.
      int keep_wal = 1;
      sqlite3_file_control(database_, "main", SQLITE_FCNTL_PERSIST_WAL, &keep_wal);
      run("PRAGMA synchronous = FULL");
      run("PRAGMA journal_size_limit = 8388608");
    } catch (...) {
      close();
      throw;
    }
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() { close(); }

  // Starts a call, which may wait until the deadline.
  void begin_call(const Deadline& deadline) { backoff_ = Backoff(deadline, lock_pauses); }
  // Whether the database file was moved, replaced or deleted since it was opened.
  bool has_moved() {
    int moved = 0;
    return sqlite3_file_control(database_, "main", SQLITE_FCNTL_HAS_MOVED, &moved) == SQLITE_OK &&
           moved != 0;
  }
  // Whether the database was switched to WAL mode although this library must not use it so.
  bool is_in_unsafe_wal_mode() { return has_wal_reset_bug(version_) && journal_mode() == "wal"; }

  // Calls a function of SQLite that accesses the database, and returns its code.
  template <typename Call>
  int call(const Call& function) {
    errno = 0;
    const int code = function();
    errno_of_call_ = errno;
    return code;
  }
  // `sql` is one of the constants above, identified by its address.
  Statement prepare(const char* sql) {
    sqlite3_stmt*& statement = statements_[sql];
    if (statement == nullptr) {
      const std::string text = replace_placeholders(sql);
      const int code = call([&] {
        return sqlite3_prepare_v3(database_, text.c_str(), static_cast<int>(text.size()),
                                  SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
      });
      if (code != SQLITE_OK) throw error("cannot prepare statement", code);
    }
    return Statement(*this, statement);
  }
  void run(const char* sql) {
    Statement statement = prepare(sql);
    while (statement.step("cannot use database")) {
    }
  }
  void rollback() noexcept { sqlite3_exec(database_, "ROLLBACK", nullptr, nullptr, nullptr); }
  int changes() const { return sqlite3_changes(database_); }

  // Returns the error for one of SQLite's codes. `uncertain_if_io` is for statements that commit:
  // on a failing disk it is unknown whether they did.
  Error error(const char* what, int code, bool uncertain_if_io = false) const {
    const int file_errno = last_errno_of_files();
    int system = file_errno != 0 ? file_errno : sqlite3_system_errno(database_);
    if (system == 0) system = errno_of_call_;
    const std::string reason = sqlite3_errmsg(database_);
    const std::string message = std::string(what) + ": log=" + options_.name + " reason=\"" +
                                reason + "\" code=" + std::to_string(code);
    if ((code & 0xff) == SQLITE_CORRUPT) {
      for (const int read_error : {file_errno, errno_of_call_}) {
        if (is_taken_for_damage(read_error))
          return io_error(std::string(what) + ": log=" + options_.name, read_error,
                          uncertain_if_io);
      }
    }
    switch (code & 0xff) {
      case SQLITE_BUSY:
      case SQLITE_LOCKED:
      case SQLITE_PROTOCOL: return Error(ErrorKind::unavailable, message + holders(), EBUSY);
      case SQLITE_FULL:
      case SQLITE_NOMEM:
      case SQLITE_TOOBIG:
        return Error(ErrorKind::limit, message, (code & 0xff) == SQLITE_FULL ? ENOSPC : 0);
      case SQLITE_READONLY:
        if (code == SQLITE_READONLY_ROLLBACK || code == SQLITE_READONLY_RECOVERY) {
          return Error(ErrorKind::unavailable,
                       message +
                           " (a process died while it wrote: a user who may write must open "
                           "the log, which repairs it)",
                       EACCES);
        }
        [[fallthrough]];
      case SQLITE_PERM:
      case SQLITE_AUTH:
        return Error(ErrorKind::invalid,
                     message + " (allow writing to the file and to its directory)", EACCES);
      case SQLITE_CANTOPEN:
        if (system != 0)
          return system_error("cannot open database or its journal", options_.path, system);
        return Error(ErrorKind::invalid, message);
      case SQLITE_NOTADB:
        return Error(ErrorKind::corrupt, "file is not an SQLite database: path=" + options_.path +
                                             " (choose another file, or move it away; or it is "
                                             "encrypted, or of a newer SQLite)");
      case SQLITE_CORRUPT:
        if (reason.starts_with("malformed database schema")) return newer_sqlite_error(message);
        return Error(ErrorKind::corrupt, message + restore_hint);
      case SQLITE_ERROR:
        if (reason == "unsupported file format") return newer_sqlite_error(message);
        [[fallthrough]];
      case SQLITE_CONSTRAINT:
      case SQLITE_MISMATCH:
        return Error(ErrorKind::corrupt,
                     message + " (a table is missing, or not as whycache creates it)");
      case SQLITE_IOERR: return io_error(message, system, uncertain_if_io);
      default: return Error(ErrorKind::unavailable, message, system);
    }
  }

 private:
  static constexpr Backoff::Pauses lock_pauses{std::chrono::microseconds(50),
                                               std::chrono::milliseconds(2)};

  void close() noexcept {
    for (const auto& [sql, statement] : statements_) sqlite3_finalize(statement);
    sqlite3_close(database_);
  }

  // SQLite counts the locks of files for the whole process. A child that was forked while one was
  // held would count it for ever, and never get the one that it needs. A transaction that waits to
  // begin holds none, so that another thread may fork meanwhile. One that waits for readers to end,
  // in order to commit, holds some: it is rolled back if another thread waits to fork, and its
  // caller retries.
  static int wait_before_retry(void* self, int) {
    auto* const connection = static_cast<Connection*>(self);
    if (connection->holds_write_lock())
      return !fork_exclusion().is_fork_waiting() && connection->backoff_.pause() ? 1 : 0;
    const ForkExclusion::ForkSection may_fork(fork_exclusion());
    return connection->backoff_.pause() ? 1 : 0;
  }
  bool holds_write_lock() const noexcept {
    int lock = SQLITE_LOCK_NONE;
    return sqlite3_file_control(database_, "main", SQLITE_FCNTL_LOCKSTATE, &lock) == SQLITE_OK &&
           lock > SQLITE_LOCK_SHARED;
  }

  // The errno of the last system call on the database, its journal or its WAL that failed; 0: none.
  // sqlite3_system_errno() is whatever errno was when SQLite gave up, and is not kept for all
  // codes.
  int last_errno_of_files() const noexcept {
    if (database_ == nullptr) return 0;  // no memory for it
    for (const int which : {SQLITE_FCNTL_FILE_POINTER, SQLITE_FCNTL_JOURNAL_POINTER}) {
      sqlite3_file* file = nullptr;
      int error = 0;
      if (sqlite3_file_control(database_, "main", which, static_cast<void*>(&file)) == SQLITE_OK &&
          file != nullptr && file->pMethods != nullptr && file->pMethods->xFileControl != nullptr &&
          file->pMethods->xFileControl(file, SQLITE_FCNTL_LAST_ERRNO, &error) == SQLITE_OK &&
          error != 0)
        return error;
    }
    return 0;
  }

  static Error io_error(const std::string& message, int system, bool uncertain) {
    if (system == EFBIG) return file_size_error(message);
    const std::string text =
        system == 0 ? message
                    : message + " cause=\"" + std::system_category().message(system) + '"';
    if (uncertain) return Error(ErrorKind::uncertain, text, system);
    const bool is_full = system == ENOSPC || system == EDQUOT || system == ENOMEM;
    return Error(is_full ? ErrorKind::limit : ErrorKind::unavailable, text, system);
  }

  // SQLite commits after it has written all bytes, so nothing was committed.
  static Error file_size_error(const std::string& message) {
    rlimit limit{};
    ::getrlimit(RLIMIT_FSIZE, &limit);
    return Error(ErrorKind::limit,
                 message + " bytes_max=" + std::to_string(limit.rlim_cur) +
                     " (a file exceeds the limit of this process on the size of files: raise "
                     "RLIMIT_FSIZE, which ulimit -f sets)",
                 EFBIG);
  }

  // SQLite reads the whole schema, also that of tables of the application.
  static Error newer_sqlite_error(const std::string& message) {
    return Error(ErrorKind::invalid,
                 message + " sqlite=" + sqlite3_libversion() +
                     " (this SQLite cannot read the schema of the database: use the newer one that "
                     "wrote it, or a database of its own for the log)");
  }

  // For a call that has waited for locks of others until its deadline.
  std::string holders() const {
    const std::string text = " waited_ms_max=" + std::to_string(options_.deadline.count());
    std::string processes = lock_holders(options_.path);
    if (processes.empty()) processes = lock_holders(options_.path + "-shm");
    if (processes.empty())
      return text + " (a process has an open transaction: docs/logs.md tells how to find it)";
    return text + " lock_holders=" + processes + " (end its transaction, or the process)";
  }

  std::string replace_placeholders(std::string_view sql) const {
    std::string text(sql);
    const std::pair<std::string_view, std::string> names[] = {
        {"{log}", "instance = '" + options_.instance + "'"},
        {"{updates}", "whycache_updates_" + options_.instance},
        {"{parts}", "whycache_parts_" + options_.instance}};
    for (const auto& [placeholder, name] : names) {
      for (std::size_t at = text.find(placeholder); at != std::string::npos;
           at = text.find(placeholder, at)) {
        text.replace(at, placeholder.size(), name);
      }
    }
    return text;
  }

  std::string journal_mode() {
    Statement statement = prepare("PRAGMA journal_mode");
    statement.step("cannot read journal mode");
    return std::string(statement.text(0));
  }

  bool has_logs_table() {
    Statement has_logs = prepare(select_logs_table_sql);
    return has_logs.step("cannot read database");
  }

  bool is_empty() {
    Statement statement = prepare("PRAGMA page_count");
    return !statement.step("cannot read database") || statement.number(0) == 0;
  }

  // SQLite does not itself wait until it can change the mode. To leave WAL mode, all other
  // connections must be closed.
  void choose_journal_mode(bool is_new) {
    const bool is_wal_unsafe = has_wal_reset_bug(version_);
    for (;;) {
      const bool in_wal = journal_mode() == "wal";
      if (in_wal && !is_wal_unsafe) return;
      const bool to_wal = !is_wal_unsafe && is_new;
      Statement change =
          prepare(to_wal ? "PRAGMA journal_mode = WAL" : "PRAGMA journal_mode = PERSIST");
      const int code = change.try_step();
      if (code == SQLITE_ROW && change.text(0) == (to_wal ? "wal" : "persist")) return;
      const bool others_use_it = code == SQLITE_ROW || (code & 0xff) == SQLITE_BUSY;
      if (others_use_it && wait_before_retry(this, 0) != 0) continue;
      if (!in_wal) throw error("cannot set journal mode", others_use_it ? SQLITE_BUSY : code);
      throw Error(
          others_use_it ? ErrorKind::unavailable : ErrorKind::invalid,
          "database is in WAL mode, in which this SQLite can corrupt it, and cannot be switched "
          "back: log=" +
              options_.name + " sqlite=" + sqlite3_libversion() + " reason=\"" +
              sqlite3_errstr(others_use_it ? SQLITE_BUSY : code) +
              "\" (close it in all other programs, or use SQLite 3.51.3 or newer in all of them)");
    }
  }

  const SqliteLogOptions& options_;
  Backoff backoff_;
  int version_;
  sqlite3* database_ = nullptr;
  // Where the last call left errno: that of the last system call that failed, or 0.
  int errno_of_call_ = 0;
  std::map<const char*, sqlite3_stmt*> statements_;
};

SqliteLog::Statement& SqliteLog::Statement::bind(int index, std::int64_t number) {
  check(sqlite3_bind_int64(statement_, index, number));
  return *this;
}

SqliteLog::Statement& SqliteLog::Statement::bind(int index, std::string_view bytes) {
  // A null address would bind NULL.
  check(sqlite3_bind_blob64(statement_, index, bytes.empty() ? "" : bytes.data(), bytes.size(),
                            SQLITE_STATIC));
  return *this;
}

SqliteLog::Statement& SqliteLog::Statement::bind_text(int index, std::string_view text) {
  check(
      sqlite3_bind_text64(statement_, index, text.data(), text.size(), SQLITE_STATIC, SQLITE_UTF8));
  return *this;
}

int SqliteLog::Statement::try_step() {
  return connection_.call([&] { return sqlite3_step(statement_); });
}

bool SqliteLog::Statement::step(const char* what) {
  const int code = try_step();
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  throw connection_.error(what, code);
}

void SqliteLog::Statement::check(int code) {
  if (code != SQLITE_OK) throw connection_.error("cannot bind value", code);
}

namespace {

// Rolls back in its destructor unless it was committed.
template <typename Connection>
class SqliteTransaction {
 public:
  SqliteTransaction(Connection& connection, const char* begin) : connection_(connection) {
    connection_.run(begin);
  }
  SqliteTransaction(const SqliteTransaction&) = delete;
  SqliteTransaction& operator=(const SqliteTransaction&) = delete;
  ~SqliteTransaction() {
    if (is_open_) connection_.rollback();
  }
  void commit() {
    connection_.run("COMMIT");
    is_open_ = false;
  }

 private:
  Connection& connection_;
  bool is_open_ = true;
};

}  // namespace

SqliteLog::SqliteLog(SqliteLogOptions options, IfMissing if_missing)
    : options_(std::move(options)),
      watch_(options_.name,
             {{options_.path, IN_MODIFY | IN_ATTRIB}, {options_.path + "-wal", IN_MODIFY}}) {
  const ForkExclusion::NoForkSection no_fork(fork_exclusion());
  const SigxfszBlocker no_signal;
  owner_fork_count_ = fork_count();
  connection_ = connect(if_missing);
  if (if_missing == IfMissing::fail && !has_log_row(*connection_)) throw log_missing(*connection_);
}

SqliteLog::~SqliteLog() {
  if (fork_count() != owner_fork_count_) {
    static_cast<void>(connection_.release());  // belongs to the parent: leaked on purpose
    return;
  }
  const ForkExclusion::NoForkSection no_fork(fork_exclusion());
  const SigxfszBlocker no_signal;
  connection_.reset();
}

std::unique_ptr<Log> SqliteLog::reopen() {
  try {
    return std::make_unique<SqliteLog>(options_, IfMissing::fail);
  } catch (const LogMissing&) {
    throw log_deleted_error(name());
  }
}

std::unique_ptr<SqliteLog::Connection> SqliteLog::connect(IfMissing if_missing) const {
  if (options_.path.empty())
    throw Error(ErrorKind::invalid, "log url has no path: log=" + options_.name);
  if (if_missing == IfMissing::create) create_file_if_missing(options_.path);
  struct stat status;
  if (::lstat(options_.path.c_str(), &status) != 0) {
    const bool is_missing = errno == ENOENT || errno == ENOTDIR;
    if (is_missing && if_missing == IfMissing::fail) throw LogMissing(name(), "no such file");
    throw system_error("cannot use database", options_.path, errno);
  }
  if (S_ISLNK(status.st_mode)) throw system_error("cannot use database", options_.path, ELOOP);
  if (!S_ISREG(status.st_mode)) {
    throw Error(ErrorKind::invalid, "database is not a regular file: path=" + options_.path +
                                        " (name a file in the url)");
  }
  // Choosing the journal mode of an empty file would write to it.
  if (status.st_size == 0 && if_missing == IfMissing::fail)
    throw LogMissing(name(), "an empty file");

  auto connection = std::make_unique<Connection>(options_, if_missing);
  if (if_missing == IfMissing::create) create_tables(*connection);
  return connection;
}

bool SqliteLog::has_log_row(Connection& connection) const {
  if (Statement has_logs = connection.prepare(select_logs_table_sql);
      !has_logs.step("cannot read database"))
    return false;
  Statement row = connection.prepare(select_log_sql);
  if (!row.step("cannot read whycache_logs")) return false;
  if (row.text(0) == options_.instance) return true;
  throw Error(ErrorKind::invalid,
              "instance differs only in capital letters from an existing one: instance=" +
                  options_.instance + " existing=" + std::string(row.text(0)));
}

LogMissing SqliteLog::log_missing(Connection& connection) const {
  std::vector<std::string> instances;
  if (Statement has_logs = connection.prepare(select_logs_table_sql);
      has_logs.step("cannot read database")) {
    Statement rows = connection.prepare(select_instances_sql);
    while (rows.step("cannot read whycache_logs")) instances.emplace_back(rows.text(0));
  }
  return {name(), describe_instances(instances)};
}

void SqliteLog::create_tables(Connection& connection) const {
  // Reads first: opening a log that exists must not need permission to write.
  if (has_log_row(connection)) return;
  SqliteTransaction transaction(connection, "BEGIN IMMEDIATE");
  if (!has_log_row(connection)) {
    connection.run(create_logs_sql);
    connection.run(create_updates_sql);
    connection.run(create_parts_sql);
    const Uuid uuid = random_uuid();
    Statement insert = connection.prepare(insert_log_sql);
    insert.bind_text(1, options_.instance)
        .bind(2, schema_version)
        .bind(3, uuid)
        .step("cannot create log");
  }
  transaction.commit();
}

template <typename Work>
auto SqliteLog::with_connection(const Work& work) {
  if (fork_count() != owner_fork_count_) {
    throw Error(ErrorKind::invalid,
                "log was opened before a fork (use reopen() in the child): log=" + name());
  }
  const Deadline deadline = CallLimit::deadline(options_.deadline);
  const LogCallLock lock(mutex_, deadline, name());
  const ForkExclusion::NoForkSection no_fork(fork_exclusion());
  const SigxfszBlocker no_signal;
  if (connection_) connection_->begin_call(deadline);
  if (connection_ && (connection_->has_moved() || connection_->is_in_unsafe_wal_mode()))
    connection_.reset();
  if (!connection_) connection_ = connect_again();
  try {
    return work(*connection_);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::corrupt && !has_log(*connection_))
      throw log_deleted_error(name());
    // The failure may have left the connection in any state, so the next call opens a new one.
    if (error.kind() != ErrorKind::unavailable || error.system_error() != 0) connection_.reset();
    throw;
  }
}

std::unique_ptr<SqliteLog::Connection> SqliteLog::connect_again() const {
  try {
    return connect(IfMissing::fail);
  } catch (const LogMissing&) {
    throw log_deleted_error(name());
  }
}

// Returns false if the log was deleted by hand, which would explain missing tables.
bool SqliteLog::has_log(Connection& connection) const noexcept {
  try {
    if (Statement has_logs = connection.prepare(select_logs_table_sql);
        !has_logs.step("cannot read database"))
      return false;
    Statement row = connection.prepare(select_log_sql);
    return row.step("cannot read whycache_logs");
  } catch (const Error&) {
    return true;  // the failure has another cause
  }
}

LogMetadata SqliteLog::read_log_row(Connection& connection) const {
  Statement row = connection.prepare(select_log_sql);
  if (!row.step("cannot read whycache_logs")) throw log_deleted_error(name());
  const std::int64_t format = row.number(1);
  const std::optional<Uuid> uuid = row.uuid(2);
  const std::int64_t base = row.number(3);
  const std::optional<Uuid> token = row.uuid(5);
  if (format != schema_version || !uuid || base < 0 || !token) {
    throw unknown_log_row_error(
        name(), static_cast<std::uint64_t>(std::max<std::int64_t>(format, 0)), schema_version);
  }
  return {*uuid, static_cast<UpdateId>(base), static_cast<std::uint64_t>(row.number(4)), *token,
          static_cast<std::uint64_t>(std::max<std::int64_t>(row.number(6), 0))};
}

Extent SqliteLog::read_extent(Connection& connection) {
  const LogMetadata row = read_log_row(connection);
  Statement head = connection.prepare(select_head_sql);
  const UpdateId last = head.step("cannot read head") ? static_cast<UpdateId>(head.number(0)) : 0;
  uuid_seen_ = row.uuid;
  return {row.uuid, row.base, row.base_chain, std::max(row.base, last)};
}

Extent SqliteLog::extent() {
  return with_connection([&](Connection& connection) WHYCACHE_REQUIRES(mutex_) {
    SqliteTransaction transaction(connection, "BEGIN");
    const Extent extent = read_extent(connection);
    transaction.commit();
    return extent;
  });
}

Log::Appended SqliteLog::append(UpdateId id, std::string_view bytes) {
  check_update(id, bytes);
  const auto insert_update = [&](Connection& connection) WHYCACHE_REQUIRES(mutex_) {
    {
      Statement insert = connection.prepare(append_sql);
      insert.bind(1, id).bind(2, bytes);
      if (uuid_seen_) insert.bind(3, *uuid_seen_);
      const int code = insert.try_step();
      if (code == SQLITE_CONSTRAINT_PRIMARYKEY || code == SQLITE_CONSTRAINT_ROWID)
        return Appended::taken;
      if (code != SQLITE_DONE) throw connection.error("cannot append update", code, true);
      if (connection.changes() == 1) return Appended::yes;
    }
    return id <= read_log_row(connection).base ? Appended::below_base : Appended::taken;
  };
  const Appended outcome = with_connection(insert_update);
  // In WAL mode, readers see the update only after the last write to a file. So this wakes those
  // that watch the database. A failure costs them time.
  if (outcome == Appended::yes)
    ::utimensat(AT_FDCWD, options_.path.c_str(), nullptr, AT_SYMLINK_NOFOLLOW);
  return outcome;
}

bool SqliteLog::wait(UpdateId after, std::chrono::nanoseconds at_most) {
  return watch_.wait(at_most, [&] { return extent().head > after; });
}

Extent SqliteLog::read(UpdateId first, UpdateId last, const VisitUpdate& visit) {
  RowBuffer buffer(buffer_bytes_max, buffer_rows_max);
  for (bool is_first = true;; is_first = false) {
    buffer.clear();
    const Extent extent = with_connection([&](Connection& connection) WHYCACHE_REQUIRES(mutex_) {
      SqliteTransaction transaction(connection, "BEGIN");
      const Extent now = read_extent(connection);
      // A rewrite has deleted the rows that come next: the caller sees it in the extent.
      const bool overtaken = !is_first && now.base >= first;
      UpdateId expected = std::max(first, now.base + 1);
      const UpdateId end = std::min(last, now.head);
      if (!overtaken && expected <= end) {
        Statement rows = connection.prepare(select_updates_sql);
        rows.bind(1, expected).bind(2, end);
        while (!buffer.is_full() && rows.step("cannot read updates")) {
          const auto id = static_cast<UpdateId>(rows.number(0));
          if (id != expected) throw missing_update_error(name(), expected, now.head);
          buffer.add(id, rows.bytes(1));
          ++expected;
        }
      }
      transaction.commit();
      return now;
    });
    const bool continues = buffer.visit_all(visit);
    if (!continues || !buffer.is_full()) return extent;
    first = buffer.last_id() + 1;
  }
}

void SqliteLog::read_base(const VisitPart& visit) {
  const LogMetadata row =
      with_connection([&](Connection& connection) { return read_log_row(connection); });
  for (std::uint64_t number = 0; number < row.part_count; ++number) {
    const std::string part = with_connection([&](Connection& connection) {
      Statement read = connection.prepare(select_part_sql);
      read.bind(1, row.base).bind(2, row.token).bind(3, number);
      if (read.step("cannot read part of the base")) return std::string(read.bytes(0));
      if (read_log_row(connection).token != row.token) throw base_replaced_error(name());
      throw Error(ErrorKind::corrupt, "part of the base is missing: log=" + name() +
                                          " base=" + std::to_string(row.base) +
                                          " number=" + std::to_string(number) + restore_hint);
    });
    if (!visit(part)) return;
  }
}

bool SqliteLog::rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) {
  const bool switched = rewrite_in_database(*this, base, base_chain, next_part);
  vacuum_incrementally();
  return switched;
}

void SqliteLog::write_part(const LogMetadata& next, std::string_view part) {
  with_connection([&](Connection& connection) {
    Statement insert = connection.prepare(insert_part_sql);
    insert.bind(1, next.base).bind(2, next.token).bind(3, next.part_count).bind(4, part);
    return insert.step("cannot write part of a base");
  });
}

void SqliteLog::delete_unused_parts(const LogMetadata& next) {
  with_connection([&](Connection& connection) {
    Statement erase = connection.prepare(delete_own_parts_sql);
    return erase.bind(1, next.base).bind(2, next.token).step("cannot delete parts of a base");
  });
}

// Returns false if another rewrite has reached the same base or a later one.
bool SqliteLog::switch_base(const LogMetadata& next) {
  return with_connection([&](Connection& connection) {
    {
      Statement peek = connection.prepare(select_update_prefix_sql);
      peek.bind(1, next.base).bind(2, static_cast<std::int64_t>(header_peek_bytes));
      if (peek.step("cannot read update"))
        check_base_chain(name(), next.base, peek.bytes(0), next.base_chain);
    }
    {
      Statement update = connection.prepare(switch_base_sql);
      update.bind(1, next.base)
          .bind(2, static_cast<std::int64_t>(next.base_chain))
          .bind(3, next.token)
          .bind(4, next.part_count)
          .bind(5, next.uuid);
      const int code = update.try_step();
      if (code != SQLITE_DONE) throw connection.error("cannot switch to another base", code, true);
      if (connection.changes() == 1) return true;
    }
    const LogMetadata current = read_log_row(connection);
    if (current.uuid != next.uuid) throw log_deleted_error(name());
    if (current.base >= next.base) return false;
    throw Error(
        ErrorKind::unavailable,
        "parts of the new base disappeared while it was written (rewrite again): log=" + name());
  });
}

void SqliteLog::delete_below_base() {
  delete_in_batches(delete_updates_sql, 64);
  delete_in_batches(delete_parts_sql, 4);
}

// Returns the space of deleted rows to the file system, some pages at a time: SQLite moves the last
// pages of the file into free ones and truncates it. Does nothing in a database without
// auto_vacuum.
void SqliteLog::vacuum_incrementally() {
  const auto free_pages = [](Connection& connection) {
    Statement count = connection.prepare("PRAGMA freelist_count");
    return count.step("cannot read database") ? count.number(0) : 0;
  };
  const auto free_some_pages = [&] {
    return with_connection([&](Connection& connection) {
      const std::int64_t count = free_pages(connection);
      if (count == 0) return false;
      connection.run("PRAGMA incremental_vacuum(256)");
      return free_pages(connection) < count;
    });
  };
  try {
    while (free_some_pages())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // lets other connections lock
  } catch (const Error&) {
    // The history is rewritten anyway. The next rewrite tries again.
  }
}

void SqliteLog::delete_in_batches(const char* sql, std::int64_t rows) {
  const auto delete_some = [&] {
    return with_connection([&](Connection& connection) {
      connection.prepare(sql).bind(1, rows).step("cannot delete rows");
      return connection.changes() > 0;
    });
  };
  for (;;) {
    try {
      if (!delete_some()) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));  // lets other connections lock
    } catch (const Error& error) {
      // Deleting frees space on a full disk, but the journal needs some first: less for one row
      // than for a batch.
      if (error.kind() != ErrorKind::limit || rows == 1) throw;
      rows = 1;
    }
  }
}

}  // namespace whycache
