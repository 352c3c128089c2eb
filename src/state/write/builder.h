// Builds a new state file beside the current one, under a name of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/file.h"
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
  ~StateBuilder();

  // Adds items of a base, in ascending key order. Must not be called after apply().
  void load(std::span<const Item> items);
  // Ends loading: the items are the state as of update `id`.
  void finish_load(UpdateId id, std::uint64_t chain);
  // Applies update applied_id + 1, as StateWriter::apply().
  void apply(const Update& update);

  StateInfo info() const;
  // Returns a pin on the state as of the last finish_load() or apply().
  std::shared_ptr<const detail::Pin> pin() const;

 private:
  friend class State;
  // An empty file: its one segment holds only the fixed header. The lock shows others that the
  // builder lives.
  struct NewFile {
    std::string path;
    FileDescriptor file;  // locked as long as it is open
  };
  StateBuilder(const StateOptions& options, NewFile file, const Uuid& log_uuid);
  static NewFile create_locked_file(const std::string& path);
  static NewFile create_state_file(const StateOptions& options, const Uuid& log_uuid,
                                   const std::string& log_name);
  void check_not_forked() const;

  std::uint64_t bytes_max_;
  std::string path_;
  Mapping mapping_;
  Applier applier_;
  std::uint64_t fork_count_;
  bool installed_ = false;  // set by State::install()
};

}  // namespace whycache
