// Names a MySQL or MariaDB server, how to reach it, and the user who logs in.
//
//   mysql://user@host:3306/database?tls_ca=/etc/ssl/our_ca.pem&password_file=/run/secrets/flags
//   mysql://user@/database?socket=/run/mysqld/mysqld.sock
//
// The password comes from the URL, `password_file` or `option_file`; otherwise from
// WHYCACHE_MYSQL_PASSWORD; otherwise there is none. Files are read at each connect, so that a
// password can be changed while programs run.
//
// TLS is off on loopback and unix sockets. Elsewhere the server must present a certificate for its
// host that a known authority signed, unless the URL has `tls=off`. Option files and the defaults
// of the client library do not change this.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/url.h"

namespace whycache {

// The account to log in with. If the user is empty, it is the user that runs this program.
struct MysqlLogin {
  std::string user;
  std::string password;
};

struct MysqlServer {
  std::string host;  // empty: use the socket
  std::uint16_t port = 3306;
  std::string socket;
  std::string database;
  std::string user;
  std::optional<std::string> password;
  std::string password_file;
  std::string option_file;
  std::string environment_password;
  bool verifies_tls = false;
  std::string tls_ca;  // empty: the authorities that this system trusts
  std::string tls_certificate;
  std::string tls_key;

  // Reads the files. Throws Error(invalid), without any of their contents.
  MysqlLogin login() const;
  // For messages: "db.example.org:3306/flags".
  std::string address() const;
};

struct MysqlServers {
  MysqlServer primary;
  std::optional<MysqlServer> replica;
};

// Takes the host, path and options that name servers from a mysql: URL. Throws Error(invalid).
MysqlServers take_mysql_servers(Url& url);

// The `user` and `password` of an option file, from its groups [client], [mysql] and [whycache].
// The last one of each counts.
struct MysqlOptionFile {
  std::optional<std::string> user;
  std::optional<std::string> password;
};
MysqlOptionFile parse_mysql_option_file(std::string_view text);

}  // namespace whycache
