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

void KeyList::visit_input(std::size_t batch_keys, const VisitBatch& visit) {
  Input input("-");
  std::vector<std::string> batch;
  const auto visit_batch = [&] {
    const std::vector<std::string_view> keys(batch.begin(), batch.end());
    if (!keys.empty()) visit(keys);
    batch.clear();
  };
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
      visit_batch();
      throw Failure(
          ExitCode::usage,
          fmt::format("not a key: path={} line={} reason=\"{}\"", input.name(), line,
                      !key           ? "invalid backslash escape"
                      : key->empty() ? "it is empty"
                                     : fmt::format("longer than {} bytes", key_bytes_max)),
          key ? "correct the line; the lines before it are done"
              : "correct the line or use --raw; the lines before it are done");
    }
    batch.push_back(std::move(*key));
    if (batch.size() == batch_keys) visit_batch();
  }
  visit_batch();
}

}  // namespace whycache::cli
