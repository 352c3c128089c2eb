// What is special about the log in MySQL: its schema, privileges, limits, TLS and secrets, servers that die, stall, lag
// or were restored, transactions of others, replicas, forks. On real servers, which the stories start themselves.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <signal.h>
#include <unistd.h>
#include <whycache/cache.h>
#include <whycache/log.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "log/child.h"
#include "log/machine_room.h"
#include "log/mysql_log.h"
#include "log/stores.h"
#include "support/mariadb_server.h"
#include "support/seed.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::expect_error;
using testing::MariadbClient;
using testing::MariadbServer;
using testing::TemporaryFolder;
using testing::thrown_error;
using Appended = Log::Appended;
using Updates = std::map<UpdateId, std::string>;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr UpdateId no_end = ~UpdateId{0};

// --- The small language the stories are told in. ---

Updates updates_of(Log& log, UpdateId first = 1) {
  Updates updates;
  log.read(first, no_end, [&](UpdateId id, std::string_view bytes) { return updates.emplace(id, bytes).second; });
  return updates;
}

std::vector<std::string> parts_of(Log& log) {
  std::vector<std::string> parts;
  log.read_base([&](std::string_view part) {
    parts.emplace_back(part);
    return true;
  });
  return parts;
}

bool rewrite(Log& log, UpdateId base, const std::vector<std::string>& parts) {
  std::size_t next = 0;
  return log.rewrite(base, base * 1000, [&]() -> std::optional<std::string_view> {
    if (next == parts.size()) return std::nullopt;
    return parts[next++];
  });
}

void append_up_to(Log& log, UpdateId last) {
  for (UpdateId id = log.extent().head + 1; id <= last; ++id)
    ASSERT_EQ(log.append(id, "update " + std::to_string(id)), Appended::yes);
}

// Appends `bytes`, which nobody else writes, once, whatever the log answers meanwhile.
void append_surely(Log& log, const std::string& bytes) {
  std::optional<UpdateId> in_doubt_from;
  for (;;) {
    try {
      if (in_doubt_from) {
        const Updates since = updates_of(log, *in_doubt_from);
        if (std::any_of(since.begin(), since.end(), [&](const auto& update) { return update.second == bytes; })) return;
        in_doubt_from.reset();
      }
      const UpdateId id = log.extent().head + 1;
      in_doubt_from = id;
      if (log.append(id, bytes) == Appended::yes) return;
      in_doubt_from.reset();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::unavailable && error.kind() != ErrorKind::uncertain) throw;
      std::this_thread::sleep_for(milliseconds(10));
    }
  }
}

milliseconds time_of(const std::function<void()>& call) {
  const auto began = steady_clock::now();
  call();
  return std::chrono::duration_cast<milliseconds>(steady_clock::now() - began);
}

bool happens_within(milliseconds patience, const std::function<bool()>& what) {
  const auto end = steady_clock::now() + patience;
  while (!what()) {
    if (steady_clock::now() > end) return false;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return true;
}

std::uint64_t status(const MariadbServer& server, const std::string& name) {
  return std::stoull(MariadbClient(server).run("SHOW GLOBAL STATUS LIKE '" + name + "'"));
}

// The connection that waits for a lock; "" if none comes to that. The server looks anew only when it was not asked for
// 0.1 s.
std::string waiting_connection(const MysqlStore& store) {
  std::string found;
  for (int i = 0; i < 50 && found.empty(); ++i) {
    std::this_thread::sleep_for(milliseconds(150));
    found = store.run(
        "SELECT trx_mysql_thread_id FROM information_schema.INNODB_TRX WHERE trx_state = 'LOCK WAIT' LIMIT 1");
  }
  return found;
}

// The blocks of a document that are marked as MySQL's.
std::vector<std::string> documented_sql(const std::string& document) {
  std::ifstream file(std::string(WHYCACHE_SOURCE_FOLDER) + "/docs/" + document);
  std::vector<std::string> blocks;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line == "```mysql") {
      inside = true;
      blocks.emplace_back();
    } else if (line == "```") {
      inside = false;
    } else if (inside) {
      blocks.back() += line + '\n';
    }
  }
  return blocks;
}

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + with.size()))
    text.replace(at, what.size(), with);
  return text;
}

class MysqlTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!MariadbServer::is_installed()) GTEST_SKIP() << "NOT TESTED: mariadbd is not installed";
  }
};

using MysqlLogFormat = MysqlTest;
using MysqlLogPrivileges = MysqlTest;
using MysqlLogLimits = MysqlTest;
using MysqlLogTls = MysqlTest;
using MysqlLogSecrets = MysqlTest;
using MysqlLogTransactions = MysqlTest;
using MysqlLogAway = MysqlTest;
using MysqlLogRestored = MysqlTest;
using MysqlLogReplica = MysqlTest;
using MysqlLogGaleraLong = MysqlTest;
using MysqlLogFork = MysqlTest;
using MysqlLogOpen = MysqlTest;

// --- The schema. ---

TEST_F(MysqlLogFormat, the_tables_are_those_of_the_document) {
  MysqlStore made;
  made.open();
  MysqlStore documented;
  ASSERT_EQ(documented_sql("formats/sql.md").size(), 2U);
  documented.run(documented_sql("formats/sql.md")[0]);
  for (const std::string table : {"whycache_logs", "whycache_updates", "whycache_parts"})
    EXPECT_EQ(made.run("SHOW CREATE TABLE " + table), documented.run("SHOW CREATE TABLE " + table));
}

TEST_F(MysqlLogFormat, the_worked_example_is_the_log_of_the_vectors) {
  MysqlStore store;
  for (const std::string& block : documented_sql("formats/sql.md")) store.run(block);
  const auto log = store.open();

  std::ifstream file(WHYCACHE_SOURCE_FOLDER "/docs/formats/vectors/file_log.json");
  const json tells = json::parse(file)["log"];
  const auto to_text = [](const std::string& digits) {
    std::string bytes;
    for (std::size_t i = 0; i < digits.size(); i += 2)
      bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
    return bytes;
  };
  const Extent extent = log->extent();
  EXPECT_EQ(to_string(extent.uuid), tells["uuid"]);
  EXPECT_EQ(extent.base, tells["base"]);
  EXPECT_EQ(extent.base_chain, tells["base_chain"]);
  EXPECT_EQ(extent.head, tells["head"]);
  Updates updates;
  for (const json& update : tells["updates"]) updates[update["id"]] = to_text(update["bytes"]);
  EXPECT_EQ(updates_of(*log), updates);
  std::vector<std::string> parts;
  for (const json& part : tells["parts"]) parts.push_back(to_text(part));
  EXPECT_EQ(parts_of(*log), parts);
}

TEST_F(MysqlLogFormat, a_chain_keeps_all_its_bits) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  log->rewrite(1, 0xfedcba9876543210, [] { return std::nullopt; });
  EXPECT_EQ(store.open()->extent().base_chain, 0xfedcba9876543210);
}

TEST_F(MysqlLogFormat, a_log_of_another_format_is_left_alone) {
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

TEST_F(MysqlLogFormat, instances_share_the_tables_and_nothing_else) {
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
      "DELETE FROM whycache_logs WHERE instance = 'Flags'; DELETE FROM whycache_updates WHERE instance = 'Flags'");
  expect_error(
      ErrorKind::unavailable, [&] { upper->extent(); }, "gone");
  EXPECT_EQ(store.open("flags")->extent().base, 5U);
}

TEST_F(MysqlLogFormat, updates_whose_row_is_gone_are_not_taken_over) {
  MysqlStore store;
  append_up_to(*store.open(), 3);
  store.run("DELETE FROM whycache_logs");
  expect_error(
      ErrorKind::corrupt, [&] { store.open(); }, "whycache_logs");
  store.open("another");
}

TEST_F(MysqlLogFormat, a_missing_table_or_update_or_part_is_corrupt) {
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

TEST_F(MysqlLogFormat, one_update_after_a_million_costs_one_statement) {
  MysqlStore store;
  const auto log = store.open();
  store.run("UPDATE whycache_logs SET base = 999999; INSERT INTO whycache_updates VALUES ('default', 1000000, 'x')");
  append_up_to(*log, 1'000'000);
  for (const UpdateId first : {UpdateId{1}, UpdateId{999'999}, UpdateId{1'000'000}}) {
    const std::uint64_t before = status(store.server(), "Com_select");
    EXPECT_EQ(updates_of(*log, first).size(), 1U);
    EXPECT_EQ(status(store.server(), "Com_select") - before, 1U) << first;
  }
}

TEST_F(MysqlLogFormat, many_rows_come_in_few_statements_however_large_they_are) {
  MysqlStore store;
  const auto log = store.open();
  store.run(
      "INSERT INTO whycache_updates SELECT 'default', seq, REPEAT('s', 40) FROM seq_1_to_20000;"
      "INSERT INTO whycache_updates SELECT 'default', seq, REPEAT('l', 1000000) FROM seq_20001_to_20040;"
      "INSERT INTO whycache_updates SELECT 'default', seq, REPEAT('s', 40) FROM seq_20041_to_30000");
  const std::uint64_t before = status(store.server(), "Com_select");
  UpdateId next = 1;
  log->read(1, no_end, [&](UpdateId id, std::string_view bytes) {
    EXPECT_EQ(id, next++);
    EXPECT_EQ(bytes.size(), id > 20'000 && id <= 20'040 ? 1'000'000U : 40U);
    return true;
  });
  EXPECT_EQ(next, 30'001U);
  EXPECT_LT(status(store.server(), "Com_select") - before, 45U);
}

// --- What a server can be set to. ---

TEST_F(MysqlLogFormat, a_log_does_not_depend_on_the_servers_defaults) {
  MariadbServer server({"--sql-mode=ANSI,PAD_CHAR_TO_FULL_LENGTH,NO_BACKSLASH_ESCAPES", "--character-set-server=utf16",
                        "--transaction-isolation=READ-UNCOMMITTED", "--autocommit=0", "--default-storage-engine=MyISAM",
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
  EXPECT_EQ(store.run("SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_NAME = 'whycache_updates'"), "InnoDB");
}

TEST_F(MysqlLogLimits, tables_without_transactions_are_refused) {
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

TEST_F(MysqlLogLimits, columns_that_are_too_small_are_named) {
  MysqlStore store;
  store.open();
  for (const std::string type : {"BLOB", "VARBINARY(1000)", "LONGTEXT"}) {
    store.run("ALTER TABLE whycache_updates MODIFY bytes " + type + " NOT NULL");
    expect_error(
        ErrorKind::invalid, [&] { store.open(); }, "whycache_updates.bytes", "bytes_max=", "MODIFY bytes LONGBLOB");
  }
  store.run("ALTER TABLE whycache_updates MODIFY bytes MEDIUMBLOB NOT NULL");
  const auto log = store.open();
  expect_error(
      ErrorKind::limit, [&] { log->append(1, std::string(std::size_t{1} << 24, 'x')); }, "column_bytes_max=16777215");
  EXPECT_EQ(log->append(1, std::string((std::size_t{1} << 24) - 1, 'x')), Appended::yes);
}

TEST_F(MysqlLogLimits, a_server_that_takes_too_little_at_once_is_named) {
  MariadbServer server;
  MysqlStore store(server);
  MariadbClient(server).run("SET GLOBAL max_allowed_packet = 1048576");
  expect_error(
      ErrorKind::invalid, [&] { store.open(); }, "max_allowed_packet=1048576", "needed=");
  MariadbClient(server).run("SET GLOBAL max_allowed_packet = 4194304");
  const auto log = store.open();
  const std::string large(5'000'000, 'x');
  expect_error(
      ErrorKind::limit, [&] { log->append(1, large); }, "max_allowed_packet=4194304", "bytes=5000000");
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

TEST_F(MysqlLogLimits, a_server_that_may_forget_is_refused_unless_that_is_known) {
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

// --- Who may do what. ---

class People {
 public:
  explicit People(MysqlStore& store) : store_(store) {
    for (const char* name : {"follower", "writer", "rewriter"}) {
      MariadbClient(store.server()).run(std::string("CREATE OR REPLACE USER '") + name + "'@'%'");
    }
  }
  ~People() { MariadbClient(store_.server()).run("DROP USER 'follower'@'%', 'writer'@'%', 'rewriter'@'%'"); }

  // As docs/logs.md says.
  void grant() const {
    const std::vector<std::string> grants = documented_sql("logs.md");
    if (grants.size() != 1) throw std::runtime_error("one block of grants expected in docs/logs.md");
    MariadbClient(store_.server()).run(replaced(grants[0], "flags.", store_.database() + "."));
  }
  std::unique_ptr<MysqlLog> open(const std::string& name) const {
    MysqlLogOptions options = store_.options();
    options.server.user = name;
    return std::make_unique<MysqlLog>(options);
  }

 private:
  MysqlStore& store_;
};

void expect_forbidden(const std::function<void()>& call) {
  const std::optional<Error> error = thrown_error(call);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::invalid) << error->what();
  EXPECT_EQ(error->system_error(), EACCES) << error->what();
}

TEST_F(MysqlLogPrivileges, the_documented_ones_are_enough_and_needed) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  rewrite(*log, 2, {"a", "b"});
  const People people(store);
  people.grant();

  const auto follower = people.open("follower");
  EXPECT_EQ(follower->extent().head, 5U);
  EXPECT_EQ(updates_of(*follower).size(), 3U);
  EXPECT_EQ(parts_of(*follower).size(), 2U);
  expect_forbidden([&] { follower->append(6, "x"); });
  expect_forbidden([&] { rewrite(*follower, 4, {"c"}); });

  const auto writer = people.open("writer");
  EXPECT_EQ(writer->append(6, "x"), Appended::yes);
  EXPECT_EQ(writer->append(6, "y"), Appended::taken);
  EXPECT_EQ(updates_of(*writer).size(), 4U);
  expect_forbidden([&] { rewrite(*writer, 4, {"c"}); });

  const auto rewriter = people.open("rewriter");
  EXPECT_EQ(rewriter->append(7, "x"), Appended::yes);
  EXPECT_TRUE(rewrite(*rewriter, 6, {"c", "d", "e"}));
  EXPECT_EQ(parts_of(*follower).size(), 3U);
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_updates"), "1");
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_parts"), "3");
}

TEST_F(MysqlLogPrivileges, who_may_not_make_the_log_is_told_what_to_run) {
  MysqlStore store;
  const People people(store);
  MariadbClient root(store.server());
  root.run("GRANT SELECT ON " + store.database() + ".* TO 'follower'@'%'");
  const auto without_tables = thrown_error([&] { people.open("follower"); });
  ASSERT_TRUE(without_tables);
  EXPECT_EQ(without_tables->kind(), ErrorKind::invalid);
  EXPECT_EQ(without_tables->system_error(), EACCES);
  const std::string message = without_tables->what();
  const std::size_t begin = message.find("CREATE TABLE");
  ASSERT_NE(begin, std::string::npos) << message;
  for (const char* table : {"whycache_logs", "whycache_updates", "whycache_parts"})
    EXPECT_NE(message.find(table), std::string::npos);

  // What it says works.
  store.run(message.substr(begin, message.rfind(')') - begin));
  EXPECT_EQ(people.open("follower")->extent().head, 0U);

  MysqlLogOptions options = store.options();
  options.server.user = "follower";
  options.instance = "other";
  expect_error(
      ErrorKind::invalid, [&] { MysqlLog log(options); }, "INSERT INTO whycache_logs SELECT 'other'");
}

TEST_F(MysqlLogPrivileges, strangers_are_told_so) {
  MysqlStore store;
  store.open();
  const People people(store);
  expect_forbidden([&] { people.open("follower"); });
  MysqlLogOptions options = store.options();
  options.server.user = "nobody_of_that_name";
  expect_forbidden([&] { MysqlLog log(options); });
}

TEST_F(MysqlLogPrivileges, a_database_that_is_not_there_is_not_made) {
  MysqlStore store;
  MysqlLogOptions options = store.options();
  options.server.database = "nowhere";
  expect_error(
      ErrorKind::invalid, [&] { MysqlLog log(options); }, "CREATE DATABASE `nowhere`");
}

// --- Opening by URL, and secrets. ---

TEST_F(MysqlLogOpen, by_url) {
  MysqlStore store;
  const std::string url = store.server().url(store.database());
  const auto log = open_log(url);
  const std::string name = replaced(url, "root@", "");
  EXPECT_EQ(log->name(), name + "?instance=default");
  ASSERT_EQ(log->append(1, "x"), Appended::yes);
  EXPECT_EQ(open_log(url + "?instance=default&deadline_ms=1234&tls=off&durable=off")->extent().uuid,
            log->extent().uuid);
  EXPECT_EQ(open_log(url + "?instance=other")->extent().head, 0U);

  const auto by_socket = open_log("mysql://root@/" + store.database() + "?socket=" + store.server().socket());
  EXPECT_EQ(by_socket->extent().uuid, log->extent().uuid);
  EXPECT_EQ(by_socket->name(), "mysql:///" + store.database() + "?instance=default&socket=" + store.server().socket());

  for (const char* option : {"durable=maybe", "tls=on", "password=x", "nosuch=1", "deadline_ms=0", "replica=a%2Fb"}) {
    expect_error(ErrorKind::invalid, [&] { open_log(url + "?" + option); });
  }
}

TEST_F(MysqlLogOpen, a_server_that_is_not_there_is_unavailable) {
  std::string url;
  {
    MariadbServer server;
    url = server.url("db");
  }
  expect_error(
      ErrorKind::unavailable, [&] { open_log(url); }, "127.0.0.1");
  expect_error(
      ErrorKind::unavailable, [] { open_log("mysql:///db?socket=/nowhere/socket"); }, "/nowhere/socket");
}

TEST_F(MysqlLogSecrets, are_in_no_message_and_no_name) {
  MysqlStore store;
  const std::string secret = "geheim4711";
  MariadbClient root(store.server());
  root.run("CREATE OR REPLACE USER 'ada'@'%' IDENTIFIED BY '" + secret + "'; GRANT ALL ON " + store.database() +
           ".* TO 'ada'@'%'");
  const TemporaryFolder folder;
  std::ofstream(folder.file("password")) << secret << '\n';
  std::ofstream(folder.file("options")) << "[client]\nuser=ada\npassword=\"" << secret << "\"\n";
  const std::string url = store.server().url(store.database(), "ada");
  const std::string with_secret = replaced(url, "ada@", "ada:" + secret + "@");

  const std::string no_user = replaced(url, "ada@", "");
  std::vector<std::string> good{with_secret, url + "?password_file=" + folder.file("password"),
                                url + "?option_file=" + folder.file("options"),
                                no_user + "?option_file=" + folder.file("options")};
  for (const std::string& each : good) {
    const auto log = open_log(each);
    EXPECT_EQ(log->name(), no_user + "?instance=default") << each;
    EXPECT_EQ(log->append(log->extent().head + 1, "x"), Appended::yes);
  }
  ::setenv("WHYCACHE_MYSQL_PASSWORD", secret.c_str(), 1);
  EXPECT_EQ(open_log(url)->extent().head, 4U);
  ::unsetenv("WHYCACHE_MYSQL_PASSWORD");

  // A password that does not fit, any more.
  const auto open = open_log(with_secret);
  root.run("ALTER USER 'ada'@'%' IDENTIFIED BY 'another'");
  std::vector<std::function<void()>> calls;
  for (const std::string& each : good) calls.push_back([each] { open_log(each); });
  for (const char* bad : {"?tls=sideways", "?nosuch=1", "?replica=x%2Fy", "?tls=verify"})
    calls.push_back([&with_secret, bad] { open_log(with_secret + bad); });
  root.run("KILL USER ada");
  calls.push_back([&] { open->extent(); });
  calls.push_back([&] { open->append(5, "x"); });
  for (const auto& call : calls) {
    const auto error = thrown_error(call);
    ASSERT_TRUE(error);
    EXPECT_EQ(error->kind(), ErrorKind::invalid) << error->what();
    EXPECT_EQ(std::string(error->what()).find(secret), std::string::npos) << error->what();
  }
  root.run("DROP USER 'ada'@'%'");
}

TEST_F(MysqlLogSecrets, a_changed_password_is_found_in_its_file) {
  MysqlStore store;
  MariadbClient root(store.server());
  root.run("CREATE OR REPLACE USER 'ada'@'%' IDENTIFIED BY 'old'; GRANT ALL ON " + store.database() +
           ".* TO 'ada'@'%'");
  const TemporaryFolder folder;
  std::ofstream(folder.file("password")) << "old";
  const auto log = open_log(store.server().url(store.database(), "ada") + "?password_file=" + folder.file("password"));
  root.run("ALTER USER 'ada'@'%' IDENTIFIED BY 'new'; KILL USER ada");
  std::ofstream(folder.file("password")) << "new";
  EXPECT_EQ(log->append(1, "x"), Appended::yes);
  root.run("DROP USER 'ada'@'%'");
}

// --- TLS. ---

// An authority, and a certificate for `host` that it signed.
class Authority {
 public:
  explicit Authority(const std::string& host) {
    const auto openssl = [&](const std::string& words) {
      const std::string command = "cd " + folder_.path() + " && openssl " + words + " >output 2>&1";
      if (std::system(command.c_str()) != 0) throw std::runtime_error("openssl failed: " + words);
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=authority"
        " -keyout ca.key -out ca.pem");
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=server -keyout server.key -out "
        "server.csr");
    std::ofstream(folder_.file("extensions")) << "subjectAltName=" << host << '\n';
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out "
        "server.pem");
  }
  std::string ca() const { return folder_.file("ca.pem"); }
  std::vector<std::string> server_options() const {
    return {"--ssl-ca=" + ca(), "--ssl-cert=" + folder_.file("server.pem"), "--ssl-key=" + folder_.file("server.key")};
  }

 private:
  TemporaryFolder folder_;
};

TEST_F(MysqlLogTls, only_a_certificate_of_a_trusted_authority_for_this_host_will_do) {
  const Authority authority("IP:127.0.0.1");
  const Authority stranger("IP:127.0.0.1");
  MariadbServer server(authority.server_options());
  MysqlStore store(server);
  MariadbClient(server).run("CREATE USER 'ada'@'%' REQUIRE SSL; GRANT ALL ON *.* TO 'ada'@'%'");
  const std::string url = server.url(store.database(), "ada");

  const auto log = open_log(url + "?tls_ca=" + authority.ca());
  EXPECT_EQ(log->append(1, "x"), Appended::yes);
  expect_error(
      ErrorKind::invalid, [&] { open_log(url + "?tls_ca=" + stranger.ca()); }, "certificate");
  expect_error(
      ErrorKind::invalid, [&] { open_log(url + "?tls=verify"); }, "certificate", "tls_ca");
  expect_error(ErrorKind::invalid, [&] { open_log(url + "?tls_ca=/nowhere/ca.pem"); });
  expect_error(ErrorKind::invalid, [&] { open_log(url); });  // without TLS: the server refuses ada
  const std::string other_host = replaced(url, "127.0.0.1", "localhost");
  expect_error(ErrorKind::invalid, [&] { open_log(other_host + "?tls_ca=" + authority.ca()); });
}

TEST_F(MysqlLogTls, a_server_without_tls_is_refused_where_it_is_wanted) {
  MariadbServer server({"--skip-ssl"});
  MysqlStore store(server);
  expect_error(ErrorKind::invalid, [&] { open_log(server.url(store.database()) + "?tls=verify"); });
  EXPECT_EQ(open_log(server.url(store.database()))->extent().head, 0U);
}

// An address of this machine that is not loopback.
std::string outer_address() {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return "";
  std::string found;
  for (const ifaddrs* each = all; each != nullptr && found.empty(); each = each->ifa_next) {
    if (each->ifa_addr == nullptr || each->ifa_addr->sa_family != AF_INET || (each->ifa_flags & IFF_LOOPBACK) != 0)
      continue;
    char text[INET_ADDRSTRLEN];
    const auto* address = reinterpret_cast<const sockaddr_in*>(each->ifa_addr);
    if (::inet_ntop(AF_INET, &address->sin_addr, text, sizeof text) != nullptr) found = text;
  }
  ::freeifaddrs(all);
  return found;
}

TEST_F(MysqlLogTls, off_loopback_it_goes_without_saying) {
  const std::string address = outer_address();
  if (address.empty()) GTEST_SKIP() << "NOT TESTED: this machine has no address but loopback";
  const Authority authority("IP:" + address);
  std::vector<std::string> options = authority.server_options();
  options.push_back("--bind-address=0.0.0.0");
  MariadbServer server(options);
  MysqlStore store(server);
  MariadbClient(server).run("CREATE USER 'ada'@'%' IDENTIFIED BY 'x'; GRANT ALL ON *.* TO 'ada'@'%'");
  const std::string url = replaced(server.url(store.database(), "ada:x"), "127.0.0.1", address);
  expect_error(
      ErrorKind::invalid, [&] { open_log(url); }, "certificate", "tls=off");
  EXPECT_EQ(open_log(url + "?tls_ca=" + authority.ca())->extent().head, 0U);
  EXPECT_EQ(open_log(url + "?tls=off")->extent().head, 0U);
}

TEST_F(MysqlLogTls, signals_are_left_alone) {
  const Authority authority("IP:127.0.0.1");
  MariadbServer server(authority.server_options());
  MysqlStore store(server);
  Child child([&] {
    ::signal(SIGPIPE, SIG_DFL);
    const auto plain = open_log(server.url(store.database()) + "?deadline_ms=1000");
    const auto secure = open_log(server.url(store.database()) + "?deadline_ms=1000&tls_ca=" + authority.ca());
    struct sigaction pipe;
    ::sigaction(SIGPIPE, nullptr, &pipe);
    demand(pipe.sa_handler == SIG_DFL, "SIGPIPE is what it was");
    server.kill();
    const std::string large(std::size_t{8} << 20, 'x');
    for (Log* log : {plain.get(), secure.get()}) {
      for (int i = 0; i < 3; ++i) demand(thrown_error([&] { log->append(1, large); }).has_value(), "no server");
    }
  });
  EXPECT_EQ(child.wait(), 0);
}

// --- Transactions of others. ---

TEST_F(MysqlLogTransactions, an_update_that_is_not_committed_yet_is_waited_for) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  for (const bool commits : {true, false}) {
    const UpdateId head = log->extent().head;
    MariadbClient other = store.client();
    other.run("BEGIN; INSERT INTO whycache_updates VALUES ('default', " + std::to_string(head + 1) + ", 'held')");
    std::optional<Appended> at_the_place;
    std::optional<Appended> beyond;
    std::thread same([&] { at_the_place = store.open()->append(head + 1, "mine"); });
    std::thread next([&] { beyond = store.open()->append(head + 2, "beyond"); });
    std::this_thread::sleep_for(milliseconds(150));
    EXPECT_EQ(log->extent().head, head);
    EXPECT_EQ(updates_of(*log).size(), head);
    EXPECT_FALSE(at_the_place);
    EXPECT_FALSE(beyond);

    other.run(commits ? "COMMIT" : "ROLLBACK");
    same.join();
    next.join();
    EXPECT_EQ(at_the_place, commits ? Appended::taken : Appended::yes);
    const Updates updates = updates_of(*log);
    EXPECT_EQ(updates.at(head + 1), commits ? "held" : "mine");
    EXPECT_EQ(updates.size(), log->extent().head);
  }
}

TEST_F(MysqlLogTransactions, a_rewrite_cannot_switch_while_an_append_is_under_way) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  // Given somebody who holds the row of the log, as a switch does,
  MariadbClient other = store.client();
  other.run("BEGIN; UPDATE whycache_logs SET base = 5");
  std::optional<Appended> appended;
  std::thread writer([&] { appended = store.open()->append(6, "mine"); });
  std::this_thread::sleep_for(milliseconds(150));
  EXPECT_FALSE(appended);
  other.run("COMMIT");
  writer.join();
  EXPECT_EQ(appended, Appended::yes);

  // and given an append that is not committed yet: the switch waits.
  other.run(
      "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ; BEGIN; INSERT INTO whycache_updates SELECT instance, "
      "7, "
      "'held' FROM whycache_logs WHERE instance = 'default' AND base < 7");
  std::optional<bool> switched;
  std::thread rewriter([&] { switched = rewrite(*store.open(), 6, {"part"}); });
  std::this_thread::sleep_for(milliseconds(150));
  EXPECT_FALSE(switched);
  other.run("COMMIT");
  rewriter.join();
  EXPECT_EQ(switched, true);
  EXPECT_EQ(updates_of(*log), (Updates{{7, "held"}}));
}

TEST_F(MysqlLogTransactions, a_lock_held_for_too_long_is_unavailable) {
  MysqlStore store;
  const auto log = store.open("default", milliseconds(1000));
  append_up_to(*log, 3);
  MariadbClient other = store.client();
  other.run("BEGIN; UPDATE whycache_logs SET part_count = 1 WHERE instance = 'default'");
  const milliseconds waited = time_of([&] {
    expect_error(
        ErrorKind::unavailable, [&] { log->append(4, "x"); }, "waited_ms_max=1000");
  });
  EXPECT_GE(waited, milliseconds(500));
  EXPECT_LT(waited, milliseconds(4000));
  EXPECT_EQ(updates_of(*log).size(), 3U);  // who reads waits for nobody
  other.run("ROLLBACK");
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
}

TEST_F(MysqlLogTransactions, a_deadlock_is_tried_again) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  const std::uint64_t before = status(store.server(), "Innodb_deadlocks");
  // Given a transaction that has done more than an append, and so is not the one to be rolled back, with the row of the
  // log locked, for which the append waits,
  MariadbClient other = store.client();
  other.run("CREATE TABLE heavy (n INT PRIMARY KEY) ENGINE = InnoDB");
  other.run(
      "BEGIN; INSERT INTO heavy SELECT seq FROM seq_1_to_1000; UPDATE whycache_logs SET part_count = part_count + 1");
  std::optional<Appended> appended;
  std::thread writer([&] { appended = log->append(6, "x"); });
  EXPECT_NE(waiting_connection(store), "");
  // when it wants what the append has locked before,
  other.run("SELECT id FROM whycache_updates WHERE instance = 'default' AND id = 5 FOR UPDATE");
  other.run("COMMIT");
  writer.join();
  // then the append loses, and comes again.
  EXPECT_EQ(appended, Appended::yes);
  EXPECT_EQ(status(store.server(), "Innodb_deadlocks"), before + 1);
  EXPECT_EQ(updates_of(*log).size(), 6U);
}

TEST_F(MysqlLogTransactions, ids_never_become_visible_out_of_order) {
  SCOPED_TRACE(testing::seed_note());
  MysqlStore store;
  store.open();
  constexpr int writers = 3;
  constexpr int appends_each = 60;
  std::vector<Child> children;
  for (int writer = 0; writer < writers; ++writer) {
    children.emplace_back([&, writer] {
      const auto log = store.open();
      for (int i = 0; i < appends_each; ++i) append_surely(*log, std::to_string(writer) + ' ' + std::to_string(i));
    });
  }
  // One who appends as we do, but holds each transaction open for a while, and then commits it or not.
  std::atomic<bool> done{false};
  int committed = 0;
  std::thread holder([&] {
    std::mt19937_64 random(testing::test_seed());
    MariadbClient client = store.client();
    client.run("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ");
    while (!done) {
      try {
        const UpdateId id =
            std::stoull("0" + client.run("SELECT id FROM whycache_updates ORDER BY id DESC LIMIT 1")) + 1;
        const std::string before = std::to_string(id - 1);
        client.run("BEGIN; INSERT INTO whycache_updates SELECT instance, " + std::to_string(id) +
                   ", 'held' FROM whycache_logs WHERE instance = 'default' AND (base = " + before +
                   " OR EXISTS (SELECT 1 FROM whycache_updates WHERE instance = 'default' AND id = " + before + "))");
        std::this_thread::sleep_for(milliseconds(random() % 20));
        const bool commits = random() % 2 == 0;
        client.run(commits ? "COMMIT" : "ROLLBACK");
        committed += commits ? 1 : 0;
      } catch (const std::runtime_error&) {
        client.run("ROLLBACK");
      }
    }
  });
  // Two who follow: each reads from where it is, and believes what it saw for ever.
  std::vector<Updates> seen(2);
  std::vector<std::thread> followers;
  for (Updates& own : seen) {
    followers.emplace_back([&] {
      const auto log = store.open();
      for (bool last = false; !last;) {
        last = done;
        log->read(own.size() + 1, no_end, [&](UpdateId id, std::string_view bytes) {
          EXPECT_EQ(id, own.size() + 1);
          own[id] = bytes;
          return true;
        });
      }
    });
  }
  for (Child& child : children) EXPECT_EQ(child.wait(), 0);
  done = true;
  holder.join();
  for (std::thread& follower : followers) follower.join();

  const Updates updates = updates_of(*store.open());
  EXPECT_EQ(updates.size(), static_cast<std::size_t>(writers * appends_each + committed));
  for (const Updates& own : seen) {
    for (const auto& [id, bytes] : own) EXPECT_EQ(updates.at(id), bytes) << id;
  }
  EXPECT_GT(committed, 0);
}

TEST_F(MysqlLogTransactions, an_append_whose_predecessor_is_not_there_has_to_look_again) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  EXPECT_EQ(log->append(7, "beyond"), Appended::taken);
  EXPECT_EQ(log->append(700, "far beyond"), Appended::taken);
  EXPECT_EQ(log->extent().head, 5U);
  expect_error(
      ErrorKind::invalid, [&] { log->append(0, "x"); }, "id=0");
  expect_error(
      ErrorKind::invalid, [&] { log->append(no_end, "x"); }, "id=");
  expect_error(
      ErrorKind::invalid, [&] { log->append(1, ""); }, "empty");
}

TEST_F(MysqlLogTransactions, parts_that_may_become_a_base_yet_are_left_alone) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 10);
  for (const char* base : {"3", "5", "7"}) {
    store.run("INSERT INTO whycache_parts VALUES ('default', " + std::string(base) +
              ", REPEAT('0', 16), 0, 'x'), ('other', " + base + ", REPEAT('0', 16), 0, 'x')");
  }
  const auto parts_left = [&] {
    return store.run(
        "SELECT GROUP_CONCAT(base, ':', number ORDER BY base, number) FROM whycache_parts WHERE instance = 'default'");
  };
  ASSERT_TRUE(rewrite(*log, 5, {"a", "b"}));
  EXPECT_EQ(parts_left(), "5:0,5:1,7:0");
  ASSERT_TRUE(rewrite(*log, 8, {"c"}));
  EXPECT_EQ(parts_left(), "8:0");
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_parts WHERE instance = 'other'"), "3");
}

TEST_F(MysqlLogTransactions, a_rewrite_whose_parts_disappear_does_not_switch) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 10);
  int part = 0;
  expect_error(
      ErrorKind::unavailable,
      [&] {
        log->rewrite(5, 1, [&]() -> std::optional<std::string_view> {
          if (++part <= 3) return "part";
          store.run("DELETE FROM whycache_parts WHERE number = 1");
          return std::nullopt;
        });
      },
      "parts of the new base disappeared");
  EXPECT_EQ(log->extent().base, 0U);
  EXPECT_EQ(updates_of(*log).size(), 10U);
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_parts"), "0");
}

// --- Servers that die, stall, or close connections. ---

TEST_F(MysqlLogAway, a_connection_that_was_closed_is_opened_anew_without_a_word) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  const auto close_all = [&] {
    MariadbClient root(store.server());
    for (const std::string& id :
         root.rows("SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '" + store.database() + "'"))
      root.run("KILL " + id);
    ASSERT_TRUE(happens_within(milliseconds(5000), [&] {
      return root.run("SELECT count(*) FROM information_schema.PROCESSLIST WHERE DB = '" + store.database() + "'") ==
             "0";
    }));
  };
  close_all();
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
  close_all();
  EXPECT_EQ(log->extent().head, 4U);
  close_all();
  EXPECT_TRUE(rewrite(*log, 4, {"part"}));
}

TEST_F(MysqlLogAway, a_statement_that_is_killed_does_nothing) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  MariadbClient other = store.client();
  other.run("BEGIN; UPDATE whycache_logs SET part_count = 1");
  std::optional<Error> error;
  std::thread writer([&] { error = thrown_error([&] { log->append(4, "x"); }); });
  const std::string waiting = waiting_connection(store);
  ASSERT_NE(waiting, "");
  store.run("KILL QUERY " + waiting);
  writer.join();
  other.run("ROLLBACK");
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::unavailable) << error->what();
  EXPECT_EQ(log->extent().head, 3U);
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
}

TEST_F(MysqlLogAway, a_server_that_does_not_answer_is_given_up_at_the_deadline) {
  MariadbServer server;
  MysqlStore store(server);
  const auto log = store.open("default", milliseconds(1000));
  append_up_to(*log, 3);
  server.pause();
  std::optional<Error> append_error;
  EXPECT_LT(time_of([&] { append_error = thrown_error([&] { log->append(4, "x"); }); }), milliseconds(4000));
  std::optional<Error> read_error;
  EXPECT_LT(time_of([&] { read_error = thrown_error([&] { log->extent(); }); }), milliseconds(6000));
  server.go_on();
  ASSERT_TRUE(append_error && read_error);
  EXPECT_EQ(append_error->kind(), ErrorKind::uncertain) << append_error->what();
  EXPECT_EQ(read_error->kind(), ErrorKind::unavailable) << read_error->what();
  // What was in doubt may be there; whoever looks learns it.
  append_surely(*log, "y");
  const Updates updates = updates_of(*log);
  EXPECT_TRUE(updates.at(4) == "x" || updates.at(4) == "y");
  EXPECT_EQ(std::count_if(updates.begin(), updates.end(), [](const auto& each) { return each.second == "y"; }), 1);
}

TEST_F(MysqlLogAway, a_server_that_became_read_only_is_unavailable_until_it_is_not) {
  MariadbServer server;
  MysqlStore store(server);
  store.open();
  MariadbClient root(server);
  root.run("CREATE USER 'ada'@'%'; GRANT SELECT, INSERT ON " + store.database() + ".* TO 'ada'@'%'");
  MysqlLogOptions options = store.options();
  options.server.user = "ada";
  MysqlLog log(options);
  root.run("SET GLOBAL read_only = 1");
  expect_error(
      ErrorKind::unavailable, [&] { log.append(1, "x"); }, "read-only");
  EXPECT_EQ(log.extent().head, 0U);
  root.run("SET GLOBAL read_only = 0");
  EXPECT_EQ(log.append(1, "x"), Appended::yes);
}

TEST_F(MysqlLogAway, a_server_killed_in_mid_load_loses_and_doubles_nothing) {
  MariadbServer server;
  MysqlStore store(server);
  const auto log = store.open();
  constexpr int writers = 3;
  constexpr int appends_each = 400;
  std::vector<Child> children;
  for (int writer = 0; writer < writers; ++writer) {
    children.emplace_back([&, writer] {
      std::unique_ptr<Log> own;
      while (!own) {  // the server may be killed before a child gets to open it
        try {
          own = store.open("default", milliseconds(2000));
        } catch (const Error& error) {
          if (error.kind() != ErrorKind::unavailable) throw;
          std::this_thread::sleep_for(milliseconds(10));
        }
      }
      for (int i = 0; i < appends_each; ++i) append_surely(*own, std::to_string(writer) + ' ' + std::to_string(i));
    });
  }
  for (int round = 0; round < 3; ++round) {
    const UpdateId before = log->extent().head;
    ASSERT_TRUE(happens_within(milliseconds(20'000), [&] { return log->extent().head > before + 100; }));
    server.kill();
    std::this_thread::sleep_for(milliseconds(50));
    server.start();
  }
  for (Child& child : children) EXPECT_EQ(child.wait(), 0);

  // Each writer's updates are there, each once, in its order.
  std::vector<int> next(writers, 0);
  const Updates updates = updates_of(*log);
  EXPECT_EQ(updates.size(), static_cast<std::size_t>(writers * appends_each));
  for (const auto& [id, bytes] : updates) {
    const auto writer = static_cast<std::size_t>(bytes[0] - '0');
    ASSERT_LT(writer, next.size());
    EXPECT_EQ(bytes.substr(2), std::to_string(next[writer]++)) << id;
  }
}

// --- Logs that were restored. ---

Options options_for(const TemporaryFolder& folder, const std::string& name) {
  Options options;
  options.state_path = folder.file(name);
  options.any_file_system = true;
  return options;
}

TEST_F(MysqlLogRestored, a_truncated_table_is_noticed_by_all_machines) {
  MysqlStore store;
  const TemporaryFolder folder;
  const std::string url = store.server().url(store.database());
  Cache writer(url, options_for(folder, "writer"));
  Cache other(url, options_for(folder, "other"));
  for (int i = 0; i < 10; ++i) writer.set("key" + std::to_string(i), "value");
  other.update();
  ASSERT_TRUE(other.get("key9"));

  store.run("TRUNCATE TABLE whycache_updates");
  other.update();
  EXPECT_FALSE(other.get("key9"));
  EXPECT_EQ(other.counters().rebuilds_diverged, 1U);
  EXPECT_EQ(writer.set("new", "value"), 1U);
  EXPECT_FALSE(writer.get("key9"));
  other.update();
  EXPECT_EQ(other.get("new"), "value");
}

TEST_F(MysqlLogRestored, an_old_dump_put_back_is_noticed_by_all_machines) {
  MysqlStore store;
  const TemporaryFolder folder;
  const std::string url = store.server().url(store.database());
  Cache writer(url, options_for(folder, "writer"));
  Cache other(url, options_for(folder, "other"));
  Cache late(url, options_for(folder, "late"));
  for (int i = 0; i < 5; ++i) writer.set("key", std::to_string(i));
  store.run("CREATE TABLE dump AS SELECT * FROM whycache_updates");
  for (int i = 5; i < 10; ++i) writer.set("key", std::to_string(i));
  other.update();
  late.update();
  EXPECT_EQ(other.get("key"), "9");

  store.run("TRUNCATE TABLE whycache_updates; INSERT INTO whycache_updates SELECT * FROM dump");
  other.update();
  EXPECT_EQ(other.get("key"), "4");
  EXPECT_EQ(other.counters().rebuilds_diverged, 1U);
  // The log goes on, and comes to be as long as it was: who slept through it all notices by the chain.
  for (int i = 0; i < 5; ++i) other.set("key", "again " + std::to_string(i));
  late.update();
  EXPECT_EQ(late.get("key"), "again 4");
  EXPECT_EQ(late.counters().rebuilds_diverged, 1U);
}

// --- Replicas. ---

// A primary and a replica of it.
class Pair {
 public:
  Pair()
      : primary({"--log-bin=bin", "--sync-binlog=1", "--server-id=1"}),
        replica({"--server-id=2", "--log-bin=bin", "--sync-binlog=1"}) {
    MariadbClient(replica).run(
        "CHANGE MASTER TO master_host = '127.0.0.1', master_port = " + std::to_string(primary.port()) +
        ", master_user = 'root', master_use_gtid = slave_pos, master_connect_retry = 1; START SLAVE");
  }
  // Waits until the replica has what the primary has.
  void catch_up() {
    const std::string position = MariadbClient(primary).run("SELECT @@gtid_binlog_pos");
    ASSERT_EQ(MariadbClient(replica).run("SELECT MASTER_GTID_WAIT('" + position + "', 20)"), "0");
  }
  void stop_replicating() { MariadbClient(replica).run("STOP SLAVE"); }
  void replicate() { MariadbClient(replica).run("START SLAVE"); }

  MariadbServer primary;
  MariadbServer replica;
};

MysqlLogOptions with_replica(const MysqlStore& store, const MariadbServer& replica) {
  MysqlLogOptions options = store.options(milliseconds(2000));
  options.replica = options.server;
  options.replica->port = replica.port();
  return options;
}

TEST_F(MysqlLogReplica, a_follower_reads_from_it_and_is_later_but_never_wrong) {
  Pair pair;
  MysqlStore store(pair.primary);
  const auto writer = store.open();
  MysqlLog follower(with_replica(store, pair.replica));
  append_up_to(*writer, 5);
  pair.catch_up();
  const std::uint64_t asked = status(pair.primary, "Com_select");
  EXPECT_EQ(updates_of(follower).size(), 5U);
  EXPECT_EQ(status(pair.primary, "Com_select"), asked);

  // What has not come to the replica yet is nothing new yet,
  pair.stop_replicating();
  append_up_to(*writer, 10);
  EXPECT_EQ(updates_of(follower, 5).size(), 1U);
  // but for who knows better: what it was asked for first, or has itself written, is not there.
  EXPECT_EQ(updates_of(follower, 8).size(), 3U);
  EXPECT_EQ(follower.append(11, "own"), Appended::yes);
  EXPECT_EQ(updates_of(follower, 5).size(), 7U);
  EXPECT_EQ(follower.append(11, "taken"), Appended::taken);
  EXPECT_EQ(updates_of(follower, 11).at(11), "own");

  pair.replicate();
  pair.catch_up();
  const std::uint64_t asked_then = status(pair.primary, "Com_select");
  EXPECT_EQ(updates_of(follower, 11).size(), 1U);
  EXPECT_EQ(status(pair.primary, "Com_select"), asked_then);
}

TEST_F(MysqlLogReplica, one_that_lags_behind_a_rewrite_or_is_another_log_does_no_harm) {
  Pair pair;
  MysqlStore store(pair.primary);
  const auto writer = store.open();
  append_up_to(*writer, 10);
  pair.catch_up();
  pair.stop_replicating();
  ASSERT_TRUE(rewrite(*writer, 8, {"part"}));
  MysqlLog follower(with_replica(store, pair.replica));
  EXPECT_EQ(follower.extent().base, 8U);
  EXPECT_EQ(updates_of(follower, 9), updates_of(*writer, 9));
  EXPECT_EQ(parts_of(follower), (std::vector<std::string>{"part"}));

  // Another log on the replica, longer than ours.
  MariadbClient(pair.replica, store.database())
      .run(
          "UPDATE whycache_logs SET uuid = REPEAT('u', 16);"
          "INSERT INTO whycache_updates SELECT 'default', seq, 'wrong' FROM seq_11_to_50");
  EXPECT_EQ(updates_of(follower, 9), updates_of(*writer, 9));
  // And one that lost an update.
  MariadbClient(pair.replica, store.database()).run("UPDATE whycache_logs SET uuid = (SELECT x'" + [&] {
    std::string digits;
    for (const std::uint8_t byte : writer->extent().uuid) {
      char two[3];
      std::snprintf(two, sizeof two, "%02x", byte);
      digits += two;
    }
    return digits;
  }() + "'); DELETE FROM whycache_updates WHERE id = 10");
  EXPECT_EQ(updates_of(follower, 9), updates_of(*writer, 9));
}

TEST_F(MysqlLogReplica, one_that_is_away_is_done_without) {
  Pair pair;
  MysqlStore store(pair.primary);
  MysqlLog log(with_replica(store, pair.replica));
  append_up_to(log, 5);
  pair.catch_up();
  EXPECT_EQ(updates_of(log).size(), 5U);
  pair.replica.kill();
  EXPECT_EQ(updates_of(log).size(), 5U);
  append_up_to(log, 8);
  EXPECT_LT(time_of([&] { EXPECT_EQ(updates_of(log).size(), 8U); }), milliseconds(1000));
}

TEST_F(MysqlLogReplica, machines_that_read_from_it_agree_with_all_others) {
  Pair pair;
  MysqlStore store(pair.primary);
  const TemporaryFolder folder;
  const std::string url = pair.primary.url(store.database());
  Cache writer(url, options_for(folder, "writer"));
  Cache reader(url + "?replica=127.0.0.1:" + std::to_string(pair.replica.port()), options_for(folder, "reader"));
  for (int i = 0; i < 100; ++i) {
    const UpdateId id = writer.set("key", std::to_string(i));
    if (i % 10 == 3) pair.stop_replicating();
    reader.update();
    EXPECT_LE(reader.applied_id(), id);
    if (i % 10 == 5) {
      EXPECT_GT(reader.set("own", std::to_string(i)), id);
    }
    if (i % 10 == 7) pair.replicate();
    if (i == 50) writer.rewrite_history();
  }
  pair.catch_up();
  reader.update();
  writer.update();
  EXPECT_EQ(reader.get("key"), "99");
  EXPECT_EQ(reader.applied_id(), writer.applied_id());
  EXPECT_EQ(reader.counters().rebuilds_diverged, 0U);
}

// --- Galera. ---

constexpr char galera_library[] = "/usr/lib/galera/libgalera_smm.so";

// Two nodes of a cluster; both take writes. It takes some seconds to come up.
class Cluster {
 public:
  Cluster() : first_(options({"--wsrep-new-cluster"})) {
    // The second begins with the data of the first, so that not all of it has to be sent.
    first_.stop();
    const TemporaryFolder copy;
    fs::copy(first_.file("data"), copy.file("data"), fs::copy_options::recursive);
    fs::remove(copy.file("data/galera.cache"));
    first_.start();
    second_ = std::make_unique<MariadbServer>(options({}), copy.file("data"));
    for (MariadbServer* node : nodes()) {
      if (!happens_within(milliseconds(60'000), [&] { return is_ready(*node); }))
        throw std::runtime_error("nodes do not come together");
    }
  }
  std::vector<MariadbServer*> nodes() { return {&first_, second_.get()}; }

 private:
  static bool is_ready(const MariadbServer& node) {
    try {
      return MariadbClient(node).run("SHOW STATUS LIKE 'wsrep_local_state_comment'") == "Synced" &&
             MariadbClient(node).run("SHOW STATUS LIKE 'wsrep_cluster_size'") == "2";
    } catch (const std::runtime_error&) {  // while it joins it takes no connections
      return false;
    }
  }

  std::vector<std::string> options(std::vector<std::string> more) const {
    const auto address = [](std::uint16_t port) { return "127.0.0.1:" + std::to_string(port); };
    const std::string own = address(more.empty() ? second_port_ : first_port_);
    const std::vector<std::string> all{
        "--wsrep-on=ON",
        std::string("--wsrep-provider=") + galera_library,
        "--binlog-format=ROW",
        "--innodb-autoinc-lock-mode=2",
        "--wsrep-node-address=127.0.0.1",
        "--wsrep-sst-method=rsync",
        "--wsrep-cluster-address=gcomm://" + address(first_port_) + ',' + address(second_port_),
        "--wsrep-sst-receive-address=" + address(MariadbServer::free_port()),
        "--wsrep-provider-options=gmcast.listen_addr=tcp://" + own + ";ist.recv_addr=" +
            address(MariadbServer::free_port()) + ";gcache.size=16M;base_host=127.0.0.1;base_port=" + own.substr(10)};
    more.insert(more.end(), all.begin(), all.end());
    return more;
  }

  const std::uint16_t first_port_ = MariadbServer::free_port();
  const std::uint16_t second_port_ = MariadbServer::free_port();
  MariadbServer first_;
  std::unique_ptr<MariadbServer> second_;
};

TEST_F(MysqlLogGaleraLong, writers_at_two_nodes_make_one_log) {
  if (::access(galera_library, R_OK) != 0) GTEST_SKIP() << "NOT TESTED: Galera is not installed";
  Cluster cluster;
  MysqlStore store(*cluster.nodes()[0]);
  const auto open_at = [&](std::size_t node) {
    MysqlLogOptions options = store.options();
    options.server.port = cluster.nodes()[node]->port();
    return std::make_unique<MysqlLog>(options);
  };
  ASSERT_TRUE(happens_within(milliseconds(20'000), [&] { return !thrown_error([&] { open_at(1); }); }));

  // What one node has acknowledged the other shows at once.
  const auto here = open_at(0);
  const auto there = open_at(1);
  for (UpdateId id = 1; id <= 50; ++id) {
    ASSERT_EQ((id % 2 == 0 ? here : there)->append(id, "update"), Appended::yes) << id;
    ASSERT_EQ((id % 2 == 0 ? there : here)->extent().head, id);
  }
  ASSERT_EQ(here->append(50, "again"), Appended::taken);

  // Writers at both, at once: nothing is lost, and nothing doubled.
  constexpr std::size_t writers = 4;
  constexpr int appends_each = 100;
  std::vector<Child> children;
  for (std::size_t writer = 0; writer < writers; ++writer) {
    children.emplace_back([&, writer] {
      const auto log = open_at(writer % 2);
      for (int i = 0; i < appends_each; ++i) append_surely(*log, std::to_string(writer) + ' ' + std::to_string(i));
    });
  }
  std::atomic<bool> done{false};
  Updates seen;
  std::thread follower([&] {
    const auto log = open_at(1);
    for (bool last = false; !last;) {
      last = done;
      log->read(seen.size() + 1, no_end, [&](UpdateId id, std::string_view bytes) {
        EXPECT_EQ(id, seen.size() + 1);
        seen[id] = bytes;
        return true;
      });
    }
  });
  for (Child& child : children) EXPECT_EQ(child.wait(), 0);
  done = true;
  follower.join();
  std::vector<int> next(writers, 0);
  EXPECT_EQ(seen.size(), 50 + writers * appends_each);
  EXPECT_EQ(updates_of(*here), seen);
  for (const auto& [id, bytes] : seen) {
    if (id <= 50) continue;
    EXPECT_EQ(bytes.substr(2), std::to_string(next[static_cast<std::size_t>(bytes[0] - '0')]++)) << id;
  }

  // Who slept through a rewrite at the other node cannot append below the base.
  const UpdateId head = here->extent().head;
  ASSERT_TRUE(rewrite(*here, head, {"part"}));
  EXPECT_EQ(there->append(7, "stray"), Appended::below_base);
  EXPECT_EQ(there->append(head, "stray"), Appended::below_base);
  EXPECT_EQ(there->append(head + 1, "x"), Appended::yes);
  EXPECT_EQ(updates_of(*here), (Updates{{head + 1, "x"}}));
}

// --- fork(). ---

TEST_F(MysqlLogFork, a_child_must_open_the_log_anew) {
  MysqlStore store;
  std::unique_ptr<Log> log = store.open();
  append_up_to(*log, 1);
  Child child([&] {
    for (const auto& call :
         std::vector<std::function<void()>>{[&] { log->extent(); }, [&] { log->append(2, "x"); },
                                            [&] { updates_of(*log); }, [&] { rewrite(*log, 1, {"part"}); }}) {
      const auto error = thrown_error(call);
      demand(error && error->kind() == ErrorKind::invalid, "a call in the child is refused");
    }
    const auto own = log->reopen();
    demand(own->append(2, "by the child") == Appended::yes, "append");
    log.reset();
    demand(own->append(3, "by the child") == Appended::yes, "append after letting go of the parent's");
  });
  ASSERT_EQ(child.wait(), 0);
  EXPECT_EQ(log->append(4, "by the parent"), Appended::yes);
  EXPECT_EQ(updates_of(*log).size(), 4U);
}

TEST_F(MysqlLogFork, forks_in_the_midst_of_appends_hurt_nobody) {
  const Authority authority("IP:127.0.0.1");
  MariadbServer server(authority.server_options());
  MysqlStore store(server);
  for (const std::string& options : {std::string(), "?tls_ca=" + authority.ca()}) {
    const std::string url = server.url(store.database()) + options;
    const auto log = open_log(url);
    const UpdateId before = log->extent().head;
    const auto append_somewhere = [](Log& own, const std::string& bytes) {
      while (own.append(own.extent().head + 1, bytes) != Appended::yes) {
      }
    };
    std::atomic<bool> done{false};
    std::atomic<std::uint64_t> appended{0};
    std::vector<std::thread> threads;
    threads.emplace_back([&] {
      while (!done) {
        append_somewhere(*log, "by a thread");
        ++appended;
      }
    });
    threads.emplace_back([&] {
      while (!done) {  // connects all the time
        append_somewhere(*open_log(url), "by a thread");
        ++appended;
      }
    });
    constexpr int children = 20;
    constexpr int appends_each = 5;
    for (int i = 0; i < children; ++i) {
      Child child([&] {
        ::alarm(60);
        const auto own = log->reopen();
        for (int j = 0; j < appends_each; ++j) append_somewhere(*own, "by a child");
      });
      EXPECT_EQ(child.wait(), 0);
    }
    done = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(updates_of(*log, before + 1).size(), appended + children * appends_each);
  }
}

}  // namespace
}  // namespace whycache

#endif
