// Names a PostgreSQL server, or several of which one is the primary, how to reach them, and the
// user who logs in.
//
//   postgres://user@host:5432/database?tls_ca=/etc/ssl/our_ca.pem&password_file=/run/secrets/flags
//   postgres://user@one.example.org,two.example.org/database
//   postgres://user@/database?socket=/run/postgresql
//
// The password comes from the URL, `password_file`, or WHYCACHE_POSTGRES_PASSWORD; otherwise from
// where libpq finds it: the service file, PGPASSWORD, then ~/.pgpass. Files are read at each
// connect, so that a password can be changed while programs run.
//
// TLS is off on loopback and unix sockets. Elsewhere the server must present a certificate for its
// host that a known authority signed, unless the URL has `tls=off`. PGSSLMODE and the service file
// do not change this.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/url.h"

namespace whycache {

struct PostgresAddress {
  std::string host;  // the directory of a unix socket if it begins with '/'
  std::uint16_t port = 5432;
  bool verifies_tls = false;

  // For messages: "db.example.org:5432".
  std::string text() const;
};

struct PostgresServer {
  // At least one, in the order in which they are tried.
  std::vector<PostgresAddress> addresses;
  // Whether a server that is in recovery, as a replica is, does not count.
  bool must_be_primary = false;
  std::string database;
  std::string user;
  std::optional<std::string> password;
  std::string password_file;
  std::string pass_file;  // a file like ~/.pgpass
  std::string service;
  std::string environment_password;
  std::string tls_ca;  // empty: the authorities that this system trusts
  std::string tls_certificate;
  std::string tls_key;

  // Returns the password, or nullopt if libpq is to find it. Reads the file. Throws Error(invalid),
  // without any of its contents.
  std::optional<std::string> login_password() const;
  // For messages: "db.example.org:5432/flags".
  std::string address() const;
};

struct PostgresServers {
  PostgresServer primary;
  std::optional<PostgresServer> replica;
};

// Takes the hosts, path and options that name servers from a postgres: URL. Throws Error(invalid).
PostgresServers take_postgres_servers(Url& url);

}  // namespace whycache
