#include "cli/spellings.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "cli/escape.h"
#include "cli/output.h"

namespace whycache::cli {
namespace {

struct ForeignUsage {
  std::string_view command;   // empty: any
  std::string_view argument;  // without regard to capital letters
  std::string_view usage;
};

constexpr std::string_view no_expiry =
    "values have no expiry; a program can take a lease (whycache/lease.h)";
constexpr std::string_view url_names_server = "--log URL names server, port, user and database";

constexpr std::array foreign_usages = {
    // etcdctl
    ForeignUsage{"get", "--prefix", "`whycache scan PREFIX` prints items, `keys` only keys"},
    ForeignUsage{"get", "--from-key", "`whycache scan --from KEY` prints items"},
    ForeignUsage{"get", "--keys-only", "`whycache keys PREFIX` prints keys"},
    ForeignUsage{"get", "--count-only", "`whycache count PREFIX` prints their number"},
    ForeignUsage{"get", "--limit", "`whycache scan PREFIX --limit N` prints some items"},
    ForeignUsage{"get", "--rev",
                 "only the newest value is kept; `whycache log --key KEY --values` "
                 "prints earlier ones"},
    ForeignUsage{"get", "--print-value-only", "`whycache get KEY` prints nothing but the value"},
    ForeignUsage{"get", "-w", "`whycache get --json KEY` prints JSON"},
    ForeignUsage{"del", "--prefix",
                 "`whycache keys --null PREFIX | whycache del --null -` erases them"},
    ForeignUsage{"set", "--lease", no_expiry},
    ForeignUsage{"set", "--prev-kv", "`whycache log --key KEY --values` prints earlier values"},
    ForeignUsage{"follow", "--prefix", "`whycache watch PREFIX` prints what is changed"},
    ForeignUsage{"watch", "--prefix", "`whycache watch PREFIX` prints what is changed"},
    ForeignUsage{"watch", "--rev", "`whycache watch --from ID` begins after update ID"},
    ForeignUsage{"", "--endpoints", url_names_server},
    ForeignUsage{"", "--user", url_names_server},
    // redis-cli
    ForeignUsage{"set", "nx", "`whycache set --if-absent KEY VALUE`"},
    ForeignUsage{"set", "xx", "`whycache set --if OLD KEY VALUE` writes if the value is OLD"},
    ForeignUsage{"set", "ex", no_expiry},
    ForeignUsage{"set", "px", no_expiry},
    ForeignUsage{"set", "-x", "`whycache set KEY -` reads the value from standard input"},
    ForeignUsage{"scan", "match", "`whycache scan PREFIX`; there are no patterns"},
    ForeignUsage{"scan", "count", "`whycache scan PREFIX --limit N`"},
    ForeignUsage{"clear", "async", "`whycache clear --yes`"},
    ForeignUsage{"", "-p", url_names_server},
    ForeignUsage{"", "-a", url_names_server},
    ForeignUsage{"", "-u", url_names_server},
    // git
    ForeignUsage{"log", "-n", "`whycache log --last N`"},
    ForeignUsage{"log", "--oneline", "`whycache log` prints an update per line"},
    ForeignUsage{"log", "-p", "`whycache log --values` prints each change with its value"},
    ForeignUsage{"log", "--patch", "`whycache log --values` prints each change with its value"},
    ForeignUsage{"log", "--after", "`whycache log --since TIME`"},
    ForeignUsage{"log", "--before", "`whycache log --until TIME`"},
    ForeignUsage{"log", "--author", "`whycache log --json` prints the writer of each update"},
    ForeignUsage{"log", "--grep", "`whycache log --json` prints the note of each update"},
    ForeignUsage{"log", "--follow", "`whycache watch` prints changes as they are applied"},
    ForeignUsage{"log", "-f", "`whycache watch` prints changes as they are applied"},
    ForeignUsage{"", "-m", "--note TEXT stores a remark with the update"},
    ForeignUsage{"", "--message", "--note TEXT stores a remark with the update"},
    ForeignUsage{"", "--force", "--yes proceeds without a question"},
    ForeignUsage{"", "-f", "--yes proceeds without a question"},
    ForeignUsage{"", "-y", "--yes proceeds without a question"},
    ForeignUsage{"", "-n", "--dry-run (of import), or without --yes: prints what would be erased"},
};

bool is_same_word(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](unsigned char x, unsigned char y) {
    return std::tolower(x) == std::tolower(y);
  });
}

// Arguments without options, up to "--".
std::size_t count_plain(const std::vector<std::string>& arguments) {
  return static_cast<std::size_t>(
      std::count_if(arguments.begin(), std::find(arguments.begin(), arguments.end(), "--"),
                    [](const std::string& argument) { return !argument.starts_with("-"); }));
}

}  // namespace

std::string similar_usage(std::string_view command, const std::vector<std::string>& arguments) {
  const auto end = std::find(arguments.begin(), arguments.end(), "--");
  for (const std::string_view of : {command, std::string_view()}) {
    for (auto argument = arguments.begin(); argument != end; ++argument) {
      const std::string_view name = std::string_view(*argument).substr(0, argument->find('='));
      for (const ForeignUsage& foreign : foreign_usages) {
        if (foreign.command == of && is_same_word(foreign.argument, name))
          return std::string(foreign.usage);
      }
    }
  }
  const std::size_t plain = count_plain(arguments);
  if (command == "get" && plain > 1) return "`whycache mget KEY...` prints several items";
  if (command == "set" && plain > 2) return "`whycache apply` and `import` set several keys";
  if (command == "log" && plain > 0) return "`whycache log --key KEY` prints the changes of a key";
  if (command == "add" && plain == 1)
    return "`whycache add KEY N` adds to an integer; `whycache set KEY VALUE` sets a value";
  return {};
}

void explain_pattern(std::string_view text) {
  if (text.find_first_of("*?[") == std::string_view::npos) return;
  const std::string_view prefix = text.substr(0, text.find_first_of("*?["));
  print_message(
      fmt::format("nothing found: {} is taken as it is, and not as a pattern", escape(text)),
      prefix.empty()
          ? "without a prefix, `whycache keys` prints all keys"
          : fmt::format("`whycache keys {}` prints the keys that begin so", escape(prefix)));
}

}  // namespace whycache::cli
