// The keys that a command works on: its arguments, or the records of standard input.
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

  // Reads standard input if there are no arguments or only "-".
  KeyList(const KeyListOptions& options, std::vector<std::string> arguments);

  // Visits the keys in order, in batches of at most `batch_keys`. Throws Failure if a line is not a
  // key; the keys before it have been visited.
  void visit_batches(std::size_t batch_keys, const VisitBatch& visit);

  // Returns all keys. Throws Failure if a line is not a key.
  std::vector<std::string> read_all();

 private:
  using VisitKey = std::function<void(std::string&& key)>;

  void visit_keys_of_input(const VisitKey& visit, const std::function<void()>& before_failure,
                           const char* state_of_lines_before) const;
  void visit_input(std::size_t batch_keys, const VisitBatch& visit);

  KeyListOptions options_;
  std::vector<std::string> arguments_;
  bool reads_input_;
};

}  // namespace whycache::cli
