// The state of whycache alone, without Cache around it: reads as in any process of the machine, and
// updates applied as if they came from a log.
#include <sys/stat.h>

#include <whycache/view.h>

#include "bench/subject.h"
#include "bench/subject_kinds.h"
#include "state/read/pin.h"
#include "state/state.h"
#include "state/write/builder.h"
#include "state/write/writer.h"

namespace bench {
namespace {

using namespace whycache;

class WhycacheState {
 public:
  WhycacheState(const std::string& directory, std::uint64_t items_max) {
    options_.path = directory + "/whycache";
    options_.bytes_max = items_max * 4096 + (std::uint64_t{1} << 30);
    open();
    state_->install(*state_->begin_build(Uuid{1}, "bench:"));
  }

  void open() { state_ = State::open(options_); }
  void close() {
    finish_writing();
    view_.reset();
    state_.reset();
  }

  void set(std::span<const Item> items) {
    view_.reset();
    if (!writer_) {
      writer_ = state_->begin_write(Deadline(std::chrono::seconds(20)));
      update_.id = writer_->info().applied_id;
    }
    ++update_.id;
    update_.chain = update_.id;
    update_.changes.clear();
    for (const Item& item : items) update_.changes.push_back(Change::set(item.key, item.value));
    writer_->apply(update_);
  }
  void finish_writing() { writer_.reset(); }

  bool get(std::string_view key, std::string& value) const { return state_->get(key, value); }
  std::optional<std::string_view> view(std::string_view key) {
    if (!view_) view_.emplace(state_->pin());
    return view_->get(key);
  }
  std::size_t get_multi(std::span<const std::string_view> keys,
                        std::span<std::optional<std::string>> values) const {
    return state_->get_multi(keys, values);
  }

  template <typename Visit>
  void scan_items(const Visit& visit) const {
    for (const auto& [key, value] : View(state_->pin())) visit(key, value);
  }
  template <typename Visit>
  void scan_keys(const Visit& visit) const {
    for (const std::string_view key : View(state_->pin()).keys()) visit(key);
  }

  std::uint64_t external_bytes() const {
    std::uint64_t bytes = 0;
    for (const std::string& path : {options_.path, options_.path + ".lock"}) {
      struct stat status;
      if (::stat(path.c_str(), &status) == 0)
        bytes += static_cast<std::uint64_t>(status.st_blocks) * 512;
    }
    return bytes;
  }

 private:
  StateOptions options_;
  std::unique_ptr<State> state_;
  std::unique_ptr<StateWriter> writer_;
  std::optional<View> view_;
  Update update_;
};

}  // namespace

std::unique_ptr<Subject> make_whycache_state(const std::string& directory,
                                             std::uint64_t items_max) {
  return std::make_unique<StoreSubject<WhycacheState>>(directory, items_max);
}

}  // namespace bench
