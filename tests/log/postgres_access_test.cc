// The log in PostgreSQL: privileges, opening, settings of the server, secrets, TLS.
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "log/postgres_test_support.h"
#if WHYCACHE_WITH_MYSQL
#include "support/mariadb_server.h"
#endif
#include "support/program.h"

namespace whycache {
namespace {

using PostgresLogPrivileges = PostgresTest;
using PostgresLogOpen = PostgresTest;
using PostgresLogSecrets = PostgresTest;
using PostgresLogTls = PostgresTest;

// --- Privileges. ---

// The users of docs/logs.md, in a server of their own: users belong to a whole server.
struct PostgresRoles {
  PostgresRoles() : store(server) {
    for (const char* const name : {"follower", "writer", "rewriter"})
      store.run(std::string("CREATE ROLE ") + name + " LOGIN");
  }
  void grant() const {
    const std::vector<std::string> grants = documented_postgres_sql("logs.md");
    if (grants.size() != 1)
      throw std::runtime_error("docs/logs.md has not exactly one block of grants");
    store.run(grants[0]);
  }
  std::unique_ptr<PostgresLog> open(const std::string& name) const {
    PostgresLogOptions options = store.options(milliseconds(3000));
    options.server.user = name;
    return std::make_unique<PostgresLog>(options);
  }

  PostgresTestServer server;
  PostgresStore store;
};

void expect_forbidden_by_server(const std::function<void()>& call) {
  const std::optional<Error> error = thrown_error(call);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::invalid) << error->what();
  EXPECT_EQ(error->system_error(), EACCES) << error->what();
}

TEST_F(PostgresLogPrivileges, documented_grants_allow_exactly_each_role) {
  const PostgresRoles roles;
  const auto log = roles.store.open("default");
  append_up_to(*log, 5);
  rewrite(*log, 2, {"a", "b"});
  roles.grant();

  const auto follower = roles.open("follower");
  EXPECT_EQ(follower->extent().head, 5U);
  EXPECT_EQ(updates_of(*follower).size(), 3U);
  EXPECT_EQ(parts_of(*follower).size(), 2U);
  expect_forbidden_by_server([&] { follower->append(6, "x"); });
  expect_forbidden_by_server([&] { rewrite(*follower, 4, {"c"}); });

  const auto writer = roles.open("writer");
  EXPECT_EQ(writer->append(6, "x"), Appended::yes);
  EXPECT_EQ(writer->append(6, "y"), Appended::taken);
  EXPECT_EQ(updates_of(*writer).size(), 4U);
  expect_forbidden_by_server([&] { rewrite(*writer, 4, {"c"}); });
  expect_forbidden_by_server([&] { writer->check_may_rewrite(); });

  const auto rewriter = roles.open("rewriter");
  EXPECT_NO_THROW(rewriter->check_may_rewrite());
  EXPECT_EQ(rewriter->append(7, "x"), Appended::yes);
  EXPECT_TRUE(rewrite(*rewriter, 6, {"c", "d", "e"}));
  EXPECT_EQ(parts_of(*follower).size(), 3U);
  EXPECT_EQ(roles.store.run("SELECT count(*) FROM whycache_updates"), "1");
  EXPECT_EQ(roles.store.run("SELECT count(*) FROM whycache_parts"), "3");
}

TEST_F(PostgresLogPrivileges, documented_follower_cannot_keep_writer_from_appending) {
  const PostgresRoles roles;
  append_up_to(*roles.store.open("default"), 3);
  roles.grant();
  const auto writer = roles.open("writer");
  UpdateId id = 3;
  for (const std::string begin :
       {"BEGIN", "BEGIN ISOLATION LEVEL SERIALIZABLE", "BEGIN ISOLATION LEVEL REPEATABLE READ"}) {
    for (const std::string& sql : std::vector<std::string>{
             "SELECT count(*) FROM whycache_updates", "SELECT * FROM whycache_logs FOR UPDATE",
             "SELECT * FROM whycache_logs FOR KEY SHARE",
             "SELECT * FROM whycache_updates FOR SHARE",
             "LOCK TABLE whycache_logs IN ACCESS SHARE MODE",
             "LOCK TABLE whycache_updates IN ACCESS SHARE MODE",
             "LOCK TABLE whycache_updates IN SHARE MODE",
             "LOCK TABLE whycache_logs IN ROW EXCLUSIVE MODE",
             "SELECT pg_advisory_lock(hashtext('whycache create'))"}) {
      PostgresClient client = roles.store.client("follower");
      client.run(begin);
      try {
        client.run(sql);
      } catch (const std::runtime_error&) {  // denied
      }
      const auto error = thrown_error([&] {
        ASSERT_EQ(writer->append(id + 1, "x"), Appended::yes) << begin << "; " << sql;
        ++id;
      });
      EXPECT_FALSE(error) << begin << "; " << sql << ": " << error->what();
    }
  }
}

TEST_F(PostgresLogPrivileges, user_without_create_privilege_learns_what_to_run) {
  const PostgresRoles roles;
  const auto error = thrown_error([&] { roles.open("writer"); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::invalid);
  EXPECT_EQ(error->system_error(), EACCES);
  const std::string message = error->what();
  for (const std::string words : {"permission denied", "CREATE TABLE IF NOT EXISTS",
                                  "SET STORAGE EXTERNAL", "privileged user", "code=42501"})
    EXPECT_NE(message.find(words), std::string::npos) << message;
  // With the tables, but no right to add an instance.
  roles.store.open("default");
  roles.grant();
  PostgresLogOptions options = roles.store.options();
  options.server.user = "writer";
  options.instance = "flgs";
  expect_error(
      ErrorKind::invalid, [&] { PostgresLog log(options); }, "'default'", "grant INSERT");
}

// --- Opening. ---

TEST_F(PostgresLogOpen, server_that_may_lose_writes_is_refused_unless_accepted) {
  for (const std::string setting : {"fsync", "full_page_writes", "synchronous_commit"}) {
    PostgresTestServer server({setting + "=off"});
    PostgresStore store(server);
    expect_error(
        ErrorKind::invalid, [&] { open_log(store.url()); }, setting + "=off", "durable=off");
    const auto log = open_log(store.url("?durable=off"));
    EXPECT_EQ(log->append(1, "x"), Appended::yes);
  }
}

TEST_F(PostgresLogOpen, wrong_places_are_reported_with_next_steps) {
  PostgresStore store;
  expect_error(
      ErrorKind::invalid, [&] { open_log(store.server().url("absent")); }, "absent",
      "CREATE DATABASE", "code=3D000");
  expect_error(
      ErrorKind::invalid, [&] { open_log(store.server().url(store.database(), "nobody")); },
      "nobody", "check user and password");
  expect_error(
      ErrorKind::unavailable, [&] { open_log("postgres://u@127.0.0.1:1/d?deadline_ms=300"); },
      "127.0.0.1:1/d");
  expect_error(
      ErrorKind::invalid, [&] { open_log(store.url("?create=off")); }, "log does not exist",
      "without whycache's tables");
  EXPECT_NO_THROW(open_log("postgresql://postgres@127.0.0.1:" +
                           std::to_string(store.server().port()) + '/' + store.database()));
  EXPECT_NO_THROW(open_log("postgres://postgres@/" + store.database() +
                           "?socket=" + store.server().socket() + "/.s.PGSQL." +
                           std::to_string(store.server().port())));
}

#if WHYCACHE_WITH_MYSQL
TEST_F(PostgresLogOpen, server_of_another_kind_is_reported) {
  if (!testing::MariadbServer::is_installed()) GTEST_SKIP() << "NOT TESTED: no other server";
  const auto error = thrown_error([] {
    open_log("postgres://u@127.0.0.1:" + std::to_string(testing::MariadbServer::shared().port()) +
             "/d?deadline_ms=3000");
  });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::invalid) << error->what();
  EXPECT_NE(std::string(error->what()).find("not a PostgreSQL server"), std::string::npos)
      << error->what();
}
#endif

TEST_F(PostgresLogOpen, first_reachable_host_of_several_is_used) {
  PostgresStore store;
  const auto log = open_log("postgres://postgres@127.0.0.1:1,127.0.0.1:" +
                            std::to_string(store.server().port()) + '/' + store.database());
  EXPECT_EQ(log->append(1, "x"), Appended::yes);
}

// --- Secrets. ---

// A server that asks each user for a password.
struct ServerWithPasswords {
  ServerWithPasswords() : store(server) {
    store.run("CREATE ROLE ada LOGIN SUPERUSER PASSWORD 'right'");
    std::ofstream(server.file("data/pg_hba.conf"))
        << "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    store.run("SELECT pg_reload_conf()");
    EXPECT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
      return thrown_error([&] { open_log(url(":wrong")); }).has_value();
    }));
  }
  std::string url(const std::string& password, const std::string& options = "") const {
    return "postgres://ada" + password + "@127.0.0.1:" + std::to_string(server.port()) + '/' +
           store.database() + options;
  }

  PostgresTestServer server;
  PostgresStore store;
};

class PostgresEnvironment {
 public:
  PostgresEnvironment(std::string name, const std::string& value) : name_(std::move(name)) {
    ::setenv(name_.c_str(), value.c_str(), 1);
  }
  PostgresEnvironment(const PostgresEnvironment&) = delete;
  PostgresEnvironment& operator=(const PostgresEnvironment&) = delete;
  ~PostgresEnvironment() { ::unsetenv(name_.c_str()); }

 private:
  std::string name_;
};

TEST_F(PostgresLogSecrets, password_is_taken_from_each_place) {
  const ServerWithPasswords with;
  const TemporaryDirectory directory;
  const auto write_secret = [&](const std::string& name, const std::string& text) {
    write_file(directory.file(name), text);
    ::chmod(directory.file(name).c_str(), 0600);
    return directory.file(name);
  };
  EXPECT_NO_THROW(open_log(with.url(":right")));
  EXPECT_NO_THROW(open_log(with.url("", "?password_file=" + write_secret("password", "right\n"))));
  EXPECT_NO_THROW(
      open_log(with.url("", "?passfile=" + write_secret("pgpass", "127.0.0.1:*:*:ada:right\n"))));
  {
    const PostgresEnvironment environment("WHYCACHE_POSTGRES_PASSWORD", "right");
    EXPECT_NO_THROW(open_log(with.url("")));
    expect_error(ErrorKind::invalid, [&] { open_log(with.url(":wrong")); });
  }
  {
    const PostgresEnvironment environment("PGPASSWORD", "right");
    EXPECT_NO_THROW(open_log(with.url("")));
  }
  {
    const PostgresEnvironment environment(
        "PGSERVICEFILE", write_secret("services", "[flags]\nuser=ada\npassword=right\n"));
    EXPECT_NO_THROW(open_log(with.url("", "?service=flags")));
    expect_error(
        ErrorKind::invalid, [&] { open_log(with.url("", "?service=absent")); }, "service");
  }
}

TEST_F(PostgresLogSecrets, no_message_or_name_contains_the_password) {
  const ServerWithPasswords with;
  for (const std::string& url : {with.url(":s3cret"), with.url(":s3cret", "?deadline_ms=1"),
                                 with.url(":s3cret") + "absent"}) {
    const auto error = thrown_error([&] { open_log(url); });
    ASSERT_TRUE(error);
    EXPECT_EQ(std::string(error->what()).find("s3cret"), std::string::npos) << error->what();
  }
  const auto error = thrown_error([&] { open_log(with.url(":s3cret")); });
  EXPECT_EQ(error->kind(), ErrorKind::invalid) << error->what();
  EXPECT_EQ(error->system_error(), EACCES);
  EXPECT_EQ(open_log(with.url(":right"))->name().find("right"), std::string::npos);
}

// --- TLS. ---

TEST_F(PostgresLogTls, server_is_verified_and_plain_connection_must_be_asked_for) {
  const CertificateAuthority authority("DNS:localhost,IP:127.0.0.1");
  const CertificateAuthority stranger("DNS:localhost,IP:127.0.0.1");
  const CertificateAuthority other_host("DNS:elsewhere.example.org");
  for (const CertificateAuthority* const used : {&authority, &other_host}) {
    PostgresTestServer server;
    server.stop();
    for (const auto& [from, to] :
         {std::pair(used->certificate(), "server.crt"), std::pair(used->key(), "server.key")}) {
      write_file(server.file(std::string("data/") + to), testing::read_file(from));
    }
    server.set_settings({"ssl=on"});
    server.start();
    PostgresStore store(server);
    const auto open = [&](const std::string& ca) {
      return thrown_error([&] { open_log(store.url("?deadline_ms=5000&tls_ca=" + ca)); });
    };
    if (used == &authority) {
      const auto error = open(authority.ca());
      EXPECT_FALSE(error) << error->what();
      PostgresClient client = store.client();
      const auto log = open_log(store.url("?tls_ca=" + authority.ca()));
      EXPECT_EQ(client.run("SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
                           "WHERE ssl AND application_name = 'whycache'"),
                "1");
      const auto mistrusted = open(stranger.ca());
      ASSERT_TRUE(mistrusted);
      EXPECT_EQ(mistrusted->kind(), ErrorKind::invalid) << mistrusted->what();
      EXPECT_NE(std::string(mistrusted->what()).find("tls_ca"), std::string::npos)
          << mistrusted->what();
      expect_error(
          ErrorKind::invalid, [&] { open_log(store.url("?tls=verify")); }, "certificate");
    } else {
      const auto error = open(other_host.ca());
      ASSERT_TRUE(error);
      EXPECT_EQ(error->kind(), ErrorKind::invalid) << error->what();
      EXPECT_NE(std::string(error->what()).find("as its certificate does"), std::string::npos)
          << error->what();
    }
    EXPECT_NO_THROW(open_log(store.url("?tls=off")));
  }
}

TEST_F(PostgresLogTls, certificate_that_expires_makes_open_log_unavailable) {
  const CertificateAuthority authority("DNS:localhost,IP:127.0.0.1");
  PostgresTestServer server;
  const auto use = [&](const std::string& certificate) {
    server.stop();
    write_file(server.file("data/server.crt"), testing::read_file(certificate));
    write_file(server.file("data/server.key"), testing::read_file(authority.key()));
    server.set_settings({"ssl=on"});
    server.start();
  };
  use(authority.certificate());
  PostgresStore store(server);
  const std::string url = store.url("?deadline_ms=5000&tls_ca=" + authority.ca());
  const auto log = open_log(url);
  use(authority.expired_certificate());
  expect_error(
      ErrorKind::unavailable, [&] { log->extent(); }, "has expired: renew it");
  // libpq does not tell an expired certificate from one of a stranger.
  expect_error(
      ErrorKind::invalid, [&] { open_log(url); }, "has expired: renew it");
  use(authority.certificate());
  EXPECT_EQ(log->extent().head, 0U);
}

// Without TLS, nothing else would notice that the environment leads elsewhere.
TEST_F(PostgresLogOpen, environment_that_leads_to_another_host_is_refused_without_tls) {
  PostgresStore store;
  ::setenv("PGHOSTADDR", "127.0.0.2", 1);
  expect_error(
      ErrorKind::invalid, [&] { open_log(store.url()); }, "hostaddr=127.0.0.2");
  ::unsetenv("PGHOSTADDR");
  const testing::TemporaryDirectory directory;
  write_file(directory.file("services"), "[moved]\nhostaddr=127.0.0.2\n");
  ::setenv("PGSERVICEFILE", directory.file("services").c_str(), 1);
  expect_error(
      ErrorKind::invalid, [&] { open_log(store.url("?service=moved")); }, "hostaddr=127.0.0.2");
  ::unsetenv("PGSERVICEFILE");
  EXPECT_EQ(store.open()->extent().head, 0U);
}

TEST_F(PostgresLogTls, server_without_tls_is_refused_if_tls_is_asked_for) {
  PostgresStore store;
  expect_error(
      ErrorKind::invalid, [&] { open_log(store.url("?tls=verify")); }, "turn on TLS");
}

}  // namespace
}  // namespace whycache
