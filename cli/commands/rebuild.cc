// whycache rebuild
#include <fmt/format.h>
#include <sys/stat.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/command.h"
#include "cli/format.h"
#include "cli/target.h"
#include "client/cache_internal.h"

namespace whycache::cli {
namespace {

struct RebuildArguments {
  Target target;
  bool json = false;
};

std::uint64_t file_bytes_of(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_size) : 0;
}

ExitCode rebuild(const RebuildArguments& arguments, Output& output) {
  const auto cache = open_cache_with_log(arguments.target, [](const Event& event) {
    // The command prints the result of the rebuild itself.
    if (event.kind != Event::Kind::rebuilt) report_event(event);
  });
  const std::string path = cache->state_path();
  const std::uint64_t bytes_before = file_bytes_of(path);
  CacheInternal::rebuild(*cache);
  const StateInfo info = CacheInternal::state(*cache).info();
  const std::uint64_t bytes = file_bytes_of(path);
  if (arguments.json) {
    Json object{{"applied_id", info.applied_id},
                {"items", info.item_count},
                {"state_bytes", bytes},
                {"state_bytes_before", bytes_before}};
    put_bytes(object, "state", path);
    output.write_json(object);
  } else {
    output.write_line(fmt::format("{} at update {}, {} (before: {}): {}",
                                  format_count(info.item_count, "item"), info.applied_id,
                                  format_bytes(bytes), format_bytes(bytes_before), path));
  }
  return ExitCode::done;
}

CommandAction prepare_rebuild(CLI::App& parser) {
  const auto arguments = std::make_shared<RebuildArguments>();
  add_json_option(parser, arguments->json);
  add_accept_replaced_log_option(parser, arguments->target);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return rebuild(*arguments, output); };
}

}  // namespace

const Command rebuild_command{
    "rebuild", "build this machine's state again, which shrinks it",
    R"(Builds this machine's state again from the log, beside the present one, and puts the new file
in its place. Processes that read and write continue meanwhile, and change to the new file by
themselves. The new file is as small as its items allow; a state file that has grown never shrinks
otherwise. Needs room for both files.

`whycache follow` does the same by itself when a large state (64 MiB) is more than half free.)",
    R"(Examples:
  whycache rebuild
  whycache rebuild --json | jq '.state_bytes_before - .state_bytes'

JSON: applied_id, items, state_bytes, state_bytes_before, state

Exit codes: 0 done, 3 the log did not answer, 5 the log is damaged, or empty in place of one that
  was applied, 7 permission, 9 there is no room for both files; the state is then unchanged)",
    prepare_rebuild};

}  // namespace whycache::cli
