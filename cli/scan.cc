// whycache scan [PREFIX]
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

ExitCode scan(const Arguments& arguments, Output& output) {
  const ItemPrinter printer(output, ItemPrinter::form(arguments.json, arguments.null_separated));
  const Source source(arguments.target, arguments.freshness);
  std::uint64_t item_count = 0;
  for (const Item item : source.view().items(arguments.range.key_range())) {
    printer.item(item);
    if (++item_count == arguments.range.limit) break;
  }
  return ExitCode::done;
}

Run prepare(CLI::App& parser) {
  const auto arguments = std::make_shared<Arguments>();
  add_range_options(parser, arguments->range);
  add_freshness_options(parser, arguments->freshness);
  add_null_option(parser, arguments->null_separated, "key, zero byte, value, zero byte; not escaped");
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return scan(*arguments, output); };
}

}  // namespace

const Command scan_command{
    "scan", "print keys with their values, in key order",
    R"(Prints key, tab, value for each key, in the order of the keys' bytes, all as of one update id, however long it
takes and whatever is written meanwhile.

Lines are escaped: \\ \t \n \r, and \xNN for other control characters and bytes that are not UTF-8;
`whycache import` reads them back as they were, and so it does with --json.)",
    R"(Examples:
  whycache scan                                      everything
  whycache scan user. --limit 10
  whycache scan --from 2026-01 --to 2026-02
  whycache scan --json | jq -r .key
  whycache scan --json | whycache import --log sqlite:///other.db -

Exit codes: 0 done (also when there is nothing to print), 3 and 4 as for `whycache get`,
  5 the state is damaged, 7 permission, 9 all reader slots are taken, or the output could not be written)",
    prepare};

}  // namespace whycache::cli
