#include "log/mysql_statements.h"

#include "update/update.h"

namespace whycache {
namespace {

std::string uuid_literal(const Uuid& uuid) {
  constexpr char digits[] = "0123456789abcdef";
  std::string text = "x'";
  for (const std::uint8_t byte : uuid) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text + '\'';
}

}  // namespace

// --- Tables ---

std::map<std::string, std::string> MysqlStatements::create_tables() {
  return {{"whycache_logs", R"(CREATE TABLE IF NOT EXISTS whycache_logs (
  instance   VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  format     INT UNSIGNED NOT NULL,
  uuid       BINARY(16) NOT NULL,
  base       BIGINT UNSIGNED NOT NULL,
  base_chain BIGINT UNSIGNED NOT NULL,
  token      BINARY(16) NOT NULL,
  part_count BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (instance)
) ENGINE = InnoDB)"},
          {"whycache_updates", R"(CREATE TABLE IF NOT EXISTS whycache_updates (
  instance VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  id       BIGINT UNSIGNED NOT NULL,
  bytes    LONGBLOB NOT NULL,
  PRIMARY KEY (instance, id)
) ENGINE = InnoDB)"},
          {"whycache_parts", R"(CREATE TABLE IF NOT EXISTS whycache_parts (
  instance VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  base     BIGINT UNSIGNED NOT NULL,
  token    BINARY(16) NOT NULL,
  number   BIGINT UNSIGNED NOT NULL,
  bytes    LONGBLOB NOT NULL,
  PRIMARY KEY (instance, base, token, number)
) ENGINE = InnoDB)"}};
}

std::string MysqlStatements::select_columns() {
  return R"(
  SELECT t.TABLE_NAME, t.ENGINE, c.DATA_TYPE, c.CHARACTER_MAXIMUM_LENGTH
  FROM information_schema.TABLES AS t
  LEFT JOIN information_schema.COLUMNS AS c
    ON c.TABLE_SCHEMA = t.TABLE_SCHEMA AND c.TABLE_NAME = t.TABLE_NAME AND c.COLUMN_NAME = 'bytes'
  WHERE t.TABLE_SCHEMA = DATABASE()
    AND t.TABLE_NAME IN ('whycache_logs', 'whycache_updates', 'whycache_parts'))";
}

std::string MysqlStatements::select_instances(std::size_t count_max) {
  return "SELECT instance FROM whycache_logs ORDER BY instance LIMIT " + std::to_string(count_max);
}

std::string MysqlStatements::insert_log(const Uuid& uuid) const {
  return "INSERT INTO whycache_logs SELECT " + instance_ + ", " + std::to_string(schema_version) +
         ", " + uuid_literal(uuid) + ", 0, 0, " + uuid_literal(Uuid{}) +
         ", 0 FROM DUAL WHERE NOT EXISTS (SELECT 1 FROM whycache_updates WHERE instance = " +
         instance_ + ")";
}

// --- Reading ---

std::string MysqlStatements::log_columns() const {
  return "format, uuid, base, base_chain, token, part_count, (SELECT id FROM whycache_updates "
         "WHERE instance = " +
         instance_ + " ORDER BY id DESC LIMIT 1)";
}

std::string MysqlStatements::select_whether_log_exists() const {
  return "SELECT 1 FROM whycache_logs WHERE instance = " + instance_;
}

std::string MysqlStatements::select_log() const {
  return "SELECT NULL, NULL, " + log_columns() +
         " FROM whycache_logs WHERE instance = " + instance_;
}

std::string MysqlStatements::select_newest() const {
  return "SELECT NULL, (SELECT LEFT(bytes, " + std::to_string(header_peek_bytes) +
         ") FROM whycache_updates WHERE instance = " + instance_ + " ORDER BY id DESC LIMIT 1), " +
         log_columns() + " FROM whycache_logs WHERE instance = " + instance_;
}

std::string MysqlStatements::select_updates(UpdateId first, UpdateId last,
                                            std::uint64_t row_count_max) const {
  const std::string log = "whycache_logs WHERE instance = " + instance_;
  return "(SELECT NULL AS id, NULL AS bytes, " + log_columns() + " FROM " + log +
         ") UNION ALL (SELECT id, bytes, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM "
         "whycache_updates WHERE instance = " +
         instance_ + " AND id BETWEEN " + std::to_string(first) + " AND " + std::to_string(last) +
         " AND id > (SELECT base FROM " + log + ") ORDER BY id LIMIT " +
         std::to_string(row_count_max) + ")";
}

std::string MysqlStatements::call_read(UpdateId first, UpdateId last,
                                       std::uint64_t row_count_max) const {
  return "CALL whycache_read(" + instance_ + ", " + std::to_string(first) + ", " +
         std::to_string(last) + ", " + std::to_string(row_count_max) + ")";
}

std::string MysqlStatements::select_update_header(UpdateId id) const {
  return "SELECT LEFT(bytes, " + std::to_string(header_peek_bytes) +
         ") FROM whycache_updates WHERE instance = " + instance_ +
         " AND id = " + std::to_string(id);
}

std::string MysqlStatements::select_part(const LogMetadata& log, std::uint64_t number) const {
  return "SELECT bytes FROM whycache_parts WHERE instance = " + instance_ +
         " AND base = " + std::to_string(log.base) + " AND token = " + uuid_literal(log.token) +
         " AND number = " + std::to_string(number);
}

std::string MysqlStatements::call_read_part(const LogMetadata& log, std::uint64_t number) const {
  return "CALL whycache_read_part(" + instance_ + ", " + std::to_string(log.base) + ", " +
         uuid_literal(log.token) + ", " + std::to_string(number) + ")";
}

std::string MysqlStatements::select_lock_holders() {
  return R"(
  SELECT t.trx_mysql_thread_id, p.USER, p.HOST
  FROM information_schema.INNODB_TRX AS t
  JOIN information_schema.PROCESSLIST AS p ON p.ID = t.trx_mysql_thread_id
  WHERE t.trx_lock_structs > 0 AND t.trx_state <> 'LOCK WAIT'
    AND t.trx_mysql_thread_id <> CONNECTION_ID()
  ORDER BY t.trx_started LIMIT 3)";
}

// --- Writing ---

std::string MysqlStatements::append() const {
  return "INSERT INTO whycache_updates (instance, id, bytes) SELECT instance, ?, ? FROM "
         "whycache_logs WHERE instance = " +
         instance_ +
         " AND uuid = ? AND base < ? AND (base = ? OR EXISTS (SELECT 1 FROM whycache_updates AS "
         "before_it WHERE before_it.instance = " +
         instance_ + " AND before_it.id = ?))";
}

std::string MysqlStatements::insert_part() const {
  return "INSERT INTO whycache_parts (instance, base, token, number, bytes) VALUES (" + instance_ +
         ", ?, ?, ?, ?)";
}

// The server checks the privileges of a statement before it looks for rows. These match none.
std::vector<std::string> MysqlStatements::check_may_rewrite() const {
  const std::string no_row = " WHERE instance = " + instance_ + " AND 1 = 0";
  return {
      "UPDATE whycache_logs SET base = base, base_chain = base_chain, token = token, "
      "part_count = part_count" +
          no_row + " AND EXISTS (SELECT 1 FROM whycache_updates WHERE instance = " + instance_ +
          " AND id = 0) AND EXISTS (SELECT 1 FROM whycache_parts WHERE instance = " + instance_ +
          " AND base = 0)",
      "INSERT INTO whycache_parts (instance, base, token, number, bytes) SELECT instance, "
      "base, token, 0, '' FROM whycache_logs" +
          no_row,
      "DELETE FROM whycache_updates" + no_row, "DELETE FROM whycache_parts" + no_row};
}

std::string MysqlStatements::switch_base(const LogMetadata& next) const {
  const std::string base = std::to_string(next.base);
  const std::string part_count = std::to_string(next.part_count);
  return "UPDATE whycache_logs SET base = " + base +
         ", base_chain = " + std::to_string(next.base_chain) +
         ", token = " + uuid_literal(next.token) + ", part_count = " + part_count +
         " WHERE instance = " + instance_ + " AND uuid = " + uuid_literal(next.uuid) +
         " AND base < " + base +
         " AND EXISTS (SELECT 1 FROM whycache_updates WHERE instance = " + instance_ +
         " AND id = " + base +
         ") AND (SELECT count(*) FROM whycache_parts WHERE instance = " + instance_ +
         " AND base = " + base + " AND token = " + uuid_literal(next.token) + ") = " + part_count;
}

std::string MysqlStatements::delete_unused_parts(const LogMetadata& next) const {
  return "DELETE FROM whycache_parts WHERE instance = " + instance_ +
         " AND base = " + std::to_string(next.base) + " AND token = " + uuid_literal(next.token) +
         " AND token <> (SELECT token FROM whycache_logs WHERE instance = " + instance_ + ")";
}

std::string MysqlStatements::delete_updates_below_base(const LogMetadata& log) const {
  return "DELETE FROM whycache_updates WHERE instance = " + instance_ +
         " AND id <= " + std::to_string(log.base) +
         " AND EXISTS (SELECT 1 FROM whycache_logs WHERE instance = " + instance_ +
         " AND uuid = " + uuid_literal(log.uuid) + ") ORDER BY id LIMIT 256";
}

std::string MysqlStatements::delete_parts_below_base(const LogMetadata& log) const {
  return "DELETE FROM whycache_parts WHERE instance = " + instance_ +
         " AND base <= " + std::to_string(log.base) +
         " AND token <> (SELECT token FROM whycache_logs WHERE instance = " + instance_ +
         " AND uuid = " + uuid_literal(log.uuid) + ") ORDER BY base, token, number LIMIT 8";
}

}  // namespace whycache
