// The log in PostgreSQL: its schema and limits.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "log/postgres_test_support.h"
#include "support/tcp_proxy.h"

namespace whycache {
namespace {

using PostgresLogFormat = PostgresTest;

// Describes the tables of a log: columns, constraints, and how values are stored.
std::vector<std::string> schema_of(const PostgresStore& store) {
  PostgresClient client = store.client();
  std::vector<std::string> lines = client.rows(
      "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, "
      "a.attstorage, l.collname, pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute a JOIN pg_class "
      "c ON c.oid = a.attrelid LEFT JOIN pg_collation l ON l.oid = a.attcollation LEFT JOIN "
      "pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum WHERE c.relname LIKE 'whycache%' "
      "AND c.relkind = 'r' AND a.attnum > 0 ORDER BY 1, a.attnum");
  for (const std::string& line : client.rows(
           "SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE "
           "conrelid::regclass::text LIKE 'whycache%' ORDER BY 1, 2"))
    lines.push_back(line);
  return lines;
}

TEST_F(PostgresLogFormat, created_tables_equal_documented_schema) {
  PostgresStore made;
  made.open();
  PostgresStore documented;
  ASSERT_EQ(documented_postgres_sql("formats/sql.md").size(), 2U);
  documented.run(documented_postgres_sql("formats/sql.md")[0]);
  EXPECT_GT(schema_of(made).size(), 20U);
  EXPECT_EQ(schema_of(made), schema_of(documented));
}

TEST_F(PostgresLogFormat, worked_example_opens_as_log_of_vectors) {
  PostgresStore store;
  for (const std::string& block : documented_postgres_sql("formats/sql.md")) store.run(block);
  expect_documented_log(*store.open(), load_vectors()["log"]);
}

TEST_F(PostgresLogFormat, base_chain_keeps_all_64_bits) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  log->rewrite(1, 0xfedcba9876543210, [] { return std::nullopt; });
  EXPECT_EQ(store.open()->extent().base_chain, 0xfedcba9876543210);
}

TEST_F(PostgresLogFormat, store_is_the_same_by_any_address_and_differs_for_each_copy) {
  PostgresStore store;
  const std::uint64_t here = store.open()->extent().store_id;
  EXPECT_NE(here, 0U);
  testing::TcpProxy proxy(store.server().port());
  PostgresLogOptions by_proxy = store.options(milliseconds(5000));
  by_proxy.server.addresses[0].port = proxy.port();
  EXPECT_EQ(PostgresLog(by_proxy).extent().store_id, here);
  EXPECT_NE(PostgresStore().open()->extent().store_id, here);  // another database of the server
  EXPECT_NE(store.open("other")->extent().store_id, here);
}

TEST_F(PostgresLogFormat, log_in_another_schema_is_another_log) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 2);
  const std::string url = store.url("?schema=more%20%22logs");
  expect_error(
      ErrorKind::invalid, [&] { open_log(url); }, "schema");
  store.run("CREATE SCHEMA \"more \"\"logs\"");
  const auto other = open_log(url);
  EXPECT_EQ(other->extent().head, 0U);
  EXPECT_NE(other->extent().uuid, log->extent().uuid);
  append_up_to(*other, 3);
  EXPECT_EQ(log->extent().head, 2U);
  EXPECT_NE(other->name(), log->name());
}

TEST_F(PostgresLogFormat, log_of_other_format_is_refused_and_unchanged) {
  PostgresStore store;
  const auto log = store.open();
  store.run("UPDATE whycache_logs SET format = 2");
  expect_error(
      ErrorKind::corrupt, [&] { log->extent(); }, "format=2", "format_known=1");
  EXPECT_NE(thrown_error([&] { log->rewrite(1, 0, [] { return std::nullopt; }); }), std::nullopt);
  expect_error(
      ErrorKind::corrupt, [&] { store.open(); }, "format=2");
}

TEST_F(PostgresLogFormat, updates_without_row_of_log_are_corrupt) {
  PostgresStore store;
  append_up_to(*store.open(), 3);
  store.run("DELETE FROM whycache_logs");
  expect_error(
      ErrorKind::corrupt, [&] { store.open(); }, "whycache_logs");
  store.open("another");
}

TEST_F(PostgresLogFormat, missing_table_update_or_part_is_corrupt) {
  const auto expect_corrupt = [](const std::string& sql, const std::string& word) {
    PostgresStore store;
    const auto log = store.open();
    append_up_to(*log, 5);
    rewrite(*log, 2, {"a", "b"});
    store.run(sql);
    expect_error(
        ErrorKind::corrupt,
        [&] {
          updates_of(*log);
          parts_of(*log);
        },
        word);
  };
  expect_corrupt("DROP TABLE whycache_updates", "whycache_updates");
  expect_corrupt("ALTER TABLE whycache_updates DROP COLUMN bytes", "bytes");
  expect_corrupt("DELETE FROM whycache_updates WHERE id = 4", "id=4");
  expect_corrupt("DELETE FROM whycache_parts WHERE number = 1", "number=1");
}

TEST_F(PostgresLogFormat, table_that_cannot_keep_updates_is_refused) {
  PostgresStore store;
  store.open();
  store.run("ALTER TABLE whycache_updates SET UNLOGGED");
  expect_error(
      ErrorKind::invalid, [&] { store.open(); }, "table=whycache_updates", "SET LOGGED");
  EXPECT_NO_THROW(open_log(store.url("?durable=off")));
  store.run("ALTER TABLE whycache_updates SET LOGGED");
  store.run("ALTER TABLE whycache_parts ALTER bytes TYPE text USING ''");
  expect_error(
      ErrorKind::invalid, [&] { store.open(); }, "type=text", "TYPE bytea");
}

}  // namespace
}  // namespace whycache
