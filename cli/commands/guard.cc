// whycache guard
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <charconv>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/target.h"
#include "client/guards.h"

namespace whycache::cli {
namespace {

struct GuardArguments {
  Target target;
  FreshnessOptions freshness;
  bool no_clear = false;
  bool allow_clear = false;
  std::optional<std::string> erased_keys_max;
  std::optional<std::string> erased_share_max;
  bool remove = false;
  std::string note;
  bool json = false;

  bool changes_something() const {
    return no_clear || allow_clear || erased_keys_max || erased_share_max || remove;
  }
};

template <typename Number>
std::optional<Number> parse_limit(const std::string& text, const char* option,
                                  const char* next_step) {
  if (text == "none") return std::nullopt;
  const bool is_percentage = text.ends_with('%') && std::is_floating_point_v<Number>;
  Number number{};
  const char* const end = text.data() + text.size() - (is_percentage ? 1 : 0);
  const auto [parsed, error] = std::from_chars(text.data(), end, number);
  if (is_percentage) number /= 100;
  const bool is_share = !std::is_floating_point_v<Number> || (number >= 0 && number <= 1);
  if (error != std::errc{} || parsed != end || !is_share)
    throw Failure(ExitCode::usage, fmt::format("{} is wrong: value={}", option, text), next_step);
  return number;
}

// Applies the options to the guards that the log has.
void change(const GuardArguments& arguments, LogGuards& guards) {
  if (arguments.remove) guards = {};
  if (arguments.no_clear) guards.clear_allowed = false;
  if (arguments.allow_clear) guards.clear_allowed = true;
  if (arguments.erased_keys_max) {
    guards.erased_keys_max = parse_limit<std::uint64_t>(
        *arguments.erased_keys_max, "--erased-keys-max", "give a number, or none");
  }
  if (arguments.erased_share_max) {
    guards.erased_share_max = parse_limit<double>(*arguments.erased_share_max, "--erased-share-max",
                                                  "give 5% or 0.05, at most 100%, or none");
  }
}

void print(const LogGuards& guards, UpdateId id, bool json, Output& output) {
  if (json) {
    Json object{{"clear_allowed", guards.clear_allowed}};
    object["erased_keys_max"] = guards.erased_keys_max ? Json(*guards.erased_keys_max) : Json();
    object["erased_share_max"] = guards.erased_share_max ? Json(*guards.erased_share_max) : Json();
    object["update_id"] = id;
    return output.write_json(object);
  }
  output.write_line(
      fmt::format("clear             {}", guards.clear_allowed ? "allowed" : "forbidden"));
  output.write_line(
      fmt::format("erased keys max   {}",
                  guards.erased_keys_max ? std::to_string(*guards.erased_keys_max) : "none"));
  output.write_line(fmt::format(
      "erased share max  {}",
      guards.erased_share_max ? fmt::format("{:.6g}%", *guards.erased_share_max * 100) : "none"));
}

ExitCode guard(const GuardArguments& arguments, Output& output) {
  if (arguments.no_clear && arguments.allow_clear) {
    throw Failure(ExitCode::usage, "--no-clear and --allow-clear exclude each other",
                  "choose one of them");
  }
  LogGuards guards;
  if (!arguments.changes_something()) {
    const StateSource source = StateSource::open(arguments.target, arguments.freshness);
    const View view = source.view();
    guards = log_guards_of(view);
    print(guards, view.id(), arguments.json, output);
    return ExitCode::done;
  }
  change(arguments, guards);  // before anything is opened, for its errors
  Target target = arguments.target;
  target.creates_log = true;
  const auto cache = open_cache_with_log(target);
  const UpdateId id = CacheInternal::change_log_guards(*cache,
                                                       [&](LogGuards& present) {
                                                         change(arguments, present);
                                                         guards = present;
                                                       },
                                                       {.note = arguments.note});
  print(guards, id, arguments.json, output);
  return ExitCode::done;
}

CommandAction prepare_guard(CLI::App& parser) {
  const auto arguments = std::make_shared<GuardArguments>();
  parser.add_flag("--no-clear", arguments->no_clear,
                  "let no call erase all keys at once: clear, rewrite, del, import");
  parser.add_flag("--allow-clear", arguments->allow_clear, "the opposite");
  parser
      .add_option("--erased-keys-max", arguments->erased_keys_max,
                  "let no call erase more than N keys; none: any number")
      ->type_name("N");
  parser
      .add_option("--erased-share-max", arguments->erased_share_max,
                  "let no call erase more than this share of all keys, as 5% or 0.05; none: any")
      ->type_name("SHARE");
  parser.add_flag("--remove", arguments->remove, "remove the guards that no other option sets");
  add_writer_options(parser, arguments->target, arguments->note);
  add_json_option(parser, arguments->json);
  add_freshness_options(parser, arguments->freshness);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return guard(*arguments, output); };
}

}  // namespace

const Command guard_command{
    "guard", "print or set limits on erasing that live in the log",
    R"(Guards are stored in the log and obeyed by all writers, the command line and programs alike,
from the next update on. --yes does not override them: to erase more than they allow, change them,
erase, and set them again. Without options, prints the guards that this machine knows. With options,
changes those that are named, and prints all.

They prevent mistakes. A writer of a version without guards does not know them. They are an item
with the key whycache:guards, which scan and count include.)",
    R"(Examples:
  whycache guard --no-clear --erased-share-max 5%
  whycache guard --erased-keys-max 1000
  whycache guard                                     prints them
  whycache guard --remove
  whycache log --key whycache:guards                 who changed them, and when

JSON: clear_allowed, erased_keys_max, erased_share_max (null: none), update_id

Exit codes: 0 done, 2 an option is wrong, 3 the log did not answer, 4 staler than --staleness-max,
  5 log or state are damaged, 7 permission, 8 a newer version has set guards that this one does not
  know)",
    prepare_guard};

}  // namespace whycache::cli
