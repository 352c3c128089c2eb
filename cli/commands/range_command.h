// The common part of `keys` and `scan`, which print a range as of one update id.
#pragma once

#include "cli/command.h"
#include "cli/item_format.h"
#include "cli/options.h"

namespace whycache::cli {

using PrintRange = void (*)(const View& view, const RangeOptions& range,
                            const ItemPrinter& printer);

// Adds the options; `null_help` describes --null, `with_values` adds those for values.
CommandAction prepare_range_command(CLI::App& parser, const char* null_help, PrintRange print,
                                    bool with_values);

}  // namespace whycache::cli
