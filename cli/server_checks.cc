#include "cli/server_checks.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string_view>
#include <system_error>

#include "base/clock.h"
#include "base/url.h"
#include "cli/format.h"

#if WHYCACHE_WITH_MEMCACHED
#include "log/memcached.h"
#endif
#if WHYCACHE_WITH_MYSQL
#include "log/mysql_connection.h"
#endif
#if WHYCACHE_WITH_POSTGRES
#include "log/postgres_connection.h"
#endif

namespace whycache::cli {
namespace {

constexpr std::int64_t day_us = 86'400'000'000;
constexpr std::int64_t certificate_warning_us = 14 * day_us;
constexpr std::string_view memcached_prefix = "memcached+";

// Leases compare times of different machines.
constexpr std::int64_t clock_skew_max_us = 1'000'000;

// `ask_server` returns the server's time, in microseconds since 1970.
[[maybe_unused]] Finding check_server_clock(const std::function<std::int64_t()>& ask_server) {
  const std::int64_t begin_us = wall_time_us();
  const std::int64_t server_us = ask_server();
  const std::int64_t end_us = wall_time_us();
  const std::int64_t error_us = (end_us - begin_us) / 2;
  const std::int64_t skew_us = server_us - (begin_us + error_us);
  const std::int64_t certain_us = std::max<std::int64_t>(0, std::abs(skew_us) - error_us);
  const std::string found = fmt::format(
      "the server is {} {}", format_duration(std::chrono::microseconds(std::abs(skew_us))),
      skew_us < 0 ? "behind" : "ahead");
  if (certain_us <= clock_skew_max_us) return Finding::ok("server clock", found);
  return Finding::warn("server clock", found,
                       "set both clocks by NTP: leases and the times in `whycache log` depend on "
                       "them");
}

#if WHYCACHE_WITH_MYSQL

std::optional<Finding> check_server_certificate(MysqlConnection& connection,
                                                const std::string& check) {
  std::string not_after;
  MysqlRows rows = connection.query("SHOW SESSION STATUS LIKE 'Ssl_server_not_after'");
  while (rows.next()) not_after = rows.at(1).value_or("");
  if (not_after.empty()) return std::nullopt;  // not encrypted
  return check_certificate_end(check, not_after, wall_time_us());
}

void check_primary(const MysqlServer& server, std::chrono::milliseconds timeout,
                   std::vector<Finding>& findings) {
  try {
    std::optional<MysqlConnectionAttempt> attempt;
    const auto connection = connect_mysql(server, timeout, Deadline(timeout), attempt);
    const std::string& read_only = connection->variable("read_only");
    if (read_only.empty() || read_only == "OFF") {
      findings.push_back(Finding::ok("server", server.address() + " accepts writes"));
    } else {
      findings.push_back(Finding::warn("server",
                                       server.address() + " is read-only: read_only=" + read_only,
                                       "name the primary in the url, or turn off read_only there: "
                                       "every write fails"));
    }
    findings.push_back(check_server_clock([&] {
      MysqlRows rows = connection->query("SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)");
      std::int64_t server_us = 0;
      while (rows.next()) server_us = static_cast<std::int64_t>(rows.number(0));
      return server_us;
    }));
    if (std::optional<Finding> certificate = check_server_certificate(*connection, "certificate"))
      findings.push_back(*std::move(certificate));
  } catch (const MysqlFailure&) {  // reported by the check of the log
  } catch (const Error&) {
  }
}

void check_replica(const MysqlServer& server, std::chrono::milliseconds timeout,
                   std::vector<Finding>& findings) {
  constexpr const char* next =
      "start it, or correct replica= in the url: until then the primary sends all updates";
  try {
    std::optional<MysqlConnectionAttempt> attempt;
    const auto connection = connect_mysql(server, timeout, Deadline(timeout), attempt);
    findings.push_back(Finding::ok("replica", server.address() + " answers"));
    if (std::optional<Finding> certificate =
            check_server_certificate(*connection, "replica certificate"))
      findings.push_back(*std::move(certificate));
  } catch (const MysqlFailure& failure) {
    findings.push_back(
        Finding::warn("replica", server.address() + " does not answer: " + failure.reason, next));
  } catch (const Error& error) {
    findings.push_back(Finding::warn("replica", error.what(), next));
  }
}

void check_mysql(const std::string& url_text, std::chrono::milliseconds timeout,
                 std::vector<Finding>& findings) {
  Url url(url_text);
  const MysqlServers servers = take_mysql_servers(url);
  const MysqlServer& primary = servers.primary;
  if (!primary.password_file.empty())
    findings.push_back(check_secret_file("password_file", primary.password_file));
  if (!primary.option_file.empty())
    findings.push_back(check_secret_file("option_file", primary.option_file));
  if (!primary.tls_key.empty()) findings.push_back(check_secret_file("tls_key", primary.tls_key));
  check_primary(primary, timeout, findings);
  if (servers.replica) check_replica(*servers.replica, timeout, findings);
}

#endif

#if WHYCACHE_WITH_POSTGRES

void check_postgres(const std::string& url_text, std::chrono::milliseconds timeout,
                    std::vector<Finding>& findings) {
  Url url(url_text);
  const PostgresServers servers = take_postgres_servers(url);
  const PostgresServer& primary = servers.primary;
  if (!primary.password_file.empty())
    findings.push_back(check_secret_file("password_file", primary.password_file));
  if (!primary.pass_file.empty())
    findings.push_back(check_secret_file("passfile", primary.pass_file));
  if (!primary.tls_key.empty()) findings.push_back(check_secret_file("tls_key", primary.tls_key));
  const Deadline deadline(timeout);
  try {
    std::optional<PostgresConnectionAttempt> attempt;
    const auto connection = connect_postgres(primary, timeout, deadline, attempt);
    if (connection->facts().is_in_recovery) {
      findings.push_back(Finding::warn("server",
                                       primary.address() + " is in recovery, as a replica is",
                                       "name the primary in the url: every write fails"));
    } else {
      findings.push_back(Finding::ok("server", primary.address() + " accepts writes"));
    }
    if (connection->is_pooled()) {
      findings.push_back(Finding::warn(
          "pooler", primary.address() + " is a pooler: nothing can listen through it",
          "let followers connect to the server itself if updates should arrive at once"));
    }
    findings.push_back(check_server_clock([&] {
      const PostgresRows rows = connection->query(
          {"SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"}, deadline);
      return static_cast<std::int64_t>(rows.number(0, 0));
    }));
  } catch (const PostgresFailure&) {  // reported by the check of the log
  } catch (const Error&) {
  }
  if (!servers.replica) return;
  try {
    std::optional<PostgresConnectionAttempt> attempt;
    connect_postgres(*servers.replica, timeout, Deadline(timeout), attempt);
    findings.push_back(Finding::ok("replica", servers.replica->address() + " answers"));
  } catch (const PostgresFailure& failure) {
    findings.push_back(Finding::warn(
        "replica", servers.replica->address() + " does not answer: " + failure.reason,
        "start it, or correct replica= in the url: until then the primary sends all updates"));
  } catch (const Error& error) {
    findings.push_back(Finding::warn("replica", error.what(), "correct replica= in the url"));
  }
}

#endif

#if WHYCACHE_WITH_MEMCACHED

void check_memcached(const std::string& url_text, std::chrono::milliseconds timeout,
                     std::vector<Finding>& findings) {
  Url url(url_text);
  const std::string servers = url.take_option("memcached").value_or("");
  for (std::size_t begin = 0; begin < servers.size();) {
    const std::size_t end = std::min(servers.find(',', begin), servers.size());
    const std::string address = servers.substr(begin, end - begin);
    begin = end + 1;
    Memcached client(parse_memcached_servers(address), timeout);
    if (client.get({"whycache.doctor"})) {
      findings.push_back(Finding::ok("memcached", address + " answers"));
    } else {
      findings.push_back(Finding::warn(
          "memcached", address + " does not answer",
          "start it, or correct memcached= in the url: until then each machine asks the log "
          "itself, and sees updates seconds later"));
    }
  }
}

#endif

}  // namespace

Finding check_secret_file(const std::string& what, const std::string& path) {
  struct stat status;
  if (::stat(path.c_str(), &status) != 0) {
    return Finding::bad(what, path + ": " + std::system_category().message(errno),
                        "correct the path in the url, or create the file",
                        errno == EACCES ? ExitCode::permission : ExitCode::usage);
  }
  const std::string found = fmt::format("{}, mode {:04o}", path, status.st_mode & 07777);
  if ((status.st_mode & 007) != 0)
    return Finding::warn(what, found + ": other users have access", "chmod o= " + path);
  if ((status.st_mode & 020) != 0)
    return Finding::warn(what, found + ": its group can change it", "chmod g-w " + path);
  return Finding::ok(what, found);
}

Finding check_certificate_end(const std::string& check, const std::string& not_after,
                              std::int64_t now_us) {
  struct tm time = {};
  const char* const end = ::strptime(not_after.c_str(), "%b %d %H:%M:%S %Y", &time);
  if (end == nullptr)
    return Finding::ok(check, "valid until a time that is not understood: " + not_after);
  const std::int64_t left_us = std::int64_t{::timegm(&time)} * 1'000'000 - now_us;
  const std::string found = "valid until " + not_after;
  if (left_us >= certificate_warning_us) return Finding::ok(check, found);
  return Finding::warn(
      check,
      left_us <= 0 ? found + ": it has expired"
                   : fmt::format("{}: {} days are left", found, left_us / day_us),
      "renew the certificate of the server: once it has expired, no machine reaches the log");
}

std::vector<Finding> check_servers([[maybe_unused]] const std::string& log_url,
                                   [[maybe_unused]] std::chrono::milliseconds timeout) {
  std::vector<Finding> findings;
  try {
    std::string url = log_url;
    if (url.starts_with(memcached_prefix)) {
      url.erase(0, memcached_prefix.size());
#if WHYCACHE_WITH_MEMCACHED
      check_memcached(url, timeout, findings);
#endif
    }
#if WHYCACHE_WITH_MYSQL
    if (url.starts_with("mysql:")) check_mysql(url, timeout, findings);
#endif
#if WHYCACHE_WITH_POSTGRES
    if (url.starts_with("postgres:") || url.starts_with("postgresql:"))
      check_postgres(url, timeout, findings);
#endif
  } catch (const Error&) {  // a wrong URL, which the check of the log reports
  }
  return findings;
}

}  // namespace whycache::cli
