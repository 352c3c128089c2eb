#include "cli/config_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "base/file.h"
#include "cli/exit_code.h"

namespace whycache::cli {
namespace {

constexpr std::size_t config_bytes_max = std::size_t{1} << 20;

bool is_bare_key_character(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-';
}

bool is_decimal_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string& text, std::uint32_t code_point) {
  const auto append = [&](std::uint32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) return append(code_point);
  if (code_point < 0x800) {
    append(0xC0 | code_point >> 6);
  } else {
    if (code_point < 0x10000) {
      append(0xE0 | code_point >> 12);
    } else {
      append(0xF0 | code_point >> 18);
      append(0x80 | (code_point >> 12 & 0x3F));
    }
    append(0x80 | (code_point >> 6 & 0x3F));
  }
  append(0x80 | (code_point & 0x3F));
}

// Why a line is wrong.
struct SyntaxError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Reads one line, front to back. Throws SyntaxError.
class LineReader {
 public:
  explicit LineReader(std::string_view line) : rest_(line) {}

  void skip_blanks() {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\t')) rest_.remove_prefix(1);
  }

  bool is_at_end() {
    skip_blanks();
    return rest_.empty() || rest_[0] == '#';
  }

  bool accept(char c) {
    if (rest_.empty() || rest_[0] != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  void expect(char c) {
    if (!accept(c)) throw SyntaxError(fmt::format("`{}` is missing", c));
  }

  std::string read_bare_key() {
    const auto* const end = std::find_if_not(rest_.begin(), rest_.end(), is_bare_key_character);
    const auto length = static_cast<std::size_t>(end - rest_.begin());
    if (length == 0) throw SyntaxError("a name is missing (letters, digits, - and _)");
    std::string key(rest_.substr(0, length));
    rest_.remove_prefix(length);
    return key;
  }

  std::string read_dotted_key() {
    std::string key = read_bare_key();
    while (accept('.')) key += "." + read_bare_key();
    return key;
  }

  std::pair<std::string, ConfigEntry::Kind> read_value() {
    if (accept('"')) return {read_basic_string(), ConfigEntry::Kind::string};
    if (accept('\'')) return {read_literal_string(), ConfigEntry::Kind::string};
    const auto* const end = std::find_if(rest_.begin(), rest_.end(),
                                         [](char c) { return c == ' ' || c == '\t' || c == '#'; });
    std::string word(rest_.begin(), end);
    rest_.remove_prefix(word.size());
    if (word == "true" || word == "false") return {word, ConfigEntry::Kind::boolean};
    const bool is_integer = !word.empty() &&
                            std::all_of(word.begin(), word.end(), is_decimal_digit) &&
                            (word.size() == 1 || word[0] != '0');
    if (is_integer) return {word, ConfigEntry::Kind::integer};
    throw SyntaxError("the value is no string in quotes, no integer, and not true or false");
  }

 private:
  std::string read_literal_string() {
    const std::size_t length = rest_.find('\'');
    if (length == std::string_view::npos) throw SyntaxError("the closing ' is missing");
    std::string text(rest_.substr(0, length));
    rest_.remove_prefix(length + 1);
    return text;
  }

  std::string read_basic_string() {
    std::string text;
    while (!rest_.empty()) {
      const char c = rest_[0];
      rest_.remove_prefix(1);
      if (c == '"') return text;
      if (c != '\\') {
        text.push_back(c);
        continue;
      }
      if (rest_.empty()) break;
      const char escaped = rest_[0];
      rest_.remove_prefix(1);
      switch (escaped) {
        case 'b': text.push_back('\b'); break;
        case 't': text.push_back('\t'); break;
        case 'n': text.push_back('\n'); break;
        case 'f': text.push_back('\f'); break;
        case 'r': text.push_back('\r'); break;
        case '"': text.push_back('"'); break;
        case '\\': text.push_back('\\'); break;
        case 'u': append_utf8(text, read_code_point(4)); break;
        case 'U': append_utf8(text, read_code_point(8)); break;
        default: throw SyntaxError("a backslash begins no escape sequence of TOML");
      }
    }
    throw SyntaxError("the closing \" is missing");
  }

  std::uint32_t read_code_point(std::size_t digits) {
    std::uint64_t code_point = 0;
    if (rest_.size() < digits) throw SyntaxError("an escape sequence is cut short");
    for (const char c : rest_.substr(0, digits)) {
      const bool is_lower = c >= 'a' && c <= 'f';
      const bool is_upper = c >= 'A' && c <= 'F';
      if (!is_decimal_digit(c) && !is_lower && !is_upper)
        throw SyntaxError("an escape sequence has a character that is no hexadecimal digit");
      const int digit = is_decimal_digit(c) ? c - '0' : is_lower ? c - 'a' + 10 : c - 'A' + 10;
      code_point = code_point << 4 | static_cast<std::uint64_t>(digit);
    }
    rest_.remove_prefix(digits);
    if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point <= 0xDFFF))
      throw SyntaxError("an escape sequence is no Unicode character");
    return static_cast<std::uint32_t>(code_point);
  }

  std::string_view rest_;
};

}  // namespace

std::optional<ConfigFile> ConfigFile::read(const std::string& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  if (!file) {
    if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
    const Error error = system_error("cannot open configuration file", path, errno);
    throw Failure(exit_code_of(error), error.what(),
                  "correct its permissions, or name another file with --config (/dev/null: none)");
  }
  struct stat status;
  if (::fstat(file.number(), &status) != 0)
    throw system_error("cannot stat configuration file", path, errno);
  if (path == "/dev/null") return ConfigFile(path, {});
  if (!S_ISREG(status.st_mode)) {
    throw Failure(ExitCode::usage, "the configuration is not a regular file: path=" + path,
                  "name another file with --config (/dev/null: none)");
  }
  // It decides which log and which state a command works on, of root too.
  const bool is_owner_trusted = status.st_uid == 0 || status.st_uid == ::geteuid();
  if (!is_owner_trusted || (status.st_mode & 022) != 0) {
    throw Failure(ExitCode::permission,
                  fmt::format("configuration file can be changed by other users: path={} owner={} "
                              "mode={:04o}",
                              path, status.st_uid, status.st_mode & 07777),
                  is_owner_trusted ? "chmod go-w " + path
                                   : "let it belong to root or to the user that runs the command, "
                                     "or name another file with --config (/dev/null: none)");
  }
  return ConfigFile(path, read_to_end(file, path, config_bytes_max));
}

ConfigFile::ConfigFile(std::string path, std::string_view text) : path_(std::move(path)) {
  std::string table;
  std::size_t line_number = 0;
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // byte order mark
  while (!text.empty()) {
    ++line_number;
    const std::size_t length = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, length);
    text.remove_prefix(std::min(length + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    try {
      LineReader reader(line);
      if (reader.is_at_end()) continue;
      if (reader.accept('[')) {
        reader.skip_blanks();
        table = reader.read_dotted_key();
        reader.skip_blanks();
        reader.expect(']');
        if (has_table(table)) throw SyntaxError("the table is there twice: name=" + table);
        tables_.push_back(table);
      } else {
        ConfigEntry entry{.table = table, .key = reader.read_bare_key(), .line = line_number};
        reader.skip_blanks();
        reader.expect('=');
        reader.skip_blanks();
        std::tie(entry.value, entry.kind) = reader.read_value();
        if (find(entry.table, entry.key) != nullptr)
          throw SyntaxError("the key is there twice: key=" + entry.key);
        entries_.push_back(std::move(entry));
      }
      if (!reader.is_at_end()) throw SyntaxError("there is text after the end");
    } catch (const SyntaxError& error) {
      throw Failure(
          ExitCode::usage,
          fmt::format("configuration file is wrong: path={} line={}: {}", path_, line_number,
                      error.what()),
          "correct the line: a comment #, a table [profile.NAME], or KEY = \"VALUE\" on one line");
    }
  }
}

bool ConfigFile::has_table(std::string_view table) const {
  return std::find(tables_.begin(), tables_.end(), table) != tables_.end();
}

const ConfigEntry* ConfigFile::find(std::string_view table, std::string_view key) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const ConfigEntry& entry) {
    return entry.table == table && entry.key == key;
  });
  return found == entries_.end() ? nullptr : &*found;
}

std::string user_config_path() {
  // As the library chooses the directory of a state: a setuid program ignores the environment.
  const char* const directory = ::secure_getenv("XDG_CONFIG_HOME");
  if (directory != nullptr && directory[0] == '/') return std::string(directory) + "/whycache.toml";
  const char* const home = ::secure_getenv("HOME");
  if (home != nullptr && home[0] == '/') return std::string(home) + "/.config/whycache.toml";
  std::array<char, 4096> buffer;
  passwd entry;
  passwd* found = nullptr;
  const int error = ::getpwuid_r(::geteuid(), &entry, buffer.data(), buffer.size(), &found);
  if (error != 0 || found == nullptr || found->pw_dir[0] != '/') return {};
  return std::string(found->pw_dir) + "/.config/whycache.toml";
}

}  // namespace whycache::cli
