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

// Escaped, a byte takes four characters at most.
constexpr std::size_t key_line_bytes_max = std::size_t{4} * key_bytes_max;

}  // namespace

void add_key_list_options(CLI::App& parser, KeyListOptions& options) {
  add_null_option(parser, options.null_separated,
                  "keys read and items printed end in a zero byte and are not escaped");
  parser.add_flag("--raw", options.raw, "lines read are not escaped: a backslash is a backslash");
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
  const auto hand_over = [&] {
    const std::vector<std::string_view> keys(batch.begin(), batch.end());
    if (!keys.empty()) visit(keys);
    batch.clear();
  };
  std::uint64_t line = 0;
  for (std::string_view piece;
       input.read_record(options_.null_separated ? '\0' : '\n', key_line_bytes_max, piece);) {
    ++line;
    std::optional<std::string> key;
    if (options_.null_separated || options_.raw) {
      key = std::string(piece);
    } else {
      key = unescape(piece);
    }
    if (!key || key->empty() || key->size() > key_bytes_max) {
      hand_over();
      throw Failure(
          ExitCode::usage,
          fmt::format("not a key: path={} line={} reason=\"{}\"", input.name(), line,
                      !key           ? "a backslash that escapes nothing"
                      : key->empty() ? "it is empty"
                                     : fmt::format("longer than {} bytes", key_bytes_max)),
          key ? "correct the line; those before it are done"
              : "correct the line or use --raw; the lines before it are done");
    }
    batch.push_back(std::move(*key));
    if (batch.size() == batch_keys) hand_over();
  }
  hand_over();
}

}  // namespace whycache::cli
