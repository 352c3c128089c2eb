// The builder of a new state file, as its users see it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include <whycache/types.h>

#include "state/file/state_info.h"
#include "update/update.h"

namespace whycache {

namespace detail {
class Pin;
}

// A new state file being filled beside the present one. Left without install(), it disappears.
class StateBuilder {
 public:
  virtual ~StateBuilder() = default;

  // Items of a base, in ascending key order. Only before apply().
  virtual void load(std::span<const Item> items) = 0;
  // After the last load: this is the state as of update `id`.
  virtual void finish_load(UpdateId id, std::uint64_t chain) = 0;
  virtual void apply(const Update& update) = 0;
  virtual StateInfo info() const = 0;
  // Reads of what was built so far, as of the last loaded()/apply().
  virtual std::shared_ptr<const detail::Pin> pin() const = 0;
  enum class InstallPolicy {
    always,
    unless_behind,  // not if the old state has more of the same log applied: a writer of this
                    // machine has been there
  };
  // Puts the new file in the place of the old one. Processes that read the old one notice and
  // switch. The caller holds StateLock::follow, so that nobody else installs. Returns whether it
  // did. With `always`, `catch_up` is called if the old state has more of the same log applied by
  // then: it applies the rest, while nobody can write to the old state any more, lest what was seen
  // there be gone for a while.
  virtual bool install(InstallPolicy how = InstallPolicy::always,
                       const std::function<void()>& catch_up = {}) = 0;
};

}  // namespace whycache
