#include "original/read_original.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <optional>
#include <system_error>
#include <utility>

#include "base/bytes.h"
#include "base/file.h"
#include "base/url.h"
#include "original/unpickle.h"
#if WHYCACHE_WITH_MYSQL
#include "log/mysql_connection.h"
#include "log/mysql_server.h"
#endif

namespace whycache {
namespace {

using VisitUpdate = std::function<void(std::uint64_t, std::string_view)>;

// The original program wrote at most 1 MiB into an update, unless its subclass said otherwise.
constexpr std::size_t original_update_bytes_max = std::size_t{1} << 30;

// Returns the number that the text is, all of it.
std::optional<std::uint64_t> parse_id(std::string_view text) {
  std::uint64_t id = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return id;
}

// ID.bin is an update, and latest.repr has the id of the last one. A file beyond it is of a writer
// that died before it counted; the next one replaces the file.
void visit_directory(const std::filesystem::path& directory, const VisitUpdate& visit) {
  std::map<std::uint64_t, std::filesystem::path> updates;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::filesystem::path& path = entry->path();
    if (path.extension() != ".bin") continue;
    if (const auto id = parse_id(path.stem().string())) updates.emplace(*id, path);
  }
  if (error) {
    throw Error(ErrorKind::invalid,
                "directory cannot be read: path=" + directory.string() + ": " + error.message(),
                error.value());
  }
  const std::filesystem::path latest = directory / "latest.repr";
  if (std::filesystem::exists(latest)) {
    std::string text = read_whole_file(latest.string(), 100);
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    const auto id = parse_id(text);
    if (!id) throw Error(ErrorKind::corrupt, "file has no number: path=" + latest.string());
    updates.erase(updates.upper_bound(*id), updates.end());
  } else if (updates.empty()) {
    throw Error(ErrorKind::invalid, "directory has no log of the original program: path=" +
                                        directory.string() + " (neither latest.repr nor 1.bin)");
  }
  for (const auto& [id, path] : updates)
    visit(id, read_whole_file(path.string(), original_update_bytes_max));
}

#if WHYCACHE_WITH_MYSQL
void visit_table(Url& url, const std::string& table, const VisitUpdate& visit) {
  constexpr auto answer_time_max = std::chrono::seconds(60);
  const MysqlServer server = take_mysql_servers(url).primary;
  url.reject_unknown_options();
  try {
    MysqlConnection connection(server, answer_time_max);
    MysqlRows rows = connection.query("SELECT id, contents FROM " + table + " ORDER BY id");
    while (rows.next()) visit(rows.number(0), rows.at(1).value_or(std::string_view()));
  } catch (const MysqlFailure& failure) {
    throw Error(ErrorKind::unavailable,
                "table of the original program cannot be read: server=" + server.address() +
                    " table=" + table + " code=" + std::to_string(failure.code) + ": " +
                    failure.reason);
  }
}
#endif

// The name becomes part of a statement: database.table, as the original takes it.
std::string take_table(Url& url) {
  const std::string name = url.take_option("table").value_or("whycache");
  const bool is_valid = !name.empty() && std::ranges::all_of(name, [](char byte) {
    return (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') ||
           (byte >= 'A' && byte <= 'Z') || byte == '_' || byte == '$' || byte == '.';
  });
  if (!is_valid)
    throw Error(ErrorKind::invalid, "option is no name of a table: option=table (A-Za-z0-9_$.)");
  std::string quoted = "`" + name + "`";
  for (std::size_t dot = quoted.find('.'); dot != std::string::npos;
       dot = quoted.find('.', dot + 3))
    quoted.replace(dot, 1, "`.`");
  return quoted;
}

std::uint64_t take_big_endian(ByteReader& reader, std::size_t size) {
  std::uint64_t number = 0;
  for (std::size_t i = 0; i < size; ++i) number = number << 8 | reader.take_byte();
  return number;
}

}  // namespace

void visit_original_updates(const std::string& source, const VisitUpdate& visit) {
  Url url(source);
  if (url.scheme() == "file") {
    const std::string& path = url.file_path();
    url.reject_unknown_options();
    return visit_directory(path, visit);
  }
  if (url.scheme() == "mysql") {
    const std::string table = take_table(url);
#if WHYCACHE_WITH_MYSQL
    return visit_table(url, table, visit);
#else
    throw Error(ErrorKind::invalid, "this build has no client of MySQL: table=" + table +
                                        " (install libmariadb-dev, and build again)");
#endif
  }
  throw Error(ErrorKind::invalid,
              "source is none of the original program: scheme=" + url.scheme() +
                  " (file:///directory or mysql://user@host/database?table=whycache)");
}

void visit_original_items(std::uint64_t id, std::string_view update,
                          const std::function<void(std::string_view, std::string_view)>& visit) {
  const std::string name = "update " + std::to_string(id) + " of the original program";
  ByteReader reader(update, name.c_str());
  for (std::uint64_t count = take_big_endian(reader, 4); count > 0; --count) {
    const std::uint64_t key_bytes = take_big_endian(reader, 8);
    const std::uint64_t value_bytes = take_big_endian(reader, 8);
    const std::string_view key = reader.take_bytes(key_bytes);
    visit(key, reader.take_bytes(value_bytes));
  }
  reader.expect_end();
}

OriginalData read_original(const std::string& source, bool skips) {
  OriginalData data;
  visit_original_updates(source, [&](std::uint64_t id, std::string_view update) {
    ++data.updates_read;
    visit_original_items(id, update, [&](std::string_view key, std::string_view pickle) {
      if (!pickle.empty()) {
        data.items.insert_or_assign(std::string(key), std::string(pickle));
      } else if (const auto found = data.items.find(key); found != data.items.end()) {
        data.items.erase(found);
      }
    });
  });
  for (auto item = data.items.begin(); item != data.items.end();) {
    try {
      if (item->first.empty() || item->first.size() > key_bytes_max)
        throw Error(ErrorKind::invalid, "key has other than 1 to 1024 bytes");
      item->second = value_of_pickle(item->second);
      ++item;
    } catch (const Error& error) {
      data.skipped.push_back({item->first, error.what()});
      item = data.items.erase(item);
    }
  }
  if (data.skipped.empty() || skips) return data;
  throw Error(ErrorKind::invalid,
              "values cannot be imported: keys=" + std::to_string(data.skipped.size()) +
                  " first_reason=\"" + data.skipped[0].reason + '"');
}

}  // namespace whycache
