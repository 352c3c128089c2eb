// whycache set KEY VALUE
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/condition.h"
#include "cli/input.h"
#include "cli/target.h"
#include "cli/value_json.h"

namespace whycache::cli {
namespace {

struct SetArguments {
  Target target;
  std::string key;
  std::optional<std::string> value;
  std::optional<std::string> file;
  std::optional<std::string> type;
  bool if_absent = false;
  std::optional<std::string> if_value;
  std::string note;
  bool json = false;
};

std::string read_value(const SetArguments& arguments) {
  if (arguments.value.has_value() == arguments.file.has_value()) {
    throw Failure(ExitCode::usage,
                  arguments.file ? "the value is given twice" : "there is no value",
                  "give VALUE, - for standard input, or --file PATH");
  }
  if (arguments.file) return Input(*arguments.file).read_rest(value_bytes_max);
  if (*arguments.value == "-") return Input("-").read_rest(value_bytes_max);
  return *arguments.value;
}

// Input of a type that is text may end with a line feed, as `echo` writes it.
std::string encode(const std::string& type, std::string_view text, bool is_input) {
  if (is_input && type != "str" && type != "bytes" && text.ends_with('\n')) text.remove_suffix(1);
  return parse_value(type, text);
}

UpdateId write(const SetArguments& arguments, Cache& cache, const std::string& value) {
  const WriteOptions options{.note = arguments.note};
  if (!arguments.if_absent && !arguments.if_value) return cache.set(arguments.key, value, options);
  const std::optional<UpdateId> id =
      cache.set_if(arguments.key, arguments.if_value, value, options);
  if (!id) throw condition_failed(cache, arguments.key, arguments.if_value.has_value());
  return *id;
}

ExitCode set(const SetArguments& arguments, Output& output) {
  if (arguments.if_absent && arguments.if_value) {
    throw Failure(ExitCode::usage, "--if-absent and --if exclude each other", "choose one of them");
  }
  const bool is_input = arguments.file || arguments.value == "-";
  std::string value = read_value(arguments);
  if (arguments.type) value = encode(*arguments.type, value, is_input);
  const auto cache = open_cache_with_log(arguments.target);
  const UpdateId id = write(arguments, *cache, value);
  if (arguments.json) {
    output.write_json(Json{{"update_id", id}});
  } else {
    output.write_line(std::to_string(id));
  }
  return ExitCode::done;
}

CommandAction prepare_set(CLI::App& parser) {
  const auto arguments = std::make_shared<SetArguments>();
  parser.add_option("KEY", arguments->key, "1 to 1024 bytes")->type_name("")->required();
  parser
      .add_option("VALUE", arguments->value,
                  "the value, byte for byte; - reads standard input to its end")
      ->type_name("");
  parser.add_option("--file", arguments->file, "read the value from this file")->type_name("PATH");
  parser
      .add_option("--type", arguments->type,
                  "store a typed value, as programs in Python do: json, str, int, float, bool,\n"
                  "bytes, decimal, uuid, date, time, datetime, timedelta")
      ->type_name("TYPE");
  parser.add_flag("--if-absent", arguments->if_absent,
                  "only if the key is absent, else exit code 6");
  parser
      .add_option("--if", arguments->if_value,
                  "only if the key has this value, byte for byte, else exit code 6")
      ->type_name("VALUE");
  add_writer_options(parser, arguments->target, arguments->note);
  add_json_option(parser, arguments->json);
  add_update_bytes_max_option(parser, arguments->target);
  add_target_options(parser, arguments->target);
  arguments->target.creates_log = true;
  return [arguments](Output& output) { return set(*arguments, output); };
}

}  // namespace

const Command set_command{
    "set", "set a key to a value",
    R"(Sets a key and prints the id of the update. When the command returns, the update is durable
in the log, every process of this machine sees it, and every other machine will apply it.)",
    R"(Examples:
  whycache set checkout.enabled yes
  whycache set --file logo.png logo.png              any bytes
  printf 'a\0b' | whycache set bytes -               input is stored unchanged
  whycache set --note 'ticket 4711' checkout.enabled no    shown by `whycache log`
  whycache set --type json limits '{"upload":5,"tags":{"$set":["a","b"]}}'
  whycache set --type decimal price 9.90             read by Python as Decimal("9.90")
  whycache set --if-absent leader berlin             only one of several machines succeeds
  whycache set --if berlin leader tokyo              only if it still is berlin
  whycache set -- temperature -5                     -- precedes arguments that begin with a dash

Exit codes: 0 done, 2 the key is empty or too long, or the value is none of the type, 3 the log did
  not answer (the message says whether anything may have been written), 5 log or state are damaged,
  6 the key does not have the value of --if, or is not absent, 7 permission, 9 the value is too
  large or the disk is full)",
    prepare_set};

}  // namespace whycache::cli
