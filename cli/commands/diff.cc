// whycache diff FILE
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/change_list.h"
#include "cli/change_reader.h"
#include "cli/command.h"
#include "cli/escape.h"
#include "cli/mirror.h"
#include "cli/target.h"
#include "cli/value_json.h"

namespace whycache::cli {
namespace {

struct DiffArguments {
  Target target;
  FreshnessOptions freshness;
  std::string file;
  FormatOptions format;
  std::optional<std::string> mirror;
  bool json = false;
};

class DiffPrinter {
 public:
  DiffPrinter(const View& view, bool json, Output& output)
      : view_(view), json_(json), output_(output) {}

  void print(const Change& change) {
    if (!has_effect(change, view_)) return;
    found_ = true;
    const std::optional<std::string_view> old = view_.get(change.key);
    if (json_) return print_json(change, old);
    if (old)
      output_.write_line("- " + escape(change.key) + '\t' + value_to_line(*old, ValueForm::typed));
    if (change.kind == Change::Kind::set)
      output_.write_line("+ " + escape(change.key) + '\t' +
                         value_to_line(change.value, ValueForm::typed));
  }
  bool found() const { return found_; }

 private:
  void print_json(const Change& change, std::optional<std::string_view> old) {
    Json object;
    put_bytes(object, "key", change.key);
    if (old) put_bytes(object, "old", *old);
    if (change.kind == Change::Kind::set) {
      put_value(object, change.value, ValueForm::typed);
    } else {
      object["erase"] = true;
    }
    output_.write_json(object);
  }

  const View& view_;
  bool json_;
  Output& output_;
  bool found_ = false;
};

ExitCode diff(const DiffArguments& arguments, Output& output) {
  const StateSource source = StateSource::open(arguments.target, arguments.freshness);
  const View view = source.view();
  Input input(arguments.file);
  ChangeReader reader(input, arguments.format);
  MirrorPlan mirror;
  if (arguments.mirror) mirror.plan(input, reader, *arguments.mirror, view);
  DiffPrinter printer(view, arguments.json, output);
  for (Change change; reader.next(change);) printer.print(change);
  for (const std::string& key : mirror.keys_to_erase()) printer.print(Change::erase(key));
  return printer.found() ? ExitCode::not_found : ExitCode::done;
}

CommandAction prepare_diff(CLI::App& parser) {
  const auto arguments = std::make_shared<DiffArguments>();
  parser.add_option("FILE", arguments->file, "what to compare with; - is standard input")
      ->type_name("")
      ->required();
  add_format_options(parser, arguments->format);
  parser
      .add_option("--mirror", arguments->mirror,
                  "also print the keys that begin with PREFIX and are not in the input")
      ->type_name("PREFIX");
  add_json_option(parser, arguments->json);
  add_freshness_options(parser, arguments->freshness);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return diff(*arguments, output); };
}

}  // namespace

const Command diff_command{
    "diff", "print what an import of a file would change",
    R"(Compares the changes in a file with the dataset, all as of one update id, and prints what
`whycache import` and `whycache apply` would change: `-`, key and value of what they replace or
erase, then `+`, key and new value. Writes nothing. The formats are those of `whycache import`.

Exit code 1 means that there are differences, as with diff(1).)",
    R"(Examples:
  whycache diff flags.json
  whycache diff --mirror flags. flags.json           also what --mirror would erase
  whycache diff --json flags.json > patch.jsonl; whycache apply patch.jsonl

JSON: key, old, value or erase; `whycache apply` reads it.

Exit codes: 0 nothing would change, 1 something would change, 2 bad input, 3 the log did not
  answer, 4 staler than --staleness-max, 5 the state is damaged, 7 permission)",
    prepare_diff};

}  // namespace whycache::cli
