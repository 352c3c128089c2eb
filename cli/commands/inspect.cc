// whycache inspect [FILE]
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/escape.h"
#include "cli/format.h"
#include "cli/target.h"

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

Json as_json(const ReaderSlotInfo& slot) {
  Json object;
  object["slot"] = slot.slot;
  object["process_id"] = slot.process_id;
  put_bytes(object, "process", slot.process_name);
  object["alive"] = slot.alive;
  if (slot.pinned_id != 0) object["pinned_id"] = slot.pinned_id;
  return object;
}

Json as_json(const std::string& path, const StateInspection& insides) {
  Json object;
  put_bytes(object, "state", path);
  object["state_id"] = format_hash(insides.info.state_id);
  put_bytes(object, "log", insides.info.log_name);
  object["log_uuid"] = to_string(insides.info.log_uuid);
  object["created"] = format_time(insides.created_us);
  object["made_in_this_boot"] = insides.created_in_this_boot;
  object["superseded"] = insides.info.superseded;
  object["writer_active"] = insides.writer_active;
  object["applied_id"] = insides.info.applied_id;
  object["chain"] = format_hash(insides.info.chain);
  object["digest"] = to_string(insides.info.digest);
  object["items"] = insides.info.item_count;
  object["item_bytes"] = insides.info.item_bytes;
  object["file_bytes"] = insides.file_bytes;
  object["segment_bytes"] = insides.segment_bytes;
  object["reclaim_generation"] = insides.reclaim_generation;
  object["reclaim_horizon"] = insides.reclaim_horizon;
  Json segments = Json::array();
  for (const SegmentKindUsage& use : insides.segments_by_kind) {
    segments.push_back({{"kind", use.kind},
                        {"segments", use.segment_count},
                        {"bytes", use.bytes},
                        {"live_bytes", use.live_bytes}});
  }
  object["segments"] = std::move(segments);
  object["index"] = {{"parts", insides.index_pages},
                     {"depth", insides.index_global_depth},
                     {"words", insides.index_words},
                     {"used", insides.index_used},
                     {"fillers", insides.index_tombstones},
                     {"load", ratio(insides.index_used, insides.index_words)}};
  object["tree_height"] = insides.tree_height;
  object["reader_slots"] = insides.reader_slots;
  Json slots = Json::array();
  for (const ReaderSlotInfo& slot : insides.slots_taken) slots.push_back(as_json(slot));
  object["slots_taken"] = std::move(slots);
  Json processes = Json::array();
  for (const ReaderSlotInfo& process : insides.processes) processes.push_back(as_json(process));
  object["processes"] = std::move(processes);
  return object;
}

void print(const std::string& path, const StateInspection& insides, Output& output) {
  const auto row = [&](std::string_view name, const std::string& value) {
    output.write_line(fmt::format("  {:<20}{}", name, value));
  };
  output.write_line("state " + escape(path));
  row("made",
      fmt::format(
          "{}{}", format_time(insides.created_us),
          insides.created_in_this_boot ? "" : "  (in another boot, or on another machine)"));
  row("state id", format_hash(insides.info.state_id));
  row("log", escape(insides.info.log_name));
  row("log uuid", to_string(insides.info.log_uuid));
  row("applied id", std::to_string(insides.info.applied_id));
  row("chain", format_hash(insides.info.chain));
  row("digest", to_string(insides.info.digest));
  row("items",
      fmt::format("{}  ({} of keys and values)", format_with_commas(insides.info.item_count),
                  format_bytes(insides.info.item_bytes)));
  row("writer", insides.writer_active ? "at work, or died at it" : "none");
  if (insides.info.superseded) row("superseded", "yes: another file took its place");

  output.write_line("segments of " + format_bytes(insides.segment_bytes) + ", " +
                    format_bytes(insides.file_bytes) + " in all");
  for (const SegmentKindUsage& use : insides.segments_by_kind) {
    row(use.kind,
        fmt::format("{:>8}  {:>10}  {:>10} live  {:>3.0f}%", format_with_commas(use.segment_count),
                    format_bytes(use.bytes), format_bytes(use.live_bytes),
                    100 * ratio(use.live_bytes, use.bytes)));
  }
  row("reclaim generation", std::to_string(insides.reclaim_generation));
  row("reclaim horizon", std::to_string(insides.reclaim_horizon));

  output.write_line("point index");
  row("parts", fmt::format("{}  (depth {})", format_with_commas(insides.index_pages),
                           insides.index_global_depth));
  row("load",
      fmt::format("{:.0f}%  ({} of {} words, {} fillers)",
                  100 * ratio(insides.index_used, insides.index_words),
                  format_with_commas(insides.index_used), format_with_commas(insides.index_words),
                  format_with_commas(insides.index_tombstones)));
  output.write_line("key index");
  row("height", std::to_string(insides.tree_height));

  output.write_line(fmt::format("reader slots: {} of {} taken", insides.slots_taken.size(),
                                insides.reader_slots));
  for (const ReaderSlotInfo& slot : insides.slots_taken) {
    row(fmt::format("slot {}", slot.slot),
        fmt::format("holds update {}: process {} {}{}", slot.pinned_id, slot.process_id,
                    escape(slot.process_name), slot.alive ? "" : "  (dead: will be swept)"));
  }
  output.write_line(fmt::format("processes: {}", insides.processes.size()));
  for (const ReaderSlotInfo& process : insides.processes) {
    row(fmt::format("row {}", process.slot),
        fmt::format("process {} {}{}", process.process_id, escape(process.process_name),
                    process.alive ? "" : "  (dead: will be swept)"));
  }
}

ExitCode inspect(const InspectArguments& arguments, Output& output) {
  // A file that is named is looked at by itself, whatever log the environment names.
  const StateSource source = arguments.file.empty()
                                 ? StateSource(arguments.target)
                                 : StateSource::open_file(arguments.file, arguments.target);
  const State& state = source.state();
  const StateInspection insides = state.inspect();
  if (arguments.json) {
    output.write_json(as_json(state.path(), insides));
  } else {
    print(state.path(), insides, output);
  }
  return ExitCode::done;
}

CommandAction prepare_inspect(CLI::App& parser) {
  const auto arguments = std::make_shared<InspectArguments>();
  parser.add_option("FILE", arguments->file, "a state file; no log is needed then")->type_name("");
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return inspect(*arguments, output); };
}

}  // namespace

const Command inspect_command{
    "inspect", "the insides of a state file",
    R"(Prints what a state file is made of: where it comes from, what its segments are used for, how full the point index
is, how high the key index; which reader slots are taken, by which process, and what they hold: an old held
update keeps the space of everything overwritten since. A file that is named needs no log. If it is a copy, it is
verified first and made this machine's own, as by everything that opens a state.)",
    R"(Examples:
  whycache inspect
  whycache inspect /var/lib/whycache/flags.state
  whycache inspect --json | jq '.slots_taken[] | .process'     who holds views
  whycache inspect --json | jq '.segments'

Exit codes: 0 done, 2 there is no such file, 5 it is damaged or no state file, 7 permission)",
    prepare_inspect};

}  // namespace whycache::cli
