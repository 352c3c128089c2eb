#include "state/write/builder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "base/fork_handlers.h"
#include "base/process_lock.h"
#include "base/random.h"
#include "state/file/state_file.h"
#include "state/read/pin.h"

namespace whycache {
namespace {

constexpr const char* building_suffix = ".building-";

// Removes what builders that died left behind: files under our name whose lock nobody holds.
void remove_abandoned_files(const std::string& path) {
  const std::string folder = parent_directory(path) + "/";
  const std::size_t slash = path.rfind('/');
  const std::string prefix =
      (slash == std::string::npos ? path : path.substr(slash + 1)) + building_suffix;
  DIR* const entries = ::opendir(folder.c_str());
  if (entries == nullptr) return;
  while (const dirent* const entry = ::readdir(entries)) {
    const std::string name = entry->d_name;
    if (name.rfind(prefix, 0) != 0) continue;
    const std::string leftover = folder + name;
    const FileDescriptor file(::open(leftover.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    if (file && try_lock_byte(file.number(), 0)) ::unlink(leftover.c_str());
  }
  ::closedir(entries);
}

std::string building_path(const std::string& path) {
  char number[17];
  std::snprintf(number, sizeof number, "%016lx", static_cast<unsigned long>(random_u64()));
  return path + building_suffix + number;
}

}  // namespace

// Who removes leftovers may take one that is not locked yet for one of these.
StateBuilder::NewFile StateBuilder::create_locked_file(const std::string& path) {
  constexpr int tries_max = 100;
  for (int tries = 0; tries < tries_max; ++tries) {
    NewFile made{building_path(path), {}};
    made.file = open_file(made.path, O_RDWR | O_CREAT | O_EXCL, 0600);
    struct stat status;
    if (try_lock_byte(made.file.number(), 0) && ::fstat(made.file.number(), &status) == 0 &&
        status.st_nlink == 1)
      return made;
    ::unlink(made.path.c_str());
  }
  throw Error(ErrorKind::unavailable,
              "new state files are removed as soon as they are made: path=" + path);
}

// With one segment and its fixed header.
StateBuilder::NewFile StateBuilder::create_state_file(const StateOptions& options,
                                                      const Uuid& log_uuid,
                                                      const std::string& log_name) {
  remove_abandoned_files(options.path);
  NewFile made = create_locked_file(options.path);
  const int number = made.file.number();
  try {
    if (::fchmod(number, options.mode) != 0)
      throw system_error("cannot set mode of file", made.path, errno);
    const int error = allocate_in_file(number, 0, segment_bytes);
    if (error != 0) throw system_error("cannot make state file", made.path, error);
    Mapping mapping(FileDescriptor(::fcntl(number, F_DUPFD_CLOEXEC, 0)), made.path, segment_bytes,
                    Mapping::Access::write);
    write_fixed_header(mapping.writable_header(), log_uuid, log_name, number, made.path);
    // So that after a power cut the file is at least known for what it is; the rest of it is then
    // verified, or made anew.
    sync_file(number, made.path);
  } catch (...) {
    ::unlink(made.path.c_str());
    throw;
  }
  return made;
}

StateBuilder::StateBuilder(const StateOptions& options, const Uuid& log_uuid,
                           const std::string& log_name)
    : StateBuilder(options, create_state_file(options, log_uuid, log_name), log_uuid) {}

StateBuilder::StateBuilder(const StateOptions& options, NewFile file, const Uuid& log_uuid)
    : bytes_max_(options.bytes_max),
      path_(std::move(file.path)),
      mapping_(std::move(file.file), path_, options.bytes_max, Mapping::Access::write),
      applier_(mapping_, nullptr, options.bytes_max),
      fork_count_(fork_count()) {
  try {
    applier_.create(chain_start(log_uuid));
  } catch (...) {
    ::unlink(path_.c_str());
    throw;
  }
}

StateBuilder::~StateBuilder() {
  if (!installed_ && fork_count_ == fork_count()) ::unlink(path_.c_str());
}

// Any id up to that of the base will do for the entries: nobody sees the state as of an earlier
// one.
void StateBuilder::load(std::span<const Item> items) {
  check_not_forked();
  applier_.load(items, 1);
}

void StateBuilder::finish_load(UpdateId id, std::uint64_t chain) {
  check_not_forked();
  applier_.finish_load(id, chain);
}

void StateBuilder::apply(const Update& update) {
  check_not_forked();
  applier_.apply(update);
}

StateInfo StateBuilder::info() const {
  check_not_forked();
  return state_info(mapping_);
}

std::shared_ptr<const detail::Pin> StateBuilder::pin() const {
  return std::make_shared<const detail::Pin>(std::make_shared<const Mapping>(
      open_file(path_, O_RDONLY), path_, bytes_max_, Mapping::Access::read));
}

// The file and its mapping are the parent's.
void StateBuilder::check_not_forked() const {
  if (fork_count_ != fork_count())
    throw Error(ErrorKind::invalid, "building began before fork: begin anew in the child");
}

}  // namespace whycache
