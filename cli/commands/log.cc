// whycache log
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/escape.h"
#include "cli/format.h"
#include "cli/target.h"
#include "cli/value_json.h"
#include "update/update.h"

namespace whycache::cli {
namespace {

struct LogArguments {
  Target target;
  UpdateId from = 1;
  UpdateId to = std::numeric_limits<UpdateId>::max();
  std::optional<std::uint64_t> last;
  bool values = false;
  bool all_keys = false;
  bool json = false;
  ValueForm value_form = ValueForm::typed;
};

// The number of keys on the line of an update without --all-keys.
constexpr std::size_t keys_shown_max = 5;

const char* change_kind_name(const Change& change) {
  return change.kind == Change::Kind::set ? "set" : "erase";
}

Json as_json(const Update& update, std::size_t bytes, const LogArguments& arguments) {
  Json object;
  object["id"] = update.id;
  object["time"] = format_time(update.authorship.time_us);
  put_bytes(object, "writer", update.authorship.writer_name);
  object["writer_id"] = to_string(update.authorship.writer_id);
  object["writer_sequence"] = update.authorship.writer_sequence;
  if (!update.authorship.note.empty()) put_bytes(object, "note", update.authorship.note);
  object["chain"] = format_hash(update.chain);
  object["bytes"] = bytes;
  object["erases_all"] = update.erases_all;
  Json changes = Json::array();
  for (const Change& change : update.changes) {
    Json element;
    element["kind"] = change_kind_name(change);
    put_bytes(element, "key", change.key);
    if (change.kind == Change::Kind::set) element["value_bytes"] = change.value.size();
    if (change.kind == Change::Kind::set && arguments.values)
      put_value(element, change.value, arguments.value_form);
    changes.push_back(std::move(element));
  }
  object["changes"] = std::move(changes);
  return object;
}

void print(const Update& update, const LogArguments& arguments, Output& output) {
  const std::size_t change_count = update.changes.size();
  std::string line = fmt::format(
      "{:>8}  {}  {}  {} change{}", update.id, format_time(update.authorship.time_us),
      escape(update.authorship.writer_name), change_count, change_count == 1 ? "" : "s");
  if (update.erases_all) line += ", erases everything before";
  if (!update.authorship.note.empty()) line += "  \"" + escape(update.authorship.note) + '"';
  if (!arguments.values) {
    const std::size_t shown =
        arguments.all_keys ? change_count : std::min(change_count, keys_shown_max);
    for (std::size_t i = 0; i < shown; ++i) {
      line += fmt::format("{} {} {}", i == 0 ? " " : ",", change_kind_name(update.changes[i]),
                          escape(update.changes[i].key));
    }
    if (shown < change_count) line += fmt::format(", {} more", change_count - shown);
  }
  output.write_line(line);
  if (!arguments.values) return;
  for (const Change& change : update.changes) {
    const bool is_set = change.kind == Change::Kind::set;
    output.write_line(fmt::format(
        "          {} {}{}{}", change_kind_name(change), escape(change.key), is_set ? "\t" : "",
        is_set ? value_to_line(change.value, arguments.value_form) : std::string()));
  }
}

// Prints the updates, and counts damaged and missing ones. Damage does not end the listing, because
// the user may be looking for a later update.
class UpdatePrinter {
 public:
  UpdatePrinter(Log& log, const LogArguments& arguments, Output& output)
      : log_(log), arguments_(arguments), output_(output) {}

  void print_all(UpdateId first, UpdateId last) {
    next_id_ = first;
    try {
      print_range(first, last);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::corrupt) throw;
      // The log does not read past damage, so read each update on its own.
      while (next_id_ <= last) print_single(next_id_);
    }
  }

  std::uint64_t damaged_count() const { return damaged_count_; }

 private:
  void print_range(UpdateId first, UpdateId last) {
    const Extent extent = log_.read(first, last, [this](UpdateId id, std::string_view bytes) {
      report_missing_before(id);
      next_id_ = id + 1;
      print_update(id, bytes);
      return true;
    });
    // Updates that a rewrite deleted meanwhile are not missing.
    next_id_ = std::max(next_id_, extent.base + 1);
    report_missing_before(std::min(last, extent.head) + 1);
  }

  void print_single(UpdateId id) {
    try {
      print_range(id, id);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::corrupt) throw;
      report_missing_before(id + 1);
    }
    next_id_ = std::max(next_id_, id + 1);
  }

  void report_missing_before(UpdateId id) {
    if (next_id_ >= id) return;
    report_damage(
        fmt::format("updates are missing in the log: first={} last={}", next_id_, id - 1));
    next_id_ = id;
  }

  void print_update(UpdateId id, std::string_view bytes) {
    try {
      decode_update(bytes, update_);
    } catch (const Error& error) {
      return report_damage(fmt::format("update is damaged: id={}: {}", id, error.what()));
    }
    if (arguments_.json) {
      output_.write_json(as_json(update_, bytes.size(), arguments_));
    } else {
      print(update_, arguments_, output_);
    }
  }

  void report_damage(const std::string& message) {
    ++damaged_count_;
    output_.flush();
    print_message(message);
  }

  Log& log_;
  const LogArguments& arguments_;
  Output& output_;
  Update update_;
  UpdateId next_id_ = 0;
  std::uint64_t damaged_count_ = 0;
};

ExitCode log(const LogArguments& arguments, Output& output) {
  const auto log = open_log(arguments.target);
  const Extent extent = log->extent();
  UpdateId first = std::max(arguments.from, extent.base + 1);
  if (arguments.last)
    first = std::max(first, extent.head - std::min(extent.head, *arguments.last) + 1);
  if (extent.base > 0 && arguments.from <= extent.base && !arguments.last) {
    print_message(fmt::format(
        "history was rewritten up to update {}: those updates are not in the log", extent.base));
  }
  UpdatePrinter printer(*log, arguments, output);
  printer.print_all(first, std::min(arguments.to, extent.head));
  if (printer.damaged_count() == 0) return ExitCode::done;
  output.flush();
  throw Failure(ExitCode::corrupt, fmt::format("the log is damaged: log={}", log->name()),
                "`whycache check` shows whether this machine's state is beyond the damage");
}

CommandAction prepare_log(CLI::App& parser) {
  const auto arguments = std::make_shared<LogArguments>();
  parser.add_option("--from", arguments->from, "first update")->type_name("ID");
  parser.add_option("--to", arguments->to, "last update")->type_name("ID");
  parser.add_option("--last", arguments->last, "only the last N updates")->type_name("N");
  parser.add_flag("--values", arguments->values,
                  "print each change on its own line, with its value");
  parser.add_flag("--all-keys", arguments->all_keys, "print all keys, not only the first five");
  add_json_option(parser, arguments->json);
  add_raw_bytes_option(parser, arguments->value_form);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return log(*arguments, output); };
}

}  // namespace

const Command log_command{
    "log", "print the updates: time, writer, keys",
    R"(Prints the updates in the log, oldest first: id, time, writer, number of changes, note, keys.
Reads the log alone and never the state. Updates that a rewrite has replaced are no longer in the
log.)",
    R"(Examples:
  whycache log --last 10
  whycache log --from 120 --to 125 --values          every change of these updates
  whycache log --json | jq -c 'select(.changes[].key == "flag") | [.id, .time, .writer]'

JSON: id, time, writer, writer_id, writer_sequence, note, chain, bytes, erases_all,
  changes: [{kind, key, value_bytes, value, typed}]

Exit codes: 0 done, 2 no log is named, 3 the log did not answer, 5 an update is damaged or missing
  (the others are printed), 7 permission)",
    prepare_log};

}  // namespace whycache::cli
