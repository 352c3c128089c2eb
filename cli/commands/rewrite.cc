// whycache rewrite
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/format.h"
#include "cli/target.h"
#include "client/cache_internal.h"
#include "client/session.h"

namespace whycache::cli {
namespace {

struct RewriteArguments {
  Target target;
  UpdateId limit = 0;
  std::optional<std::uint64_t> keep_last;
  std::vector<std::string> kept_prefixes;
  EraseOptions erase{.needs_yes = true};
  std::string note;
  bool json = false;

  bool keeps(std::string_view key) const {
    return kept_prefixes.empty() ||
           std::ranges::any_of(kept_prefixes,
                               [&](const std::string& prefix) { return key.starts_with(prefix); });
  }
};

UpdateId resolve_limit(const RewriteArguments& arguments, const Extent& extent) {
  if (arguments.keep_last && arguments.limit != 0) {
    throw Failure(ExitCode::usage, "--limit and --keep-last exclude each other",
                  "choose one of them");
  }
  if (arguments.keep_last)
    return std::max(extent.base, extent.head - std::min(extent.head, *arguments.keep_last));
  return arguments.limit == 0 ? extent.head : arguments.limit;
}

// Describes what the rewrite will delete, besides keys.
std::string describe_losses(const Extent& extent, UpdateId limit) {
  return fmt::format(
      "updates {}..{} will be replaced by the items as of {}: times, writers and earlier values "
      "will be lost; a machine that has not applied {} will rebuild its state",
      extent.base + 1, limit, limit, limit);
}

// Throws Failure unless the user agreed to erase the keys without a kept prefix.
void require_consent_to_erase(const RewriteArguments& arguments, Cache& cache,
                              const std::string& losses) {
  ask_before_write(arguments.target, [&] { cache.update(); });
  const View view = cache.view();
  std::uint64_t erased = 0;
  for (const std::string_view key : view.keys())
    erased += arguments.keeps(key) || key == log_guards_key ? 0 : 1;
  arguments.erase.require_consent(losses, erased, view.size(), 0);
}

ExitCode rewrite(const RewriteArguments& arguments, Output& output) {
  const auto cache = open_cache_with_log(arguments.target);
  Backoff backoff(arguments.target.deadline());
  Extent extent;
  ask_before_write(arguments.target, [&] {
    extent = CacheInternal::session(*cache).call_log_with_retries(
        backoff, [](Log& log) { return log.extent(); });
  });
  const UpdateId limit = resolve_limit(arguments, extent);
  const auto conflict = [&](UpdateId base) {
    return Failure(
        ExitCode::conflict,
        fmt::format("history is already rewritten beyond the limit: limit={} base={}", limit, base),
        "nothing remains to be done; `whycache log` shows the remaining updates");
  };
  if (limit > extent.head) {
    throw Failure(
        ExitCode::usage,
        fmt::format("--limit is beyond the head of the log: limit={} head={}", limit, extent.head),
        "omit it to rewrite everything");
  }
  if (limit < extent.base) throw conflict(extent.base);
  const bool loses_something = limit > extent.base || !arguments.kept_prefixes.empty();
  if (!arguments.kept_prefixes.empty())
    require_consent_to_erase(arguments, *cache, describe_losses(extent, limit));
  if (loses_something && !arguments.erase.yes)
    throw Failure(ExitCode::refused, describe_losses(extent, limit), "add --yes to proceed");
  RewriteOptions options;
  options.note = arguments.note;
  // --erase-all-but appends erasing updates at the head, which a limit computed before would not
  // include. Without --yes, updates appended meanwhile must stay.
  options.limit = arguments.limit == 0 && !arguments.keep_last && loses_something ? 0 : limit;
  if (!arguments.kept_prefixes.empty()) {
    options.keep = [&](std::string_view key, std::string_view) { return arguments.keeps(key); };
  }
  const UpdateId base = limit == 0 && !loses_something ? 0 : cache->rewrite_history(options);
  if (arguments.limit != 0 && base > limit) throw conflict(base);
  if (arguments.json) {
    output.write_json(Json{{"base", base}, {"base_before", extent.base}, {"head", extent.head}});
  } else {
    output.write_line(std::to_string(base));
  }
  return ExitCode::done;
}

CommandAction prepare_rewrite(CLI::App& parser) {
  const auto arguments = std::make_shared<RewriteArguments>();
  parser.add_option("--limit", arguments->limit, "rewrite up to and including this update (all)")
      ->type_name("ID");
  parser.add_option("--keep-last", arguments->keep_last, "keep the last N updates")->type_name("N");
  parser
      .add_option("--erase-all-but", arguments->kept_prefixes,
                  "erase all keys that do not begin with PREFIX; may be repeated")
      ->type_name("PREFIX")
      ->allow_extra_args(false);
  parser
      .add_option_function<std::string>(
          "--keep-prefix",
          [](const std::string& prefix) {
            throw Failure(ExitCode::usage, "--keep-prefix has another name",
                          "it is --erase-all-but " + prefix +
                              ", since it erases all keys that do not begin with that");
          })
      ->group("");
  add_erase_options(parser, arguments->erase);
  add_writer_options(parser, arguments->target, arguments->note);
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return rewrite(*arguments, output); };
}

}  // namespace

const Command rewrite_command{
    "rewrite", "replace old updates by the items as of a later one",
    R"(Rewrites history: replaces the updates up to a limit by the items as of that limit. The log
then is about as large as its items. Prints the base, which is the id up to which history is now
rewritten. Without --erase-all-but no item changes, and all machines continue. The rewrite can be
interrupted at any point and repeated, and several may run at once.

History is lost: times, writers, notes, earlier values. Therefore the command requires --yes. The
log keeps the writer and the time of the rewrite, which `whycache log` prints.)",
    R"(Examples:
  whycache rewrite                                   prints what would be lost, exit code 8
  whycache rewrite --yes
  whycache rewrite --keep-last 1000 --yes
  whycache rewrite --erase-all-but user. --erase-all-but flag. --yes    erases all other keys

Exit codes: 0 done, 2 the limit is beyond the head, 3 the log did not answer,
  5 log or state are damaged, 6 history is already rewritten beyond --limit, 7 permission,
  8 --yes is missing, or a guard of the log forbids it, 9 the disk is full)",
    prepare_rewrite};

}  // namespace whycache::cli
