#include "cli/commands/range_command.h"

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/spellings.h"
#include "cli/target.h"

namespace whycache::cli {
namespace {

struct RangeArguments {
  Target target;
  FreshnessOptions freshness;
  RangeOptions range;
  bool null_separated = false;
  bool json = false;
  ValueForm value_form = ValueForm::typed;
};

}  // namespace

CommandAction prepare_range_command(CLI::App& parser, const char* null_help, PrintRange print,
                                    bool with_values) {
  const auto arguments = std::make_shared<RangeArguments>();
  add_range_options(parser, arguments->range);
  add_freshness_options(parser, arguments->freshness);
  add_null_option(parser, arguments->null_separated, null_help);
  add_json_option(parser, arguments->json);
  if (with_values) add_raw_bytes_option(parser, arguments->value_form);
  add_target_options(parser, arguments->target);
  return [arguments, print](Output& output) {
    const ItemPrinter printer(
        output, ItemPrinter::select_format(arguments->json, arguments->null_separated),
        arguments->value_form);
    const StateSource source = StateSource::open(arguments->target, arguments->freshness);
    const View view = source.view();
    print(view, arguments->range, printer);
    if (!view.first(arguments->range.key_range())) explain_pattern(arguments->range.prefix);
    return ExitCode::done;
  };
}

}  // namespace whycache::cli
