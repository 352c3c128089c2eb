#include "log/postgres_connection.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <memory>

#include <whycache/error.h>

#include "base/fork_exclusion.h"
#include "base/hash.h"
#include "log/server_options.h"
#include "log/statement_time.h"

namespace whycache {
namespace {

constexpr int server_version_min = 120000;
// The types of PostgreSQL's catalog that placeholders have.
constexpr Oid bytea_type = 17;
constexpr Oid bigint_type = 20;
constexpr Oid text_type = 25;
constexpr Oid timestamptz_type = 1184;
constexpr int text_format = 0;
constexpr int binary_format = 1;
// libpq counts the bytes of a value as an int, and the server accepts less than 1 GiB.
constexpr std::size_t value_bytes_max = (std::size_t{1} << 30) - (std::size_t{1} << 16);
// How long exit() waits for threads that are connecting.
constexpr std::chrono::milliseconds exit_delay_max{500};
// After a failure, what the rollback may take beyond the deadline.
constexpr std::chrono::milliseconds rollback_time_min{10};

// Calls with less time set the limit of their statements for themselves.
constexpr std::chrono::milliseconds session_limit_min{1'500};

constexpr char begin_reading_sql[] = "BEGIN ISOLATION LEVEL READ COMMITTED, READ ONLY";
constexpr char begin_writing_sql[] = "BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE";
constexpr char commit_sql[] = "COMMIT";
// Values: the number of the transaction, which is in the answer; the time limit of each statement
// in milliseconds. Rows have the order in which a subquery returned them only if no workers in
// parallel collect them. synchronous_commit is only ever raised: a session of a pooler may have
// inherited it from another program. A warning says that a commit did not wait for the synchronous
// replica.
constexpr char set_up_sql[] =
    "SELECT pg_catalog.pg_postmaster_start_time(), $1, "
    "pg_catalog.set_config('statement_timeout', $2, true), "
    "pg_catalog.set_config('lock_timeout', '0', true), "
    "pg_catalog.set_config('max_parallel_workers_per_gather', '0', true)";
constexpr char set_up_writing_sql[] =
    "SELECT pg_catalog.pg_postmaster_start_time(), $1, "
    "pg_catalog.set_config('statement_timeout', $2, true), "
    "pg_catalog.set_config('lock_timeout', '0', true), "
    "pg_catalog.set_config('client_min_messages', 'warning', true), "
    "pg_catalog.set_config('synchronous_commit', CASE pg_catalog.current_setting("
    "'synchronous_commit') WHEN 'off' THEN $3 ELSE pg_catalog.current_setting("
    "'synchronous_commit') END, true), "
    "pg_catalog.set_config('whycache.session', $4, true)";
// Both of these, but for the session, so that statements outside of transactions have the settings.
// synchronous_commit stays that of the server, which an operator may raise (settings_condition()).
constexpr char set_up_session_sql[] =
    "SELECT pg_catalog.pg_postmaster_start_time(), $1, "
    "pg_catalog.set_config('statement_timeout', $2, false), "
    "pg_catalog.set_config('lock_timeout', '0', false), "
    "pg_catalog.set_config('max_parallel_workers_per_gather', '0', false), "
    "pg_catalog.set_config('default_transaction_isolation', 'read committed', false), "
    "pg_catalog.set_config('default_transaction_read_only', 'off', false), "
    "pg_catalog.set_config('client_min_messages', 'warning', false), "
    "pg_catalog.set_config('whycache.session', $3, false)";
constexpr char read_facts_sql[] = R"(
  SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery(),
         pg_catalog.current_setting('fsync'), pg_catalog.current_setting('full_page_writes'),
         pg_catalog.current_setting('synchronous_commit'),
         (SELECT system_identifier FROM pg_catalog.pg_control_system())::text || ' ' ||
         CASE WHEN pg_catalog.pg_is_in_recovery()
              THEN pg_catalog.lpad(pg_catalog.upper(pg_catalog.to_hex(
                     (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))), 8, '0')
              ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()),
                                     1, 8) END
         || ' ' || pg_catalog.current_setting('port'))";

// Connecting holds mutexes of the TLS library for moments, and waits for the network in between.
// fork() waits for a connecting thread, but not for long.
ForkExclusion& libpq_fork_exclusion() {
  static auto* const instance = new ForkExclusion(std::chrono::milliseconds(100));
  return *instance;
}
// Created before there are threads, see register_fork_handler(); or earlier, if a log is opened
// before main().
[[maybe_unused]] const ForkExclusion& early_libpq_fork_exclusion = libpq_fork_exclusion();

// The TLS library destroys what a thread that still connects would use, in a handler that its first
// use registers. This one runs before it, because it is registered after a first connection.
void wait_for_connecting_threads_at_exit() {
  static const bool registered = [] {
    std::atexit([] { BackgroundThreads::wait_for_none(exit_delay_max); });
    return true;
  }();
  static_cast<void>(registered);
}

std::string in_one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  std::replace(text.begin(), text.end(), '\t', ' ');
  std::replace(text.begin(), text.end(), '"', '\'');  // messages put it between quotes
  return text;
}

constexpr bool is_sqlstate_character(char c) {
  return ('0' <= c && c <= '9') || ('A' <= c && c <= 'Z');
}

// libpq has the SQLSTATE of a failed login only within its message, if that is verbose:
// "FATAL:  28P01: password authentication failed\nLOCATION: ...".
PostgresFailure connect_failure(PGconn* connection) {
  std::string text = PQerrorMessage(connection);
  constexpr std::size_t state_size = 5;
  for (std::size_t at = text.find(":  "); at != std::string::npos; at = text.find(":  ", at + 1)) {
    const std::size_t begin = at + 3;
    const std::string state = text.substr(begin, state_size);
    if (state.size() != state_size || text.compare(begin + state_size, 2, ": ") != 0 ||
        !std::all_of(state.begin(), state.end(), is_sqlstate_character)) {
      continue;
    }
    const std::size_t message = begin + state_size + 2;
    return {state, in_one_line(text.substr(message, text.find('\n', message) - message))};
  }
  return {"", in_one_line(std::move(text))};
}

PostgresFailure failure_of(const PGresult* result) {
  const auto field = [&](int code) {
    const char* const text = PQresultErrorField(result, code);
    return std::string(text == nullptr ? "" : text);
  };
  const std::string severity = field(PG_DIAG_SEVERITY_NONLOCALIZED);
  PostgresFailure failure{field(PG_DIAG_SQLSTATE), field(PG_DIAG_MESSAGE_PRIMARY),
                          severity == "FATAL" || severity == "PANIC"};
  if (failure.reason.empty()) failure.reason = PQresultErrorMessage(result);
  const std::string detail = field(PG_DIAG_MESSAGE_DETAIL);
  if (!detail.empty()) failure.reason += ": " + detail;
  failure.reason = in_one_line(std::move(failure.reason));
  return failure;
}

// Returns the file of the authorities that this system trusts.
std::string trusted_authorities() {
  constexpr int version_with_system = 160000;
  if (PQlibVersion() >= version_with_system) return "system";
  for (const char* const file : {"/etc/ssl/certs/ca-certificates.crt",
                                 "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"}) {
    if (::access(file, R_OK) == 0) return file;
  }
  return "";
}

// Returns the parameters of the connection. Each that matters is set, since libpq takes others from
// the environment and the service file.
std::map<std::string, std::string> parameters_of(const PostgresServer& server,
                                                 const PostgresAddress& address) {
  std::map<std::string, std::string> parameters = {
      {"host", address.host},           {"port", std::to_string(address.port)},
      {"dbname", server.database},      {"user", server.user},
      {"passfile", server.pass_file},   {"service", server.service},
      {"application_name", "whycache"}, {"client_encoding", "UTF8"},
      {"target_session_attrs", "any"},  {"gssencmode", "disable"},
      {"sslmode", "disable"},           {"keepalives", "1"},
      {"keepalives_idle", "30"},        {"keepalives_interval", "10"},
      {"keepalives_count", "3"},        {"tcp_user_timeout", "30000"}};
  if (address.verifies_tls) {
    parameters["sslmode"] = "verify-full";
    parameters["sslrootcert"] = server.tls_ca.empty() ? trusted_authorities() : server.tls_ca;
    parameters["sslcert"] = server.tls_certificate;
    parameters["sslkey"] = server.tls_key;
  }
  if (const std::optional<std::string> password = server.login_password())
    parameters["password"] = *password;
  return parameters;
}

// Throws Error(invalid) if the environment or the service file leads to another host than the url,
// which nothing would notice without TLS.
void check_no_other_host(PGconn* connection, const PostgresAddress& address) {
  const std::unique_ptr<PQconninfoOption, decltype(&PQconninfoFree)> options(PQconninfo(connection),
                                                                             &PQconninfoFree);
  for (const PQconninfoOption* option = options.get();
       option != nullptr && option->keyword != nullptr; ++option) {
    if (std::string_view(option->keyword) != "hostaddr" || option->val == nullptr ||
        *option->val == '\0') {
      continue;
    }
    throw Error(ErrorKind::invalid,
                "hostaddr leads to another host than the url: server=" + address.text() +
                    " hostaddr=" + option->val +
                    " (unset PGHOSTADDR, and remove hostaddr from the service)");
  }
}

void put_big_endian(std::uint64_t number, char* to) {
  for (int byte = 7; byte >= 0; --byte) {
    to[byte] = static_cast<char>(number & 0xff);
    number >>= 8;
  }
}

// The arrays that libpq takes the values of placeholders from.
class Parameters {
 public:
  explicit Parameters(const std::vector<PostgresValue>& values)
      : numbers_(values.size()), texts_(values.size()) {
    types_.reserve(values.size());
    values_.reserve(values.size());
    sizes_.reserve(values.size());
    formats_.reserve(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) add(values[i], i);
  }

  int count() const { return static_cast<int>(types_.size()); }
  const Oid* types() const { return types_.data(); }
  const char* const* values() const { return values_.data(); }
  const int* sizes() const { return sizes_.data(); }
  const int* formats() const { return formats_.data(); }

 private:
  void add(const PostgresValue& value, std::size_t index) {
    using Type = PostgresValue::Type;
    if (value.as_bytes.size() > value_bytes_max)
      throw PostgresFailure{"54000", "value is longer than the server accepts"};
    formats_.push_back(value.type == Type::text ? text_format : binary_format);
    switch (value.type) {
      case Type::text:
        texts_[index] = value.as_bytes;  // libpq needs a zero byte after it
        push(text_type, texts_[index].c_str(), texts_[index].size());
        return;
      case Type::bytes: push(bytea_type, value.as_bytes.data(), value.as_bytes.size()); return;
      case Type::number:
      case Type::time:
        put_big_endian(value.as_number, numbers_[index].data());
        push(value.type == Type::time ? timestamptz_type : bigint_type, numbers_[index].data(),
             numbers_[index].size());
        return;
    }
  }
  void push(Oid type, const char* value, std::size_t size) {
    types_.push_back(type);
    values_.push_back(value == nullptr ? "" : value);  // a null pointer is NULL
    sizes_.push_back(static_cast<int>(size));
  }

  std::vector<std::array<char, 8>> numbers_;
  std::vector<std::string> texts_;
  std::vector<Oid> types_;
  std::vector<const char*> values_;
  std::vector<int> sizes_;
  std::vector<int> formats_;
};

}  // namespace

bool is_connection_lost(const PostgresFailure& failure) noexcept {
  return failure.sqlstate.empty() || failure.ended_connection || failure.is_of_class("08") ||
         failure.is("57P01") || failure.is("57P02") || failure.is("57P03") || failure.is("57P05");
}

PostgresFailure PostgresRows::failure() const { return failure_of(result_.get()); }

std::uint64_t PostgresRows::changed() const {
  const std::string_view digits = PQcmdTuples(result_.get());
  std::uint64_t rows = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), rows);
  return rows;
}

std::optional<std::string_view> PostgresRows::at(int row, int column) const {
  if (PQgetisnull(result_.get(), row, column) != 0) return std::nullopt;
  return std::string_view(PQgetvalue(result_.get(), row, column),
                          static_cast<std::size_t>(PQgetlength(result_.get(), row, column)));
}

std::uint64_t PostgresRows::number(int row, int column) const {
  std::uint64_t number = 0;
  for (const char byte : at(row, column).value_or(""))
    number = number << 8 | static_cast<unsigned char>(byte);
  return number;
}

// What libpq was asked for in a pipeline.
struct PostgresConnection::Step {
  PreparedStatement* preparing = nullptr;  // null: it executes a statement
};

PostgresConnection::PostgresConnection(const PostgresServer& server, const Deadline& deadline) {
  std::optional<PostgresFailure> failure;
  for (std::size_t i = 0; i < server.addresses.size(); ++i) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline.time_left());
    const Deadline share =
        deadline.at_most(left / static_cast<std::int64_t>(server.addresses.size() - i));
    const PostgresAddress& address = server.addresses[i];
    try {
      connect(server, address, share);
      if (!server.must_be_primary || !facts_.is_in_recovery) return;
      throw PostgresFailure{"25006", "server is in recovery, as a replica is"};
    } catch (PostgresFailure& latest) {
      close();
      if (server.addresses.size() > 1) latest.reason = address.text() + ": " + latest.reason;
      // An answer says more than none.
      if (!failure || !latest.sqlstate.empty() || failure->sqlstate.empty()) failure = latest;
    } catch (...) {
      close();
      throw;
    }
  }
  throw PostgresFailure(*failure);
}

PostgresConnection::~PostgresConnection() { close(); }

void PostgresConnection::close() noexcept {
  PQfinish(connection_);
  connection_ = nullptr;
}

void PostgresConnection::abandon(std::unique_ptr<PostgresConnection> connection) noexcept {
  PostgresConnection* const leaked = connection.release();
  if (leaked != nullptr && PQsocket(leaked->connection_) >= 0)
    ::close(PQsocket(leaked->connection_));
  if (leaked != nullptr) leaked->stop_event_.close();
}

void PostgresConnection::connect(const PostgresServer& server, const PostgresAddress& address,
                                 const Deadline& deadline) {
  const std::map<std::string, std::string> parameters = parameters_of(server, address);
  std::vector<const char*> keys;
  std::vector<const char*> values;
  for (const auto& [key, value] : parameters) {
    keys.push_back(key.c_str());
    values.push_back(value.c_str());
  }
  keys.push_back(nullptr);
  values.push_back(nullptr);
  is_broken_ = false;
  is_pooled_ = true;
  {
    const ForkExclusion::NoForkSection inside(libpq_fork_exclusion());
    connection_ = PQconnectStartParams(keys.data(), values.data(), 0);
  }
  if (connection_ == nullptr) throw PostgresFailure{"53200", "out of memory"};
  if (!address.verifies_tls) check_no_other_host(connection_, address);
  PQsetNoticeReceiver(connection_, receive_notice, this);
  PQsetErrorVerbosity(connection_, PQERRORS_VERBOSE);
  if (PQstatus(connection_) == CONNECTION_BAD) throw connect_failure(connection_);
  for (PostgresPollingStatusType status = PGRES_POLLING_WRITING; status != PGRES_POLLING_OK;) {
    if (status == PGRES_POLLING_FAILED) throw connect_failure(connection_);
    wait(status == PGRES_POLLING_READING ? POLLIN : POLLOUT, deadline);
    const ForkExclusion::NoForkSection inside(libpq_fork_exclusion());
    status = PQconnectPoll(connection_);
  }
  wait_for_connecting_threads_at_exit();
  PQsetErrorVerbosity(connection_, PQERRORS_DEFAULT);
  if (PQserverVersion(connection_) < server_version_min) {
    throw Error(ErrorKind::invalid,
                "server is too old to hold a log: server=" + address.text() +
                    " version=" + std::to_string(PQserverVersion(connection_) / 10000) +
                    " needed=" + std::to_string(server_version_min / 10000));
  }
  if (PQsetnonblocking(connection_, 1) != 0 || PQenterPipelineMode(connection_) == 0) throw_lost();
  read_facts(deadline);
}

void PostgresConnection::read_facts(const Deadline& deadline) {
  const PostgresRows rows = query({read_facts_sql}, deadline);
  if (rows.count() != 1) throw PostgresFailure{"42883", "server does not describe itself"};
  const auto text = [&](int column) { return std::string(rows.at(0, column).value_or("")); };
  // A pooler invents the number of the process that a client could cancel.
  is_pooled_ = static_cast<int>(rows.number(0, 0)) != PQbackendPID(connection_);
  facts_.version = PQserverVersion(connection_);
  facts_.is_in_recovery = rows.number(0, 1) != 0;
  facts_.fsync = text(2);
  facts_.full_page_writes = text(3);
  facts_.synchronous_commit = text(4);
  facts_.server_id = hash64(text(5));
}

void PostgresConnection::receive_notice(void* connection, const PGresult* notice) {
  auto& self = *static_cast<PostgresConnection*>(connection);
  const char* const severity = PQresultErrorField(notice, PG_DIAG_SEVERITY_NONLOCALIZED);
  if (severity == nullptr) return;
  // The server closes a connection that is idle.
  if (std::string_view(severity) == "FATAL") self.is_broken_ = true;
  // Only a commit that did not wait for its replica matters. Triggers and the server warn of other
  // things, in the same place between the answers.
  const char* const source = PQresultErrorField(notice, PG_DIAG_SOURCE_FUNCTION);
  if (std::string_view(severity) == "WARNING" &&
      (source == nullptr || std::string_view(source) == "SyncRepWaitForLSN"))
    self.warning_ = failure_of(notice).reason;
}

void PostgresConnection::throw_lost(const char* reason_if_unknown) {
  is_broken_ = true;
  std::string reason = in_one_line(PQerrorMessage(connection_));
  if (reason.empty()) reason = reason_if_unknown;
  throw PostgresFailure{"", std::move(reason)};
}

bool PostgresConnection::is_ready_before(short events, const Deadline& deadline,
                                         int stop_descriptor) {
  for (;;) {
    const int socket = PQsocket(connection_);
    if (socket < 0) throw_lost();
    const std::chrono::nanoseconds left =
        stop_descriptor < 0 ? deadline.next_wait() : deadline.remaining();
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
    const timespec timeout{static_cast<time_t>(seconds.count()),
                           static_cast<long>((left - seconds).count())};
    pollfd polled[] = {{socket, events, 0}, {stop_descriptor, POLLIN, 0}};  // < 0: is ignored
    const int ready = ::ppoll(polled, std::size(polled), &timeout, nullptr);
    if (ready > 0 && polled[0].revents != 0) return true;
    if (ready < 0 && errno != EINTR) throw_lost();
    if (deadline.passed()) return false;
  }
}

void PostgresConnection::wait(short events, const Deadline& deadline) {
  if (is_ready_before(events, deadline, -1)) return;
  is_broken_ = true;
  throw PostgresFailure{"", "no answer before the deadline"};
}

std::vector<std::string> PostgresConnection::wait_for_notifications(const Deadline& deadline) {
  // Waits may be long, so that a stop wakes them; without a descriptor, it is looked for.
  if (!stop_event_ && deadline.stop().stop_possible())
    stop_event_ = FileDescriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const int stop_descriptor = stop_event_.number();
  std::uint64_t from_earlier = 0;
  [[maybe_unused]] const ssize_t read = ::read(stop_descriptor, &from_earlier, sizeof from_earlier);
  const std::stop_callback on_stop(deadline.stop(), [stop_descriptor] {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(stop_descriptor, &one, sizeof one);
  });
  std::vector<std::string> payloads;
  for (;;) {
    receive_input();
    while (PGnotify* const notification = PQnotifies(connection_)) {
      payloads.emplace_back(notification->extra == nullptr ? "" : notification->extra);
      PQfreemem(notification);
    }
    if (is_broken_) throw_lost();
    if (!payloads.empty() || !is_ready_before(POLLIN, deadline, stop_descriptor)) return payloads;
  }
}

void PostgresConnection::receive_input() {
  if (PQconsumeInput(connection_) == 0) throw_lost();
}

bool PostgresConnection::is_alive() noexcept {
  // The server may send the reason before it closes the connection, and answers to notifications.
  constexpr int reads_max = 16;
  for (int reads = 0; reads < reads_max && !is_broken_; ++reads) {
    pollfd polled{PQsocket(connection_), POLLIN, 0};
    if (polled.fd < 0) return false;
    if (::poll(&polled, 1, 0) <= 0) break;
    if (PQconsumeInput(connection_) == 0) is_broken_ = true;
    PQisBusy(connection_);  // handles what was read
  }
  return !is_broken_ && PQstatus(connection_) == CONNECTION_OK;
}

void PostgresConnection::send_unprepared(const PostgresStatement& statement) {
  const Parameters parameters(statement.values);
  if (PQsendQueryParams(connection_, statement.sql.c_str(), parameters.count(), parameters.types(),
                        parameters.values(), parameters.sizes(), parameters.formats(),
                        binary_format) == 0)
    throw_lost();
}

void PostgresConnection::send(const PostgresStatement& statement, std::vector<Step>& steps) {
  if (is_pooled_) {
    send_unprepared(statement);
    steps.push_back({});
    return;
  }
  const Parameters parameters(statement.values);
  PreparedStatement& prepared = prepared_[statement.sql];
  if (prepared.name.empty()) prepared.name = "whycache_" + std::to_string(prepared_.size());
  if (!prepared.is_ready) {
    if (PQsendPrepare(connection_, prepared.name.c_str(), statement.sql.c_str(), parameters.count(),
                      parameters.types()) == 0)
      throw_lost();
    steps.push_back({&prepared});
  }
  if (PQsendQueryPrepared(connection_, prepared.name.c_str(), parameters.count(),
                          parameters.values(), parameters.sizes(), parameters.formats(),
                          binary_format) == 0)
    throw_lost();
  steps.push_back({});
}

// The transaction is one statement, so that none stays open if it fails. While it is committed, it
// takes a lock of the whole server, which another one may hold until a disk or a replica answers.
// This one does not wait for them: a notification need not survive a crash.
void PostgresConnection::send_notification() {
  const PostgresStatement statement{
      "SELECT pg_catalog.set_config('lock_timeout', '1000', true), "
      "pg_catalog.set_config('synchronous_commit', 'off', true), pg_catalog.pg_notify($1, $2)",
      {PostgresValue::text(notification_->first), PostgresValue::text(notification_->second)}};
  std::vector<Step> steps;
  if (preparing_notification_ != nullptr) {
    send_unprepared(statement);
  } else {
    send(statement, steps);
    if (steps.size() > 1) preparing_notification_ = steps.front().preparing;
  }
  if (PQpipelineSync(connection_) == 0 || PQflush(connection_) < 0) throw_lost();
  notification_.reset();
  ++unread_answers_;
}

PGresult* PostgresConnection::next_result(const Deadline& deadline) {
  for (;;) {
    const int unsent = PQflush(connection_);
    if (unsent < 0) throw_lost();
    if (PQisBusy(connection_) == 0) return PQgetResult(connection_);
    wait(static_cast<short>(unsent == 0 ? POLLIN : POLLIN | POLLOUT), deadline);
    receive_input();
  }
}

void PostgresConnection::discard_unread_answers(const Deadline& deadline) {
  while (unread_answers_ > 0) {
    const PostgresRows result(next_result(deadline));
    const ExecStatusType status = result.status();
    if (status == PGRES_COMMAND_OK && preparing_notification_ != nullptr)
      preparing_notification_->is_ready = true;
    if (status == PGRES_COMMAND_OK || status == PGRES_PIPELINE_SYNC)
      preparing_notification_ = nullptr;
    if (status == PGRES_PIPELINE_SYNC) --unread_answers_;
    if (PQstatus(connection_) == CONNECTION_BAD) throw_lost();
  }
}

// Sends the statements, and the notification, and reads the answers to what was sent before.
std::vector<PostgresConnection::Step> PostgresConnection::send_pipeline(
    std::span<const PostgresStatement> before, std::span<const PostgresStatement> statements,
    std::span<const PostgresStatement> after, const Deadline& deadline) {
  std::vector<Step> steps;
  try {
    if (is_pooled_) discard_unread_answers(deadline);
  } catch (const PostgresFailure&) {
    is_broken_ = true;
    throw;
  }
  const int unread = std::exchange(unread_answers_, 0);
  try {
    for (const auto& group : {before, statements, after}) {
      for (const PostgresStatement& statement : group) send(statement, steps);
    }
    if (PQpipelineSync(connection_) == 0) throw_lost();
    if (notification_ && !is_pooled_) send_notification();
    const int unread_later = std::exchange(unread_answers_, unread);
    discard_unread_answers(deadline);
    unread_answers_ = unread_later;
    warning_.clear();
  } catch (const PostgresFailure&) {
    is_broken_ = true;  // a part of the transaction may have been sent
    throw;
  }
  return steps;
}

std::vector<PostgresRows> PostgresConnection::run_pipeline(
    std::span<const PostgresStatement> before, std::span<const PostgresStatement> statements,
    std::span<const PostgresStatement> after, const Deadline& deadline) {
  const std::vector<Step> steps = send_pipeline(before, statements, after, deadline);
  std::vector<PostgresRows> answers;
  std::optional<PostgresFailure> failure;
  try {
    for (const Step& step : steps) {
      PostgresRows result(next_result(deadline));
      if (result.is_missing()) throw_lost("fewer answers than statements");
      if (&step != &steps.back()) warning_.clear();  // the last one commits
      const ExecStatusType status = result.status();
      if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK) {
        if (step.preparing != nullptr) {
          step.preparing->is_ready = true;
        } else {
          answers.push_back(std::move(result));
        }
      } else if (!failure && status != PGRES_PIPELINE_ABORTED) {
        failure = result.failure();
        const bool in_begin = answers.empty() && !before.empty();  // `before` starts with BEGIN
        // "cannot set transaction read-write mode during recovery"
        if (in_begin && failure->is("0A000")) failure->sqlstate = "25006";
      }
      if (PGresult* const more = next_result(deadline)) {
        PQclear(more);
        throw_lost("more answers than statements");
      }
    }
    const PostgresRows end(next_result(deadline));
    if (end.status() == PGRES_FATAL_ERROR && !failure) {  // a commit without COMMIT failed
      failure = end.failure();
      is_broken_ = true;
    } else if (end.status() != PGRES_PIPELINE_SYNC) {
      throw_lost("more answers than statements");
    }
  } catch (const PostgresFailure&) {
    is_broken_ = true;
    if (!failure) throw;
  }
  if (failure) throw PostgresFailure(*failure);
  if (notification_) {
    try {
      send_notification();
    } catch (const PostgresFailure&) {  // the next transaction has another connection
      is_broken_ = true;
    }
  }
  return answers;
}

std::vector<PostgresRows> PostgresConnection::run_or_roll_back(
    std::span<const PostgresStatement> before, std::span<const PostgresStatement> statements,
    std::span<const PostgresStatement> after, const Deadline& deadline) {
  try {
    std::vector<PostgresRows> answers = run_pipeline(before, statements, after, deadline);
    if (!before.empty()) {
      if (answers[1].number(0, 1) != transaction_) throw_lost("answer to another transaction");
      server_start_ = answers[1].number(0, 0);
    }
    // The server gave up waiting for a synchronous replica, after it had committed.
    const bool commits = before.empty() || !after.empty();
    if (commits && !warning_.empty()) throw PostgresFailure{"01000", warning_};
    const auto first = answers.begin() + static_cast<std::ptrdiff_t>(before.size());
    answers.erase(first + static_cast<std::ptrdiff_t>(statements.size()), answers.end());
    answers.erase(answers.begin(), first);
    return answers;
  } catch (const PostgresFailure& failure) {
    notification_.reset();
    const bool is_open = !before.empty() || !after.empty();
    if (is_open && !is_broken_ && !is_connection_lost(failure)) roll_back(deadline);
    throw;
  }
}

namespace {

PostgresStatement set_up(PostgresAccess access, std::uint64_t transaction,
                         const std::string& statement_ms, const PostgresValue& settings_mark) {
  const PostgresValue number = PostgresValue::number(transaction);
  const PostgresValue limit = PostgresValue::text(statement_ms);
  if (access == PostgresAccess::read) return {set_up_sql, {number, limit}};
  return {set_up_writing_sql, {number, limit, PostgresValue::text("on"), settings_mark}};
}

const char* begin_sql(PostgresAccess access) {
  return access == PostgresAccess::read ? begin_reading_sql : begin_writing_sql;
}

// Returns the time limit of the statements of a transaction.
std::chrono::milliseconds statement_limit(const Deadline& deadline) {
  return statement_time(
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline.time_left()));
}

std::string statement_ms(const Deadline& deadline) {
  return std::to_string(statement_limit(deadline).count());
}

}  // namespace

std::vector<PostgresRows> PostgresConnection::transact(
    PostgresAccess access, std::span<const PostgresStatement> statements,
    const Deadline& deadline) {
  const std::string limit = statement_ms(deadline);
  const PostgresStatement before[] = {{begin_sql(access)},
                                      set_up(access, ++transaction_, limit, settings_mark())};
  const PostgresStatement after[] = {{commit_sql}};
  return run_or_roll_back(before, statements, after, deadline);
}

// Whether statements outside of transactions have a limit that fits. The limit of the session stays
// while it ends a statement at most 5% too early.
bool PostgresConnection::has_session_limit(std::chrono::milliseconds needed) const {
  return session_limit_ <= needed && session_limit_ >= needed * 95 / 100;
}

// Runs a statement in a transaction that also makes the settings of the session.
std::vector<PostgresRows> PostgresConnection::set_up_session(PostgresAccess access,
                                                             const PostgresStatement& statement,
                                                             std::chrono::milliseconds limit,
                                                             const Deadline& deadline) {
  const std::string limit_ms = std::to_string(limit.count());
  const PostgresStatement before[] = {
      {begin_sql(access)},
      {set_up_session_sql,
       {PostgresValue::number(++transaction_), PostgresValue::text(limit_ms), settings_mark()}}};
  const PostgresStatement after[] = {{commit_sql}};
  session_limit_ = std::chrono::milliseconds(0);  // unknown if the commit fails
  std::vector<PostgresRows> answers = run_or_roll_back(before, {&statement, 1}, after, deadline);
  session_limit_ = limit;
  return answers;
}

PostgresRows PostgresConnection::query(const PostgresStatement& statement,
                                       const Deadline& deadline) {
  const std::chrono::milliseconds needed = statement_limit(deadline);
  const std::chrono::milliseconds limit = needed * 31 / 32;
  if (is_pooled_ || limit < session_limit_min)
    return std::move(transact(PostgresAccess::read, {&statement, 1}, deadline)[0]);
  if (has_session_limit(needed)) return query_alone(statement, deadline);
  return std::move(set_up_session(PostgresAccess::read, statement, limit, deadline)[0]);
}

// Runs one statement without BEGIN and COMMIT. Each row has two more columns, which tell whether it
// is the answer to this statement, and by which server.
PostgresRows PostgresConnection::query_alone(const PostgresStatement& statement,
                                             const Deadline& deadline) {
  PostgresStatement checked = statement;
  checked.values.push_back(PostgresValue::number(++transaction_));
  checked.sql = "SELECT answer.*, pg_catalog.pg_postmaster_start_time(), $" +
                std::to_string(checked.values.size()) + " FROM (" + statement.sql + ") AS answer";
  PostgresRows rows = std::move(run_pipeline({}, {&checked, 1}, {}, deadline)[0]);
  if (rows.count() == 0) return rows;
  const int columns = rows.column_count();
  if (rows.number(0, columns - 1) != transaction_) throw_lost("answer to another transaction");
  const std::uint64_t server_start = rows.number(0, columns - 2);
  // The session of another server has limits of its own.
  if (std::exchange(server_start_, server_start) != server_start)
    session_limit_ = std::chrono::milliseconds(0);
  return rows;
}

std::uint64_t PostgresConnection::run(const PostgresStatement& statement,
                                      const Deadline& deadline) {
  return transact(PostgresAccess::write, {&statement, 1}, deadline)[0].changed();
}

std::uint64_t PostgresConnection::run_with_settings(const PostgresStatement& statement,
                                                    const Deadline& deadline) {
  const std::chrono::milliseconds needed = statement_limit(deadline);
  const std::chrono::milliseconds limit = needed * 31 / 32;
  if (is_pooled_ || limit < session_limit_min) return run(statement, deadline);
  if (!has_session_limit(needed))
    return set_up_session(PostgresAccess::write, statement, limit, deadline)[0].changed();
  const std::optional<std::pair<std::string, std::string>> notification = notification_;
  const std::uint64_t changed = run_or_roll_back({}, {&statement, 1}, {}, deadline)[0].changed();
  if (changed != 0) return changed;
  notification_ = notification;
  return set_up_session(PostgresAccess::write, statement, limit, deadline)[0].changed();
}

// All settings of a session are made together, so the mark stands for all of them.
// synchronous_commit is made for the transaction. Otherwise the commit would use a value that the
// server has learned while the statement waited for a lock.
std::string PostgresConnection::settings_condition(const std::string& parameter) {
  return "pg_catalog.current_setting('whycache.session', true) = " + parameter +
         " AND pg_catalog.set_config('synchronous_commit', CASE pg_catalog.current_setting("
         "'synchronous_commit') WHEN 'off' THEN 'on' ELSE pg_catalog.current_setting("
         "'synchronous_commit') END, true) <> 'off'";
}

std::vector<PostgresRows> PostgresConnection::begin(std::span<const PostgresStatement> statements,
                                                    const Deadline& deadline) {
  const std::string limit = statement_ms(deadline);
  const PostgresStatement before[] = {
      {begin_writing_sql}, set_up(PostgresAccess::write, ++transaction_, limit, settings_mark())};
  return run_or_roll_back(before, statements, {}, deadline);
}

std::vector<PostgresRows> PostgresConnection::commit(std::span<const PostgresStatement> statements,
                                                     const Deadline& deadline) {
  const PostgresStatement after[] = {{commit_sql}};
  return run_or_roll_back({}, statements, after, deadline);
}

void PostgresConnection::roll_back(const Deadline& deadline) noexcept {
  const PostgresStatement statement{"ROLLBACK"};
  const Deadline limit =
      deadline.time_left() < rollback_time_min ? Deadline(rollback_time_min) : deadline;
  try {
    run_pipeline({}, {&statement, 1}, {}, limit);
  } catch (const PostgresFailure&) {
    is_broken_ = true;
  }
}

std::unique_ptr<PostgresConnection> connect_postgres(
    const PostgresServer& server, std::chrono::milliseconds timeout, const Deadline& deadline,
    std::optional<PostgresConnectionAttempt>& attempt) {
  std::unique_ptr<PostgresConnection> connection = await_connection<PostgresConnection>(
      [server, timeout] { return std::make_unique<PostgresConnection>(server, Deadline(timeout)); },
      timeout, deadline, attempt);
  if (!connection) throw PostgresFailure{"", "no answer before the deadline"};
  return connection;
}

}  // namespace whycache
