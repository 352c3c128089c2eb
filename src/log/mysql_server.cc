#include "log/mysql_server.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "log/server_options.h"

namespace whycache {
namespace {

constexpr std::size_t database_bytes_max = 64;

Error invalid(const std::string& message) { return Error(ErrorKind::invalid, message); }

std::string_view trim(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

// Returns the line up to a '#' outside of quotes.
std::string_view strip_comment(std::string_view line) {
  char quote = '\0';
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (quote != '\0' && line[i] == '\\') {
      ++i;
    } else if (quote != '\0') {
      if (line[i] == quote) quote = '\0';
    } else if (line[i] == '\'' || line[i] == '"') {
      quote = line[i];
    } else if (line[i] == '#') {
      return line.substr(0, i);
    }
  }
  return line;
}

std::string parse_option_value(std::string_view text) {
  if (text.size() >= 2 && (text.front() == '"' || text.front() == '\'') &&
      text.back() == text.front()) {
    text = text.substr(1, text.size() - 2);
  }
  std::string value;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      value += text[i];
      continue;
    }
    const char escaped = text[++i];
    switch (escaped) {
      case 'n': value += '\n'; break;
      case 't': value += '\t'; break;
      case 'r': value += '\r'; break;
      case 'b': value += '\b'; break;
      case 's': value += ' '; break;
      case '"':
      case '\'':
      case '\\': value += escaped; break;
      default: value.append({'\\', escaped}); break;
    }
  }
  return value;
}

// Returns the database, which is the path of the URL.
std::string parse_database(const Url& url) {
  const std::string& path = url.path();
  std::string database = path.empty() ? "" : path.substr(1);
  if (database.empty() || database.size() > database_bytes_max ||
      database.find('/') != std::string::npos) {
    throw invalid("log url names no database: url=" + url.redacted() +
                  " (write mysql://user@host/database)");
  }
  return database;
}

// "host", "host:port", "[address]:port".
void set_address(MysqlServer& server, std::string_view text) {
  const Url url("mysql://" + std::string(text));
  url.reject_unknown_options();
  if (url.host().empty() || !url.user().empty() || url.password() || !url.path().empty()) {
    throw invalid("option replica is not of the form host or host:port");
  }
  server.host = url.host();
  server.port = url.port().value_or(3306);
}

void take_password(Url& url, MysqlServer& server) {
  server.password = url.password();
  server.password_file = url.take_option("password_file").value_or("");
  server.option_file = url.take_option("option_file").value_or("");
  if (const char* const given = ::secure_getenv("WHYCACHE_MYSQL_PASSWORD"))
    server.environment_password = given;
  if (server.password && !server.password_file.empty()) {
    throw invalid("log url has a password and a password_file (choose one)");
  }
}

}  // namespace

MysqlOptionFile parse_mysql_option_file(std::string_view text) {
  MysqlOptionFile file;
  bool is_ours = false;
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    line = trim(strip_comment(trim(line)));
    if (line.empty() || line[0] == ';' || line[0] == '!') continue;
    if (line[0] == '[') {
      const std::string_view group = trim(line.substr(1, line.find(']') - 1));
      is_ours = group == "client" || group == "mysql" || group == "whycache";
      continue;
    }
    const std::size_t equals = line.find('=');
    if (!is_ours || equals == std::string_view::npos) continue;
    const std::string_view key = trim(line.substr(0, equals));
    if (key == "user") file.user = parse_option_value(trim(line.substr(equals + 1)));
    if (key == "password") file.password = parse_option_value(trim(line.substr(equals + 1)));
  }
  return file;
}

MysqlLogin MysqlServer::login() const {
  MysqlLogin login{user, password.value_or("")};
  bool has_password = password.has_value();
  if (!password_file.empty()) {
    login.password = read_password_file(password_file);
    has_password = true;
  }
  if (!option_file.empty()) {
    const MysqlOptionFile file = parse_mysql_option_file(read_secret("option_file", option_file));
    if (login.user.empty()) login.user = file.user.value_or("");
    if (!has_password && file.password) {
      login.password = *file.password;
      has_password = true;
    }
  }
  if (!has_password) login.password = environment_password;
  if (login.password.find('\0') != std::string::npos)
    throw invalid("password for the log has a zero byte");
  return login;
}

std::string MysqlServer::address() const {
  if (host.empty()) return socket + '/' + database;
  return (host.find(':') == std::string::npos ? host : '[' + host + ']') + ':' +
         std::to_string(port) + '/' + database;
}

MysqlServers take_mysql_servers(Url& url) {
  MysqlServers servers;
  MysqlServer& primary = servers.primary;
  primary.host = url.host();
  primary.port = url.port().value_or(3306);
  primary.database = parse_database(url);
  primary.user = url.user();
  primary.socket = url.take_option("socket").value_or("");
  if (primary.host.empty() == primary.socket.empty()) {
    throw invalid("log url must have either a host or the option socket: url=" + url.redacted() +
                  " (write mysql://user@host/database, or "
                  "mysql://user@/database?socket=/run/mysqld/mysqld.sock)");
  }
  if (!primary.socket.empty() && primary.socket[0] != '/')
    throw invalid("option socket is not an absolute path");
  take_password(url, primary);
  const TlsOptions tls = take_tls_options(url);
  primary.tls_ca = tls.ca;
  primary.tls_certificate = tls.certificate;
  primary.tls_key = tls.key;
  const auto must_verify = [&](const MysqlServer& server) {
    return !tls.is_off && (tls.always || (server.socket.empty() && !is_loopback(server.host)));
  };
  primary.verifies_tls = must_verify(primary);
  if (const std::optional<std::string> address = url.take_option("replica")) {
    MysqlServer replica = primary;
    replica.socket.clear();
    set_address(replica, *address);
    replica.verifies_tls = must_verify(replica);
    servers.replica = std::move(replica);
  }
  return servers;
}

}  // namespace whycache
