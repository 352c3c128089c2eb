// whycache inspect [FILE]
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/escape.h"
#include "cli/format.h"
#include "cli/target.h"
#include "state/file/machine_counters.h"

namespace whycache::cli {
namespace {

struct InspectArguments {
  Target target;
  std::string file;
  bool json = false;
};

double ratio(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

Json as_json(const ProcessInfo& process) {
  Json object;
  object["process_id"] = process.process_id;
  put_bytes(object, "process", process.process_name);
  if (process.oldest_pinned_id) object["pinned_id"] = *process.oldest_pinned_id;
  return object;
}

Json as_json(const std::string& path, const StateInspection& inspection) {
  Json object;
  put_bytes(object, "state", path);
  object["state_id"] = format_hash(inspection.info.state_id);
  put_bytes(object, "log", inspection.info.log_name);
  object["log_uuid"] = to_string(inspection.info.log_uuid);
  object["created"] = format_time(inspection.created_us);
  object["made_in_this_boot"] = inspection.created_in_this_boot;
  object["superseded"] = inspection.info.superseded;
  object["writer_active"] = inspection.writer_active;
  object["applied_id"] = inspection.info.applied_id;
  object["chain"] = format_hash(inspection.info.chain);
  object["digest"] = to_string(inspection.info.digest);
  object["items"] = inspection.info.item_count;
  object["item_bytes"] = inspection.info.item_bytes;
  object["file_bytes"] = inspection.file_bytes;
  object["segment_bytes"] = inspection.segment_bytes;
  object["reclaim_generation"] = inspection.reclaim_generation;
  object["reclaim_horizon"] = inspection.reclaim_horizon;
  Json segments = Json::array();
  for (const SegmentKindUsage& use : inspection.segments_by_kind) {
    segments.push_back({{"kind", use.kind},
                        {"segments", use.segment_count},
                        {"bytes", use.bytes},
                        {"live_bytes", use.live_bytes}});
  }
  object["segments"] = std::move(segments);
  object["index"] = {{"parts", inspection.index_pages},
                     {"depth", inspection.index_global_depth},
                     {"words", inspection.index_words},
                     {"used", inspection.index_used},
                     {"fillers", inspection.index_tombstones},
                     {"load", ratio(inspection.index_used, inspection.index_words)}};
  object["tree_height"] = inspection.tree_height;
  Json processes = Json::array();
  for (const ProcessInfo& process : inspection.processes) processes.push_back(as_json(process));
  object["processes"] = std::move(processes);
  for (const CounterMember& counter : all_counters)
    object["counters"][counter.name] = inspection.machine_counters.*counter.value;
  return object;
}

void print(const std::string& path, const StateInspection& inspection, Output& output) {
  const auto row = [&](std::string_view name, const std::string& value) {
    output.write_line(fmt::format("  {:<20}{}", name, value));
  };
  output.write_line("state " + escape(path));
  row("made",
      fmt::format(
          "{}{}", format_time(inspection.created_us),
          inspection.created_in_this_boot ? "" : "  (in another boot, or on another machine)"));
  row("state id", format_hash(inspection.info.state_id));
  row("log", escape(inspection.info.log_name));
  row("log uuid", to_string(inspection.info.log_uuid));
  row("applied id", std::to_string(inspection.info.applied_id));
  row("chain", format_hash(inspection.info.chain));
  row("digest", to_string(inspection.info.digest));
  row("items",
      fmt::format("{}  ({} of keys and values)", format_with_commas(inspection.info.item_count),
                  format_bytes(inspection.info.item_bytes)));
  row("writer", inspection.writer_active ? "active, or died while active" : "none");
  if (inspection.info.superseded) row("superseded", "yes: another file replaced it");

  output.write_line("segments of " + format_bytes(inspection.segment_bytes) + ", " +
                    format_bytes(inspection.file_bytes) + " in all");
  for (const SegmentKindUsage& use : inspection.segments_by_kind) {
    row(use.kind,
        fmt::format("{:>8}  {:>10}  {:>10} live  {:>3.0f}%", format_with_commas(use.segment_count),
                    format_bytes(use.bytes), format_bytes(use.live_bytes),
                    100 * ratio(use.live_bytes, use.bytes)));
  }
  row("reclaim generation", std::to_string(inspection.reclaim_generation));
  row("reclaim horizon", std::to_string(inspection.reclaim_horizon));

  output.write_line("point index");
  row("pages", fmt::format("{}  (global depth {})", format_with_commas(inspection.index_pages),
                           inspection.index_global_depth));
  row("load", fmt::format("{:.0f}%  ({} of {} words, {} tombstones)",
                          100 * ratio(inspection.index_used, inspection.index_words),
                          format_with_commas(inspection.index_used),
                          format_with_commas(inspection.index_words),
                          format_with_commas(inspection.index_tombstones)));
  output.write_line("key index");
  row("height", std::to_string(inspection.tree_height));

  output.write_line(fmt::format("processes: {}", inspection.processes.size()));
  for (const ProcessInfo& process : inspection.processes) {
    const std::string holds = process.oldest_pinned_id ? fmt::format("  holds a view of update {}",
                                                                     *process.oldest_pinned_id)
                                                       : "";
    row(fmt::format("process {}", process.process_id),
        fmt::format("{}{}", escape(process.process_name), holds));
  }
  output.write_line("counted by all processes");
  for (const CounterMember& counter : all_counters) {
    const std::uint64_t count = inspection.machine_counters.*counter.value;
    if (count != 0) row(counter.name, format_with_commas(count));
  }
}

ExitCode inspect(const InspectArguments& arguments, Output& output) {
  // A named file is inspected alone, whatever log the environment names.
  Target target = arguments.target;
  if (!arguments.file.empty()) target.state = arguments.file;
  const std::string path =
      existing_state_path(target, "name another file, or none to inspect the state of --log URL");
  const StateInspection inspection = inspect_unchanged(path);
  if (arguments.json) {
    output.write_json(as_json(path, inspection));
  } else {
    print(path, inspection, output);
  }
  return ExitCode::done;
}

CommandAction prepare_inspect(CLI::App& parser) {
  const auto arguments = std::make_shared<InspectArguments>();
  parser.add_option("FILE", arguments->file, "a state file, which needs no log")->type_name("");
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return inspect(*arguments, output); };
}

}  // namespace

const Command inspect_command{
    "inspect", "the structure of a state file",
    R"(Prints the structure of a state file: its origin, the use of its segments, the load of the
point index and the height of the key index. Also lists the processes that use the file, and the
oldest update that the views of each one hold: it keeps the space of everything that was overwritten
since.

Changes nothing: neither the file nor its directory, which may be read-only. A FILE needs no log. A
copy is not verified; `whycache check --state FILE` does that. Process ids are those of the
process's own PID namespace; the name is that of the process with this id here.)",
    R"(Examples:
  whycache inspect
  whycache inspect /var/lib/whycache/flags.state
  whycache inspect --json | jq '.processes[] | select(.pinned_id)'     those that hold views
  whycache inspect --json | jq '.segments'

Exit codes: 0 done, 2 the file does not exist, 5 it is damaged or not a state file, 7 permission)",
    prepare_inspect};

}  // namespace whycache::cli
