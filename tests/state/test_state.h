// A state for one test, which applies updates as if they came from a log.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <whycache/view.h>

#include "state/read/pin.h"
#include "state/state.h"
#include "state/write/builder.h"
#include "state/write/writer.h"
#include "support/temporary_directory.h"

namespace whycache::testing {

inline constexpr Uuid test_uuid{1, 2, 3};

struct TestChange {
  std::string key;
  std::optional<std::string> value;  // nullopt: erase
};

class TestState {
 public:
  explicit TestState(const std::string& path, StateOptions options = {}) {
    options.path = path;
    state_ = State::open(options);
    if (!state_->usable()) state_->install(*state_->begin_build(test_uuid, "test:"));
  }

  State& operator*() const { return *state_; }
  State* operator->() const { return state_.get(); }

  // Applies the next update.
  UpdateId apply(const std::vector<TestChange>& changes, bool erases_all = false) {
    const std::unique_ptr<StateWriter> writer =
        state_->begin_write(deadline(), MappingPolicy::cache);
    return apply(*writer, changes, erases_all);
  }

  static UpdateId apply(StateWriter& writer, const std::vector<TestChange>& changes,
                        bool erases_all = false) {
    Update update;
    update.id = writer.info().applied_id + 1;
    update.chain = writer.info().chain * 31 + update.id;
    update.erases_all = erases_all;
    for (const TestChange& change : changes) {
      update.changes.push_back(change.value ? Change::set(change.key, *change.value)
                                            : Change::erase(change.key));
    }
    writer.apply(update);
    return update.id;
  }

  std::optional<std::string> get(std::string_view key) const {
    std::string value;
    if (!state_->get(key, value)) return std::nullopt;
    return value;
  }

  View view() const { return View(state_->pin()); }

  static std::map<std::string, std::string> contents(const View& view) {
    std::map<std::string, std::string> all;
    for (const auto& [key, value] : view) all.emplace(key, value);
    return all;
  }
  std::map<std::string, std::string> contents() const { return contents(view()); }

  std::vector<std::string> check() const { return state_->check(deadline(), {}); }
  static Deadline deadline() { return Deadline(std::chrono::seconds(20)); }

 private:
  std::unique_ptr<State> state_;
};

}  // namespace whycache::testing
