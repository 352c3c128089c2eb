// whycache log
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
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
  std::vector<std::string> keys;
  std::vector<std::string> prefixes;
  std::optional<std::int64_t> since_us;
  std::optional<std::int64_t> until_us;
  bool base = false;
  bool values = false;
  bool all_keys = false;
  bool json = false;
  ValueForm value_form = ValueForm::typed;

  bool selects_keys() const { return !keys.empty() || !prefixes.empty(); }
  bool selects(std::string_view key) const {
    return std::ranges::any_of(keys, [&](const std::string& wanted) { return key == wanted; }) ||
           std::ranges::any_of(prefixes,
                               [&](const std::string& prefix) { return key.starts_with(prefix); });
  }
  bool selects_times() const { return since_us || until_us; }
  bool selects_time(std::int64_t time_us) const {
    return (!since_us || time_us >= *since_us) && (!until_us || time_us <= *until_us);
  }
};

// Updates are ordered by id, and each has the time of its writer's clock. Two clocks of a fleet are
// assumed to differ by less than this.
constexpr std::int64_t clock_skew_max_us = 3'600'000'000;

// The number of keys on the line of an update without --all-keys.
constexpr std::size_t keys_shown_max = 5;

const char* change_kind_name(const Change& change) {
  return change.kind == Change::Kind::set ? "set" : "erase";
}

Json as_json(const Update& update, std::size_t bytes, std::size_t change_count,
             const LogArguments& arguments) {
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
  object["change_count"] = change_count;
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

// `change_count`: of the update, of which `changes` may only have those that were asked for.
void print(const Update& update, std::size_t change_count, const LogArguments& arguments,
           Output& output) {
  std::string line =
      fmt::format("{:>8}  {}  {}  {}", update.id, format_time(update.authorship.time_us),
                  escape(update.authorship.writer_name), format_count(change_count, "change"));
  if (update.erases_all) line += ", erases everything before";
  if (!update.authorship.note.empty()) line += "  \"" + escape(update.authorship.note) + '"';
  if (!arguments.values) {
    const std::size_t shown = arguments.all_keys ? update.changes.size()
                                                 : std::min(update.changes.size(), keys_shown_max);
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
      if (arguments_.selects_times() && !arguments_.selects_time(decode_authorship(bytes).time_us))
        return;
      decode_update(bytes, update_);
    } catch (const Error& error) {
      return report_damage(fmt::format("update is damaged: id={}: {}", id, error.what()));
    }
    const std::size_t change_count = update_.changes.size();
    if (arguments_.selects_keys()) {
      std::erase_if(update_.changes,
                    [&](const Change& change) { return !arguments_.selects(change.key); });
      if (update_.changes.empty() && !update_.erases_all) return;
    }
    if (arguments_.json) {
      output_.write_json(as_json(update_, bytes.size(), change_count, arguments_));
    } else {
      print(update_, change_count, arguments_, output_);
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

// Returns the time of an update, or nullopt if it is missing or damaged.
std::optional<std::int64_t> time_of(Log& log, UpdateId id) {
  std::optional<std::int64_t> time_us;
  try {
    log.read(id, id, [&](UpdateId found, std::string_view bytes) {
      if (found == id) time_us = decode_authorship(bytes).time_us;
      return true;
    });
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::corrupt) throw;
    time_us.reset();
  }
  return time_us;
}

// Returns the first id in `first`..`last + 1` whose update is later than `time_us`, by binary
// search: it reads some twenty updates of a million. Returns `otherwise` if one of them cannot be
// read, as then all have to be looked at.
UpdateId first_later_than(Log& log, UpdateId first, UpdateId last, std::int64_t time_us,
                          UpdateId otherwise) {
  UpdateId end = last + 1;
  while (first < end) {
    const UpdateId middle = first + (end - first) / 2;
    const std::optional<std::int64_t> found = time_of(log, middle);
    if (!found) return otherwise;
    if (*found > time_us) {
      end = middle;
    } else {
      first = middle + 1;
    }
  }
  return first;
}

// Returns who made the base, and when, or nullopt if a version that did not record it made it.
std::optional<BaseAuthorship> base_authorship(Log& log) {
  BaseAuthorship authorship;
  log.read_base([&](std::string_view bytes) {
    BasePart part;
    decode_base_part(bytes, part);
    authorship = part.authorship;
    return false;
  });
  if (authorship == BaseAuthorship{}) return std::nullopt;
  return authorship;
}

std::string describe(const std::optional<BaseAuthorship>& authorship) {
  if (!authorship) return {};
  std::string text = fmt::format(" by {} at {}", escape(authorship->writer_name),
                                 format_time(authorship->time_us));
  if (!authorship->note.empty()) text += " \"" + escape(authorship->note) + '"';
  return text;
}

ExitCode print_base(const LogArguments& arguments, Log& log, const Extent& extent, Output& output) {
  std::optional<BaseAuthorship> authorship;
  if (extent.base > 0) authorship = base_authorship(log);
  if (arguments.json) {
    Json object{{"base", extent.base}};
    object["time"] = authorship ? Json(format_time(authorship->time_us)) : Json();
    if (authorship) {
      put_bytes(object, "writer", authorship->writer_name);
      if (!authorship->note.empty()) put_bytes(object, "note", authorship->note);
    } else {
      object["writer"] = nullptr;
    }
    output.write_json(object);
  } else if (extent.base == 0) {
    output.write_line("history was never rewritten");
  } else {
    output.write_line(
        fmt::format("history was rewritten up to update {}{}", extent.base, describe(authorship)));
  }
  return ExitCode::done;
}

ExitCode log(const LogArguments& arguments, Output& output) {
  const auto log = open_log(arguments.target);
  const Extent extent = log->extent();
  if (arguments.base) return print_base(arguments, *log, extent, output);
  UpdateId first = std::max(arguments.from, extent.base + 1);
  UpdateId last = std::min(arguments.to, extent.head);
  if (extent.base > 0 && arguments.from <= extent.base && !arguments.last) {
    std::string by;
    try {
      by = describe(base_authorship(*log));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::corrupt) throw;
      by = fmt::format(" (its base is damaged: {})", error.what());
    }
    print_message(
        fmt::format("history was rewritten up to update {}{}: those updates are not in the log",
                    extent.base, by));
  }
  if (arguments.since_us) {
    first = first_later_than(*log, first, last, *arguments.since_us - clock_skew_max_us, first);
  }
  if (arguments.until_us) {
    last =
        first_later_than(*log, first, last, *arguments.until_us + clock_skew_max_us, last + 1) - 1;
  }
  if (arguments.last)
    first = std::max(first, extent.head - std::min(extent.head, *arguments.last) + 1);
  UpdatePrinter printer(*log, arguments, output);
  printer.print_all(first, last);
  if (printer.damaged_count() == 0) return ExitCode::done;
  output.flush();
  throw Failure(ExitCode::corrupt, fmt::format("the log is damaged: log={}", log->name()),
                "`whycache check` shows whether this machine's state is beyond the damage");
}

void add_time_option(CLI::App& parser, const char* name, std::optional<std::int64_t>& time_us,
                     const char* help) {
  const auto parse = [&time_us, name](const std::string& text) {
    time_us = parse_time(text, wall_time_us());
    if (!time_us)
      throw CLI::ValidationError(
          name, "not a time like 2026-01-31T23:59:59Z, 2026-01-31, 90m, 2h or 7d: " + text);
  };
  parser.add_option_function<std::string>(name, parse, help)->type_name("TIME");
}

CommandAction prepare_log(CLI::App& parser) {
  const auto arguments = std::make_shared<LogArguments>();
  parser.add_option("--from", arguments->from, "first update")->type_name("ID");
  parser.add_option("--to", arguments->to, "last update")->type_name("ID");
  parser.add_option("--last", arguments->last, "only the last N updates")->type_name("N");
  parser.add_option("--key", arguments->keys, "only updates that change KEY; may be repeated")
      ->type_name("KEY")
      ->allow_extra_args(false);
  parser
      .add_option("--prefix", arguments->prefixes,
                  "only updates that change a key that begins with PREFIX; may be repeated")
      ->type_name("PREFIX")
      ->allow_extra_args(false);
  add_time_option(parser, "--since", arguments->since_us,
                  "only updates since TIME: 2026-01-31T23:59:59Z, or 90m, 2h, 7d ago");
  add_time_option(parser, "--until", arguments->until_us, "only updates up to TIME");
  parser.add_flag("--base", arguments->base,
                  "print who rewrote or cleared the history last, and when, and no updates");
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
log.

With --key or --prefix, only the changes of those keys are printed. Updates that erase everything
are always among them. --since and --until find their place by binary search. They go by the
clocks of the writers, and assume that these differ by less than an hour.)",
    R"(Examples:
  whycache log --last 10
  whycache log --key checkout.enabled --since 2h     who changed it
  whycache log --from 120 --to 125 --values          every change of these updates
  whycache log --json | jq -c 'select(.changes[].key == "flag") | [.id, .time, .writer]'

JSON: id, time, writer, writer_id, writer_sequence, note, chain, bytes, erases_all,
  change_count, changes: [{kind, key, value_bytes, value, typed}]; of --base: base, time, writer,
  note

Exit codes: 0 done, 2 no log is named, 3 the log did not answer, 5 an update is damaged or missing
  (the others are printed), 7 permission)",
    prepare_log};

}  // namespace whycache::cli
