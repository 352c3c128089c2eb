// The log in MySQL: privileges, opening, secrets, TLS.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <signal.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "log/mysql_connection.h"
#include "log/mysql_test_support.h"
#include "log/root_tests.h"
#include "log/setuid_program.h"

namespace whycache {
namespace {

using MysqlLogPrivileges = MysqlTest;
using MysqlLogOpen = MysqlTest;
using MysqlLogSecrets = MysqlTest;
using MysqlLogTls = MysqlTest;

// --- Privileges. ---

class DatabaseUsers {
 public:
  explicit DatabaseUsers(MysqlStore& store) : store_(store) {
    for (const char* name : {"follower", "writer", "rewriter"}) {
      MariadbClient(store.server()).run(std::string("CREATE OR REPLACE USER '") + name + "'@'%'");
    }
  }
  ~DatabaseUsers() {
    MariadbClient(store_.server()).run("DROP USER 'follower'@'%', 'writer'@'%', 'rewriter'@'%'");
  }

  // Creates the procedures of docs/formats/sql.md, and runs the grants of docs/logs.md.
  void grant() const {
    store_.run(documented_procedures());
    const std::vector<std::string> grants = documented_sql("logs.md");
    if (grants.size() != 1)
      throw std::runtime_error("docs/logs.md has not exactly one block of grants");
    MariadbClient(store_.server()).run(replace_all(grants[0], "flags.", store_.database() + "."));
  }
  void grant_select(const std::string& name) const {
    for (const std::string table : {"whycache_logs", "whycache_updates", "whycache_parts"}) {
      MariadbClient(store_.server())
          .run("GRANT SELECT ON " + store_.database() + '.' + table + " TO '" + name + "'@'%'");
    }
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

TEST_F(MysqlLogPrivileges, documented_grants_allow_exactly_each_role) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  rewrite(*log, 2, {"a", "b"});
  const DatabaseUsers users(store);
  users.grant();

  const auto follower = users.open("follower");
  EXPECT_EQ(follower->extent().head, 5U);
  EXPECT_EQ(updates_of(*follower).size(), 3U);
  EXPECT_EQ(parts_of(*follower).size(), 2U);
  expect_forbidden([&] { follower->append(6, "x"); });
  expect_forbidden([&] { rewrite(*follower, 4, {"c"}); });

  const auto writer = users.open("writer");
  EXPECT_EQ(writer->append(6, "x"), Appended::yes);
  EXPECT_EQ(writer->append(6, "y"), Appended::taken);
  EXPECT_EQ(updates_of(*writer).size(), 4U);
  expect_forbidden([&] { rewrite(*writer, 4, {"c"}); });
  expect_forbidden([&] { writer->check_may_rewrite(); });

  const auto rewriter = users.open("rewriter");
  EXPECT_NO_THROW(rewriter->check_may_rewrite());
  EXPECT_EQ(rewriter->append(7, "x"), Appended::yes);
  EXPECT_TRUE(rewrite(*rewriter, 6, {"c", "d", "e"}));
  EXPECT_NO_THROW(rewriter->check_may_rewrite());
  EXPECT_EQ(parts_of(*follower).size(), 3U);
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_updates"), "1");
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_parts"), "3");
}

TEST_F(MysqlLogPrivileges, select_on_tables_suffices_for_follower) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  rewrite(*log, 2, {"a", "b"});
  const DatabaseUsers users(store);
  users.grant_select("follower");
  const auto follower = users.open("follower");
  EXPECT_EQ(updates_of(*follower).size(), 3U);
  EXPECT_EQ(parts_of(*follower).size(), 2U);
  expect_forbidden([&] { follower->append(6, "x"); });
}

TEST_F(MysqlLogPrivileges, documented_follower_cannot_keep_writer_from_appending) {
  MysqlStore store;
  append_up_to(*store.open(), 3);
  const DatabaseUsers users(store);
  users.grant();
  MysqlLogOptions options = store.options(milliseconds(2000));
  options.server.user = "writer";
  MysqlLog writer(options);
  UpdateId id = 3;
  const std::string call = "CALL whycache_read('default', 1, 9, 9)";
  for (const std::string begin :
       {"START TRANSACTION", "SET autocommit = 0",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE; START TRANSACTION",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE; SET autocommit = 0",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE; XA START 'x'"}) {
    MariadbClient client = store.client("follower");
    client.run(begin);
    for (const std::string& sql : std::vector<std::string>{
             call, "SET STATEMENT tx_isolation = 'SERIALIZABLE' FOR " + call,
             "SELECT count(*) FROM whycache_updates FOR UPDATE",
             "SELECT count(*) FROM whycache_logs LOCK IN SHARE MODE",
             "LOCK TABLES whycache_updates READ", "HANDLER whycache_updates OPEN"}) {
      try {
        client.run(sql);
      } catch (const std::runtime_error&) {  // denied, or not allowed in this transaction
      }
      const auto error = thrown_error([&] {
        ASSERT_EQ(writer.append(id + 1, "x"), Appended::yes) << begin << "; " << sql;
        ++id;
      });
      EXPECT_FALSE(error) << begin << "; " << sql << ": " << error->what();
    }
  }
}

TEST_F(MysqlLogPrivileges, open_log_goes_on_when_select_is_replaced_by_execute) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  rewrite(*log, 2, {"a", "b"});
  const DatabaseUsers users(store);
  users.grant_select("follower");
  const auto follower = users.open("follower");
  EXPECT_EQ(updates_of(*follower).size(), 3U);

  MariadbClient(store.server()).run("REVOKE ALL PRIVILEGES, GRANT OPTION FROM 'follower'@'%'");
  users.grant();
  append_up_to(*log, 100);
  EXPECT_EQ(follower->extent().head, 100U);
  EXPECT_EQ(updates_of(*follower).size(), 98U);
  EXPECT_EQ(updates_of(*follower, 90).size(), 11U);
  EXPECT_EQ(parts_of(*follower).size(), 2U);
}

TEST_F(MysqlLogPrivileges, follower_by_procedures_reads_many_buffers) {
  MysqlStore store;
  const auto log = store.open();
  for (UpdateId id = 1; id <= 12; ++id)
    ASSERT_EQ(log->append(id, std::string(1'000'000, static_cast<char>('a' + id))), Appended::yes);
  const DatabaseUsers users(store);
  users.grant();
  const auto follower = users.open("follower");
  EXPECT_EQ(updates_of(*follower), updates_of(*log));
}

TEST_F(MysqlLogPrivileges, blocked_append_names_connection_that_holds_lock) {
  MysqlStore store;
  append_up_to(*store.open(), 3);
  const DatabaseUsers users(store);
  users.grant();
  users.grant_select("follower");
  MariadbClient root(store.server());
  MariadbClient client = store.client("follower");
  client.run("START TRANSACTION; SELECT count(*) FROM whycache_updates WHERE id > 0 FOR UPDATE");
  const std::string connection = client.run("SELECT CONNECTION_ID()");
  MysqlLogOptions options = store.options(milliseconds(1000));
  options.server.user = "writer";
  MysqlLog writer(options);

  // A writer without PROCESS learns where to look.
  const milliseconds waited = measure_duration([&] {
    expect_error(
        ErrorKind::unavailable, [&] { writer.append(4, "x"); }, "waited_ms_max=1000",
        "docs/logs.md");
  });
  EXPECT_LT(waited, milliseconds(1500));
  root.run("GRANT PROCESS ON *.* TO 'writer'@'%'");
  MysqlLog privileged(options);
  expect_error(
      ErrorKind::unavailable, [&] { privileged.append(4, "x"); }, connection + " of follower@",
      "KILL");
  // The query of docs/logs.md finds it, and KILL ends it.
  const std::vector<std::string> documented = fenced_blocks("logs.md", "mysql holders");
  ASSERT_EQ(documented.size(), 1U);
  std::string found;
  for (const std::string& row : root.rows(documented[0])) found += row + '\n';
  EXPECT_NE(found.find(connection + "\tfollower"), std::string::npos) << found;
  root.run("KILL " + connection);
  EXPECT_EQ(privileged.append(4, "x"), Appended::yes);
}

TEST_F(MysqlLogPrivileges, missing_create_privilege_error_contains_statements_to_run) {
  MysqlStore store;
  const DatabaseUsers users(store);
  MariadbClient root(store.server());
  root.run("GRANT SELECT ON " + store.database() + ".* TO 'follower'@'%'");
  const auto without_tables = thrown_error([&] { users.open("follower"); });
  ASSERT_TRUE(without_tables);
  EXPECT_EQ(without_tables->kind(), ErrorKind::invalid);
  EXPECT_EQ(without_tables->system_error(), EACCES);
  const std::string message = without_tables->what();
  const std::size_t begin = message.find("CREATE TABLE");
  ASSERT_NE(begin, std::string::npos) << message;
  for (const char* table : {"whycache_logs", "whycache_updates", "whycache_parts"})
    EXPECT_NE(message.find(table), std::string::npos);

  // The statements in the message work.
  store.run(message.substr(begin, message.rfind(')') - begin));
  EXPECT_EQ(users.open("follower")->extent().head, 0U);

  MysqlLogOptions options = store.options();
  options.server.user = "follower";
  options.instance = "other";
  expect_error(
      ErrorKind::invalid, [&] { MysqlLog log(options); }, "there is no log of this instance",
      "correct instance in the url");
}

TEST_F(MysqlLogPrivileges, another_instance_needs_only_insert_on_logs_table) {
  MysqlStore store;
  store.open();
  const DatabaseUsers users(store);
  users.grant();
  MysqlLogOptions options = store.options();
  options.server.user = "writer";
  options.instance = "other";
  // As for a mistyped name: no right is missing for that, and no table.
  const auto refused = thrown_error([&] { MysqlLog log(options); });
  ASSERT_TRUE(refused);
  EXPECT_EQ(refused->system_error(), EACCES) << refused->what();
  EXPECT_NE(std::string(refused->what()).find("there is no log of this instance"),
            std::string::npos);
  EXPECT_EQ(std::string(refused->what()).find("CREATE TABLE"), std::string::npos);

  MariadbClient root(store.server());
  root.run("GRANT INSERT ON " + store.database() + ".whycache_logs TO 'writer'@'%'");
  EXPECT_EQ(MysqlLog(options).append(1, "x"), Appended::yes);
  root.run("REVOKE INSERT ON " + store.database() + ".whycache_logs FROM 'writer'@'%'");
  EXPECT_EQ(MysqlLog(options).append(2, "x"), Appended::yes) << "needed once only";
}

TEST_F(MysqlLogPrivileges, missing_table_is_created_beside_others) {
  MysqlStore store;
  store.open();
  store.run("DROP TABLE whycache_parts");
  MysqlLogOptions options = store.options();
  options.instance = "other";
  EXPECT_EQ(MysqlLog(options).extent().head, 0U);
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_parts"), "0");
}

TEST_F(MysqlLogPrivileges, user_without_privileges_is_refused) {
  MysqlStore store;
  store.open();
  const DatabaseUsers users(store);
  expect_forbidden([&] { users.open("follower"); });
  MysqlLogOptions options = store.options();
  options.server.user = "no_such_user";
  expect_forbidden([&] { MysqlLog log(options); });
}

TEST_F(MysqlLogPrivileges, missing_database_is_refused_and_not_created) {
  MysqlStore store;
  MysqlLogOptions options = store.options();
  options.server.database = "nowhere";
  expect_error(
      ErrorKind::invalid, [&] { MysqlLog log(options); }, "CREATE DATABASE `nowhere`");
}

// --- Opening by URL, and secrets. ---

TEST_F(MysqlLogOpen, url_opens_log_by_tcp_and_by_socket) {
  MysqlStore store;
  const std::string url = store.server().url(store.database());
  const auto log = open_log(url);
  const std::string name = replace_all(url, "root@", "");
  EXPECT_EQ(log->name(), name + "?instance=default");
  ASSERT_EQ(log->append(1, "x"), Appended::yes);
  EXPECT_EQ(open_log(url + "?instance=default&deadline_ms=1234&tls=off&durable=off")->extent().uuid,
            log->extent().uuid);
  EXPECT_EQ(open_log(url + "?instance=other")->extent().head, 0U);

  const auto by_socket =
      open_log("mysql://root@/" + store.database() + "?socket=" + store.server().socket());
  EXPECT_EQ(by_socket->extent().uuid, log->extent().uuid);
  EXPECT_EQ(by_socket->name(),
            "mysql:///" + store.database() + "?instance=default&socket=" + store.server().socket());

  for (const char* option :
       {"durable=maybe", "tls=on", "password=x", "nosuch=1", "deadline_ms=0", "replica=a%2Fb"}) {
    expect_error(ErrorKind::invalid, [&] { open_log(url + "?" + option); });
  }
}

// Otherwise the user that starts the program would choose what code runs with its rights.
TEST(MysqlLogEnvironment, setuid_program_loads_no_plugin_that_its_caller_names) {
  const SetuidProgram program;
  if (!program.is_possible()) GTEST_SKIP() << "NOT TESTED: needs root, and a mount without nosuid";
  const std::string url = "mysql://127.0.0.1:" + std::to_string(testing::free_port()) + "/flags";
  const std::string connects = "cannot connect to database";
  EXPECT_NE(program.run(true, {}, url).find(connects), std::string::npos);
  for (const std::string name : {"MARIADB_PLUGIN_DIR", "LIBMYSQL_PLUGINS"}) {
    EXPECT_NE(program.run(true, {name + "=/tmp"}, url).find("variable=" + name), std::string::npos);
    EXPECT_NE(program.run(false, {name + "=/tmp"}, url).find(connects), std::string::npos);
  }
}

TEST_F(MysqlLogOpen, missing_server_is_unavailable) {
  std::string url;
  {
    MariadbServer server;
    url = server.url("db");
  }
  expect_error(
      ErrorKind::unavailable, [&] { open_log(url); }, "127.0.0.1");
  expect_error(
      ErrorKind::unavailable, [] { open_log("mysql:///db?socket=/nowhere/socket"); },
      "/nowhere/socket");
}

TEST_F(MysqlLogSecrets, password_never_appears_in_messages_or_names) {
  MysqlStore store;
  const std::string secret = "secret4711";
  MariadbClient root(store.server());
  root.run("CREATE OR REPLACE USER 'ada'@'%' IDENTIFIED BY '" + secret + "'; GRANT ALL ON " +
           store.database() + ".* TO 'ada'@'%'");
  const TemporaryDirectory directory;
  std::ofstream(directory.file("password")) << secret << '\n';
  std::ofstream(directory.file("options")) << "[client]\nuser=ada\npassword=\"" << secret << "\"\n";
  const std::string url = store.server().url(store.database(), "ada");
  const std::string with_secret = replace_all(url, "ada@", "ada:" + secret + "@");

  const std::string no_user = replace_all(url, "ada@", "");
  std::vector<std::string> good{with_secret, url + "?password_file=" + directory.file("password"),
                                url + "?option_file=" + directory.file("options"),
                                no_user + "?option_file=" + directory.file("options")};
  for (const std::string& each : good) {
    const auto log = open_log(each);
    EXPECT_EQ(log->name(), no_user + "?instance=default") << each;
    EXPECT_EQ(log->append(log->extent().head + 1, "x"), Appended::yes);
  }
  ::setenv("WHYCACHE_MYSQL_PASSWORD", secret.c_str(), 1);
  EXPECT_EQ(open_log(url)->extent().head, 4U);
  ::unsetenv("WHYCACHE_MYSQL_PASSWORD");

  // The password is no longer valid.
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

TEST_F(MysqlLogSecrets, changed_password_file_is_read_on_reconnect) {
  MysqlStore store;
  MariadbClient root(store.server());
  root.run("CREATE OR REPLACE USER 'ada'@'%' IDENTIFIED BY 'old'; GRANT ALL ON " +
           store.database() + ".* TO 'ada'@'%'");
  const TemporaryDirectory directory;
  std::ofstream(directory.file("password")) << "old";
  const auto log = open_log(store.server().url(store.database(), "ada") +
                            "?password_file=" + directory.file("password"));
  root.run("ALTER USER 'ada'@'%' IDENTIFIED BY 'new'; KILL USER ada");
  std::ofstream(directory.file("password")) << "new";
  EXPECT_TRUE(updates_of(*log).empty());
  EXPECT_EQ(log->append(1, "x"), Appended::yes);
  root.run("DROP USER 'ada'@'%'");
}

// --- TLS. ---

TEST_F(MysqlLogTls, certificate_of_other_authority_or_host_is_refused) {
  const CertificateAuthority authority("IP:127.0.0.1");
  const CertificateAuthority other_user("IP:127.0.0.1");
  MariadbServer server(tls_options(authority));
  MysqlStore store(server);
  MariadbClient(server).run("CREATE USER 'ada'@'%' REQUIRE SSL; GRANT ALL ON *.* TO 'ada'@'%'");
  const std::string url = server.url(store.database(), "ada");

  const auto log = open_log(url + "?tls_ca=" + authority.ca());
  EXPECT_EQ(log->append(1, "x"), Appended::yes);
  expect_error(
      ErrorKind::invalid, [&] { open_log(url + "?tls_ca=" + other_user.ca()); }, "certificate");
  expect_error(
      ErrorKind::invalid, [&] { open_log(url + "?tls=verify"); }, "certificate", "tls_ca");
  expect_error(ErrorKind::invalid, [&] { open_log(url + "?tls_ca=/nowhere/ca.pem"); });
  expect_error(ErrorKind::invalid, [&] { open_log(url); });  // the server refuses ada without TLS
  const std::string other_host = replace_all(url, "127.0.0.1", "localhost");
  expect_error(ErrorKind::invalid, [&] { open_log(other_host + "?tls_ca=" + authority.ca()); });
}

TEST_F(MysqlLogTls, server_without_tls_is_refused_if_tls_is_required) {
  MariadbServer server({"--skip-ssl"});
  MysqlStore store(server);
  expect_error(ErrorKind::invalid, [&] { open_log(server.url(store.database()) + "?tls=verify"); });
  EXPECT_EQ(open_log(server.url(store.database()))->extent().head, 0U);
}

// Returns an address of this machine that is not loopback, or "" if there is none.
std::string outer_address() {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return "";
  std::string found;
  for (const ifaddrs* each = all; each != nullptr && found.empty(); each = each->ifa_next) {
    if (each->ifa_addr == nullptr || each->ifa_addr->sa_family != AF_INET ||
        (each->ifa_flags & IFF_LOOPBACK) != 0)
      continue;
    char text[INET_ADDRSTRLEN];
    const auto* address = reinterpret_cast<const sockaddr_in*>(each->ifa_addr);
    if (::inet_ntop(AF_INET, &address->sin_addr, text, sizeof text) != nullptr) found = text;
  }
  ::freeifaddrs(all);
  return found;
}

TEST_F(MysqlLogTls, tls_is_required_off_loopback) {
  const std::string address = outer_address();
  if (address.empty()) GTEST_SKIP() << "NOT TESTED: this machine has no address but loopback";
  const CertificateAuthority authority("IP:" + address);
  std::vector<std::string> options = tls_options(authority);
  options.push_back("--bind-address=0.0.0.0");
  MariadbServer server(options);
  MysqlStore store(server);
  MariadbClient(server).run(
      "CREATE USER 'ada'@'%' IDENTIFIED BY 'x'; GRANT ALL ON *.* TO 'ada'@'%'");
  const std::string url = replace_all(server.url(store.database(), "ada:x"), "127.0.0.1", address);
  expect_error(
      ErrorKind::invalid, [&] { open_log(url); }, "certificate", "tls_ca");
  EXPECT_EQ(open_log(url + "?tls_ca=" + authority.ca())->extent().head, 0U);
  EXPECT_EQ(open_log(url + "?tls=off")->extent().head, 0U);
}

TEST_F(MysqlLogTls, lost_connection_leaves_sigpipe_handler_unchanged) {
  const CertificateAuthority authority("IP:127.0.0.1");
  MariadbServer server(tls_options(authority));
  MysqlStore store(server);
  Child child([&] {
    ::signal(SIGPIPE, SIG_DFL);
    const auto plain = open_log(server.url(store.database()) + "?deadline_ms=1000");
    const auto secure =
        open_log(server.url(store.database()) + "?deadline_ms=1000&tls_ca=" + authority.ca());
    struct sigaction pipe;
    ::sigaction(SIGPIPE, nullptr, &pipe);
    require(pipe.sa_handler == SIG_DFL, "SIGPIPE has its default handler");
    server.kill();
    const std::string large(std::size_t{8} << 20, 'x');
    for (Log* log : {plain.get(), secure.get()}) {
      for (int i = 0; i < 3; ++i)
        require(thrown_error([&] { log->append(1, large); }).has_value(), "no server");
    }
  });
  EXPECT_EQ(child.wait(), 0);
}

// To send on a socket whose other end is closed raises SIGPIPE, unless the call forbids it.
TEST_F(MysqlLogTls, statement_on_dead_connection_without_tls_raises_no_signal) {
  MariadbServer server;
  Child child([&] {
    ::signal(SIGPIPE, SIG_DFL);
    MysqlServer place;
    place.socket = server.socket();
    place.user = "root";
    MysqlConnection statement(place, std::chrono::seconds(5));
    MysqlConnection query(place, std::chrono::seconds(5));
    MysqlConnection prepared(place, std::chrono::seconds(5));
    prepared.run("DO ?", {std::uint64_t{1}});
    for (MysqlConnection* const connection : {&statement, &query, &prepared})
      require(!connection->is_encrypted(), "no TLS");
    server.kill();
    const std::vector<std::function<void()>> sends = {
        [&] { statement.run("DO 1"); }, [&] { query.query("SELECT 1"); },
        [&] { prepared.run("DO ?", {std::uint64_t{1}}); }};
    for (const auto& send : sends) {
      bool has_failed = false;
      try {
        send();
      } catch (const MysqlFailure&) {
        has_failed = true;
      }
      require(has_failed, "no server");
    }
  });
  EXPECT_EQ(child.wait(), 0);
}

}  // namespace
}  // namespace whycache

#endif
