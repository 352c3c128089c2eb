// whycache apply FILE
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/change_list.h"
#include "cli/change_reader.h"
#include "cli/command.h"
#include "cli/format.h"
#include "cli/target.h"
#include "client/guards.h"

namespace whycache::cli {
namespace {

struct ApplyArguments {
  Target target;
  std::string file;
  FormatOptions format;
  bool skip_equal = false;
  EraseOptions erase;
  std::string note;
  bool json = false;
};

ChangeList read_changes(const ApplyArguments& arguments) {
  Input input(arguments.file);
  ChangeReader reader(input, arguments.format);
  ChangeList list;
  std::size_t bytes = 0;
  for (Change change; reader.next(change);) {
    list.add(change);
    bytes += change.key.size() + change.value.size();
    if (bytes <= arguments.target.update_bytes_max) continue;
    throw Failure(
        ExitCode::limit,
        fmt::format("the changes do not fit into one update, nothing was written: path={} "
                    "line={} update_bytes_max={}",
                    input.name(), reader.line_number(), arguments.target.update_bytes_max),
        "raise --update-bytes-max, or use `whycache import`, which "
        "writes several updates");
  }
  return list;
}

// Returns the id of the update, or of the state that the changes do not change.
UpdateId write(const ApplyArguments& arguments, Cache& cache, const std::vector<Change>& changes) {
  if (!arguments.skip_equal) return cache.write(changes, {.note = arguments.note});
  ask_before_write(arguments.target, [&] { cache.update(); });
  return cache.transact(
      [&](Transaction& transaction) {
        for (const Change& change : changes) {
          const std::optional<std::string_view> value = transaction.get(change.key);
          if (is_erase(change) && value) transaction.erase(change.key);
          if (!is_erase(change) && value != change.value) transaction.set(change.key, change.value);
        }
      },
      {.note = arguments.note});
}

ExitCode apply(const ApplyArguments& arguments, Output& output) {
  const ChangeList list = read_changes(arguments);
  const std::vector<Change> changes = list.changes();
  const auto erases =
      static_cast<std::uint64_t>(std::count_if(changes.begin(), changes.end(), is_erase));
  Target target = arguments.target;
  target.split_updates = false;
  const auto cache = open_cache_with_log(target);
  if (erases >
      std::min(arguments.erase.erase_max.value_or(erased_keys_free_max), erased_keys_free_max)) {
    ask_before_write(target, [&] { cache->update(); });
    const View view = cache->view();
    arguments.erase.require_consent("nothing was written", count_erased_keys(changes, view),
                                    view.size(), erased_keys_free_max);
  }
  const UpdateId id = write(arguments, *cache, changes);
  if (arguments.json) {
    output.write_json(
        Json{{"update_id", id}, {"items", changes.size() - erases}, {"erased", erases}});
  } else {
    output.write_line(std::to_string(id));
  }
  return ExitCode::done;
}

CommandAction prepare_apply(CLI::App& parser) {
  const auto arguments = std::make_shared<ApplyArguments>();
  parser.add_option("FILE", arguments->file, "the changes; - is standard input")
      ->type_name("")
      ->required();
  add_format_options(parser, arguments->format);
  parser.add_flag("--skip-equal", arguments->skip_equal,
                  "leave out changes that change nothing; without others, append nothing");
  add_erase_options(parser, arguments->erase);
  add_writer_options(parser, arguments->target, arguments->note);
  add_json_option(parser, arguments->json);
  add_update_bytes_max_option(parser, arguments->target);
  add_target_options(parser, arguments->target);
  arguments->target.creates_log = true;
  return [arguments](Output& output) { return apply(*arguments, output); };
}

}  // namespace

const Command apply_command{
    "apply", "set and erase keys by one update",
    R"(Sets and erases the keys in a file by one atomic update, and prints its id: every machine
sees all of the changes or none. They must fit into one update. If a key occurs more than once, its
last change counts.

The formats are those of `whycache import`. In JSON, {"key":"a","erase":true} erases a key. If more
than 1,000 keys would be erased, the command prints how many, and needs --yes or --erase-max.)",
    R"(Examples:
  printf '{"key":"a","value":"1"}\n{"key":"b","erase":true}\n' | whycache apply -
  whycache diff --json new.json | whycache apply -   only what differs

Exit codes: 0 done, 2 bad input, 3 the log did not answer, 5 log or state are damaged,
  6 others changed the keys each time (--skip-equal), 7 permission, 8 it erases too many keys
  without --yes, or a guard of the log forbids it, 9 the changes do not fit into one update)",
    prepare_apply};

}  // namespace whycache::cli
