// From a mysql: URL to the address of the server and its login.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "log/mysql_server.h"
#include "support/temporary_directory.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::expect_error;
using testing::TemporaryDirectory;

MysqlServers servers_of(const std::string& text) {
  Url url(text);
  return take_mysql_servers(url);
}

MysqlServer server_of(const std::string& text) { return servers_of(text).primary; }

std::string write_file_in(const TemporaryDirectory& directory, const std::string& name,
                          const std::string& text) {
  std::ofstream(directory.file(name), std::ios::binary) << text;
  return directory.file(name);
}

TEST(MysqlServer, url_is_parsed_into_address_and_login) {
  const MysqlServer server = server_of("mysql://ada@db.example.org:3307/flags");
  EXPECT_EQ(server.host, "db.example.org");
  EXPECT_EQ(server.port, 3307);
  EXPECT_EQ(server.user, "ada");
  EXPECT_EQ(server.database, "flags");
  EXPECT_EQ(server.address(), "db.example.org:3307/flags");
  EXPECT_EQ(server_of("mysql://h/d").port, 3306);
  EXPECT_EQ(server_of("mysql://[::1]/d").address(), "[::1]:3306/d");
  EXPECT_EQ(server_of("mysql:///d?socket=/run/s.sock").address(), "/run/s.sock/d");
}

TEST(MysqlServer, invalid_server_url_is_refused) {
  for (const char* url : {"mysql://host", "mysql://host/", "mysql://host/a/b"}) {
    expect_error(
        ErrorKind::invalid, [&] { server_of(url); }, "no database");
  }
  for (const char* url : {"mysql:///db", "mysql://host/db?socket=/s"}) {
    expect_error(
        ErrorKind::invalid, [&] { server_of(url); }, "socket");
  }
  expect_error(
      ErrorKind::invalid, [] { server_of("mysql:///db?socket=s"); }, "absolute");
  for (const char* replica :
       {"", "host%2Fdb", "host:0", "host:x", "user%40host", "host%3Ftls=off"}) {
    expect_error(ErrorKind::invalid,
                 [&] { server_of(std::string("mysql://host/db?replica=") + replica); });
  }
}

TEST(MysqlServer, tls_is_verified_off_loopback_by_default) {
  for (const char* url :
       {"mysql://localhost/d", "mysql://127.0.0.1/d", "mysql://127.1.2.3/d", "mysql://[::1]/d",
        "mysql:///d?socket=/s", "mysql://db.example.org/d?tls=off"}) {
    EXPECT_FALSE(server_of(url).verifies_tls) << url;
  }
  for (const char* url :
       {"mysql://db.example.org/d", "mysql://10.0.0.1/d", "mysql://127.0.0.1.example.org/d",
        "mysql://localhost.example.org/d", "mysql://[::2]/d", "mysql://localhost/d?tls=verify",
        "mysql://127.0.0.1/d?tls_ca=/ca.pem"}) {
    EXPECT_TRUE(server_of(url).verifies_tls) << url;
  }
  expect_error(
      ErrorKind::invalid, [] { server_of("mysql://h/d?tls=maybe"); }, "tls");
  expect_error(
      ErrorKind::invalid, [] { server_of("mysql://h/d?tls=off&tls_ca=/ca.pem"); }, "tls=off");
}

TEST(MysqlServer, replica_is_other_host_with_same_database_and_user) {
  const MysqlServers servers =
      servers_of("mysql://ada@localhost:1/flags?replica=db2.example.org:3310");
  ASSERT_TRUE(servers.replica);
  EXPECT_EQ(servers.replica->address(), "db2.example.org:3310/flags");
  EXPECT_EQ(servers.replica->user, "ada");
  EXPECT_FALSE(servers.primary.verifies_tls);
  EXPECT_TRUE(servers.replica->verifies_tls);
  EXPECT_EQ(servers_of("mysql://h/flags?replica=[::1]").replica->address(), "[::1]:3306/flags");
}

TEST(MysqlServer, password_comes_from_first_available_source) {
  const TemporaryDirectory directory;
  const std::string password_file = write_file_in(directory, "password", "of the file\n");
  const std::string option_file =
      write_file_in(directory, "options", "[client]\npassword = 'of the options'\nuser = eve\n");
  ::setenv("WHYCACHE_MYSQL_PASSWORD", "of the environment", 1);
  const auto password_of = [](const std::string& url) { return server_of(url).login().password; };
  EXPECT_EQ(password_of("mysql://a:of%20the%20url@h/d?option_file=" + option_file), "of the url");
  EXPECT_EQ(
      password_of("mysql://a@h/d?password_file=" + password_file + "&option_file=" + option_file),
      "of the file");
  EXPECT_EQ(password_of("mysql://a@h/d?option_file=" + option_file), "of the options");
  EXPECT_EQ(password_of("mysql://a@h/d"), "of the environment");
  ::unsetenv("WHYCACHE_MYSQL_PASSWORD");
  EXPECT_EQ(password_of("mysql://a@h/d"), "");

  EXPECT_EQ(server_of("mysql://h/d?option_file=" + option_file).login().user, "eve");
  EXPECT_EQ(server_of("mysql://a@h/d?option_file=" + option_file).login().user, "a");
  expect_error(
      ErrorKind::invalid, [&] { server_of("mysql://a:x@h/d?password_file=" + password_file); },
      "password_file");
  expect_error(
      ErrorKind::invalid,
      [&] { server_of("mysql://a@h/d?password_file=/nowhere/to/be/found").login(); },
      "/nowhere/to/be/found");
}

// As Kubernetes mounts a secret.
TEST(MysqlServer, secret_behind_symbolic_links_is_read) {
  const testing::TemporaryDirectory directory;
  write_file_in(directory, "version_1", "secret\n");
  std::filesystem::create_symlink("version_1", directory.file("data"));
  std::filesystem::create_symlink("data", directory.file("password"));
  EXPECT_EQ(server_of("mysql://a@h/d?password_file=" + directory.file("password")).login().password,
            "secret");
}

TEST(MysqlServer, secret_that_is_no_regular_file_is_refused_without_waiting) {
  const testing::TemporaryDirectory directory;
  ASSERT_EQ(::mkfifo(directory.file("pipe").c_str(), 0600), 0);
  for (const std::string& path :
       {directory.file("pipe"), directory.path(), std::string("/dev/null")})
    testing::expect_error(
        ErrorKind::invalid, [&] { server_of("mysql://a@h/d?password_file=" + path).login(); },
        path);
}

TEST(MysqlServer, changed_password_file_is_read_again) {
  const TemporaryDirectory directory;
  const std::string path = write_file_in(directory, "password", "old\r\n");
  const MysqlServer server = server_of("mysql://a@h/d?password_file=" + path);
  EXPECT_EQ(server.login().password, "old");
  write_file_in(directory, "password", "new");
  EXPECT_EQ(server.login().password, "new");
}

TEST(MysqlServer, option_file_yields_only_login_of_known_groups) {
  const MysqlOptionFile file = parse_mysql_option_file(
      "password=before any group\n"
      "# password=comment\n"
      "; password=comment\n"
      "!include /etc/other.cnf\n"
      "[mysqld]\nuser=mysql\npassword=server\n"
      "[ client ]\r\n"
      "user = \"ada\"   # who\r\n"
      "port = 1\n"
      "skip-ssl\n"
      "password = \"a#b\\\"c\\\\d\\s\"\n"
      "[dump]\npassword=x\n");
  EXPECT_EQ(file.user, "ada");
  EXPECT_EQ(file.password, "a#b\"c\\d ");
  EXPECT_EQ(parse_mysql_option_file("[client]\npassword=one\n[whycache]\npassword=two").password,
            "two");
  EXPECT_EQ(parse_mysql_option_file("[client]\npassword=").password, "");
  for (const char* odd :
       {"", "[", "[client", "[client]\n=x\n=\npassword\n", "\n\n\n", "[client]\n'\n\"\n\\"}) {
    EXPECT_EQ(parse_mysql_option_file(odd).password, std::nullopt) << odd;
  }
}

}  // namespace
}  // namespace whycache

#endif
