// whycache get KEY
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include <whycache/value.h>

#include "cli/command.h"
#include "cli/escape.h"
#include "cli/target.h"
#include "cli/value_json.h"

namespace whycache::cli {
namespace {

struct GetArguments {
  Target target;
  FreshnessOptions freshness;
  std::string key;
  bool json = false;
  ValueForm value_form = ValueForm::typed;
};

Json decode(const std::string& key, std::string_view value) {
  try {
    return value_to_json(value);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::corrupt) throw;
    throw Failure(ExitCode::corrupt,
                  std::string("value cannot be decoded: key=") + escape(key) + ": " + error.what(),
                  "--raw-bytes prints what is stored");
  }
}

ExitCode get(const GetArguments& arguments, Output& output) {
  const StateSource source = StateSource::open(arguments.target, arguments.freshness);
  std::string value;
  if (!source.state().get(arguments.key, value)) {
    print_message("not found: key=" + escape(arguments.key));
    return ExitCode::not_found;
  }
  if (arguments.json) {
    Json object;
    put_bytes(object, "key", arguments.key);
    put_value(object, value, arguments.value_form);
    output.write_json(object);
    return ExitCode::done;
  }
  if (arguments.value_form == ValueForm::typed && is_typed_value(value)) {
    output.write_line(json_line(decode(arguments.key, value)));
    return ExitCode::done;
  }
  output.write(value);
  if (Output::is_terminal() && !value.ends_with('\n')) output.write("\n");
  return ExitCode::done;
}

CommandAction prepare_get(CLI::App& parser) {
  const auto arguments = std::make_shared<GetArguments>();
  parser.add_option("KEY", arguments->key, "the key, byte for byte")->type_name("")->required();
  add_freshness_options(parser, arguments->freshness);
  add_json_option(parser, arguments->json);
  add_raw_bytes_option(parser, arguments->value_form);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return get(*arguments, output); };
}

}  // namespace

const Command get_command{
    "get", "print the value of a key",
    R"(Prints the value of a key: its bytes and nothing else. At a terminal a line feed follows. A
typed value, as programs in Python write it, is printed as a line of JSON.

Reads this machine's state. The log is contacted only if --update or --staleness-max requires it,
or if there is no state yet. Without --log, --state alone names a state file to read.)",
    R"(Examples:
  whycache get checkout.enabled
  whycache get --update checkout.enabled             the newest value in the log
  whycache get --staleness-max 5s checkout.enabled   contacts the log at most every 5 seconds
  whycache get logo.png > logo.png                   any bytes
  whycache get --json checkout.enabled               {"key":"checkout.enabled","value":"yes"}
  whycache get --raw-bytes settings > settings.bin   a typed value as it is stored
  whycache get -- -dash                              a key that begins with a dash

Exit codes: 0 found, 1 not found, 3 the log did not answer after --update,
  4 staler than --staleness-max, 5 the state is damaged, 6 a process held a lock of the log until
  the deadline of --update, 7 permission)",
    prepare_get};

}  // namespace whycache::cli
