// The configuration files of the command line, in a subset of TOML: comments, tables, and keys with
// a string, an integer or a boolean on one line. CLI11's reader ends strings at `#` and splits them
// at commas, and reports neither wrong lines nor their numbers.
//
//   log = "sqlite:///var/lib/flags.db"
//   [profile.staging]
//   log = "mysql://flags@staging.example.org/flags"
//
// No message contains a value: a URL may hold a password.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace whycache::cli {

struct ConfigEntry {
  enum class Kind { string, integer, boolean };

  std::string table;  // empty above the first table
  std::string key;
  std::string value;
  Kind kind = Kind::string;
  std::size_t line = 0;
};

class ConfigFile {
 public:
  // Returns nullopt if the file does not exist. Throws Failure if it cannot be read, is not what is
  // described above, or if users other than root and this one can change it.
  static std::optional<ConfigFile> read(const std::string& path);

  // Parses the text of a file; `path` is for messages.
  ConfigFile(std::string path, std::string_view text);

  const std::string& path() const { return path_; }
  const std::vector<ConfigEntry>& entries() const { return entries_; }
  bool has_table(std::string_view table) const;
  // The names of the tables, in the order of the file.
  const std::vector<std::string>& tables() const { return tables_; }
  // Returns null if the table has no such key.
  const ConfigEntry* find(std::string_view table, std::string_view key) const;

 private:
  std::string path_;
  std::vector<std::string> tables_;
  std::vector<ConfigEntry> entries_;
};

// Returns the file of the user, ~/.config/whycache.toml or below $XDG_CONFIG_HOME; empty if the
// user has no home.
std::string user_config_path();
inline constexpr const char* system_config_path = "/etc/whycache.toml";

}  // namespace whycache::cli
