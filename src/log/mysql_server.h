// Which MySQL or MariaDB server, how to reach it, and as whom.
//
//   mysql://user@host:3306/database?tls_ca=/etc/ssl/our_ca.pem&password_file=/run/secrets/flags
//   mysql://user@/database?socket=/run/mysqld/mysqld.sock
//
// The password is that of the URL, of `password_file`, or of `option_file`; else
// WHYCACHE_MYSQL_PASSWORD; else none. Files are read at each connect, so that a password can be
// changed while programs run.
//
// TLS: off on loopback and unix sockets; elsewhere the server must show a certificate for its host
// that a known authority signed, unless `tls=off` is written out. That an option file, or the
// client library's defaults, say otherwise does not count.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/url.h"

namespace whycache {

// Who logs in. An empty user: whoever runs this program.
struct MysqlLogin {
  std::string user;
  std::string password;
};

struct MysqlServer {
  std::string host;  // empty: by socket
  std::uint16_t port = 3306;
  std::string socket;
  std::string database;
  std::string user;
  std::optional<std::string> password;
  std::string password_file;
  std::string option_file;
  std::string environment_password;
  bool verifies_tls = false;
  std::string tls_ca;  // empty: the authorities this system trusts
  std::string tls_certificate;
  std::string tls_key;

  // Reads the files. Throws Error invalid, never with anything that stands in them.
  MysqlLogin login() const;
  // For messages: "db.example.org:3306/flags".
  std::string address() const;
};

struct MysqlServers {
  MysqlServer primary;
  std::optional<MysqlServer> replica;
};

// Takes from a mysql: URL what says which server. Throws Error invalid.
MysqlServers take_mysql_servers(Url& url);

// Whether no packet for `host` leaves this machine.
bool is_loopback(std::string_view host) noexcept;

// `user` and `password` of an option file, in groups [client], [mysql] and [whycache]; the last one
// counts.
struct MysqlOptionFile {
  std::optional<std::string> user;
  std::optional<std::string> password;
};
MysqlOptionFile parse_mysql_option_file(std::string_view text);

}  // namespace whycache
