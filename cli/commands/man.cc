// whycache man [COMMAND]
#include <fcntl.h>
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <memory>
#include <string_view>

#include "base/file.h"
#include "cli/command_tree.h"
#include "cli/common_options.h"

namespace whycache::cli {
namespace {

struct ManArguments {
  std::string command;
  std::string directory;
};

class ManPage {
 public:
  void write_line(std::string_view line) { text_.append(line).append("\n"); }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

constexpr const char* environment_section = R"(Each common option has an environment variable:
WHYCACHE_LOG, WHYCACHE_STATE, WHYCACHE_DEADLINE, WHYCACHE_STATE_MODE, WHYCACHE_ANY_FILE_SYSTEM,
WHYCACHE_UPDATE_BYTES_MAX, WHYCACHE_JSON, WHYCACHE_WRITER, WHYCACHE_QUIET, WHYCACHE_PROFILE and
WHYCACHE_CONFIG. An empty variable is none. A flag overrides the environment, which overrides the
configuration file; a profile that --profile names overrides the environment. A setuid program
ignores all of them.

WHYCACHE_MYSQL_PASSWORD is the password of a mysql: log, and WHYCACHE_POSTGRES_PASSWORD that of a
postgres: log, if its URL has none. If NO_COLOR is not empty, output has no color.)";

constexpr const char* files_section =
    R"(A configuration file sets common options. A key in a profile counts if the profile is chosen;
log and state of a profile never come from elsewhere in the file:

  log = "sqlite:///var/lib/flags.db"
  deadline = "5s"

  [profile.staging]
  log = "mysql://flags@staging.example.org/flags"

Only root and the user that runs the command may be able to change it.)";

// Returns the text as roff: a line that begins with a dot or a quote is not a request, and dashes
// and backslashes are what they are in a shell.
std::string roff_text(std::string_view text) {
  std::string escaped;
  bool is_line_begin = true;
  for (const char c : text) {
    if (is_line_begin && (c == '.' || c == '\'')) escaped += "\\&";
    switch (c) {
      case '\\': escaped += "\\e"; break;
      case '-': escaped += "\\-"; break;
      case '\'': escaped += "\\(aq"; break;
      case '`': escaped += "\\(ga"; break;
      case '^': escaped += "\\(ha"; break;
      case '~': escaped += "\\(ti"; break;
      default: escaped.push_back(c);
    }
    is_line_begin = c == '\n';
  }
  return escaped;
}

std::string_view take_line(std::string_view& text) {
  const std::size_t length = std::min(text.find('\n'), text.size());
  const std::string_view line = text.substr(0, length);
  text.remove_prefix(std::min(length + 1, text.size()));
  return line;
}

// Writes text in which blank lines separate paragraphs, and indented lines are as they are.
void write_paragraphs(std::string_view text, ManPage& page) {
  bool is_verbatim = false;
  while (!text.empty()) {
    const std::string_view line = take_line(text);
    const bool is_indented = line.starts_with("  ");
    if (is_indented != is_verbatim && !line.empty()) {
      page.write_line(is_indented ? ".PP\n.nf" : ".fi\n.PP");
      is_verbatim = is_indented;
    }
    if (!line.empty()) {
      page.write_line(roff_text(line));
    } else if (!is_verbatim) {
      page.write_line(".PP");
    } else {
      page.write_line("");
    }
  }
  if (is_verbatim) page.write_line(".fi");
}

void write_section(std::string title, ManPage& page) {
  std::transform(title.begin(), title.end(), title.begin(), [](char c) {
    return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  });
  page.write_line(".SH " + title);
}

// The footer of a command has sections that begin with "Title:". Lines below a title that stands
// alone are examples; text beside a title continues on indented lines.
void write_footer(std::string_view footer, ManPage& page) {
  std::string body;
  bool is_flowing = false;
  const auto finish = [&] {
    while (body.ends_with('\n')) body.pop_back();
    write_paragraphs(body, page);
    body.clear();
  };
  while (!footer.empty()) {
    std::string_view line = take_line(footer);
    const std::size_t colon = line.find(':');
    const bool is_title = !line.empty() && line[0] >= 'A' && line[0] <= 'Z' &&
                          colon != std::string_view::npos && colon <= 12;
    if (is_title) {
      finish();
      write_section(std::string(line.substr(0, colon)), page);
      line.remove_prefix(std::min(colon + 2, line.size()));
      is_flowing = !line.empty();
    } else if (is_flowing && line.starts_with("  ")) {
      line.remove_prefix(2);
    }
    body.append(line).append("\n");
  }
  finish();
}

void write_header(const std::string& name, const std::string& summary, ManPage& page) {
  std::string title = name;
  std::transform(title.begin(), title.end(), title.begin(), [](char c) {
    return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  });
  page.write_line(
      fmt::format(R"(.TH {} 1 "" "whycache {}" "whycache")", roff_text(title), WHYCACHE_VERSION));
  write_section("name", page);
  page.write_line(roff_text(name) + " \\- " + roff_text(summary));
}

void write_option(const CLI::Option& option, ManPage& page) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) names.push_back("--" + name);
  std::string text =
      option.get_positional() ? option.get_name() : fmt::format("{}", fmt::join(names, ", "));
  if (!option.get_positional() && option.get_items_expected_max() > 0) {
    const std::string type = option.get_type_name();
    text += " " + type.substr(0, type.find(':'));
  }
  page.write_line(".TP\n.B " + roff_text(text));
  page.write_line(roff_text(option.get_description()));
}

// Writes the options that are shown; without `of_command`, those that all commands have.
void write_options(const CLI::App& parser, bool of_command, ManPage& page) {
  std::vector<const CLI::Option*> options = shown_options(parser);
  if (!of_command) {
    std::erase_if(options, [](const CLI::Option* option) {
      return option->get_lnames().empty() || !is_common_option(option->get_lnames().front());
    });
  }
  if (options.empty()) return;
  std::stable_partition(options.begin(), options.end(),
                        [](const CLI::Option* option) { return option->get_positional(); });
  write_section("options", page);
  std::string group = "Options";
  for (const CLI::Option* const option : options) {
    // Options of a group follow each other.
    if (option->get_group() != group) page.write_line(".SS " + option->get_group());
    group = option->get_group();
    write_option(*option, page);
  }
}

void write_command_page(const Command& command, ManPage& page) {
  const PreparedCommand prepared = prepare(command);
  const CLI::App& parser = *prepared.parser;
  write_header(std::string("whycache-") + command.name, command.summary, page);
  write_section("synopsis", page);
  const std::string usage =
      parser.get_formatter()->make_help(&parser, "", CLI::AppFormatMode::Normal);
  const std::size_t begin = usage.find("Usage: ") + 7;
  page.write_line(roff_text(usage.substr(begin, usage.find('\n', begin) - begin)));
  write_section("description", page);
  write_paragraphs(command.help, page);
  write_options(parser, true, page);
  write_footer(command.footer, page);
  write_section("see also", page);
  page.write_line(".BR whycache (1)");
}

void write_overview_page(ManPage& page) {
  write_header("whycache", "a cache that processes share in memory, and machines through a log",
               page);
  write_section("synopsis", page);
  page.write_line(roff_text("whycache [OPTIONS] COMMAND [OPTIONS] ..."));
  write_section("description", page);
  const std::string_view text = std::string_view(overview_end).substr(1);
  const std::size_t codes = text.find("Exit codes:");
  write_paragraphs(text.substr(0, codes), page);
  write_section("commands", page);
  for (const CommandGroup& group : command_groups()) {
    page.write_line(fmt::format(".SS {}", group.title));
    for (const Command* const command : group.commands) {
      page.write_line(fmt::format(".TP\n.BR {} (1)\n{}",
                                  roff_text(std::string("whycache-") + command->name),
                                  roff_text(command->summary)));
    }
  }
  write_options(*prepare(log_command).parser, false, page);
  write_section("environment", page);
  write_paragraphs(environment_section, page);
  write_section("files", page);
  page.write_line(roff_text("~/.config/whycache.toml, /etc/whycache.toml") + "\n.PP");
  write_paragraphs(files_section, page);
  write_section("exit status", page);
  write_paragraphs(text.substr(text.find('\n', codes) + 1), page);
}

std::string overview_page() {
  ManPage page;
  write_overview_page(page);
  return page.text();
}

std::string command_page(const Command& command) {
  ManPage page;
  write_command_page(command, page);
  return page.text();
}

void write_file(const std::string& path, const std::string& text) {
  const FileDescriptor file = open_file(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  write_all(file.number(), text, path);
}

ExitCode man(const ManArguments& arguments, Output& output) {
  if (!arguments.directory.empty()) {
    if (!arguments.command.empty())
      throw Failure(ExitCode::usage, "--directory is for all pages: command=" + arguments.command);
    write_file(arguments.directory + "/whycache.1", overview_page());
    for (const CommandGroup& group : command_groups()) {
      for (const Command* const command : group.commands) {
        write_file(fmt::format("{}/whycache-{}.1", arguments.directory, command->name),
                   command_page(*command));
      }
    }
    return ExitCode::done;
  }
  if (arguments.command.empty()) {
    output.write(overview_page());
    return ExitCode::done;
  }
  const Command* const command = find_command(arguments.command);
  if (command == nullptr) {
    throw Failure(ExitCode::usage, "there is no such command: name=" + arguments.command,
                  "`whycache --help` lists them");
  }
  output.write(command_page(*command));
  return ExitCode::done;
}

CommandAction prepare_man(CLI::App& parser) {
  const auto arguments = std::make_shared<ManArguments>();
  parser.add_option("COMMAND", arguments->command, "the command; whycache(1) without it")
      ->type_name("");
  parser.add_option("--directory", arguments->directory, "write all pages into this directory")
      ->type_name("PATH");
  return [arguments](Output& output) { return man(*arguments, output); };
}

}  // namespace

const Command man_command{
    "man", "print a manual page",
    R"(Prints the manual page of a command, or of the program, for man(1). The packages install all
of them. They are made of the same text as --help.)",
    R"(Examples:
  whycache man get | man -l -
  whycache man --directory /usr/local/share/man/man1

Exit codes: 0 done, 2 there is no such command or directory)",
    prepare_man};

}  // namespace whycache::cli
