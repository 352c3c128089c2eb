// A connection to a MySQL or MariaDB server: the client library, wrapped so that it does what we
// rely on and nothing else.
//
// - It never reconnects by itself: who lost an answer has to know.
// - It never asks for, or sends, a file of this machine because a server says so (LOAD DATA LOCAL).
// - It waits for the server for a bounded time, and the server for locks for a shorter one, so that
// a statement that waits
//   in vain is answered rather than abandoned.
// - It leaves the signals of the program alone: the library would ignore SIGPIPE for all of it, and
// raises it with TLS.
//
// Used by one thread at a time, by the process that opened it.
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

#include "log/mysql_server.h"

namespace whycache {

// What went wrong, as server or library say it.
struct MysqlFailure {
  unsigned code = 0;
  std::string reason;
};

// Whether the connection failed, so that nobody knows how far the statement came.
bool is_connection_lost(const MysqlFailure& failure) noexcept;

class MysqlRows;

class MysqlConnection {
 public:
  // Waits `patience` at most for each answer. Throws MysqlFailure; Error invalid for what is wrong
  // with the files of a login.
  MysqlConnection(const MysqlServer& server, std::chrono::milliseconds patience);
  MysqlConnection(const MysqlConnection&) = delete;
  MysqlConnection& operator=(const MysqlConnection&) = delete;
  ~MysqlConnection();

  // In a forked child, instead of the destructor: the parent's connection is not disturbed.
  static void abandon(std::unique_ptr<MysqlConnection> connection) noexcept;

  // Whether it can be used: nobody closed it while nothing was asked. No round trip.
  bool is_alive() const noexcept;
  // Ends it at once, without a word to the server.
  void abort_connection() noexcept;

  // All of these throw MysqlFailure.

  // The rows come as they are asked for; until there are none left, or `MysqlRows` is gone, nothing
  // else can be asked.
  MysqlRows query(const std::string& sql);
  // How many rows changed.
  std::uint64_t run(const std::string& sql);
  // The same of a statement with placeholders, which is kept prepared.
  using StatementValue = std::variant<std::uint64_t, std::string_view>;
  std::uint64_t run(const std::string& sql, std::initializer_list<StatementValue> values);

  // Of the server, as they were when the connection was made. Empty: it has no such variable.
  const std::string& variable(const std::string& name) const;
  std::size_t packet_bytes_max() const { return packet_bytes_max_; }

 private:
  friend class MysqlRows;

  void set_options(const MysqlServer& server, std::chrono::seconds patience);
  void set_session(std::chrono::seconds patience);
  void read_variables();
  [[noreturn]] void throw_failure();

  MYSQL* mysql_;
  std::map<std::string, MYSQL_STMT*> statements_;
  std::map<std::string, std::string> variables_;
  std::size_t packet_bytes_max_ = 0;
  bool is_aborted_ = false;
};

// The answer to a query, row by row.
class MysqlRows {
 public:
  MysqlRows(const MysqlRows&) = delete;
  MysqlRows& operator=(const MysqlRows&) = delete;
  // Rows that nobody asked for cost the connection.
  ~MysqlRows();

  // Whether there is a row. Throws MysqlFailure.
  bool next();
  // Of this row. nullopt: NULL.
  std::optional<std::string_view> at(unsigned column) const;
  // 0 if it is not a number that fits.
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
