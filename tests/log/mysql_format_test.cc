// The log in MySQL: its schema, server settings, and limits.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "log/mysql_test_support.h"
#include "support/tcp_proxy.h"

namespace whycache {
namespace {

using MysqlLogFormat = MysqlTest;
using MysqlLogLimits = MysqlTest;

// --- The schema. ---

TEST_F(MysqlLogFormat, created_tables_equal_documented_schema) {
  MysqlStore made;
  made.open();
  MysqlStore documented;
  ASSERT_EQ(documented_sql("formats/sql.md").size(), 2U);
  documented.run(documented_sql("formats/sql.md")[0]);
  for (const std::string table : {"whycache_logs", "whycache_updates", "whycache_parts"})
    EXPECT_EQ(made.run("SHOW CREATE TABLE " + table), documented.run("SHOW CREATE TABLE " + table));
}

TEST_F(MysqlLogFormat, worked_example_opens_as_log_of_vectors) {
  MysqlStore store;
  for (const std::string& block : documented_sql("formats/sql.md")) store.run(block);
  const auto log = store.open();
  expect_documented_log(*log, load_vectors()["log"]);
}

TEST_F(MysqlLogFormat, base_chain_keeps_all_64_bits) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  log->rewrite(1, 0xfedcba9876543210, [] { return std::nullopt; });
  EXPECT_EQ(store.open()->extent().base_chain, 0xfedcba9876543210);
}

TEST_F(MysqlLogFormat, store_is_the_same_by_any_address_and_differs_for_each_copy) {
  MysqlStore store;
  const std::uint64_t here = store.open()->extent().store_id;
  EXPECT_NE(here, 0U);
  testing::TcpProxy proxy(MariadbServer::shared().port());
  MysqlLogOptions by_proxy = store.options(milliseconds(5000));
  by_proxy.server.port = proxy.port();
  MysqlLog same(by_proxy);
  EXPECT_EQ(same.extent().store_id, here);
  EXPECT_EQ(
      same.poll(1, std::nullopt, [](UpdateId, std::string_view) { return true; }).extent.store_id,
      here);
  EXPECT_NE(MysqlStore().open()->extent().store_id, here);  // another database of the server
  EXPECT_NE(store.open("other")->extent().store_id, here);
}

TEST_F(MysqlLogFormat, log_of_other_format_is_refused_and_unchanged) {
  MysqlStore store;
  const auto log = store.open();
  store.run("UPDATE whycache_logs SET format = 2");
  expect_error(
      ErrorKind::corrupt, [&] { log->extent(); }, "format=2", "format_known=1");
  expect_error(
      ErrorKind::corrupt, [&] { updates_of(*log); }, "format=2");
  EXPECT_NE(thrown_error([&] { log->rewrite(1, 0, [] { return std::nullopt; }); }), std::nullopt);
  expect_error(
      ErrorKind::corrupt, [&] { store.open(); }, "format=2");
}

TEST_F(MysqlLogFormat, instances_share_tables_and_stay_isolated) {
  MysqlStore store;
  const auto upper = store.open("Flags");
  const auto lower = store.open("flags");
  const auto longest = store.open(std::string(48, 'x'));
  append_up_to(*upper, 3);
  append_up_to(*lower, 5);
  append_up_to(*longest, 2);
  rewrite(*lower, 5, {"part"});
  EXPECT_EQ(updates_of(*upper).size(), 3U);
  EXPECT_EQ(parts_of(*upper).size(), 0U);
  EXPECT_EQ(updates_of(*longest).size(), 2U);
  store.run(
      "DELETE FROM whycache_logs WHERE instance = 'Flags'; DELETE FROM whycache_updates WHERE "
      "instance = 'Flags'");
  expect_error(
      ErrorKind::unavailable, [&] { upper->extent(); }, "log was deleted");
  EXPECT_EQ(store.open("flags")->extent().base, 5U);
}

TEST_F(MysqlLogFormat, updates_without_row_of_log_are_corrupt) {
  MysqlStore store;
  append_up_to(*store.open(), 3);
  store.run("DELETE FROM whycache_logs");
  expect_error(
      ErrorKind::corrupt, [&] { store.open(); }, "whycache_logs");
  store.open("another");
}

TEST_F(MysqlLogFormat, missing_table_update_or_part_is_corrupt) {
  const auto expect_corrupt = [](const std::string& sql, const std::string& word) {
    MysqlStore store;
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
  expect_corrupt("DROP TABLE whycache_parts", "whycache_parts");
  expect_corrupt("DELETE FROM whycache_updates WHERE id = 4", "id=4");
  expect_corrupt("DELETE FROM whycache_updates WHERE id = 3", "id=3");
  expect_corrupt("DELETE FROM whycache_parts WHERE number = 1", "number=1");
}

TEST_F(MysqlLogFormat, reading_last_of_million_ids_takes_one_statement) {
  MysqlStore store;
  const auto log = store.open();
  store.run(
      "UPDATE whycache_logs SET base = 999999; INSERT INTO whycache_updates VALUES ('default', "
      "1000000, 'x')");
  append_up_to(*log, 1'000'000);
  for (const UpdateId first : {UpdateId{1}, UpdateId{999'999}, UpdateId{1'000'000}}) {
    const std::uint64_t before = status_variable(store.server(), "Com_select");
    EXPECT_EQ(updates_of(*log, first).size(), 1U);
    EXPECT_EQ(status_variable(store.server(), "Com_select") - before, 1U) << first;
  }
}

TEST_F(MysqlLogFormat, reading_many_small_and_large_rows_takes_few_statements) {
  MysqlStore store;
  const auto log = store.open();
  store.run(
      "INSERT INTO whycache_updates SELECT 'default', seq, REPEAT('s', 40) FROM seq_1_to_20000;"
      "INSERT INTO whycache_updates SELECT 'default', seq, REPEAT('l', 1000000) FROM "
      "seq_20001_to_20040;"
      "INSERT INTO whycache_updates SELECT 'default', seq, REPEAT('s', 40) FROM "
      "seq_20041_to_30000");
  const std::uint64_t before = status_variable(store.server(), "Com_select");
  UpdateId next = 1;
  log->read(1, no_end, [&](UpdateId id, std::string_view bytes) {
    EXPECT_EQ(id, next++);
    EXPECT_EQ(bytes.size(), id > 20'000 && id <= 20'040 ? 1'000'000U : 40U);
    return true;
  });
  EXPECT_EQ(next, 30'001U);
  EXPECT_LT(status_variable(store.server(), "Com_select") - before, 45U);
}

// --- Server settings. ---

TEST_F(MysqlLogFormat, log_works_with_unusual_server_defaults) {
  MariadbServer server({"--sql-mode=ANSI,PAD_CHAR_TO_FULL_LENGTH,NO_BACKSLASH_ESCAPES",
                        "--character-set-server=utf16", "--transaction-isolation=READ-UNCOMMITTED",
                        "--autocommit=0", "--default-storage-engine=MyISAM",
                        "--lower-case-table-names=1", "--innodb-default-row-format=compact"});
  MysqlStore store(server);
  const auto log = store.open();
  append_up_to(*log, 20);
  std::string every_byte;
  for (int byte = 0; byte < 256; ++byte) every_byte += static_cast<char>(byte);
  ASSERT_EQ(log->append(21, every_byte), Appended::yes);
  EXPECT_TRUE(rewrite(*log, 15, {every_byte, std::string(5, '\0')}));
  const auto other = store.open();
  EXPECT_EQ(updates_of(*other)[21], every_byte);
  EXPECT_EQ(parts_of(*other), (std::vector<std::string>{every_byte, std::string(5, '\0')}));
  EXPECT_EQ(
      store.run(
          "SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_NAME = 'whycache_updates'"),
      "InnoDB");
}

TEST_F(MysqlLogFormat, log_works_with_limits_for_all_sessions_of_a_server) {
  MariadbServer server;
  MysqlStore store(server);
  append_up_to(*store.open(), 3);
  store.run(
      "SET GLOBAL sql_select_limit = 1, max_join_size = 1, sql_big_selects = 0, "
      "sql_safe_updates = 1, completion_type = 'CHAIN', tx_read_only = 1");
  const auto log = store.open();
  EXPECT_EQ(updates_of(*log).size(), 3U);
  ASSERT_EQ(log->append(4, "four"), Appended::yes);
  EXPECT_TRUE(rewrite(*log, 2, {"part one", "part two"}));
  const auto other = store.open();
  EXPECT_EQ(parts_of(*other).size(), 2U);
  EXPECT_EQ(updates_of(*other), updates_of(*log));
}

TEST_F(MysqlLogFormat, log_works_with_any_session_defaults_and_init_connect) {
  const std::vector<std::vector<std::string>> settings = {
      {"--character-set-server=latin1", "--skip-character-set-client-handshake",
       "--sql-mode=ORACLE,EMPTY_STRING_IS_NULL", "--lock-wait-timeout=1",
       "--innodb-lock-wait-timeout=0", "--net-read-timeout=1", "--net-write-timeout=1",
       "--wait-timeout=1", "--group-concat-max-len=4", "--default-time-zone=-12:00",
       "--div-precision-increment=0", "--updatable-views-with-limit=0"},
      {"--init-connect=SET character_set_results = utf16, unique_checks = 0, "
       "foreign_key_checks = 0, sql_select_limit = 0, autocommit = 0, tx_isolation = "
       "'READ-UNCOMMITTED', max_statement_time = 0.001",
       "--binlog-format=STATEMENT", "--log-bin=bin", "--sync-binlog=1", "--server-id=1",
       "--tmp-memory-table-size=0", "--max-heap-table-size=16384", "--innodb-strict-mode=1",
       "--enforce-storage-engine=InnoDB", "--low-priority-updates=1"}};
  for (const std::vector<std::string>& each : settings) {
    MariadbServer server(each);
    MysqlStore store(server);
    // init_connect does not run for root.
    MariadbClient(server).run("CREATE USER 'ada'@'%'; GRANT ALL ON " + store.database() +
                              ".* TO 'ada'@'%'");
    MysqlLogOptions options = store.options();
    options.server.user = "ada";
    MysqlLog log(options);
    append_up_to(log, 20);
    std::string every_byte;
    for (int byte = 0; byte < 256; ++byte) every_byte += static_cast<char>(byte);
    ASSERT_EQ(log.append(21, every_byte), Appended::yes);
    ASSERT_EQ(log.append(21, "another"), Appended::taken);
    ASSERT_EQ(log.append(22, std::string(1'500'000, 'x')), Appended::yes);
    std::this_thread::sleep_for(milliseconds(1500));  // longer than wait_timeout
    EXPECT_EQ(updates_of(log).size(), 22U);
    EXPECT_TRUE(rewrite(log, 15, {every_byte, std::string(5, '\0')}));
    MysqlLog other(options);
    EXPECT_EQ(updates_of(other)[21], every_byte);
    EXPECT_EQ(parts_of(other), (std::vector<std::string>{every_byte, std::string(5, '\0')}));
  }
}

TEST_F(MysqlLogLimits, setting_that_prevents_statements_is_named) {
  MariadbServer server({"--log-bin=bin", "--sync-binlog=1", "--server-id=1",
                        "--max-binlog-stmt-cache-size=4096", "--max-binlog-cache-size=4096",
                        "--binlog-cache-size=4096", "--binlog-format=ROW"});
  MysqlStore store(server);
  const auto log = store.open();
  expect_error(
      ErrorKind::limit, [&] { log->append(1, std::string(100'000, 'x')); },
      "max_binlog_cache_size");
  EXPECT_EQ(log->append(1, "x"), Appended::yes);
}

TEST_F(MysqlLogLimits, tables_of_nontransactional_engine_are_refused) {
  MysqlStore store;
  append_up_to(*store.open(), 1);
  for (const std::string table : {"whycache_logs", "whycache_updates", "whycache_parts"}) {
    for (const std::string engine : {"MyISAM", "Aria"}) {
      store.run("ALTER TABLE " + table + " ENGINE = " + engine);
      expect_error(
          ErrorKind::invalid, [&] { store.open(); }, table, engine, "ENGINE = InnoDB");
    }
    store.run("ALTER TABLE " + table + " ENGINE = InnoDB");
  }
  append_up_to(*store.open(), 2);
}

TEST_F(MysqlLogLimits, too_small_column_is_refused_by_name) {
  MysqlStore store;
  store.open();
  for (const std::string type : {"BLOB", "VARBINARY(1000)", "LONGTEXT"}) {
    store.run("ALTER TABLE whycache_updates MODIFY bytes " + type + " NOT NULL");
    expect_error(
        ErrorKind::invalid, [&] { store.open(); }, "whycache_updates.bytes",
        "bytes_max=", "MODIFY bytes LONGBLOB");
  }
  store.run("ALTER TABLE whycache_updates MODIFY bytes MEDIUMBLOB NOT NULL");
  const auto log = store.open();
  expect_error(
      ErrorKind::limit, [&] { log->append(1, std::string(std::size_t{1} << 24, 'x')); },
      "column_bytes_max=16777215");
  EXPECT_EQ(log->append(1, std::string((std::size_t{1} << 24) - 1, 'x')), Appended::yes);
}

TEST_F(MysqlLogLimits, too_small_max_allowed_packet_is_refused_by_name) {
  MariadbServer server;
  MysqlStore store(server);
  MariadbClient(server).run("SET GLOBAL max_allowed_packet = 1048576");
  expect_error(
      ErrorKind::invalid, [&] { store.open(); }, "max_allowed_packet=1048576", "needed=");
  MariadbClient(server).run("SET GLOBAL max_allowed_packet = 4194304");
  const auto log = store.open();
  const std::string large(5'000'000, 'x');
  expect_error(
      ErrorKind::limit, [&] { log->append(1, large); }, "max_allowed_packet=4194304",
      "bytes=5000000");
  EXPECT_EQ(log->append(1, std::string(4'000'000, 'x')), Appended::yes);
  expect_error(
      ErrorKind::limit,
      [&] {
        rewrite(*log, 1, {"small", large});
      },
      "max_allowed_packet");
  EXPECT_EQ(log->extent().base, 0U);
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_parts"), "0");
}

TEST_F(MysqlLogLimits, server_without_durable_commits_is_refused_unless_durable_is_off) {
  const auto expect_refused = [](MariadbServer& server, const std::string& variable) {
    MysqlStore store(server);
    expect_error(
        ErrorKind::invalid, [&] { store.open(); }, variable, "durable=off");
    MysqlLogOptions options = store.options();
    options.durable = false;
    EXPECT_EQ(MysqlLog(options).append(1, "x"), Appended::yes);
  };
  MariadbServer server({"--log-bin=bin", "--sync-binlog=0"});
  expect_refused(server, "sync_binlog=0");
  MariadbClient(server).run("SET GLOBAL sync_binlog = 1");
  MysqlStore(server).open();
  for (const char* value : {"0", "2"}) {
    MariadbClient(server).run(std::string("SET GLOBAL innodb_flush_log_at_trx_commit = ") + value);
    expect_refused(server, std::string("innodb_flush_log_at_trx_commit=") + value);
  }
}

}  // namespace
}  // namespace whycache

#endif
