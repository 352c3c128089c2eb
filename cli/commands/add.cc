// whycache add KEY N
#include <CLI/CLI.hpp>

#include <charconv>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/target.h"

namespace whycache::cli {
namespace {

struct AddArguments {
  Target target;
  std::string key;
  std::string number;
  std::string note;
  bool json = false;
};

std::int64_t parse_number(std::string_view text) {
  std::string_view digits = text;
  if (digits.starts_with('+') && !digits.starts_with("+-")) digits.remove_prefix(1);
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc{} || end != digits.data() + digits.size())
    throw Failure(ExitCode::usage, "not an integer of 64 bits: number=" + std::string(text),
                  "give decimal digits, like 1 or -5");
  return number;
}

ExitCode add(const AddArguments& arguments, Output& output) {
  const std::int64_t number = parse_number(arguments.number);
  const auto cache = open_cache_with_log(arguments.target);
  const std::int64_t sum = cache->add(arguments.key, number, {.note = arguments.note});
  if (arguments.json) {
    Json object;
    put_bytes(object, "key", arguments.key);
    object["sum"] = sum;
    output.write_json(object);
  } else {
    output.write_line(std::to_string(sum));
  }
  return ExitCode::done;
}

CommandAction prepare_add(CLI::App& parser) {
  const auto arguments = std::make_shared<AddArguments>();
  parser.add_option("KEY", arguments->key, "1 to 1024 bytes")->type_name("")->required();
  parser.add_option("N", arguments->number, "an integer; negative to subtract")
      ->type_name("")
      ->required();
  add_writer_options(parser, arguments->target, arguments->note);
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  arguments->target.creates_log = true;
  return [arguments](Output& output) { return add(*arguments, output); };
}

}  // namespace

const Command add_command{
    "add", "add to the integer that is the value of a key",
    R"(Adds to an integer in decimal digits and prints the sum. An absent key counts as 0. Any
number of machines may add at once: no addition is lost. After an uncertain outcome (exit code 3,
the message says so), look before repeating it.)",
    R"(Examples:
  whycache add visits 1
  whycache add seats -2

Exit codes: 0 done, 2 the value or N is not an integer, 3 the log did not answer (the message says
  whether it may have been added), 5 log or state are damaged, 7 permission,
  9 the sum has more than 64 bits, or the disk is full)",
    prepare_add};

}  // namespace whycache::cli
