// whycache mget KEY...
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/item_format.h"
#include "cli/key_list.h"
#include "cli/target.h"

namespace whycache::cli {
namespace {

constexpr std::size_t mget_batch_keys = 1024;

struct MgetArguments {
  Target target;
  FreshnessOptions freshness;
  KeyListOptions keys;
  bool json = false;
  ValueForm value_form = ValueForm::typed;
};

ExitCode mget(const MgetArguments& arguments, const CLI::App& parser, Output& output) {
  KeyList keys(arguments.keys, keys_of(parser));
  const StateSource source = StateSource::open(arguments.target, arguments.freshness);
  const View view = source.view();
  const ItemPrinter printer(
      output, ItemPrinter::select_format(arguments.json, arguments.keys.null_separated),
      arguments.value_form);
  std::uint64_t key_count = 0;
  std::uint64_t missing_count = 0;
  keys.visit_batches(mget_batch_keys, [&](std::span<const std::string_view> batch) {
    for (const std::string_view key : batch) {
      ++key_count;
      if (const auto value = view.get(key)) {
        printer.print_item({key, *value});
      } else {
        ++missing_count;
        printer.print_missing(key);
      }
    }
  });
  if (missing_count == 0) return ExitCode::done;
  output.flush();
  print_message(fmt::format("not found: {} of {} keys", missing_count, key_count));
  return ExitCode::not_found;
}

CommandAction prepare_mget(CLI::App& parser) {
  const auto arguments = std::make_shared<MgetArguments>();
  allow_keys(parser);
  add_key_list_options(parser, arguments->keys);
  add_freshness_options(parser, arguments->freshness);
  add_json_option(parser, arguments->json);
  add_raw_bytes_option(parser, arguments->value_form);
  add_target_options(parser, arguments->target);
  return [arguments, &parser](Output& output) { return mget(*arguments, parser, output); };
}

}  // namespace

const Command mget_command{
    "mget", "print the values of many keys, as of one update",
    R"(Prints key, tab, value for each key that exists, in the order of the arguments. All values
are as of one update id, so no update is seen in part. The keys are the arguments. If there are
none, or only -, the keys are the lines of standard input.

Lines are escaped: \\ \t \n \r, and \xNN for other control characters and bytes that are not
UTF-8. Typed values are printed as JSON.)",
    R"(Examples:
  whycache mget checkout.enabled checkout.limit
  whycache mget --json - < keys.txt                  absent keys have "value":null
  whycache keys --null user. | whycache mget --null - > items

Exit codes: 0 all found, 1 some were not found (the others are printed), 2 a line is not a key,
  3, 4 and 6 as for `whycache get`, 5 the state is damaged, 7 permission)",
    prepare_mget};

}  // namespace whycache::cli
