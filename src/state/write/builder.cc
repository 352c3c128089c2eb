#include "state/write/builder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/file_system.h"
#include "base/fork_handlers.h"
#include "state/file/lock_file.h"
#include "state/file/machine_counters.h"
#include "state/file/state_file.h"
#include "state/read/pin.h"

namespace whycache {
namespace {

constexpr const char* building_suffix = ".building-";

// Gives the new file the owner and group of the state that it will replace, where this process may,
// and its mode if that is to be kept. Other users can then use the new state as they did the old.
void set_permissions(const FileDescriptor& file, const std::string& path,
                     const StateOptions& options) {
  mode_t mode = mode_of_state(options);
  struct stat status;
  if (::lstat(options.path.c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
      is_trusted_owner(status, options.path, trusted_owner(options))) {
    struct stat created;
    if (::fstat(file.number(), &created) != 0)
      throw system_error("cannot stat state file", path, errno);
    if (created.st_uid != status.st_uid && ::fchown(file.number(), status.st_uid, -1) != 0 &&
        errno != EPERM)
      throw system_error("cannot set owner of file", path, errno);
    const bool is_same_group =
        created.st_gid == status.st_gid || ::fchown(file.number(), -1, status.st_gid) == 0;
    // A mode that is kept gives rights to that group, not to another one.
    if (options.keeps_mode && !is_same_group) mode &= ~mode_t{0070};
  }
  if (::fchmod(file.number(), mode) != 0)
    throw system_error("cannot set mode of file", path, errno);
}

// Creates a file of one segment that contains nothing but the fixed header.
OwnedTemporaryFile create_state_file(const StateOptions& options, const Uuid& log_uuid,
                                     const std::string& log_name) {
  remove_orphans(options.path + building_suffix);
  remove_orphans(options.path + ".lock" + new_lock_file_suffix);
  OwnedTemporaryFile file(options.path + building_suffix);
  set_permissions(file.duplicate_descriptor(), file.path(), options);
  if (turn_off_copy_on_write(file.descriptor()) && !options.any_file_system)
    throw copies_on_write(parent_directory(options.path), "btrfs, or an overlay on it");
  const int error = allocate_in_file(file.descriptor(), 0, segment_bytes);
  if (error != 0) throw system_error("cannot create state file", file.path(), error);
  const Mapping mapping(file.duplicate_descriptor(), file.path(), segment_bytes,
                        Mapping::Access::write);
  write_fixed_header(mapping.writable_header(), log_uuid, log_name, file.descriptor(), file.path());
  // After a power cut the file can at least be recognized as a state of this log. The process that
  // opens it then verifies the rest, or builds another file.
  sync_file(file.descriptor(), file.path());
  return file;
}

}  // namespace

StateBuilder::StateBuilder(const StateOptions& options, const Uuid& log_uuid,
                           const std::string& log_name)
    : StateBuilder(options, create_state_file(options, log_uuid, log_name), log_uuid) {}

StateBuilder::StateBuilder(const StateOptions& options, OwnedTemporaryFile file,
                           const Uuid& log_uuid)
    : bytes_max_(options.bytes_max),
      file_(std::move(file)),
      mapping_(file_.duplicate_descriptor(), file_.path(), options.bytes_max,
               Mapping::Access::write),
      applier_(mapping_, Readers::none, options.bytes_max),
      fork_count_(fork_count()) {
  applier_.create(chain_start(log_uuid));
}

void StateBuilder::load(std::span<const Item> items, UpdateId base) {
  check_not_forked();
  applier_.load(items, base);
}

void StateBuilder::finish_load(UpdateId id, std::uint64_t chain) {
  check_not_forked();
  applier_.finish_load(id, chain);
}

void StateBuilder::apply(const Update& update) {
  check_not_forked();
  applier_.apply(update);
}

void StateBuilder::add_counters(const Counters& added) noexcept {
  if (fork_count_ == fork_count()) add_machine_counters(mapping_.writable_header(), added);
}

StateInfo StateBuilder::info() const {
  check_not_forked();
  return state_info(mapping_);
}

bool StateBuilder::has_free_space() const {
  const AllocatorState& state = mapping_.header().allocator_state;
  // Without readers, what is retired is free at the next update.
  return state.free_count + state.retired_count > state.segment_count / 4;
}

std::shared_ptr<const detail::Pin> StateBuilder::pin() const {
  return std::make_shared<const detail::Pin>(
      std::make_shared<const Mapping>(open_file(path(), O_RDONLY), path(), bytes_max_,
                                      Mapping::Access::read),
      detail::Pin::Writers::none);
}

// The file is the parent's, and a child does not inherit the mapping (MADV_DONTFORK).
void StateBuilder::check_not_forked() const {
  if (fork_count_ != fork_count())
    throw Error(ErrorKind::invalid,
                "builder was created before fork: create another one in the child");
}

}  // namespace whycache
