// whycache keys [PREFIX]
#include <CLI/CLI.hpp>
#include <memory>

#include "command.h"
#include "items.h"
#include "target.h"

namespace whycache::cli {
namespace {

struct Arguments {
  Target target;
  FreshnessOptions freshness;
  RangeOptions range;
  bool null_separated = false;
  bool json = false;
};

ExitCode keys(const Arguments& arguments, Output& output) {
  const ItemPrinter printer(output, ItemPrinter::form(arguments.json, arguments.null_separated));
  const Source source(arguments.target, arguments.freshness);
  std::uint64_t key_count = 0;
  for (const std::string_view key : source.view().keys(arguments.range.key_range())) {
    printer.key(key);
    if (++key_count == arguments.range.limit) break;
  }
  return ExitCode::done;
}

Run prepare(CLI::App& parser) {
  const auto arguments = std::make_shared<Arguments>();
  add_range_options(parser, arguments->range);
  add_freshness_options(parser, arguments->freshness);
  add_null_option(parser, arguments->null_separated, "keys end in a zero byte and are not escaped");
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return keys(*arguments, output); };
}

}  // namespace

const Command keys_command{
    "keys", "print keys, in order",
    R"(Prints the keys, a line each, in the order of their bytes, as of one update id. Values are not touched.

Lines are escaped: \\ \t \n \r, and \xNN for other control characters and bytes that are not UTF-8;
`whycache mget -` and `whycache del -` read them back.)",
    R"(Examples:
  whycache keys user. | head
  whycache keys --from a --to b --limit 100
  whycache keys --null tmp. | whycache del --null -

Exit codes: 0 done (also when there are none), 3 and 4 as for `whycache get`, 5 the state is damaged,
  7 permission, 9 all reader slots are taken, or the output could not be written)",
    prepare};

}  // namespace whycache::cli
