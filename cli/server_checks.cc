#include "cli/server_checks.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <system_error>

#include "base/clock.h"
#include "base/url.h"
#include "cli/format.h"
#include "log/log_name.h"

#if WHYCACHE_WITH_MEMCACHED
#include "log/memcached.h"
#endif
#if WHYCACHE_WITH_MYSQL
#include "log/mysql_connection.h"
#endif
#if WHYCACHE_WITH_POSTGRES
#include "log/postgres_connection.h"
#endif
#if WHYCACHE_WITH_POSTGRES && WHYCACHE_WITH_OPENSSL
#include <openssl/bio.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#endif
#if WHYCACHE_WITH_REDIS
#include "log/redis_check.h"
#include "log/redis_connection.h"
#endif

namespace whycache::cli {
namespace {

constexpr std::int64_t day_us = 86'400'000'000;
constexpr std::int64_t certificate_warning_us = 14 * day_us;

// Leases compare times of different machines.
constexpr std::int64_t clock_skew_max_us = 1'000'000;

[[maybe_unused]] std::chrono::milliseconds time_for_database(const ServerWaits& waits) {
  if (!waits.failed_database) return waits.server_max;
  return std::min(waits.server_max, std::chrono::duration_cast<std::chrono::milliseconds>(
                                        waits.failed_database->remaining()));
}

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

void check_mysql(const std::string& url_text, const ServerWaits& waits,
                 std::vector<Finding>& findings) {
  Url url(url_text);
  const MysqlServers servers = take_mysql_servers(url);
  const MysqlServer& primary = servers.primary;
  if (!primary.password_file.empty())
    findings.push_back(check_secret_file("password_file", primary.password_file));
  if (!primary.option_file.empty())
    findings.push_back(check_secret_file("option_file", primary.option_file));
  if (!primary.tls_key.empty()) findings.push_back(check_secret_file("tls_key", primary.tls_key));
  if (const auto left = time_for_database(waits); left.count() > 0)
    check_primary(primary, left, findings);
  if (servers.replica) check_replica(*servers.replica, waits.server_max, findings);
}

#endif

#if WHYCACHE_WITH_POSTGRES

std::optional<Finding> check_server_certificate([[maybe_unused]] PostgresConnection& connection,
                                                [[maybe_unused]] const std::string& check) {
#if WHYCACHE_WITH_OPENSSL
  auto* const session = static_cast<SSL*>(connection.tls_session());
  if (session == nullptr) return std::nullopt;  // not encrypted
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(SSL_get1_peer_certificate(session),
                                                                X509_free);
  const std::unique_ptr<BIO, decltype(&BIO_free)> text(BIO_new(BIO_s_mem()), BIO_free);
  if (!certificate || !text ||
      ASN1_TIME_print(text.get(), X509_get0_notAfter(certificate.get())) != 1)
    return std::nullopt;
  char* begin = nullptr;
  const long bytes = BIO_get_mem_data(text.get(), &begin);
  return check_certificate_end(check, std::string(begin, static_cast<std::size_t>(bytes)),
                               wall_time_us());
#else
  return std::nullopt;
#endif
}

// The log itself refuses such a server, unless its URL has `durable=off`.
Finding check_durability(const PostgresServerFacts& facts) {
  const std::string found =
      fmt::format("fsync={} full_page_writes={} synchronous_commit={}", facts.fsync,
                  facts.full_page_writes, facts.synchronous_commit);
  if (facts.fsync != "off" && facts.full_page_writes != "off" && facts.synchronous_commit != "off")
    return Finding::ok("durability", found);
  return Finding::warn(
      "durability", found,
      "turn them on at the server: after a crash it may lose updates that machines "
      "have applied");
}

Finding check_privileges(PostgresConnection& connection, const std::string& schema,
                         const Deadline& deadline) {
  std::string quoted = "\"";
  for (const char c : schema) quoted += c == '"' ? "\"\"" : std::string(1, c);
  quoted += "\".whycache_";
  const std::string logs = quoted + "logs";
  const std::string updates = quoted + "updates";
  const std::string parts = quoted + "parts";
  const PostgresRows rows = connection.query(
      {"SELECT current_user,"
       " has_table_privilege($1, 'SELECT') AND has_table_privilege($2, 'SELECT')"
       " AND has_table_privilege($3, 'SELECT'),"
       " has_table_privilege($2, 'INSERT'),"
       " has_column_privilege($1, 'append_lock', 'UPDATE'),"
       " has_table_privilege($1, 'UPDATE') AND has_table_privilege($2, 'DELETE')"
       " AND has_table_privilege($3, 'INSERT') AND has_table_privilege($3, 'DELETE')",
       {PostgresValue::text(logs), PostgresValue::text(updates), PostgresValue::text(parts)}},
      deadline);
  const auto may = [&](int column) { return rows.number(0, column) != 0; };
  const std::string user = "user " + std::string(rows.at(0, 0).value_or("")) + " may ";
  constexpr const char* next = "grant what `whycache init` prints for its role";
  if (!may(1)) return Finding::warn("privileges", user + "not read all tables of the log", next);
  if (may(2) != may(3)) {
    return Finding::warn(
        "privileges",
        user + (may(2) ? "insert updates, but not lock the log for it (UPDATE of append_lock)"
                       : "lock the log for a write, but not insert updates"),
        next);
  }
  if (!may(2)) return Finding::ok("privileges", user + "read the log, and not write to it");
  return Finding::ok("privileges", user + (may(4) ? "read, write and rewrite the log"
                                                  : "read the log and write to it"));
}

void check_primary(const PostgresServer& server, const std::string& schema,
                   std::chrono::milliseconds timeout, std::vector<Finding>& findings) {
  const Deadline deadline(timeout);
  try {
    std::optional<PostgresConnectionAttempt> attempt;
    const auto connection = connect_postgres(server, timeout, deadline, attempt);
    if (connection->facts().is_in_recovery) {
      findings.push_back(Finding::warn("server",
                                       server.address() + " is in recovery, as a replica is",
                                       "name the primary in the url: every write fails"));
    } else {
      findings.push_back(Finding::ok("server", server.address() + " accepts writes"));
    }
    if (connection->is_pooled()) {
      findings.push_back(Finding::warn(
          "pooler", server.address() + " is a pooler: nothing can listen through it",
          "let followers connect to the server itself if updates should arrive at once"));
    }
    findings.push_back(check_durability(connection->facts()));
    findings.push_back(check_server_clock([&] {
      const PostgresRows rows = connection->query(
          {"SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"}, deadline);
      return static_cast<std::int64_t>(rows.number(0, 0));
    }));
    if (std::optional<Finding> certificate = check_server_certificate(*connection, "certificate"))
      findings.push_back(*std::move(certificate));
    findings.push_back(check_privileges(*connection, schema, deadline));
  } catch (const PostgresFailure&) {  // reported by the check of the log
  } catch (const Error&) {
  }
}

void check_replica(const PostgresServer& server, std::chrono::milliseconds timeout,
                   std::vector<Finding>& findings) {
  constexpr const char* next =
      "start it, or correct replica= in the url: until then the primary sends all updates";
  try {
    std::optional<PostgresConnectionAttempt> attempt;
    const auto connection = connect_postgres(server, timeout, Deadline(timeout), attempt);
    findings.push_back(Finding::ok("replica", server.address() + " answers"));
    if (std::optional<Finding> certificate =
            check_server_certificate(*connection, "replica certificate"))
      findings.push_back(*std::move(certificate));
  } catch (const PostgresFailure& failure) {
    findings.push_back(
        Finding::warn("replica", server.address() + " does not answer: " + failure.reason, next));
  } catch (const Error& error) {
    findings.push_back(Finding::warn("replica", error.what(), next));
  }
}

void check_postgres(const std::string& url_text, const ServerWaits& waits,
                    std::vector<Finding>& findings) {
  Url url(url_text);
  const PostgresServers servers = take_postgres_servers(url);
  const PostgresServer& primary = servers.primary;
  if (!primary.password_file.empty())
    findings.push_back(check_secret_file("password_file", primary.password_file));
  if (!primary.pass_file.empty())
    findings.push_back(check_secret_file("passfile", primary.pass_file));
  if (!primary.tls_key.empty()) findings.push_back(check_secret_file("tls_key", primary.tls_key));
  const std::string schema = url.take_option("schema").value_or("public");
  if (const auto left = time_for_database(waits); left.count() > 0)
    check_primary(primary, schema, left, findings);
  if (servers.replica) check_replica(*servers.replica, waits.server_max, findings);
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

#if WHYCACHE_WITH_REDIS

// What an operator does about a failure, without the parentheses.
std::string next_step_for_redis(const std::string& failure) {
  const std::string hint = redis_hint(failure);
  return hint.empty() ? "start it, or correct redis= and redis_tls= in the url"
                      : hint.substr(2, hint.size() - 3);
}

Finding redis_warning(const std::string& found, const std::string& next_step) {
  return Finding::warn("redis", found,
                       next_step +
                           ": until then each machine asks the log itself, and sees updates "
                           "seconds later");
}

Finding describe_redis(const std::string& address, const std::vector<RedisRefusal>& refusals) {
  if (refusals.empty()) return Finding::ok("redis", address + " does all that is needed");
  std::string found = address;
  std::vector<std::string> next_steps;
  for (const RedisRefusal& refusal : refusals) {
    found += fmt::format("{} refuses {}: {}", &refusal == &refusals[0] ? "" : ";",
                         fmt::join(refusal.commands, ", "), refusal.error);
    const std::string next = next_step_for_redis(refusal.error);
    if (std::find(next_steps.begin(), next_steps.end(), next) == next_steps.end())
      next_steps.push_back(next);
  }
  return redis_warning(found, fmt::format("{}", fmt::join(next_steps, "; ")));
}

void check_redis(const std::string& url_text, const std::string& log_prefix,
                 std::chrono::milliseconds timeout, std::vector<Finding>& findings) {
  Url url(url_text);
  std::string address;
  std::string failure = "no answer before the deadline";
  try {
    const RedisServer server = take_redis_server(url);
    address = server.address.text();
    if (!server.password_file.empty())
      findings.push_back(check_secret_file("redis_password_file", server.password_file));
    if (!server.tls_key.empty())
      findings.push_back(check_secret_file("redis_tls_key", server.tls_key));
    const Deadline deadline(timeout);
    std::optional<RedisConnectionAttempt> attempt;
    if (const std::unique_ptr<RedisConnection> connection =
            connect_redis(server, timeout, deadline, attempt)) {
      if (const std::string end = connection->certificate_end(); !end.empty())
        findings.push_back(
            check_certificate_end("redis certificate", end, wall_time_us(), "Redis"));
      findings.push_back(
          describe_redis(address, find_redis_refusals(*connection, log_prefix, deadline)));
      return;
    }
  } catch (const RedisFailure& thrown) {
    failure = thrown.reason;
  } catch (const Error& thrown) {
    failure = thrown.what();
  }
  findings.push_back(redis_warning(address + (address.empty() ? "" : ": ") + failure,
                                   next_step_for_redis(failure)));
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
                              std::int64_t now_us, const std::string& server) {
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
      "renew the certificate of the server: once it has expired, no machine reaches " + server);
}

std::vector<Finding> check_servers([[maybe_unused]] const std::string& log_url,
                                   [[maybe_unused]] const std::string& tier_prefix,
                                   [[maybe_unused]] const ServerWaits& waits) {
  [[maybe_unused]] const std::chrono::milliseconds timeout = waits.server_max;
  std::vector<Finding> findings;
  try {
    const std::string url(without_tier(log_url));
#if WHYCACHE_WITH_MEMCACHED
    if (log_url.starts_with("memcached+")) check_memcached(url, timeout, findings);
#endif
#if WHYCACHE_WITH_REDIS
    if (log_url.starts_with("redis+")) check_redis(url, tier_prefix, timeout, findings);
#endif
#if WHYCACHE_WITH_MYSQL
    if (url.starts_with("mysql:")) check_mysql(url, waits, findings);
#endif
#if WHYCACHE_WITH_POSTGRES
    if (url.starts_with("postgres:") || url.starts_with("postgresql:"))
      check_postgres(url, waits, findings);
#endif
  } catch (const Error&) {  // a wrong URL, which the check of the log reports
  }
  return findings;
}

}  // namespace whycache::cli
