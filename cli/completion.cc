#include "cli/completion.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <string_view>
#include <vector>

#include "cli/command_tree.h"
#include "cli/common_options.h"

namespace whycache::cli {
namespace {

// The kind of value that an option or argument takes.
enum class Values { none, any, files, commands, shells };

struct Word {
  std::vector<std::string> names;  // empty for an argument
  std::string description;
  std::string value_name;
  Values values = Values::none;
};

struct CommandWords {
  std::string name;
  std::string summary;
  std::vector<Word> options;
  Values arguments = Values::none;
};

Values values_named(std::string_view name) {
  if (name == "PATH" || name == "FILE") return Values::files;
  if (name == "COMMAND") return Values::commands;
  if (name == "SHELL") return Values::shells;
  return Values::any;
}

CommandWords words_of(const Command& command) {
  const PreparedCommand prepared = prepare(command);
  CommandWords words{command.name, command.summary, {}, Values::none};
  for (const CLI::Option* const option : shown_options(*prepared.parser)) {
    if (option->get_positional()) {
      words.arguments = std::max(words.arguments, values_named(option->get_name()));
      continue;
    }
    Word word;
    for (const std::string& name : option->get_snames()) word.names.push_back("-" + name);
    for (const std::string& name : option->get_lnames()) word.names.push_back("--" + name);
    word.description = option->get_description();
    if (option->get_items_expected_max() > 0) {
      word.value_name = option->get_type_name().substr(0, option->get_type_name().find(':'));
      word.values = values_named(word.value_name);
    }
    words.options.push_back(std::move(word));
  }
  words.options.push_back({{"--help"}, "describe the command", {}, Values::none});
  return words;
}

std::vector<CommandWords> all_words() {
  std::vector<CommandWords> all;
  for (const CommandGroup& group : command_groups()) {
    for (const Command* const command : group.commands) all.push_back(words_of(*command));
  }
  all.push_back({"help", "describe a command", {}, Values::commands});
  return all;
}

// The options that may precede the command, as the first command that shows them describes them.
std::vector<Word> common_words() {
  std::vector<Word> common;
  for (const CommandWords& command : all_words()) {
    for (const Word& word : command.options) {
      const auto is_known = [&](const Word& other) { return other.names == word.names; };
      if (is_common_option(word.names.back().substr(2)) &&
          std::none_of(common.begin(), common.end(), is_known))
        common.push_back(word);
    }
  }
  return common;
}

std::string join_names(const std::vector<Word>& words, bool (*includes)(const Word&),
                       std::string_view separator) {
  std::vector<std::string> names;
  for (const Word& word : words) {
    if (includes(word)) names.insert(names.end(), word.names.begin(), word.names.end());
  }
  return fmt::format("{}", fmt::join(names, separator));
}

bool is_any(const Word&) { return true; }
bool has_value(const Word& word) { return word.values != Values::none; }
bool has_file(const Word& word) { return word.values == Values::files; }

std::string replace_all(std::string text, std::string_view from, std::string_view to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

std::string join_command_names(const std::vector<CommandWords>& all) {
  std::vector<std::string> names;
  names.reserve(all.size());
  for (const CommandWords& command : all) names.push_back(command.name);
  return fmt::format("{}", fmt::join(names, " "));
}

constexpr const char* shells = "bash zsh fish";

}  // namespace

namespace {

constexpr const char* bash_find_command_begin =
    R"(# Completion of whycache in bash, made by `whycache completion bash`.
# shellcheck shell=bash

_whycache() {
  # Bash also splits words at : and =, which URLs contain.
  local line=${COMP_LINE:0:COMP_POINT} word=${COMP_WORDS[COMP_CWORD]}
  local -a words
  read -ra words <<<"$line"
  [[ $line == *[[:space:]] ]] && words+=("")
  local last=$((${#words[@]} - 1)) command="" i
  for ((i = 1; i < last; i++)); do
    case ${words[i]} in
)";

constexpr const char* bash_find_command_end = R"(      -*) ;;
      *)
        command=${words[i]}
        break
        ;;
    esac
  done

  local option=${words[last - 1]} options="" with_value="" with_file="" arguments=""
  if [[ ${words[last]} == --*=* ]]; then
    option=${words[last]%%=*}
    [[ $word == = ]] && word=""
  fi
  case $command in
)";

constexpr const char* bash_reply = R"(  esac

  COMPREPLY=()
  if [[ $with_file == *" $option "* ]]; then
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
  elif [[ $with_value == *" $option "* ]]; then
    return
  elif [[ $word == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
  elif [[ $arguments == FILE ]]; then
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
  else
    mapfile -t COMPREPLY < <(compgen -W "$arguments" -- "$word")
  fi
}
complete -F _whycache whycache
)";

std::string bash_case(const std::string& name, const std::vector<Word>& options,
                      const std::string& arguments) {
  std::string text =
      fmt::format("    {})\n      options=\"{}\"\n      with_value=\" {} \"\n", name,
                  join_names(options, is_any, " "), join_names(options, has_value, " "));
  if (const std::string files = join_names(options, has_file, " "); !files.empty())
    text += fmt::format("      with_file=\" {} \"\n", files);
  if (!arguments.empty()) text += fmt::format("      arguments=\"{}\"\n", arguments);
  return text + "      ;;\n";
}

}  // namespace

std::string bash_completion() {
  const std::vector<CommandWords> all = all_words();
  const std::vector<Word> common = common_words();
  const std::string command_names = join_command_names(all);
  std::string text = bash_find_command_begin;
  text += fmt::format("      {}) ((i++)) ;;\n", join_names(common, has_value, " | "));
  text += bash_find_command_end;
  text += bash_case("\"\"", common, command_names);
  for (const CommandWords& command : all) {
    text += bash_case(command.name, command.options,
                      command.arguments == Values::commands ? command_names
                      : command.arguments == Values::shells ? shells
                      : command.arguments == Values::files  ? "FILE"
                                                            : "");
  }
  return text + bash_reply;
}

namespace {

std::string zsh_text(std::string text) {
  for (const std::string_view special : {"\\", "[", "]", ":"})
    text = replace_all(text, special, "\\" + std::string(special));
  return replace_all(text, "'", "'\\''");
}

const char* zsh_action(Values values) {
  switch (values) {
    case Values::files: return "_files";
    case Values::commands: return "_whycache_commands";
    case Values::shells: return "(bash zsh fish)";
    case Values::any:
    case Values::none: break;
  }
  return "";
}

std::string zsh_options(const std::vector<Word>& options, std::string_view indent) {
  std::string text;
  for (const Word& word : options) {
    for (const std::string& name : word.names) {
      // A value follows in the next word or, after a long name, after =.
      const char* const equals = has_value(word) && name.starts_with("--") ? "=" : "";
      text += fmt::format(" \\\n{}'*{}{}[{}]", indent, name, equals, zsh_text(word.description));
      if (has_value(word))
        text += fmt::format(":{}:{}", zsh_text(word.value_name), zsh_action(word.values));
      text += "'";
    }
  }
  return text;
}

}  // namespace

std::string zsh_completion() {
  std::string text = R"(#compdef whycache
# Completion of whycache in zsh, made by `whycache completion zsh`.

_whycache_commands() {
  local -a commands=(
)";
  for (const CommandWords& command : all_words())
    text += fmt::format("    '{}:{}'\n", command.name, zsh_text(command.summary));
  text += R"(  )
  _describe -t commands command commands
}

_whycache() {
  local curcontext="$curcontext" state line
  _arguments -C)";
  text += zsh_options(common_words(), "    ");
  text += R"( \
    '1: :_whycache_commands' \
    '*:: :->arguments' && return
  [[ $state == arguments ]] || return
  case $words[1] in
)";
  for (const CommandWords& command : all_words()) {
    text += fmt::format("    {})\n      _arguments{}", command.name,
                        zsh_options(command.options, "        "));
    text += fmt::format(" \\\n        '*: :{}'\n      ;;\n", zsh_action(command.arguments));
  }
  text += R"(  esac
}

if [[ $funcstack[1] == _whycache ]]; then
  _whycache "$@"
else
  compdef _whycache whycache
fi
)";
  return text;
}

namespace {

std::string fish_text(std::string text) {
  text = replace_all(text, "\\", "\\\\");
  return "'" + replace_all(text, "'", "\\'") + "'";
}

void add_fish_options(std::string& text, const std::string& condition,
                      const std::vector<Word>& options) {
  for (const Word& word : options) {
    text += fmt::format("complete -c whycache -n '{}'", condition);
    for (const std::string& name : word.names)
      text += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
    if (word.values == Values::files) text += " -r -F";
    if (word.values == Values::any) text += " -x";
    text += " -d " + fish_text(word.description) + "\n";
  }
}

}  // namespace

std::string fish_completion() {
  const std::vector<CommandWords> all = all_words();
  const std::vector<Word> common = common_words();
  std::string text = R"(# Completion of whycache in fish, made by `whycache completion fish`.

# Prints the command of the command line, if there is one before the cursor.
function __whycache_command
    set -l words (commandline -opc)
    set -e words[1]
    while set -q words[1]
        switch $words[1]
            case )";
  text += join_names(common, has_value, " ");
  text += R"(
                set -e words[1]
            case '-*'
            case '*'
                echo $words[1]
                return 0
        end
        set -e words[1]
    end
    return 1
end

function __whycache_command_is
    contains -- $argv[1] (__whycache_command)
end

complete -c whycache -f
)";
  add_fish_options(text, "not __whycache_command", common);
  for (const CommandWords& command : all) {
    text += fmt::format("complete -c whycache -n 'not __whycache_command' -a {} -d {}\n",
                        command.name, fish_text(command.summary));
    const std::string condition = "__whycache_command_is " + command.name;
    add_fish_options(text, condition, command.options);
    if (command.arguments == Values::files)
      text += fmt::format("complete -c whycache -n '{}' -F\n", condition);
    if (command.arguments == Values::commands || command.arguments == Values::shells) {
      text += fmt::format(
          "complete -c whycache -n '{}' -a '{}'\n", condition,
          command.arguments == Values::shells ? std::string(shells) : join_command_names(all));
    }
  }
  return text;
}

}  // namespace whycache::cli
