// Builds a new state file beside the current one, under a name of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/owned_temporary_file.h"
#include "state/file/mapping.h"
#include "state/file/state_info.h"
#include "state/write/applier.h"

namespace whycache {

namespace detail {
class Pin;
}

// A new state file that is being filled. State::install() puts it in place of the current one.
// The destructor removes a file that was not installed.
class StateBuilder {
 public:
  // Creates the file, with no items, at update 0. Removes files of builders that died. Throws
  // Error if the file cannot be created.
  StateBuilder(const StateOptions& options, const Uuid& log_uuid, const std::string& log_name);
  StateBuilder(const StateBuilder&) = delete;
  StateBuilder& operator=(const StateBuilder&) = delete;

  // Adds items of a base, in ascending key order. `base` is the id that finish_load() gets: it
  // becomes the version of the items. Must not be called after apply(). Throws Error(limit).
  void load(std::span<const Item> items, UpdateId base);
  // Ends loading: the items are the state as of update `id`.
  void finish_load(UpdateId id, std::uint64_t chain);
  // Applies update applied_id + 1, as StateWriter::apply().
  void apply(const Update& update);

  // Adds to the counters of the machine, which the file begins without.
  void add_counters(const Counters& added) noexcept;

  // The file, until it is installed.
  const std::string& path() const { return file_.path(); }
  StateInfo info() const;
  // Whether more than a quarter of the file is free, since updates erased or replaced much.
  bool has_free_space() const;
  // Returns a pin on the state as of the last finish_load() or apply().
  std::shared_ptr<const detail::Pin> pin() const;

 private:
  StateBuilder(const StateOptions& options, OwnedTemporaryFile file, const Uuid& log_uuid);
  void check_not_forked() const;

  std::uint64_t bytes_max_;
  OwnedTemporaryFile file_;  // State::install() renames it into place
  Mapping mapping_;
  Applier applier_;
  std::uint64_t fork_count_;
};

}  // namespace whycache
