// A connection to a PostgreSQL server: libpq, wrapped so that it does what the log relies on, and
// nothing else.
//
// - It never reconnects by itself: the caller has to know that an answer was lost.
// - It never blocks: each call waits in poll(2) until its deadline, or until a stop is requested.
//   It makes the server end statements earlier, so that a statement that waits in vain gets an
//   answer, instead of being abandoned.
// - Through a pooler, nothing depends on the session: settings are made for one transaction. The
//   log therefore works where each transaction gets another connection to the server (pgbouncer in
//   transaction mode). Without one, statements are prepared, and a read or an append is one
//   statement.
// - All statements of a transaction are sent at once, and take one round trip together.
//
// One thread at a time may use a connection, in the process that opened it.
#pragma once

#include <libpq-fe.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "base/random.h"
#include "log/connection_attempt.h"
#include "log/postgres_server.h"

namespace whycache {

// A failure, as the server or the library reports it.
struct PostgresFailure {
  // Five characters; empty if the server did not answer.
  std::string sqlstate;
  std::string reason;
  // Whether the server ended the connection, or all of them (FATAL, PANIC). It may have committed.
  bool ended_connection = false;

  bool is(std::string_view state) const { return sqlstate == state; }
  bool is_of_class(std::string_view two) const { return sqlstate.starts_with(two); }
};

// Whether the connection failed, so that it is unknown how far the statement was executed.
bool is_connection_lost(const PostgresFailure& failure) noexcept;

// A value for a placeholder of a statement. Does not own its bytes.
struct PostgresValue {
  enum class Type { number, bytes, text, time };

  static PostgresValue number(std::uint64_t value) { return {Type::number, value, {}}; }
  static PostgresValue bytes(std::string_view value) { return {Type::bytes, 0, value}; }
  static PostgresValue text(std::string_view value) { return {Type::text, 0, value}; }
  // `value`: microseconds, as a column of type timestamptz returns them.
  static PostgresValue time(std::uint64_t value) { return {Type::time, value, {}}; }

  Type type;
  std::uint64_t as_number;
  std::string_view as_bytes;
};

struct PostgresStatement {
  std::string sql;
  std::vector<PostgresValue> values{};
};

// The answer to one statement.
class PostgresRows {
 public:
  explicit PostgresRows(PGresult* result) : result_(result) {}

  // Whether there was no answer.
  bool is_missing() const { return !result_; }
  ExecStatusType status() const { return PQresultStatus(result_.get()); }
  // Why the statement failed.
  PostgresFailure failure() const;
  int count() const { return PQntuples(result_.get()); }
  int column_count() const { return PQnfields(result_.get()); }
  // How many rows a statement changed.
  std::uint64_t changed() const;
  // Returns a value; nullopt if it is NULL.
  std::optional<std::string_view> at(int row, int column) const;
  // Returns a number of 1 to 8 bytes, or a time; 0 if it is NULL.
  std::uint64_t number(int row, int column) const;

 private:
  struct Clear {
    void operator()(PGresult* result) const { PQclear(result); }
  };
  std::unique_ptr<PGresult, Clear> result_;
};

enum class PostgresAccess { read, write };

// What a connection finds out about its server.
struct PostgresServerFacts {
  int version = 0;  // 150004
  bool is_in_recovery = false;
  std::string fsync;
  std::string full_page_writes;
  std::string synchronous_commit;
  // Tells the server from others, by whatever address it was reached.
  std::uint64_t server_id = 0;
};

class PostgresConnection {
 public:
  // Connects to the first of the server's addresses that answers. Throws PostgresFailure, or
  // Error(invalid) if a file with the password cannot be used.
  PostgresConnection(const PostgresServer& server, const Deadline& deadline);
  PostgresConnection(const PostgresConnection&) = delete;
  PostgresConnection& operator=(const PostgresConnection&) = delete;
  ~PostgresConnection();

  // Replaces the destructor in a forked child: leaves the parent's connection alone.
  static void abandon(std::unique_ptr<PostgresConnection> connection) noexcept;

  const PostgresServerFacts& facts() const { return facts_; }
  // Whether a pooler is between this process and the server.
  bool is_pooled() const { return is_pooled_; }
  // Whether the connection was not closed while it was idle. Takes no round trip.
  bool is_alive() noexcept;
  // The time at which the server that ran the last transaction was started; if it returned no row,
  // the one before. Through a pooler, each may have run on another server.
  std::uint64_t server_start() const { return server_start_; }
  // Returns the TLS session of libpq, an SSL of OpenSSL; null without TLS.
  void* tls_session() const { return PQsslStruct(connection_, "OpenSSL"); }

  // All of these throw PostgresFailure. After a failure no transaction is open.

  // Runs statements in a transaction of their own, in one round trip. Returns an answer for each.
  // A transaction that writes is at READ COMMITTED, whatever the defaults of the server are.
  std::vector<PostgresRows> transact(PostgresAccess access,
                                     std::span<const PostgresStatement> statements,
                                     const Deadline& deadline);
  // Runs a statement that begins with SELECT.
  PostgresRows query(const PostgresStatement& statement, const Deadline& deadline);
  // Returns how many rows changed.
  std::uint64_t run(const PostgresStatement& statement, const Deadline& deadline);
  // As run(), for a statement whose condition contains settings_condition(). Without a pooler, it
  // is mostly a transaction of its own, without BEGIN and COMMIT. If it changes nothing, which may
  // be because the session has lost its settings, it is repeated in a transaction that makes them.
  std::uint64_t run_with_settings(const PostgresStatement& statement, const Deadline& deadline);
  // Returns a condition that holds in a session with the settings that run() makes, and that makes
  // synchronous_commit for the transaction. `parameter`, as "$7", has the value settings_mark().
  static std::string settings_condition(const std::string& parameter);
  PostgresValue settings_mark() const { return PostgresValue::text(settings_mark_); }
  // Begins a transaction that writes, which ends with commit(), or with an exception.
  std::vector<PostgresRows> begin(std::span<const PostgresStatement> statements,
                                  const Deadline& deadline);
  std::vector<PostgresRows> commit(std::span<const PostgresStatement> statements,
                                   const Deadline& deadline);
  void roll_back(const Deadline& deadline) noexcept;

  // Sends NOTIFY after the next call of run_with_settings(), in a transaction of its own, which
  // fails silently. The next transaction of this connection waits for it: mostly not at all, at
  // most a second.
  void notify_after_commit(std::string channel, std::string payload) {
    notification_.emplace(std::move(channel), std::move(payload));
  }

  // Returns the payloads of the notifications that have arrived. If there is none, waits for one,
  // at most until the deadline.
  std::vector<std::string> wait_for_notifications(const Deadline& deadline);

 private:
  struct PreparedStatement {
    std::string name;
    bool is_ready = false;
  };
  struct Step;

  void connect(const PostgresServer& server, const PostgresAddress& address,
               const Deadline& deadline);
  void read_facts(const Deadline& deadline);
  void close() noexcept;
  void send(const PostgresStatement& statement, std::vector<Step>& steps);
  void send_unprepared(const PostgresStatement& statement);
  bool has_session_limit(std::chrono::milliseconds needed) const;
  std::vector<PostgresRows> set_up_session(PostgresAccess access,
                                           const PostgresStatement& statement,
                                           std::chrono::milliseconds limit,
                                           const Deadline& deadline);
  void send_notification();
  std::vector<Step> send_pipeline(std::span<const PostgresStatement> before,
                                  std::span<const PostgresStatement> statements,
                                  std::span<const PostgresStatement> after,
                                  const Deadline& deadline);
  std::vector<PostgresRows> run_pipeline(std::span<const PostgresStatement> before,
                                         std::span<const PostgresStatement> statements,
                                         std::span<const PostgresStatement> after,
                                         const Deadline& deadline);
  std::vector<PostgresRows> run_or_roll_back(std::span<const PostgresStatement> before,
                                             std::span<const PostgresStatement> statements,
                                             std::span<const PostgresStatement> after,
                                             const Deadline& deadline);
  PostgresRows query_alone(const PostgresStatement& statement, const Deadline& deadline);
  PGresult* next_result(const Deadline& deadline);
  void discard_unread_answers(const Deadline& deadline);
  void receive_input();
  // Returns false if the deadline passes first. `stop_descriptor`: readable when its stop is
  // requested, or -1 to look for that at intervals.
  bool is_ready_before(short events, const Deadline& deadline, int stop_descriptor);
  void wait(short events, const Deadline& deadline);
  static void receive_notice(void* connection, const PGresult* notice);
  // `reason_if_unknown`: where the library has no message.
  [[noreturn]] void throw_lost(const char* reason_if_unknown = "connection was lost");

  PGconn* connection_ = nullptr;
  PostgresServerFacts facts_;
  std::uint64_t server_start_ = 0;
  // The number of the last transaction. Its answers must name it. Random, so that no other client
  // has it.
  std::uint64_t transaction_ = random_u64();
  bool is_pooled_ = true;
  // The time limit that statements outside of transactions have; 0: the session may have none of
  // the settings.
  std::chrono::milliseconds session_limit_{0};
  // The value of a setting that is made with the others.
  std::string settings_mark_ = std::to_string(random_u64());
  bool is_broken_ = false;
  // Notifications whose answers were not read yet. There is no more than one, and through a pooler
  // it is read before anything else is sent: pgbouncer 1.18 gives the server's connection to
  // another client while a part of a second pipeline is on it, and answers reach the wrong
  // transactions.
  int unread_answers_ = 0;
  std::optional<std::pair<std::string, std::string>> notification_;
  // The statement that a notification whose answer was not read yet prepares; or null.
  PreparedStatement* preparing_notification_ = nullptr;
  // The last warning of the server.
  std::string warning_;
  std::map<std::string, PreparedStatement> prepared_;
  // An eventfd: a stop was requested during wait_for_notifications().
  FileDescriptor stop_event_;
};

using PostgresConnectionAttempt = ConnectionAttempt<PostgresConnection>;

// Returns a new connection. Continues `attempt` if it is one, and stores there an attempt that has
// not finished when the deadline passes; then throws PostgresFailure. Otherwise as the constructor
// of PostgresConnection.
std::unique_ptr<PostgresConnection> connect_postgres(
    const PostgresServer& server, std::chrono::milliseconds timeout, const Deadline& deadline,
    std::optional<PostgresConnectionAttempt>& attempt);

}  // namespace whycache
