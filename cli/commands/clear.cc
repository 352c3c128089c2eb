// whycache clear
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/format.h"
#include "cli/target.h"
#include "client/cache_internal.h"

namespace whycache::cli {
namespace {

struct ClearArguments {
  Target target;
  bool yes = false;
  std::string note;
  bool json = false;
};

ExitCode clear(const ClearArguments& arguments, Output& output) {
  const auto cache = open_cache_with_log(arguments.target);
  if (!arguments.yes) {
    ask_before_write(arguments.target, [&] { cache->update(); });
    throw Failure(ExitCode::refused,
                  fmt::format("all {} keys and the whole history will be erased on every machine, "
                              "irrevocably: log={}",
                              format_with_commas(cache->size()), CacheInternal::log(*cache).name()),
                  "add --yes to proceed");
  }
  const UpdateId base = cache->delete_all_history({.note = arguments.note});
  if (arguments.json) {
    output.write_json(Json{{"base", base}});
  } else {
    output.write_line(std::to_string(base));
  }
  return ExitCode::done;
}

CommandAction prepare_clear(CLI::App& parser) {
  const auto arguments = std::make_shared<ClearArguments>();
  add_yes_option(parser, arguments->yes, "proceed; without it, only print what would be lost");
  add_writer_options(parser, arguments->target, arguments->note);
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return clear(*arguments, output); };
}

}  // namespace

const Command clear_command{
    "clear", "erase every key on every machine, and the history",
    R"(Erases everything: appends one update that erases all keys, then rewrites all history. Other
machines apply this at their next update. Prints the base. This cannot be undone, so it requires
--yes. Nothing is erased if this user may not rewrite the log. The log keeps the writer and the time
of the command, which `whycache log` prints. It also keeps its guards, which may forbid this.)",
    R"(Examples:
  whycache clear                                     prints what would be lost, exit code 8
  whycache clear --yes

Exit codes: 0 done, 3 the log did not answer, 5 log or state are damaged, 7 permission,
  8 --yes is missing, or a guard of the log forbids it)",
    prepare_clear};

}  // namespace whycache::cli
