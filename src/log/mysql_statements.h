// The SQL of the log in MySQL and MariaDB: its tables, and the statements of one instance.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <whycache/log.h>

#include "log/rewrite_in_database.h"

namespace whycache {

// The name of an instance has no character that needs to be escaped.
class MysqlStatements {
 public:
  // The columns of a row: first those of an update, then those that describe a log.
  enum Column : unsigned {
    id_column,
    bytes_column,
    format_column,
    uuid_column,
    base_column,
    base_chain_column,
    token_column,
    part_count_column,
    head_column
  };
  static constexpr std::uint64_t schema_version = 1;

  explicit MysqlStatements(const std::string& instance) : instance_('\'' + instance + '\'') {}

  // --- Tables ---

  // The statement that creates each table, by the table's name.
  static std::map<std::string, std::string> create_tables();
  // Rows: table, engine, type of the column `bytes`, and how many bytes it holds.
  static std::string select_columns();
  static std::string select_instances(std::size_t count_max);
  // Inserts no row if the instance has updates already.
  std::string insert_log(const Uuid& uuid) const;

  // --- Reading ---
  //
  // A user without the privilege SELECT reads by the procedures: call_...().

  std::string select_whether_log_exists() const;
  std::string select_log() const;
  // The same, with the first bytes of the newest update.
  std::string select_newest() const;
  // Returns the row of select_newest(), and no updates.
  std::string call_read_log() const { return call_read(1, 0, 0); }
  // Returns one row that describes the log, then the updates.
  std::string select_updates(UpdateId first, UpdateId last, std::uint64_t row_count_max) const;
  // Returns the row of select_newest(), then the updates.
  std::string call_read(UpdateId first, UpdateId last, std::uint64_t row_count_max) const;
  // Returns the first bytes of an update.
  std::string select_update_header(UpdateId id) const;
  std::string select_part(const LogMetadata& log, std::uint64_t number) const;
  std::string call_read_part(const LogMetadata& log, std::uint64_t number) const;
  // The transactions that may have kept a statement waiting. Needs the privilege PROCESS.
  static std::string select_lock_holders();

  // --- Writing ---

  // Values: id, bytes, uuid, id, id - 1, id - 1.
  std::string append() const;
  // Values: base, token, number, bytes.
  std::string insert_part() const;
  // Statements that need the privileges of a rewrite, and change nothing.
  std::vector<std::string> check_may_rewrite() const;
  // Changes a row only if the base of the log is below that of `next`, and `next` has all its
  // parts.
  std::string switch_base(const LogMetadata& next) const;
  // Deletes nothing if these parts are the base.
  std::string delete_unused_parts(const LogMetadata& next) const;
  // The next two delete some rows, and none if the log is not this one any more: its base never
  // falls.
  std::string delete_updates_below_base(const LogMetadata& log) const;
  // Parts of a greater base stay: a rewrite may still switch to it.
  std::string delete_parts_below_base(const LogMetadata& log) const;

 private:
  std::string log_columns() const;

  std::string instance_;  // quoted
};

}  // namespace whycache
