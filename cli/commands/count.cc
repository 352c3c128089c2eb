// whycache count [PREFIX]
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/spellings.h"
#include "cli/target.h"

namespace whycache::cli {
namespace {

struct CountArguments {
  Target target;
  FreshnessOptions freshness;
  RangeOptions range;
  bool json = false;
};

std::uint64_t count_keys(const View& view, const RangeOptions& range) {
  if (range.prefix.empty() && !range.from && !range.to) {
    return range.limit == 0 ? view.size() : std::min<std::uint64_t>(range.limit, view.size());
  }
  std::uint64_t key_count = 0;
  for ([[maybe_unused]] const std::string_view key : view.keys(range.key_range())) {
    if (++key_count == range.limit) break;
  }
  return key_count;
}

ExitCode count(const CountArguments& arguments, Output& output) {
  const StateSource source = StateSource::open(arguments.target, arguments.freshness);
  const View view = source.view();
  const std::uint64_t key_count = count_keys(view, arguments.range);
  if (arguments.json) {
    output.write_json(Json{{"keys", key_count}, {"applied_id", view.id()}});
  } else {
    output.write_line(std::to_string(key_count));
  }
  if (key_count == 0) explain_pattern(arguments.range.prefix);
  return ExitCode::done;
}

CommandAction prepare_count(CLI::App& parser) {
  const auto arguments = std::make_shared<CountArguments>();
  add_range_options(parser, arguments->range);
  add_freshness_options(parser, arguments->freshness);
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return count(*arguments, output); };
}

}  // namespace

const Command count_command{
    "count", "print how many keys there are",
    R"(Prints the number of keys. The state stores the total; a prefix or range is counted key by
key.)",
    R"(Examples:
  whycache count
  whycache count user.
  whycache count --json                              {"keys":63440,"applied_id":51}

Exit codes: 0 done, 3, 4 and 6 as for `whycache get`, 5 the state is damaged, 7 permission)",
    prepare_count};

}  // namespace whycache::cli
