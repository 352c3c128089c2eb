#include "log/mysql_connection.h"

#include <dlfcn.h>
#include <errmsg.h>
#include <fcntl.h>
#include <link.h>
#include <mysqld_error.h>
#include <poll.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <utility>

#include <whycache/error.h>

#include "base/file.h"
#include "base/fork_exclusion.h"
#include "base/hash.h"
#include "base/signals.h"
#include "log/statement_time.h"

namespace whycache {
namespace {

// The client library loads a plugin for each kind of authentication but the oldest, by default from
// a directory that its build has named. A package that bundles the library has the plugins in
// `mysql_plugins`, beside the shared library that has this code. Returns that directory; empty:
// there is none. A program's own file does not count: its name is what the caller says, and a
// relative one depends on the current directory.
std::string bundled_plugin_directory() {
  static constexpr char any_address_of_this_file = 0;
  Dl_info info{};
  struct link_map* object = nullptr;
  if (::dladdr1(&any_address_of_this_file, &info, reinterpret_cast<void**>(&object),
                RTLD_DL_LINKMAP) == 0 ||
      object == nullptr || object->l_name == nullptr || object->l_name[0] != '/')
    return {};
  std::string directory = object->l_name;
  directory.resize(directory.rfind('/') + 1);
  directory += "mysql_plugins";
  return ::access(directory.c_str(), X_OK) == 0 ? directory : std::string();
}

constexpr unsigned client_error_first = 2000;
constexpr unsigned client_error_last = 2999;

// How long exit() waits for threads that are connecting.
constexpr std::chrono::milliseconds exit_delay_max{500};

// Connecting holds mutexes of the library for moments, and waits for the network in between. fork()
// waits for a connecting thread, but not for long.
ForkExclusion& fork_exclusion() {
  static auto* const instance = new ForkExclusion(std::chrono::milliseconds(100));
  return *instance;
}
// Created before there are threads, see register_fork_handler(); or earlier, if a log is opened
// before main().
[[maybe_unused]] const ForkExclusion& early_fork_exclusion = fork_exclusion();

// The client library loads what these variables name, which in a setuid program would run code of
// the caller. This library does not change the environment of its host, where threads may read it.
void check_loads_no_code_of_caller() {
  if (::getauxval(AT_SECURE) == 0) return;
  for (const char* const name : {"MARIADB_PLUGIN_DIR", "LIBMYSQL_PLUGINS", "LIBMYSQL_PLUGIN_DIR"}) {
    if (std::getenv(name) == nullptr) continue;
    throw Error(ErrorKind::invalid,
                std::string("environment names plugins for the client of MySQL in a program with "
                            "more rights than its caller: variable=") +
                    name + " (unset it before the log is opened)");
  }
}

MYSQL* create_handle() {
  check_loads_no_code_of_caller();
  // A child could not use a library that is half initialised.
  const ForkExclusion::NoForkSection inside(fork_exclusion());
  static const bool prepared = [] {
    struct sigaction before;
    ::sigaction(SIGPIPE, nullptr, &before);
    mysql_server_init(0, nullptr, nullptr);
    // Runs before the handler of the TLS library, which that call registers: a thread that is still
    // connecting would use what it destroys.
    std::atexit([] { BackgroundThreads::wait_for_none(exit_delay_max); });
    ::sigaction(SIGPIPE, &before, nullptr);
    return true;
  }();
  static_cast<void>(prepared);
  return mysql_init(nullptr);
}

// For a thread that writes to a connection that the server may have closed. Without TLS, the client
// library sends so that the system raises no signal.
class SigpipeBlocker {
 public:
  explicit SigpipeBlocker(bool is_encrypted) {
    if (is_encrypted) blocker_.emplace(SIGPIPE);
  }

 private:
  std::optional<ThreadSignalBlocker> blocker_;
};

const char* null_if_empty(const std::string& text) { return text.empty() ? nullptr : text.c_str(); }

std::chrono::seconds whole_seconds(std::chrono::milliseconds time) {
  return std::max(std::chrono::ceil<std::chrono::seconds>(time), std::chrono::seconds(1));
}

// In integers, since the decimal point of floating-point numbers depends on the locale.
std::string as_seconds(std::chrono::milliseconds time) {
  const std::string milliseconds = std::to_string(time.count() % 1000);
  return std::to_string(time.count() / 1000) + '.' + std::string(3 - milliseconds.size(), '0') +
         milliseconds;
}

MysqlFailure statement_failure(MYSQL_STMT* statement) {
  return {mysql_stmt_errno(statement), mysql_stmt_error(statement)};
}

}  // namespace

bool is_connection_lost(const MysqlFailure& failure) noexcept {
  switch (failure.code) {
    case CR_OUT_OF_MEMORY:
    case CR_NET_PACKET_TOO_LARGE: return false;
    // The server reports these when it closes the connection.
    case ER_SERVER_SHUTDOWN:
    case ER_CONNECTION_KILLED:
    case ER_NEW_ABORTING_CONNECTION:
    case ER_NET_READ_ERROR:
    case ER_NET_READ_INTERRUPTED:
    case ER_NET_ERROR_ON_WRITE:
    case ER_NET_WRITE_INTERRUPTED: return true;
    default: return failure.code >= client_error_first && failure.code <= client_error_last;
  }
}

MysqlConnection::MysqlConnection(const MysqlServer& server, std::chrono::milliseconds timeout)
    : mysql_(create_handle()) {
  if (mysql_ == nullptr) throw MysqlFailure{CR_OUT_OF_MEMORY, "out of memory"};
  const ThreadSignalBlocker quietly(SIGPIPE);  // whether there will be TLS is not known yet
  try {
    set_options(server, whole_seconds(timeout));
    const MysqlLogin login = server.login();
    {
      const ForkExclusion::NoForkSection inside(fork_exclusion());
      if (mysql_real_connect(mysql_, null_if_empty(server.host), null_if_empty(login.user),
                             login.password.c_str(), server.database.c_str(), server.port,
                             null_if_empty(server.socket), 0) == nullptr) {
        throw_failure();
      }
    }
    ::fcntl(mysql_get_socket(mysql_), F_SETFD, FD_CLOEXEC);
    socket_ = std::make_shared<const FileDescriptor>(
        ::fcntl(static_cast<int>(mysql_get_socket(mysql_)), F_DUPFD_CLOEXEC, 0));
    if (!*socket_) throw MysqlFailure{CR_OUT_OF_MEMORY, "no file descriptor is left"};
    is_encrypted_ = mysql_get_ssl_cipher(mysql_) != nullptr;
    set_session(timeout);
    read_variables();
  } catch (...) {
    mysql_close(mysql_);
    throw;
  }
}

std::unique_ptr<MysqlConnection> connect_mysql(const MysqlServer& server,
                                               std::chrono::milliseconds timeout,
                                               const Deadline& deadline,
                                               std::optional<MysqlConnectionAttempt>& attempt) {
  std::unique_ptr<MysqlConnection> connection = await_connection<MysqlConnection>(
      [server, timeout] { return std::make_unique<MysqlConnection>(server, timeout); }, timeout,
      deadline, attempt);
  if (!connection) throw MysqlFailure{CR_CONN_HOST_ERROR, "no answer before the deadline"};
  return connection;
}

MysqlConnection::~MysqlConnection() {
  const SigpipeBlocker quietly(is_encrypted_);
  for (const auto& [sql, statement] : statements_) mysql_stmt_close(statement);
  mysql_close(mysql_);
}

void MysqlConnection::abandon(std::unique_ptr<MysqlConnection> connection) noexcept {
  MysqlConnection* const leaked = connection.release();
  if (leaked != nullptr) ::close(mysql_get_socket(leaked->mysql_));
}

void MysqlConnection::set_options(const MysqlServer& server, std::chrono::seconds timeout) {
  const auto wait_seconds = static_cast<unsigned>(timeout.count());
  // The server stops waiting for locks before we stop waiting for the server.
  const unsigned answer_seconds = wait_seconds + 1;
  constexpr unsigned no_number = 0;
  constexpr my_bool no = 0;
  constexpr my_bool yes = 1;
  mysql_options(mysql_, MYSQL_OPT_CONNECT_TIMEOUT, &wait_seconds);
  mysql_options(mysql_, MYSQL_OPT_READ_TIMEOUT, &answer_seconds);
  mysql_options(mysql_, MYSQL_OPT_WRITE_TIMEOUT, &answer_seconds);
  mysql_options(mysql_, MYSQL_OPT_RECONNECT, &no);
  mysql_options(mysql_, MYSQL_OPT_LOCAL_INFILE, &no_number);
  mysql_options(mysql_, MYSQL_SET_CHARSET_NAME, "utf8mb4");
  mysql_options4(mysql_, MYSQL_OPT_CONNECT_ATTR_ADD, "program_name", "whycache");
  if (const std::string directory = bundled_plugin_directory(); !directory.empty())
    mysql_options(mysql_, MYSQL_PLUGIN_DIR, directory.c_str());
  const unsigned protocol = server.host.empty() ? MYSQL_PROTOCOL_SOCKET : MYSQL_PROTOCOL_TCP;
  mysql_options(mysql_, MYSQL_OPT_PROTOCOL, &protocol);
  if (server.verifies_tls) {
    mysql_ssl_set(mysql_, null_if_empty(server.tls_key), null_if_empty(server.tls_certificate),
                  null_if_empty(server.tls_ca), nullptr, nullptr);
  }
  // One option alone is not enough: the first encrypts, the second checks the server's identity.
  mysql_options(mysql_, MYSQL_OPT_SSL_ENFORCE, server.verifies_tls ? &yes : &no);
  mysql_options(mysql_, MYSQL_OPT_SSL_VERIFY_SERVER_CERT, server.verifies_tls ? &yes : &no);
}

// The guarantees of the log must not depend on the server's configuration, nor on its init_connect,
// which runs before. docs/logs.md has the list of variables. At REPEATABLE READ, INSERT ... SELECT
// locks what it reads. MySQL skips comments that begin with M!, MariaDB those with !50708.
void MysqlConnection::set_session(std::chrono::milliseconds timeout) {
  const std::string seconds = std::to_string(whole_seconds(timeout).count());
  run("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ WRITE");
  // Limits on rows and joins would make a healthy log look damaged.
  run("SET NAMES utf8mb4, SESSION autocommit = 1, "
      "sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', "
      "sql_select_limit = 18446744073709551615, sql_big_selects = 1, sql_safe_updates = 0, "
      "completion_type = 'NO_CHAIN', unique_checks = 1, foreign_key_checks = 1, "
      "innodb_lock_wait_timeout = " +
      seconds + ", lock_wait_timeout = " + seconds + ", net_read_timeout = " + seconds +
      ", net_write_timeout = " + seconds +
      " /*M!100101 , max_statement_time = " + as_seconds(statement_time(timeout)) + " */" +
      " /*!50708 , max_execution_time = " + std::to_string(statement_time(timeout).count()) +
      " */");
  statement_time_max_ = statement_time(timeout);
}

void MysqlConnection::limit_statements(std::chrono::milliseconds deadline) {
  const std::chrono::milliseconds time = statement_time(deadline);
  const std::chrono::milliseconds longest = time + (deadline - time) / 2;
  if (time * 3 / 4 <= statement_time_max_ && statement_time_max_ <= longest) return;
  if (variable("version").find("MariaDB") == std::string::npos) return;
  run("SET SESSION max_statement_time = " + as_seconds(time));
  statement_time_max_ = time;
}

void MysqlConnection::read_variables() {
  {
    MysqlRows rows = query(
        "SHOW SESSION VARIABLES WHERE Variable_name IN ('version', 'max_allowed_packet', "
        "'innodb_flush_log_at_trx_commit', 'log_bin', 'sync_binlog', 'wsrep_on', 'read_only', "
        "'hostname', 'port', 'datadir', 'server_uuid', 'server_uid')");
    while (rows.next()) variables_[std::string(rows.at(0).value_or(""))] = rows.at(1).value_or("");
  }
  const std::string& packet = variable("max_allowed_packet");
  std::from_chars(packet.data(), packet.data() + packet.size(), packet_bytes_max_);
  // In a Galera cluster, reads on this node then see what another node has acknowledged.
  if (variable("wsrep_on") == "ON") run("SET SESSION wsrep_sync_wait = 1");
  read_server_id();
}

void MysqlConnection::read_server_id() {
  std::string place;
  for (const char* const name : {"hostname", "port", "datadir", "server_uuid", "server_uid"})
    place += variable(name) + '\n';
  if (variable("wsrep_on") == "ON") {
    // Machines may write to different nodes of one cluster.
    MysqlRows rows = query("SHOW STATUS LIKE 'wsrep_cluster_state_uuid'");
    while (rows.next()) {
      const std::string_view cluster = rows.at(1).value_or("");
      if (cluster.find_first_not_of("0-") != std::string_view::npos) place = cluster;
    }
  }
  server_id_ = hash64(place);
}

const std::string& MysqlConnection::variable(const std::string& name) const {
  static const std::string none;
  const auto found = variables_.find(name);
  return found == variables_.end() ? none : found->second;
}

void MysqlConnection::throw_failure() {
  throw MysqlFailure{mysql_errno(mysql_), mysql_error(mysql_)};
}

bool MysqlConnection::is_alive() const noexcept {
  if (is_aborted_) return false;
  // To an idle connection the server sends nothing unless it closes it. With TLS it may send
  // records that the library handles later.
  pollfd polled{static_cast<int>(mysql_get_socket(mysql_)), POLLIN, 0};
  if (::poll(&polled, 1, 0) <= 0) return true;
  if (!is_encrypted_) return false;
  char byte;
  return ::recv(polled.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

void MysqlConnection::abort_connection() noexcept {
  is_aborted_ = true;
  socket_.reset();  // a SocketTimeout may own it, too, for the rest of its scope
  const int socket = static_cast<int>(mysql_get_socket(mysql_));
  // Close with a reset: a server with much to send would otherwise wait a minute for a reader. The
  // library still reads from its descriptor, so the descriptor stays open, on /dev/null.
  constexpr linger reset{1, 0};
  ::setsockopt(socket, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  const FileDescriptor nothing(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!nothing || ::dup3(nothing.number(), socket, O_CLOEXEC) < 0) ::shutdown(socket, SHUT_RDWR);
}

MysqlRows MysqlConnection::query(const std::string& sql) {
  const SigpipeBlocker quietly(is_encrypted_);
  if (mysql_real_query(mysql_, sql.data(), sql.size()) != 0) throw_failure();
  MYSQL_RES* const result = mysql_use_result(mysql_);
  if (result == nullptr) {
    if (mysql_field_count(mysql_) != 0) abort_connection();  // there are rows, but no memory
    throw_failure();
  }
  return MysqlRows(*this, result);
}

// After the rows of a procedure the server sends how the procedure ended.
void MysqlConnection::skip_results() {
  while (mysql_more_results(mysql_)) {
    if (mysql_next_result(mysql_) > 0) throw_failure();
    if (MYSQL_RES* const result = mysql_use_result(mysql_)) mysql_free_result(result);
  }
}

std::uint64_t MysqlConnection::run(const std::string& sql) {
  const SigpipeBlocker quietly(is_encrypted_);
  if (mysql_real_query(mysql_, sql.data(), sql.size()) != 0) throw_failure();
  return mysql_affected_rows(mysql_);
}

std::uint64_t MysqlConnection::run(const std::string& sql,
                                   std::initializer_list<StatementValue> values) {
  const SigpipeBlocker quietly(is_encrypted_);
  MYSQL_STMT*& statement = statements_[sql];
  if (statement == nullptr) {
    MYSQL_STMT* const created = mysql_stmt_init(mysql_);
    if (created == nullptr) throw MysqlFailure{CR_OUT_OF_MEMORY, "out of memory"};
    if (mysql_stmt_prepare(created, sql.data(), sql.size()) != 0) {
      const std::unique_ptr<MYSQL_STMT, decltype(&mysql_stmt_close)> closed_after(created,
                                                                                  mysql_stmt_close);
      throw MysqlFailure(statement_failure(created));
    }
    statement = created;
  }
  std::vector<MYSQL_BIND> parameters(values.size());
  std::vector<std::uint64_t> numbers(values.size());
  std::size_t index = 0;
  for (const StatementValue& value : values) {
    MYSQL_BIND& parameter = parameters[index];
    if (const auto* const bytes = std::get_if<std::string_view>(&value)) {
      parameter.buffer_type = MYSQL_TYPE_LONG_BLOB;
      parameter.buffer = const_cast<char*>(bytes->data());  // only read
      parameter.buffer_length = bytes->size();
    } else {
      numbers[index] = std::get<std::uint64_t>(value);
      parameter.buffer_type = MYSQL_TYPE_LONGLONG;
      parameter.is_unsigned = 1;
      parameter.buffer = &numbers[index];
    }
    ++index;
  }
  if (mysql_stmt_bind_param(statement, parameters.data()) != 0 ||
      mysql_stmt_execute(statement) != 0) {
    throw statement_failure(statement);
  }
  return mysql_stmt_affected_rows(statement);
}

MysqlRows::~MysqlRows() {
  if (!is_at_end_) connection_.abort_connection();
  mysql_free_result(result_);
}

bool MysqlRows::next() {
  row_ = mysql_fetch_row(result_);
  if (row_ == nullptr) {
    if (mysql_errno(connection_.mysql_) != 0) connection_.throw_failure();
    connection_.skip_results();
    is_at_end_ = true;
    return false;
  }
  sizes_ = mysql_fetch_lengths(result_);
  return true;
}

std::optional<std::string_view> MysqlRows::at(unsigned column) const {
  if (row_[column] == nullptr) return std::nullopt;
  return std::string_view(row_[column], sizes_[column]);
}

std::uint64_t MysqlRows::number(unsigned column) const {
  const std::string_view text = at(column).value_or("");
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size() ? number : 0;
}

}  // namespace whycache
