// whycache del KEY...
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/key_list.h"
#include "cli/target.h"

namespace whycache::cli {
namespace {

// Bounds the memory for keys from standard input; each is at most key_bytes_max long.
constexpr std::size_t del_batch_keys = 4096;

struct DelArguments {
  Target target;
  KeyListOptions keys;
  std::string note;
  bool json = false;
};

ExitCode del(const DelArguments& arguments, const CLI::App& parser, Output& output) {
  KeyList keys(arguments.keys, keys_of(parser));
  const auto cache = open_cache(arguments.target);
  std::uint64_t key_count = 0;
  UpdateId id = cache->applied_id();
  keys.visit_batches(del_batch_keys, [&](std::span<const std::string_view> batch) {
    id = cache->erase_multi(batch, {.note = arguments.note});
    key_count += batch.size();
  });
  if (arguments.json) {
    output.write_json(Json{{"update_id", id}, {"keys", key_count}});
  } else {
    output.write_line(std::to_string(id));
  }
  return ExitCode::done;
}

CommandAction prepare_del(CLI::App& parser) {
  const auto arguments = std::make_shared<DelArguments>();
  allow_keys(parser);
  add_key_list_options(parser, arguments->keys);
  add_note_option(parser, arguments->note);
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
Keys that fit into one update are erased by one update, which other machines apply atomically.)",
    R"(Examples:
  whycache del checkout.enabled checkout.limit
  whycache keys session. | whycache del -            lines are escaped as `keys` prints them
  whycache keys --null session. | whycache del --null -
  whycache del -- -dash                              a key that begins with a dash

Exit codes: 0 done, 2 a key is empty or too long, 3 the log did not answer,
  5 log or state are damaged, 7 permission, 9 a limit was reached)",
    prepare_del};

}  // namespace whycache::cli
