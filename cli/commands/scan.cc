// whycache scan [PREFIX]
#include <cstdint>

#include "cli/commands/range_command.h"

namespace whycache::cli {
namespace {

void print_items(const View& view, const RangeOptions& range, const ItemPrinter& printer) {
  std::uint64_t count = 0;
  for (const Item item : view.items(range.key_range())) {
    printer.print_item(item);
    if (++count == range.limit) break;
  }
}

CommandAction prepare_scan(CLI::App& parser) {
  return prepare_range_command(parser, "key, zero byte, value, zero byte; not escaped", print_items,
                               true);
}

}  // namespace

const Command scan_command{
    "scan", "print keys with their values, in key order",
    R"(Prints key, tab, value for each key, in the byte order of the keys. All items are as of one
update id, however long the scan takes and whatever is written meanwhile.

Lines are escaped: \\ \t \n \r, and \xNN for other control characters and bytes that are not UTF-8.
`whycache import` reads them back unchanged, and the output of --json too. Typed values are printed
as JSON. Lines do not tell these from plain values: use --json, which marks them, or --raw-bytes.)",
    R"(Examples:
  whycache scan                                      everything
  whycache scan user. --limit 10
  whycache scan --from 2026-01 --to 2026-02
  whycache scan --json | jq -r .key
  whycache scan --json | whycache import --log sqlite:///other.db -

Exit codes: 0 done (also if there is nothing to print), 3, 4 and 6 as for `whycache get`,
  5 the state is damaged, 7 permission,
  9 the output could not be written)",
    prepare_scan};

}  // namespace whycache::cli
