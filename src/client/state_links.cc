#include "client/state_links.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/file.h"
#include "base/hash.h"
#include "base/random.h"
#include "state/file/state_file.h"

namespace whycache {
namespace {

constexpr std::string_view state_suffix = ".state";
constexpr std::string_view name_suffix = ".name";
constexpr std::string_view reservation_suffix = ".log";
constexpr std::size_t hash_digits = 16;
constexpr int reservation_attempts_max = 10;

enum class PathContent {
  absent,      // or a symbolic link: no state is created or found there
  state,       // its header names the log
  unreadable,  // not known: damaged, of another format, or this process must not read it
  other        // certainly not a state
};

struct FoundFile {
  PathContent kind;
  LogIdentity log{};
};

FoundFile examine(const std::string& path) {
  const FileDescriptor file(open_at_path(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW));
  if (!file)
    return {errno == ENOENT || errno == ELOOP ? PathContent::absent : PathContent::unreadable};
  struct stat status;
  if (::fstat(file.number(), &status) != 0) return {PathContent::unreadable};
  if (!S_ISREG(status.st_mode)) return {PathContent::other};
  if (!bears_state_magic(file.number()))
    return {errno == 0 ? PathContent::other : PathContent::unreadable};
  HeaderFixed fixed;
  if (::pread(file.number(), &fixed, sizeof fixed, 0) != ssize_t{sizeof fixed} ||
      !header_fault(fixed).empty())
    return {PathContent::unreadable};
  return {PathContent::state, log_of(fixed)};
}

bool is_state_of(const FoundFile& file, const Uuid& log_uuid) {
  return file.kind == PathContent::state && file.log.uuid == log_uuid;
}

// Whether the state of a log may be at a path where this was found. An absent one may be under
// construction.
bool may_be_state_of(const FoundFile& file, const Uuid& log_uuid) {
  return file.kind == PathContent::absent || file.kind == PathContent::unreadable ||
         is_state_of(file, log_uuid);
}

std::optional<UpdateId> applied_id_of(const std::string& path) {
  try {
    const StateFileResult file = open_state_file_read_only(path);
    const std::shared_ptr<Mapping>& mapping = file.mapping ? file.mapping : file.foreign;
    return mapping ? std::optional(state_info(*mapping).applied_id) : std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

// Whether the state at `path` lacks updates that the other one has, or cannot be used.
bool is_behind(const std::string& path, const std::string& other) {
  return applied_id_of(path) < applied_id_of(other);
}

std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

std::string beside(const std::string& path, const std::string& name) {
  return parent_directory(path) + "/" + name;
}

std::string reservation_path(const std::string& name_path, const Uuid& log_uuid) {
  return beside(name_path, '.' + to_string(log_uuid) + std::string(reservation_suffix));
}

// Returns the path of the alias of a name whose own path may have a state.
std::string name_link_path(const std::string& name_path) {
  std::string path = name_path;
  if (path.ends_with(state_suffix)) path.resize(path.size() - state_suffix.size());
  return path + std::string(name_suffix);
}

bool is_link(const std::string& path) {
  struct stat status;
  return ::lstat(path.c_str(), &status) == 0 && S_ISLNK(status.st_mode);
}

// Returns the path that a link leads to, which ends with `suffix`; nullopt if there is none that
// may be followed. A user who could put a link there could also be one who must not choose what
// others read.
std::optional<std::string> read_link(const std::string& path,
                                     std::string_view suffix = state_suffix) {
  struct stat status;
  struct stat directory;
  if (::lstat(path.c_str(), &status) != 0 || !S_ISLNK(status.st_mode) ||
      ::stat(parent_directory(path).c_str(), &directory) != 0)
    return std::nullopt;
  if (status.st_uid != 0 && status.st_uid != ::geteuid() && status.st_uid != directory.st_uid)
    return std::nullopt;
  std::array<char, 256> text;
  const ssize_t size = ::readlink(path.c_str(), text.data(), text.size());
  if (size <= 0 || static_cast<std::size_t>(size) == text.size()) return std::nullopt;
  const std::string name(text.data(), static_cast<std::size_t>(size));
  // Reservations alone have hidden names.
  const bool is_hidden = name.front() == '.';
  if (name.find('/') != std::string::npos || is_hidden != (suffix == reservation_suffix) ||
      !name.ends_with(suffix))
    return std::nullopt;
  return beside(path, name);
}

bool create_link(const std::string& target, const std::string& link) {
  return ::symlink(file_name(target).c_str(), link.c_str()) == 0;
}

// Replaces a link, never a file.
bool replace_link(const std::string& target, const std::string& link) {
  if (!is_link(link)) return false;
  const std::string temporary =
      beside(link, "." + file_name(link) + "." + to_string(random_uuid()));
  if (!create_link(target, temporary)) return false;
  if (::rename(temporary.c_str(), link.c_str()) == 0) return true;
  ::unlink(temporary.c_str());
  return false;
}

// Whether the library gives states such names: INSTANCE-HASH.state.
bool is_name_of_log(std::string_view name) {
  if (!name.ends_with(state_suffix)) return false;
  name.remove_suffix(state_suffix.size());
  if (name.size() < hash_digits + 2 || name[name.size() - hash_digits - 1] != '-') return false;
  return std::all_of(name.end() - hash_digits, name.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// Returns a state of the log that was created before its uuid was reserved, by an earlier version
// of the library.
std::optional<std::string> find_unreserved_state(const std::string& name_path,
                                                 const Uuid& log_uuid) {
  std::error_code failed;
  for (std::filesystem::directory_iterator entry(parent_directory(name_path), failed), end;
       !failed && entry != end; entry.increment(failed)) {
    const std::string name = entry->path().filename().native();
    if (!is_name_of_log(name)) continue;
    const std::string path = beside(name_path, name);
    if (is_state_of(examine(path), log_uuid)) return path;
  }
  return std::nullopt;
}

// Returns where a state of the log can be created: at the path of the log's name, unless the state
// of another log is there.
std::string choose_path(const std::string& name_path, const Uuid& log_uuid) {
  std::string path = read_link(name_path).value_or(name_path);
  if (may_be_state_of(examine(path), log_uuid)) return path;
  const std::string name = file_name(name_path);
  const std::string instance = name.substr(0, name.rfind('-') + 1);
  std::array<char, hash_digits + 1> hash;
  std::snprintf(hash.data(), hash.size(), "%016llx",
                static_cast<unsigned long long>(hash64(name + to_string(log_uuid))));
  return beside(name_path, instance + hash.data() + std::string(state_suffix));
}

std::string reserve(const std::string& name_path, const Uuid& log_uuid) {
  const std::string reservation = reservation_path(name_path, log_uuid);
  std::string path;
  for (int attempt = 0; attempt < reservation_attempts_max; ++attempt) {
    const std::optional<std::string> reserved = read_link(reservation);
    if (reserved && may_be_state_of(examine(*reserved), log_uuid)) return *reserved;
    path = find_unreserved_state(name_path, log_uuid).value_or(choose_path(name_path, log_uuid));
    if (reserved) {
      if (!replace_link(path, reservation)) return path;
      continue;  // another process may have replaced it, too
    }
    // Otherwise another process was first, or this one must not create, or follow, the link.
    if (create_link(path, reservation) || errno != EEXIST || !read_link(reservation)) return path;
  }
  return path;
}

// Returns the uuid of the log that has confirmed the name whose path has a state that bears another
// one, with the state that is reserved for it. A stale reservation does not count.
std::optional<std::pair<Uuid, std::string>> find_confirmed_log(const std::string& name_path) {
  const std::optional<std::string> reservation =
      read_link(name_link_path(name_path), reservation_suffix);
  if (!reservation) return std::nullopt;
  const std::optional<std::string> path = read_link(*reservation);
  if (!path) return std::nullopt;
  const FoundFile file = examine(*path);
  if (file.kind != PathContent::state || reservation_path(name_path, file.log.uuid) != *reservation)
    return std::nullopt;
  return std::pair(file.log.uuid, *path);
}

}  // namespace

std::optional<LinkedState> find_linked_state(const std::string& name_path) {
  LinkedState found{name_path};
  if (is_link(name_path)) {
    const std::optional<std::string> target = read_link(name_path);
    if (!target) return found;  // opening it is refused, as of every link
    found = {*target, true};
  }
  const FoundFile file = examine(found.path);
  if (found.path == name_path) {
    if (const auto confirmed = find_confirmed_log(name_path)) {
      if (!is_state_of(file, confirmed->first)) return LinkedState{confirmed->second, true};
      found.is_name_confirmed = true;
    }
  }
  if (file.kind == PathContent::absent) return std::nullopt;
  if (file.kind != PathContent::state) return found;  // opening it reports why it cannot be used
  std::optional<std::string> reserved = read_link(reservation_path(found.path, file.log.uuid));
  if (reserved && *reserved != found.path && is_state_of(examine(*reserved), file.log.uuid) &&
      !is_behind(*reserved, found.path))
    return LinkedState{std::move(*reserved), true};
  return found;
}

std::optional<LogIdentity> find_log_of_state(const std::string& path) {
  FoundFile file = examine(path);
  return file.kind == PathContent::state ? std::optional(std::move(file.log)) : std::nullopt;
}

std::string reserve_state(const std::string& name_path, const Uuid& log_uuid) {
  std::string path = reserve(name_path, log_uuid);
  const bool is_alias =
      path != name_path && (create_link(path, name_path) || read_link(name_path) == path ||
                            replace_link(path, name_path));
  // The path of the name has a state, which bears another name.
  if (!is_alias && examine(name_path).kind == PathContent::state) {
    const std::string reservation = reservation_path(name_path, log_uuid);
    const std::string link = name_link_path(name_path);
    if (!create_link(reservation, link)) replace_link(reservation, link);
  }
  return path;
}

void record_state(const std::string& state_path, const Uuid& log_uuid) noexcept {
  try {
    const std::string reservation = reservation_path(state_path, log_uuid);
    const std::optional<std::string> reserved = read_link(reservation);
    if (!reserved) {
      create_link(state_path, reservation);
      return;
    }
    if (*reserved == state_path) return;
    const FoundFile other = examine(*reserved);
    const bool is_valid = other.kind == PathContent::unreadable ||
                          (is_state_of(other, log_uuid) && !is_behind(*reserved, state_path));
    if (!is_valid) replace_link(state_path, reservation);
  } catch (const std::exception&) {
    // Without the reservation, another name of the log may get a state of its own.
  }
}

void remove_alias(const std::string& name_path) noexcept {
  try {
    for (const std::string& link : {name_path, name_link_path(name_path)}) {
      if (is_link(link)) ::unlink(link.c_str());
    }
  } catch (const std::exception&) {  // the next process is told to choose another path again
  }
}

}  // namespace whycache
