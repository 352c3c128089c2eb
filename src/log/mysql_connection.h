// A connection to a MySQL or MariaDB server: the client library, wrapped so that it does what the
// log relies on, and nothing else.
//
// - It never reconnects by itself: the caller has to know that an answer was lost.
// - It never sends a file of this machine because a server asks for it (LOAD DATA LOCAL).
// - It waits for the server for a bounded time, and makes the server wait for locks for a shorter
//   one. A statement that waits in vain thus gets an answer, instead of being abandoned.
// - It does not change how the program handles SIGPIPE. The library would ignore that signal in the
//   whole program, and raises it with TLS.
//
// One thread at a time may use a connection, in the process that opened it.
#pragma once

#include <mysql.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "log/connection_attempt.h"
#include "log/mysql_server.h"

namespace whycache {

// A failure, as the server or the library reports it.
struct MysqlFailure {
  unsigned code = 0;
  std::string reason;
};

// Whether the connection failed, so that it is unknown how far the statement was executed.
bool is_connection_lost(const MysqlFailure& failure) noexcept;

class MysqlRows;

class MysqlConnection {
 public:
  // Waits at most `timeout` for each piece of an answer, and for a lock on the server; both in
  // whole seconds. connect_mysql() and SocketTimeout wait less. Throws MysqlFailure, or
  // Error(invalid) if a file with the password cannot be used.
  MysqlConnection(const MysqlServer& server, std::chrono::milliseconds timeout);
  MysqlConnection(const MysqlConnection&) = delete;
  MysqlConnection& operator=(const MysqlConnection&) = delete;
  ~MysqlConnection();

  // Replaces the destructor in a forked child: leaves the parent's connection alone.
  static void abandon(std::unique_ptr<MysqlConnection> connection) noexcept;

  // A duplicate of the library's descriptor, which the library closes at any time.
  const std::shared_ptr<const FileDescriptor>& socket() const { return socket_; }
  // Makes the server end statements in time for a deadline that is this far away, from now on, if
  // it can (MariaDB). Takes a round trip if the deadline differs much from the one before.
  void limit_statements(std::chrono::milliseconds deadline);
  // Whether the connection was not closed while it was idle. Takes no round trip.
  bool is_alive() const noexcept;
  bool is_encrypted() const noexcept { return is_encrypted_; }
  // Closes it at once, without telling the server.
  void abort_connection() noexcept;

  // All of these throw MysqlFailure.

  // Fetches rows as the caller asks for them. The connection is busy until the last one was
  // fetched, or the `MysqlRows` is destroyed.
  MysqlRows query(const std::string& sql);
  // Returns how many rows changed.
  std::uint64_t run(const std::string& sql);
  // The same for a statement with placeholders, which stays prepared.
  using StatementValue = std::variant<std::uint64_t, std::string_view>;
  std::uint64_t run(const std::string& sql, std::initializer_list<StatementValue> values);

  // Returns a server variable as of connecting; empty if there is no such variable.
  const std::string& variable(const std::string& name) const;
  std::size_t packet_bytes_max() const { return packet_bytes_max_; }
  // Tells the server from others, by whatever address it was reached: by its host's name, its port
  // and its data directory, or by the cluster that it belongs to.
  std::uint64_t server_id() const { return server_id_; }

 private:
  friend class MysqlRows;

  void set_options(const MysqlServer& server, std::chrono::seconds timeout);
  void set_session(std::chrono::milliseconds timeout);
  void read_variables();
  void read_server_id();
  void skip_results();
  [[noreturn]] void throw_failure();

  MYSQL* mysql_;
  std::shared_ptr<const FileDescriptor> socket_;
  std::chrono::milliseconds statement_time_max_{0};
  std::map<std::string, MYSQL_STMT*> statements_;
  std::map<std::string, std::string> variables_;
  std::size_t packet_bytes_max_ = 0;
  std::uint64_t server_id_ = 0;
  bool is_encrypted_ = false;
  bool is_aborted_ = false;
};

using MysqlConnectionAttempt = ConnectionAttempt<MysqlConnection>;

// Returns a new connection. Continues `attempt` if it is one, and stores there an attempt that has
// not finished when the deadline passes; then throws MysqlFailure. Otherwise as the constructor of
// MysqlConnection.
std::unique_ptr<MysqlConnection> connect_mysql(const MysqlServer& server,
                                               std::chrono::milliseconds timeout,
                                               const Deadline& deadline,
                                               std::optional<MysqlConnectionAttempt>& attempt);

// The answer to a query, row by row.
class MysqlRows {
 public:
  MysqlRows(const MysqlRows&) = delete;
  MysqlRows& operator=(const MysqlRows&) = delete;
  // Aborts the connection if rows are left to fetch.
  ~MysqlRows();

  // Fetches the next row. Returns false if there is none. Throws MysqlFailure.
  bool next();
  // Returns the value in `column` of this row; nullopt if it is NULL.
  std::optional<std::string_view> at(unsigned column) const;
  // Returns 0 if the value is not a number of 64 bits.
  std::uint64_t number(unsigned column) const;

 private:
  friend class MysqlConnection;
  MysqlRows(MysqlConnection& connection, MYSQL_RES* result)
      : connection_(connection), result_(result) {}

  MysqlConnection& connection_;
  MYSQL_RES* result_;
  MYSQL_ROW row_ = nullptr;
  const unsigned long* sizes_ = nullptr;
  bool is_at_end_ = false;
};

}  // namespace whycache
