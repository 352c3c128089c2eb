#include "log/postgres_server.h"

#include <charconv>
#include <cstdlib>
#include <string_view>
#include <system_error>

#include <whycache/error.h>

#include "log/server_options.h"

namespace whycache {
namespace {

constexpr std::uint16_t default_port = 5432;
constexpr std::size_t name_bytes_max = 63;
constexpr std::string_view socket_file_prefix = ".s.PGSQL.";

Error invalid_url(const std::string& message) { return Error(ErrorKind::invalid, message); }

// Returns the database, which is the path of the URL.
std::string database_of(const Url& url) {
  const std::string& path = url.path();
  std::string database = path.empty() ? "" : path.substr(1);
  if (database.empty() || database.size() > name_bytes_max ||
      database.find('/') != std::string::npos) {
    throw invalid_url("log url names no database: url=" + url.redacted() +
                      " (write postgres://user@host/database)");
  }
  return database;
}

// `path` is the directory of the socket, or the socket itself.
PostgresAddress socket_address(std::string path, std::optional<std::uint16_t> port) {
  PostgresAddress address{std::move(path), port.value_or(default_port), false};
  if (address.host[0] != '/') throw invalid_url("option socket is not an absolute path");
  const std::size_t slash = address.host.rfind('/');
  const std::string_view file = std::string_view(address.host).substr(slash + 1);
  if (!file.starts_with(socket_file_prefix)) return address;
  const std::string_view digits = file.substr(socket_file_prefix.size());
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), address.port);
  if (error != std::errc() || end != digits.data() + digits.size() || address.port == 0) {
    throw invalid_url("option socket is neither a directory nor the path of a socket");
  }
  address.host.resize(slash == 0 ? 1 : slash);
  return address;
}

// "host", "host:port", "[address]:port".
PostgresAddress replica_address(const std::string& text) {
  const Url url("postgres://" + text);
  url.reject_unknown_options();
  if (url.host().empty() || !url.user().empty() || url.password() || !url.path().empty() ||
      !url.more_hosts().empty()) {
    throw invalid_url("option replica is not of the form host or host:port");
  }
  return {url.host(), url.port().value_or(default_port), false};
}

std::vector<PostgresAddress> take_addresses(Url& url) {
  const std::string socket = url.take_option("socket").value_or("");
  if (url.host().empty() == socket.empty()) {
    throw invalid_url(
        "log url must have either a host or the option socket: url=" + url.redacted() +
        " (write postgres://user@host/database, or "
        "postgres://user@/database?socket=/run/postgresql)");
  }
  if (!socket.empty()) return {socket_address(socket, url.port())};
  std::vector<PostgresAddress> addresses = {{url.host(), url.port().value_or(default_port), false}};
  for (const Url::HostAndPort& host : url.more_hosts())
    addresses.push_back({host.host, host.port.value_or(default_port), false});
  return addresses;
}

bool take_must_be_primary(Url& url, bool default_value) {
  const std::optional<std::string> option = url.take_option("target_session_attrs");
  if (!option) return default_value;
  if (*option != "any" && *option != "read-write")
    throw invalid_url("option target_session_attrs is neither any nor read-write");
  return *option == "read-write";
}

}  // namespace

std::string PostgresAddress::text() const {
  return (host.find(':') == std::string::npos ? host : '[' + host + ']') + ':' +
         std::to_string(port);
}

std::optional<std::string> PostgresServer::login_password() const {
  std::optional<std::string> found = password;
  if (!password_file.empty()) {
    found = read_password_file(password_file);
  } else if (!found && !environment_password.empty()) {
    found = environment_password;
  }
  if (found && found->find('\0') != std::string::npos)
    throw invalid_url("password for the log has a zero byte");
  return found;
}

std::string PostgresServer::address() const {
  std::string text;
  for (const PostgresAddress& address : addresses)
    text += (text.empty() ? "" : ",") + address.text();
  return text + '/' + database;
}

PostgresServers take_postgres_servers(Url& url) {
  PostgresServers servers;
  PostgresServer& primary = servers.primary;
  primary.addresses = take_addresses(url);
  primary.must_be_primary = take_must_be_primary(url, primary.addresses.size() > 1);
  primary.database = database_of(url);
  primary.user = url.user();
  primary.password = url.password();
  primary.password_file = url.take_option("password_file").value_or("");
  primary.pass_file = url.take_option("passfile").value_or("");
  primary.service = url.take_option("service").value_or("");
  if (const char* const given = ::secure_getenv("WHYCACHE_POSTGRES_PASSWORD"))
    primary.environment_password = given;
  if (primary.password && !primary.password_file.empty())
    throw invalid_url("log url has a password and a password_file (choose one)");

  const TlsOptions tls = take_tls_options(url);
  primary.tls_ca = tls.ca;
  primary.tls_certificate = tls.certificate;
  primary.tls_key = tls.key;
  const auto decide_tls = [&](PostgresAddress& address) {
    const bool is_socket = address.host.starts_with('/');
    address.verifies_tls = !is_socket && !tls.is_off && (tls.always || !is_loopback(address.host));
  };
  for (PostgresAddress& address : primary.addresses) decide_tls(address);
  if (const std::optional<std::string> text = url.take_option("replica")) {
    PostgresServer replica = primary;
    replica.addresses = {replica_address(*text)};
    replica.must_be_primary = false;
    decide_tls(replica.addresses[0]);
    servers.replica = std::move(replica);
  }
  return servers;
}

}  // namespace whycache
