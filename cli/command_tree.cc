#include "cli/command_tree.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <utility>

#include "cli/common_options.h"

namespace whycache::cli {
namespace {

const std::array groups = {
    CommandGroup{"Read",
                 {&get_command, &mget_command, &scan_command, &keys_command, &count_command}},
    CommandGroup{"Write",
                 {&set_command, &del_command, &add_command, &apply_command, &import_command,
                  &import_original_command, &guard_command}},
    CommandGroup{
        "Follow",
        {&update_command, &follow_command, &watch_command, &status_command, &rebuild_command}},
    CommandGroup{"Look inside",
                 {&log_command, &diff_command, &inspect_command, &check_command, &doctor_command,
                  &version_command}},
    CommandGroup{"Set up", {&init_command}},
    CommandGroup{"Give up history", {&rewrite_command, &clear_command}},
    CommandGroup{"Shell", {&completion_command, &man_command}},
};

// Names of commands in redis-cli, etcdctl, git and shells, with the commands here that they stand
// for: the first one that exists.
struct ForeignName {
  std::string_view name;
  std::array<std::string_view, 2> commands;
};
constexpr std::array foreign_names = {
    ForeignName{"put", {"set"}},
    ForeignName{"hget", {"get"}},
    ForeignName{"cat", {"get"}},
    ForeignName{"show", {"get"}},
    ForeignName{"read", {"get"}},
    ForeignName{"exists", {"get"}},
    ForeignName{"mset", {"import"}},
    ForeignName{"write", {"set"}},
    ForeignName{"setnx", {"set"}},
    ForeignName{"delete", {"del"}},
    ForeignName{"rm", {"del"}},
    ForeignName{"remove", {"del"}},
    ForeignName{"erase", {"del"}},
    ForeignName{"unset", {"del"}},
    ForeignName{"unlink", {"del"}},
    ForeignName{"ls", {"keys"}},
    ForeignName{"list", {"keys"}},
    ForeignName{"range", {"scan"}},
    ForeignName{"dump", {"scan"}},
    ForeignName{"export", {"scan"}},
    ForeignName{"dbsize", {"count"}},
    ForeignName{"load", {"import"}},
    ForeignName{"restore", {"import"}},
    ForeignName{"subscribe", {"watch"}},
    ForeignName{"psubscribe", {"watch"}},
    ForeignName{"monitor", {"watch"}},
    ForeignName{"tail", {"watch"}},
    ForeignName{"pull", {"update"}},
    ForeignName{"fetch", {"update"}},
    ForeignName{"sync", {"update"}},
    ForeignName{"info", {"status"}},
    ForeignName{"ping", {"status"}},
    ForeignName{"endpoint", {"status"}},
    ForeignName{"history", {"log"}},
    ForeignName{"verify", {"check"}},
    ForeignName{"fsck", {"check"}},
    ForeignName{"compact", {"rewrite"}},
    ForeignName{"gc", {"rewrite"}},
    ForeignName{"flushall", {"clear"}},
    ForeignName{"flushdb", {"clear"}},
    ForeignName{"create", {"init"}},
    ForeignName{"incr", {"add"}},
    ForeignName{"incrby", {"add"}},
    ForeignName{"txn", {"apply"}},
    ForeignName{"resync", {"rebuild"}},
    ForeignName{"protect", {"guard"}},
    ForeignName{"decr", {"add"}},
    ForeignName{"decrby", {"add"}},
    ForeignName{"blame", {"log"}},
    ForeignName{"compaction", {"rewrite"}},
    ForeignName{"patch", {"apply"}},
    ForeignName{"multi", {"apply"}},
    ForeignName{"defrag", {"rebuild", "rewrite"}},
};

// The number of characters to insert, remove, replace, or swap with the next one (optimal string
// alignment).
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<std::size_t>> distance(a.size() + 1,
                                                 std::vector<std::size_t>(b.size() + 1));
  for (std::size_t i = 0; i <= a.size(); ++i) {
    for (std::size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        distance[i][j] = i + j;
        continue;
      }
      const std::size_t replaced = distance[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      distance[i][j] = std::min({distance[i - 1][j] + 1, distance[i][j - 1] + 1, replaced});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        distance[i][j] = std::min(distance[i][j], distance[i - 2][j - 2] + 1);
    }
  }
  return distance[a.size()][b.size()];
}

// Adds KEY... to the usage line of CLI11: it does not know that extra arguments are keys.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string) const override {
    std::string text = "\nUsage: " + app->get_name() + " [OPTIONS]";
    for (const CLI::Option* option : app->get_options()) {
      if (option->get_positional()) text += " " + make_option_usage(option);
    }
    if (app->get_allow_extras()) text += " [KEY...]";
    return text + "\n";
  }
};

}  // namespace

const char* const overview_begin =
    R"(whycache - a cache that processes share in memory, and machines share through a log

Usage: whycache [OPTIONS] COMMAND [OPTIONS] ...
       whycache COMMAND --help                 describes a command, with examples
)";

const char* const overview_end = R"(
Which cache:
  --log URL      or WHYCACHE_LOG    the log, which stores writes: sqlite:///var/lib/flags.db,
                                    file:///var/lib/flags, mysql://user@host/database,
                                    postgres://user@host/database
  --state PATH   or WHYCACHE_STATE  this machine's state, which serves reads; has a default
  --profile NAME                    both as in ~/.config/whycache.toml or /etc/whycache.toml

First steps:
  export WHYCACHE_LOG=sqlite:///$HOME/try.db
  whycache set greeting hello
  whycache get greeting

Data goes to standard output, messages to standard error. - is standard input. -- ends the options,
for keys and values that begin with a dash. Options that all commands have may precede the command.

Exit codes:
  0 done              4 staler than requested     8 refused without --yes
  1 not found         5 corrupt, or another log   9 limit reached, or output not written
  2 usage             6 conflict                 70 bug
  3 log unreachable   7 permission
)";

std::span<const CommandGroup> command_groups() { return groups; }

const Command* find_command(std::string_view name) {
  for (const CommandGroup& group : groups) {
    for (const Command* command : group.commands) {
      if (name == command->name) return command;
    }
  }
  return nullptr;
}

std::string similar_command(std::string_view name) {
  for (const ForeignName& foreign : foreign_names) {
    if (foreign.name != name) continue;
    for (const std::string_view command : foreign.commands) {
      if (find_command(command) != nullptr) return std::string(command);
    }
  }
  // A longer name is none that is spelled like a command.
  if (name.size() > 20) return {};
  std::string nearest;
  std::size_t nearest_distance = name.size() < 4 ? 2 : 3;  // less than this
  for (const CommandGroup& group : groups) {
    for (const Command* command : group.commands) {
      const std::size_t distance = edit_distance(name, command->name);
      if (distance >= nearest_distance) continue;
      nearest_distance = distance;
      nearest = command->name;
    }
  }
  return nearest;
}

PreparedCommand prepare(const Command& command) {
  PreparedCommand prepared;
  prepared.parser = std::make_shared<CLI::App>(std::string(command.help),
                                               std::string("whycache ") + command.name);
  CLI::App& parser = *prepared.parser;
  parser.formatter(std::make_shared<HelpFormatter>());
  parser.get_formatter()->column_width(28);
  parser.get_formatter()->label("REQUIRED", "");
  parser.footer(command.footer);
  prepared.run = command.prepare(parser);
  add_missing_common_options(parser);
  return prepared;
}

std::vector<const CLI::Option*> shown_options(const CLI::App& parser) {
  std::vector<const CLI::Option*> options = parser.get_options();
  std::erase_if(options, [&](const CLI::Option* option) {
    return option->get_group().empty() || option == parser.get_help_ptr();
  });
  return options;
}

std::string command_overview() {
  std::string text;
  for (const CommandGroup& group : groups) {
    text += fmt::format("\n{}:\n", group.title);
    for (const Command* command : group.commands)
      text += fmt::format("  {:<16}{}\n", command->name, command->summary);
  }
  return text;
}

}  // namespace whycache::cli
