// From the URL to the log it names.
#include <charconv>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>

#include <whycache/log.h>

#include "base/url.h"
#include "log/file_log.h"
#include "log/log_name.h"
#include "log/memory_log.h"
#if WHYCACHE_WITH_MYSQL
#include "log/mysql_log.h"
#endif
#if WHYCACHE_WITH_SQLITE
#include "log/sqlite_log.h"
#endif

namespace whycache {
namespace {

std::chrono::milliseconds take_deadline(Url& url) {
  constexpr std::chrono::milliseconds by_default{10'000};
  constexpr int longest_ms = 3'600'000;
  const std::optional<std::string> option = url.take_option("deadline_ms");
  if (!option) return by_default;
  int deadline_ms = 0;
  const char* end = option->data() + option->size();
  const auto [parsed_end, error] = std::from_chars(option->data(), end, deadline_ms);
  if (error != std::errc() || parsed_end != end || deadline_ms < 1 || deadline_ms > longest_ms) {
    throw Error(ErrorKind::invalid, "option deadline_ms is not a number from 1 to " + std::to_string(longest_ms));
  }
  return std::chrono::milliseconds(deadline_ms);
}

std::unique_ptr<Log> open_memory_log(Url& url) {
  url.take_instance();
  url.refuse_unknown_options();
  if (!url.host().empty() || !url.user().empty() || url.port()) {
    throw Error(ErrorKind::invalid, "memory log has no host (write memory: or memory:name)");
  }
  if (url.path().empty()) return std::make_unique<MemoryLog>();
  return MemoryLog::shared(log_name(url).substr(std::string_view("memory:").size()));
}

std::unique_ptr<Log> open_file_log(Url& url) {
  FileLogOptions options;
  options.folder = url.file_path();
  options.instance = url.take_instance();
  options.name = log_name(url);
  options.deadline = take_deadline(url);
  url.refuse_unknown_options();
  return std::make_unique<FileLog>(std::move(options));
}

std::unique_ptr<Log> open_sqlite_log([[maybe_unused]] Url& url) {
#if WHYCACHE_WITH_SQLITE
  SqliteLogOptions options;
  options.path = url.file_path();
  options.instance = url.take_instance();
  options.name = log_name(url);
  options.deadline = take_deadline(url);
  url.refuse_unknown_options();
  return std::make_unique<SqliteLog>(std::move(options));
#else
  throw Error(ErrorKind::invalid,
              "whycache was built without the sqlite log (install SQLite's development files, "
              "in Debian libsqlite3-dev, and build it again)");
#endif
}

std::unique_ptr<Log> open_mysql_log([[maybe_unused]] Url& url) {
#if WHYCACHE_WITH_MYSQL
  MysqlLogOptions options;
  MysqlServers servers = take_mysql_servers(url);
  options.server = std::move(servers.primary);
  options.replica = std::move(servers.replica);
  options.instance = url.take_instance();
  options.name = log_name(url);
  options.deadline = take_deadline(url);
  const std::string durable = url.take_option("durable").value_or("on");
  if (durable != "on" && durable != "off") throw Error(ErrorKind::invalid, "option durable is neither on nor off");
  options.durable = durable == "on";
  url.refuse_unknown_options();
  return std::make_unique<MysqlLog>(std::move(options));
#else
  throw Error(ErrorKind::invalid,
              "whycache was built without the mysql log (install MariaDB's client library with its development files, "
              "in Debian libmariadb-dev, and build it again)");
#endif
}

struct Scheme {
  std::string_view name;
  std::string_view example;
  std::unique_ptr<Log> (*open)(Url& url);
};

constexpr Scheme schemes[] = {
    {"memory", "memory:name", open_memory_log},
    {"file", "file:///dir", open_file_log},
    {"sqlite", "sqlite:///file.db", open_sqlite_log},
    {"mysql", "mysql://user@host/database", open_mysql_log},
};

}  // namespace

std::unique_ptr<Log> open_log(std::string_view text) {
  Url url(text);
  std::string examples;
  for (const Scheme& scheme : schemes) {
    if (scheme.name == url.scheme()) return scheme.open(url);
    examples += (examples.empty() ? "" : ", ") + std::string(scheme.example);
  }
  throw Error(ErrorKind::invalid,
              "log url has an unknown scheme: scheme=" + url.scheme() + " (known: " + examples + ")");
}

}  // namespace whycache
