#include "cli/mirror.h"

#include <fmt/format.h>

#include <unordered_set>

#include "base/hash.h"
#include "cli/escape.h"
#include "cli/exit_code.h"

namespace whycache::cli {
namespace {

struct MirroredKeyHash {
  std::uint64_t low;
  std::uint64_t high;
  friend bool operator==(const MirroredKeyHash&, const MirroredKeyHash&) = default;
};
struct LowHalf {
  std::size_t operator()(const MirroredKeyHash& hash) const noexcept { return hash.low; }
};

MirroredKeyHash hash_of(std::string_view key) { return {hash64(key, 1), hash64(key, 2)}; }

}  // namespace

void MirrorPlan::plan(Input& input, ChangeReader& reader, const std::string& prefix,
                      const View& view) {
  input.hold();
  const std::uint64_t position = input.position();
  const ChangeReader start = reader;
  std::unordered_set<MirroredKeyHash, LowHalf> keys;
  bool is_empty = true;
  for (Change change; reader.next(change);) {
    if (!change.key.starts_with(prefix)) {
      throw Failure(
          ExitCode::usage,
          fmt::format("a key does not begin with the prefix of --mirror, nothing was "
                      "imported: path={} line={} key={} prefix={}",
                      input.name(), reader.line_number(), escape(change.key), escape(prefix)),
          "correct the input or the prefix");
    }
    is_empty = false;
    if (change.kind == Change::Kind::set) {
      keys.insert(hash_of(change.key));
    } else {
      keys.erase(hash_of(change.key));
    }
  }
  if (is_empty) {
    throw Failure(ExitCode::refused,
                  fmt::format("the input is empty, nothing was erased: path={}", input.name()),
                  fmt::format("if the {} keys are to be erased, use `whycache keys` and `whycache "
                              "del`",
                              view.count(KeyRange::prefix(prefix))));
  }
  for (const std::string_view key : view.keys(KeyRange::prefix(prefix))) {
    if (key != log_guards_key && !keys.contains(hash_of(key))) keys_to_erase_.emplace_back(key);
  }
  reader = start;
  input.seek(position);
}

}  // namespace whycache::cli
