// whycache import-original SOURCE
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/escape.h"
#include "cli/format.h"
#include "cli/target.h"
#include "original/read_original.h"

namespace whycache::cli {
namespace {

struct ImportOriginalArguments {
  Target target;
  std::string source;
  bool skips = false;
  bool dry_run = false;
  bool yes = false;
  bool json = false;
  std::string note;
};

void check_is_empty(const Cache& cache, bool yes) {
  if (cache.size() == 0 || yes) return;
  throw Failure(ExitCode::refused,
                fmt::format("the log has {} keys, which imported ones would replace",
                            format_with_commas(cache.size())),
                "import into a new log, or add --yes");
}

UpdateId fill(Cache& cache, const OriginalData& data, const std::string& note) {
  if (data.items.empty()) return cache.applied_id();
  return cache.fill(
      [next = data.items.begin(), end = data.items.end()]() mutable -> std::optional<Item> {
        if (next == end) return std::nullopt;
        const Item item{next->first, next->second};
        ++next;
        return item;
      },
      {.note = note});
}

ExitCode import_original_log(const ImportOriginalArguments& arguments, Output& output) {
  // A source that cannot be imported leaves no new log behind.
  const OriginalData data = read_original(arguments.source, arguments.skips);
  std::unique_ptr<Cache> cache;
  if (!arguments.dry_run) {
    cache = open_cache_with_log(arguments.target);
    ask_before_write(arguments.target, [&] { cache->update(); });
    check_is_empty(*cache, arguments.yes);
  }
  for (const OriginalData::Skipped& skipped : data.skipped)
    print_message(fmt::format("skipped: key={}: {}", escape(skipped.key), escape(skipped.reason)));
  const UpdateId last_id = cache ? fill(*cache, data, arguments.note) : 0;
  if (arguments.json) {
    Json object{{"items", data.items.size()},
                {"updates_read", data.updates_read},
                {"skipped", data.skipped.size()},
                {"dry_run", arguments.dry_run}};
    if (cache) object["last_update_id"] = last_id;
    output.write_json(object);
  } else if (!cache) {
    output.write_line(fmt::format("{} of {} can be imported",
                                  format_count(data.items.size(), "item"),
                                  format_count(data.updates_read, "update")));
  } else {
    output.write_line(fmt::format("{} of {}, the last is update {}",
                                  format_count(data.items.size(), "item"),
                                  format_count(data.updates_read, "update"), last_id));
  }
  return ExitCode::done;
}

CommandAction prepare_import_original(CLI::App& parser) {
  const auto arguments = std::make_shared<ImportOriginalArguments>();
  parser
      .add_option("SOURCE", arguments->source,
                  "file:///directory, or mysql://user@host/database?table=whycache")
      ->type_name("")
      ->required();
  parser.add_flag("--dry-run", arguments->dry_run, "read and check all of it without writing");
  parser.add_flag("--skip-unsupported", arguments->skips,
                  "leave out values of other classes, and name their keys");
  add_yes_option(parser, arguments->yes, "proceed although the log has keys");
  add_json_option(parser, arguments->json);
  add_writer_options(parser, arguments->target, arguments->note);
  add_update_bytes_max_option(parser, arguments->target);
  add_target_options(parser, arguments->target);
  arguments->target.creates_log = true;
  return [arguments](Output& output) { return import_original_log(*arguments, output); };
}

}  // namespace

const Command import_original_command{
    "import-original", "import the data of the original Python program",
    R"(Reads the log of the original program, replays it, and sets the items in a new log. The
source is only read. Pickled values become typed values, which Python reads as they were; bytes
become plain values. No code of a pickle is run: values are None, numbers, str, bytes, containers,
dates and times, Decimal and UUID. If there are others, nothing is written, unless
--skip-unsupported leaves them out.)",
    R"(Examples:
  whycache import-original --dry-run file:///var/lib/app/whycache
  whycache import-original 'mysql://app@db.example.org/app?table=whycache'

Exit codes: 0 done, 2 the source or a value cannot be read, 3 a log did not answer, 5 an update of
  the source is damaged, 7 permission, 8 the log has keys and --yes is missing, 9 a value is too
  large)",
    prepare_import_original};

}  // namespace whycache::cli
