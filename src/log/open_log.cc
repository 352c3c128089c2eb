#include <algorithm>
#include <charconv>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "log/open_log.h"

#include "base/url.h"
#include "log/file_log.h"
#include "log/log_name.h"
#include "log/memory_log.h"
#include "log/tiered_log.h"
#if WHYCACHE_WITH_MEMCACHED
#include "log/memcached_store.h"
#endif
#if WHYCACHE_WITH_MYSQL
#include "log/mysql_log.h"
#endif
#if WHYCACHE_WITH_POSTGRES
#include "log/postgres_log.h"
#endif
#if WHYCACHE_WITH_REDIS
#include "log/redis_store.h"
#endif
#if WHYCACHE_WITH_SQLITE
#include "log/sqlite_log.h"
#endif

namespace whycache {
namespace {

// Takes an option that is a number from 1 to `max`. Throws Error(invalid).
int take_number(Url& url, const std::string& name, int default_value, int max) {
  const std::optional<std::string> option = url.take_option(name);
  if (!option) return default_value;
  int number = 0;
  const char* end = option->data() + option->size();
  const auto [parsed_end, error] = std::from_chars(option->data(), end, number);
  if (error != std::errc() || parsed_end != end || number < 1 || number > max) {
    throw Error(ErrorKind::invalid,
                "option " + name + " is not a number from 1 to " + std::to_string(max));
  }
  return number;
}

constexpr std::chrono::milliseconds deadline_max{3'600'000};

std::chrono::milliseconds take_deadline(Url& url, std::chrono::milliseconds default_value) {
  return std::chrono::milliseconds(take_number(url, "deadline_ms",
                                               static_cast<int>(default_value.count()),
                                               static_cast<int>(deadline_max.count())));
}

// Takes an option that is on or off. Throws Error(invalid).
bool take_switch(Url& url, const std::string& name) {
  const std::string value = url.take_option(name).value_or("on");
  if (value != "on" && value != "off")
    throw Error(ErrorKind::invalid, "option " + name + " is neither on nor off");
  return value == "on";
}

// Returns the opener of a log that takes options and whether to create it.
template <typename Log, typename LogOptions>
LogOpener opener_of(LogOptions options, bool may_create) {
  return [options = std::move(options), may_create](IfMissing if_missing) {
    const bool creates = if_missing == IfMissing::create_against_url ||
                         (if_missing == IfMissing::create && may_create);
    return std::make_unique<Log>(options, creates ? IfMissing::create : IfMissing::fail);
  };
}

LogOpener parse_memory_log(Url& url, std::chrono::milliseconds /*deadline*/) {
  url.take_instance();
  take_switch(url, "create");
  url.reject_unknown_options();
  if (!url.host().empty() || !url.user().empty() || url.port()) {
    throw Error(ErrorKind::invalid, "memory log has no host (write memory: or memory:name)");
  }
  // Such a log begins with the process: there is none that could be missing.
  if (url.path().empty()) return [](IfMissing) { return std::make_unique<MemoryLog>(); };
  return [name = log_name(url).substr(std::string_view("memory:").size())](IfMissing) {
    return MemoryLog::shared(name);
  };
}

LogOpener parse_file_log(Url& url, std::chrono::milliseconds deadline) {
  FileLogOptions options;
  options.directory = url.file_path();
  options.instance = url.take_instance();
  options.name = log_name(url);
  options.deadline = take_deadline(url, deadline);
  const bool may_create = take_switch(url, "create");
  url.reject_unknown_options();
  return opener_of<FileLog>(std::move(options), may_create);
}

LogOpener parse_sqlite_log([[maybe_unused]] Url& url,
                           [[maybe_unused]] std::chrono::milliseconds deadline) {
#if WHYCACHE_WITH_SQLITE
  SqliteLogOptions options;
  options.path = url.file_path();
  options.instance = url.take_instance();
  options.name = log_name(url);
  options.deadline = take_deadline(url, deadline);
  const bool may_create = take_switch(url, "create");
  url.reject_unknown_options();
  return opener_of<SqliteLog>(std::move(options), may_create);
#else
  throw Error(ErrorKind::invalid,
              "whycache was built without the sqlite log (install SQLite's development files, "
              "in Debian libsqlite3-dev, and build it again)");
#endif
}

LogOpener parse_mysql_log([[maybe_unused]] Url& url,
                          [[maybe_unused]] std::chrono::milliseconds deadline) {
#if WHYCACHE_WITH_MYSQL
  MysqlLogOptions options;
  MysqlServers servers = take_mysql_servers(url);
  options.server = std::move(servers.primary);
  options.replica = std::move(servers.replica);
  options.instance = url.take_instance();
  options.name = log_name(url);
  options.deadline = take_deadline(url, deadline);
  options.durable = take_switch(url, "durable");
  const bool may_create = take_switch(url, "create");
  url.reject_unknown_options();
  return opener_of<MysqlLog>(std::move(options), may_create);
#else
  throw Error(ErrorKind::invalid,
              "whycache was built without the mysql log (install MariaDB's client library with its "
              "development files, in Debian libmariadb-dev, and build it again)");
#endif
}

LogOpener parse_postgres_log([[maybe_unused]] Url& url,
                             [[maybe_unused]] std::chrono::milliseconds deadline) {
#if WHYCACHE_WITH_POSTGRES
  PostgresLogOptions options;
  options.instance = url.take_instance();
  options.schema = url.take_option("schema").value_or("public");
  options.name = log_name(url);
  PostgresServers servers = take_postgres_servers(url);
  options.server = std::move(servers.primary);
  options.replica = std::move(servers.replica);
  options.deadline = take_deadline(url, deadline);
  options.durable = take_switch(url, "durable");
  options.notify = take_switch(url, "notify");
  const bool may_create = take_switch(url, "create");
  url.reject_unknown_options();
  return opener_of<PostgresLog>(std::move(options), may_create);
#else
  throw Error(ErrorKind::invalid,
              "whycache was built without the postgres log (install PostgreSQL's client library "
              "with its development files, in Debian libpq-dev, and build it again)");
#endif
}

LogOpener parse_underlying_log(Url& url, std::chrono::milliseconds deadline);

// Takes the options that all tiers have.
[[maybe_unused]] TierOptions take_tier_options(Url& url, const std::string& timeout_option) {
  TierOptions options;
  options.confirm_interval = std::chrono::seconds(take_number(url, "confirm_s", 2, 3'600));
  options.own_poll_interval = std::chrono::seconds(take_number(url, "ask_s", 3'600, 86'400));
  options.timeout = std::chrono::milliseconds(take_number(url, timeout_option, 100, 10'000));
  return options;
}

// Returns the opener of the log that `url` names, with a tier in front of it.
[[maybe_unused]] LogOpener opener_behind(MakeTierStore make_tier, const TierOptions& options,
                                         Url& url, std::chrono::milliseconds deadline) {
  return [make_tier = std::move(make_tier), options,
          open = parse_underlying_log(url, deadline)](IfMissing if_missing) {
    return std::make_unique<TieredLog>(open(if_missing), make_tier, options);
  };
}

// `url` is that of the log behind memcached, with the options of both.
LogOpener parse_memcached_tier([[maybe_unused]] Url& url,
                               [[maybe_unused]] std::chrono::milliseconds deadline) {
#if WHYCACHE_WITH_MEMCACHED
  const std::optional<std::string> option = url.take_option("memcached");
  if (!option) {
    throw Error(ErrorKind::invalid,
                "log url does not say where memcached is (option memcached=host:port, several with "
                "commas between, or the path of a socket)");
  }
  const TierOptions options = take_tier_options(url, "memcached_timeout_ms");
  return opener_behind(
      [servers = parse_memcached_servers(*option), timeout = options.timeout] {
        return std::make_unique<MemcachedStore>(servers, timeout);
      },
      options, url, deadline);
#else
  throw Error(ErrorKind::invalid,
              "whycache was built without memcached (install libmemcached with its development "
              "files, in Debian libmemcached-dev, and build it again)");
#endif
}

// The same for Redis.
LogOpener parse_redis_tier([[maybe_unused]] Url& url,
                           [[maybe_unused]] std::chrono::milliseconds deadline) {
#if WHYCACHE_WITH_REDIS
  const RedisServer server = take_redis_server(url);
  const TierOptions options = take_tier_options(url, "redis_timeout_ms");
  return opener_behind(
      [server, timeout = options.timeout] { return std::make_unique<RedisStore>(server, timeout); },
      options, url, deadline);
#else
  throw Error(ErrorKind::invalid,
              "whycache was built without Redis (install hiredis with its development files, in "
              "Debian libhiredis-dev, and build it again)");
#endif
}

struct Tier {
  std::string_view prefix;
  LogOpener (*parse)(Url& url, std::chrono::milliseconds deadline);
};

constexpr Tier tiers[] = {
    {"memcached+", parse_memcached_tier},
    {"redis+", parse_redis_tier},
};

struct Scheme {
  std::string_view name;
  std::string_view example;
  LogOpener (*parse)(Url& url, std::chrono::milliseconds deadline);
};

constexpr Scheme schemes[] = {
    {"memory", "memory:name", parse_memory_log},
    {"file", "file:///dir", parse_file_log},
    {"sqlite", "sqlite:///file.db", parse_sqlite_log},
    {"mysql", "mysql://user@host/database", parse_mysql_log},
    {"postgres", "postgres://user@host/database", parse_postgres_log},
    {"postgresql", "", parse_postgres_log},
};

LogOpener parse_underlying_log(Url& url, std::chrono::milliseconds deadline) {
  std::string examples;
  for (const Scheme& scheme : schemes) {
    if (scheme.name == url.scheme()) return scheme.parse(url, deadline);
    if (scheme.example.empty()) continue;  // another spelling
    examples += (examples.empty() ? "" : ", ") + std::string(scheme.example);
  }
  throw Error(ErrorKind::invalid, "log url has an unknown scheme: scheme=" + url.scheme() +
                                      " (known: " + examples +
                                      "; each with memcached+ or redis+ before it)");
}

}  // namespace

std::unique_ptr<Log> open_log(std::string_view text) {
  return open_log(text, default_log_deadline);
}

std::unique_ptr<Log> open_log(std::string_view text, std::chrono::milliseconds deadline,
                              IfMissing if_missing) {
  return parse_log_url(text, deadline)(if_missing);
}

LogOpener parse_log_url(std::string_view text, std::chrono::milliseconds deadline) {
  deadline = std::clamp(deadline, std::chrono::milliseconds(1), deadline_max);
  Url url(text);
  for (const Tier& tier : tiers) {
    if (!url.scheme().starts_with(tier.prefix)) continue;
    Url underlying(text.substr(tier.prefix.size()));
    return tier.parse(underlying, deadline);
  }
  return parse_underlying_log(url, deadline);
}

}  // namespace whycache
