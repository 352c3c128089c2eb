// whycache keys [PREFIX]
#include <cstdint>

#include "cli/commands/range_command.h"

namespace whycache::cli {
namespace {

void print_keys(const View& view, const RangeOptions& range, const ItemPrinter& printer) {
  std::uint64_t count = 0;
  for (const std::string_view key : view.keys(range.key_range())) {
    printer.print_key(key);
    if (++count == range.limit) break;
  }
}

CommandAction prepare_keys(CLI::App& parser) {
  return prepare_range_command(parser, "keys end in a zero byte and are not escaped", print_keys,
                               false);
}

}  // namespace

const Command keys_command{
    "keys", "print keys, in order",
    R"(Prints the keys, one per line, in byte order, as of one update id. Values are not read.

Lines are escaped: \\ \t \n \r, and \xNN for other control characters and bytes that are not UTF-8.
`whycache mget -` and `whycache del -` read them back.)",
    R"(Examples:
  whycache keys user. | head
  whycache keys --from a --to b --limit 100
  whycache keys --null tmp. | whycache del --null -

Exit codes: 0 done (also if there are none), 3, 4 and 6 as for `whycache get`,
  5 the state is damaged, 7 permission, 9 the output could not be written)",
    prepare_keys};

}  // namespace whycache::cli
