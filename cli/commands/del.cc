// whycache del KEY...
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/command.h"
#include "cli/condition.h"
#include "cli/key_list.h"
#include "cli/spellings.h"
#include "cli/target.h"

namespace whycache::cli {
namespace {

struct DelArguments {
  Target target;
  KeyListOptions keys;
  EraseOptions erase;
  std::optional<std::string> if_value;
  std::string note;
  bool json = false;
};

UpdateId erase_if(const DelArguments& arguments, Cache& cache,
                  const std::vector<std::string>& keys) {
  if (keys.size() != 1) {
    throw Failure(ExitCode::usage, fmt::format("--if is for one key: keys={}", keys.size()),
                  "erase several keys atomically with `whycache apply`");
  }
  const std::optional<UpdateId> id =
      cache.erase_if(keys[0], *arguments.if_value, {.note = arguments.note});
  if (!id) throw condition_failed(cache, keys[0], /*expects_value=*/true);
  return *id;
}

UpdateId erase(const DelArguments& arguments, Cache& cache, const std::vector<std::string>& keys) {
  if (keys.size() == 1 && !cache.contains(keys[0])) explain_pattern(keys[0]);
  if (keys.size() >
      std::min(arguments.erase.erase_max.value_or(erased_keys_free_max), erased_keys_free_max)) {
    ask_before_write(arguments.target, [&] { cache.update(); });
    const View view = cache.view();
    const std::set<std::string_view> distinct(keys.begin(), keys.end());
    const auto erased = static_cast<std::uint64_t>(
        std::count_if(distinct.begin(), distinct.end(),
                      [&](std::string_view key) { return view.contains(key); }));
    arguments.erase.require_consent("nothing was erased", erased, view.size(),
                                    erased_keys_free_max);
  }
  return cache.erase_multi(keys, {.note = arguments.note});
}

ExitCode del(const DelArguments& arguments, const CLI::App& parser, Output& output) {
  const std::vector<std::string> keys = KeyList(arguments.keys, keys_of(parser)).read_all();
  const auto cache = open_cache_with_log(arguments.target);
  const UpdateId id =
      arguments.if_value ? erase_if(arguments, *cache, keys) : erase(arguments, *cache, keys);
  if (arguments.json) {
    output.write_json(Json{{"update_id", id}, {"keys", keys.size()}});
  } else {
    output.write_line(std::to_string(id));
  }
  return ExitCode::done;
}

CommandAction prepare_del(CLI::App& parser) {
  const auto arguments = std::make_shared<DelArguments>();
  allow_keys(parser);
  add_key_list_options(parser, arguments->keys);
  add_erase_options(parser, arguments->erase);
  parser
      .add_option("--if", arguments->if_value,
                  "only if the key has this value, byte for byte, else exit code 6; one key")
      ->type_name("VALUE");
  add_writer_options(parser, arguments->target, arguments->note);
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments, &parser](Output& output) { return del(*arguments, parser, output); };
}

}  // namespace

const Command del_command{
    "del", "erase keys",
    R"(Erases keys on every machine and prints the id of the (last) update. Absent keys are not an
error.

The keys are the arguments. If there are none, or only -, the keys are the lines of standard input.
Nothing is erased if one of them is not a key. Keys that fit into one update are erased by one
update, which other machines apply atomically.

If more than 1,000 keys would be erased, the command prints how many, and erases them only with
--yes or --erase-max.)",
    R"(Examples:
  whycache del checkout.enabled checkout.limit
  whycache keys session. | whycache del -            lines are escaped as `keys` prints them
  whycache keys --null session. | whycache del --null -
  whycache del --if berlin leader                    only if it still is berlin
  whycache del -- -dash                              a key that begins with a dash

Exit codes: 0 done, 2 a key is empty or too long, 3 the log did not answer,
  5 log or state are damaged, 6 the key does not have the value of --if, 7 permission,
  8 too many keys without --yes, or a guard of the log forbids it, 9 a limit was reached)",
    prepare_del};

}  // namespace whycache::cli
