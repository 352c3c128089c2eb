#include "cli/key_list.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <whycache/types.h>

#include "cli/escape.h"
#include "cli/exit_code.h"
#include "cli/input.h"
#include "cli/options.h"

namespace whycache::cli {
namespace {

// An escaped byte takes at most four characters.
constexpr std::size_t key_line_bytes_max = std::size_t{4} * key_bytes_max;

}  // namespace

void add_key_list_options(CLI::App& parser, KeyListOptions& options) {
  add_null_option(parser, options.null_separated,
                  "input keys and printed items end with zero bytes, unescaped");
  parser.add_flag("--raw", options.raw, "input lines are not escaped: a backslash is a backslash");
}

KeyList::KeyList(const KeyListOptions& options, std::vector<std::string> arguments)
    : options_(options),
      arguments_(std::move(arguments)),
      reads_input_(arguments_.empty() || (arguments_.size() == 1 && arguments_[0] == "-")) {}

void KeyList::visit_batches(std::size_t batch_keys, const VisitBatch& visit) {
  if (reads_input_) return visit_input(batch_keys, visit);
  const std::vector<std::string_view> keys(arguments_.begin(), arguments_.end());
  for (std::size_t begin = 0; begin < keys.size(); begin += batch_keys) {
    visit(std::span(keys).subspan(begin, std::min(batch_keys, keys.size() - begin)));
  }
}

std::vector<std::string> KeyList::read_all() {
  if (!reads_input_) return arguments_;
  std::vector<std::string> keys;
  visit_keys_of_input([&](std::string&& key) { keys.push_back(std::move(key)); }, [] {},
                      "nothing was done");
  return keys;
}

void KeyList::visit_input(std::size_t batch_keys, const VisitBatch& visit) {
  std::vector<std::string> batch;
  const auto visit_batch = [&] {
    const std::vector<std::string_view> keys(batch.begin(), batch.end());
    if (!keys.empty()) visit(keys);
    batch.clear();
  };
  visit_keys_of_input(
      [&](std::string&& key) {
        batch.push_back(std::move(key));
        if (batch.size() == batch_keys) visit_batch();
      },
      visit_batch, "the lines before it are done");
  visit_batch();
}

void KeyList::visit_keys_of_input(const VisitKey& visit,
                                  const std::function<void()>& before_failure,
                                  const char* state_of_lines_before) const {
  Input input("-");
  std::uint64_t line = 0;
  for (std::string_view record;
       input.read_record(options_.null_separated ? '\0' : '\n', key_line_bytes_max, record);) {
    ++line;
    std::optional<std::string> key;
    if (options_.null_separated || options_.raw) {
      key = std::string(record);
    } else {
      key = unescape(record);
    }
    if (!key || key->empty() || key->size() > key_bytes_max) {
      before_failure();
      throw Failure(
          ExitCode::usage,
          fmt::format("not a key: path={} line={} reason=\"{}\"", input.name(), line,
                      !key           ? "invalid backslash escape"
                      : key->empty() ? "it is empty"
                                     : fmt::format("longer than {} bytes", key_bytes_max)),
          fmt::format("correct the line{}; {}", key ? "" : " or use --raw", state_of_lines_before));
    }
    visit(std::move(*key));
  }
}

}  // namespace whycache::cli
