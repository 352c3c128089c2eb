// The keys a command is given: as arguments, or one after the other on standard input.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace CLI {
class App;
}

namespace whycache::cli {

struct KeyListOptions {
  bool null_separated = false;
  bool raw = false;
};
// --null, --raw
void add_key_list_options(CLI::App& parser, KeyListOptions& options);

class KeyList {
 public:
  using VisitBatch = std::function<void(std::span<const std::string_view>)>;

  // No arguments, or "-" alone: standard input.
  KeyList(const KeyListOptions& options, std::vector<std::string> arguments);

  // At most `batch_keys` at a time, in the order given. Throws Failure for a line that is not a
  // key.
  void visit_batches(std::size_t batch_keys, const VisitBatch& visit);

 private:
  void visit_input(std::size_t batch_keys, const VisitBatch& visit);

  KeyListOptions options_;
  std::vector<std::string> arguments_;
  bool reads_input_;
};

}  // namespace whycache::cli
