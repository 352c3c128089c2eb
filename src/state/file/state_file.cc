#include "state/file/state_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "base/boot.h"
#include "base/file_system.h"
#include "base/random.h"
#include "state/file/applied_wait.h"
#include "state/file/other_format.h"
#include "state/file/use_locks.h"

namespace whycache {
namespace {

// The file bears the magic, or did when it was opened.
Error unusable_state(const std::string& path, const std::string& fault) {
  return Error(ErrorKind::corrupt,
               "not a usable whycache state: path=" + path + " reason=\"" + fault +
                   "\" (delete it, it is rebuilt from the log; or choose another path)");
}

// Never advises deleting the file, which may be precious: the database of the log, for example.
Error not_a_state(const std::string& path, const std::string& reason) {
  return Error(ErrorKind::corrupt,
               "not a whycache state: path=" + path + " reason=\"" + reason +
                   "\" (state_path, or WHYCACHE_STATE, must name another file)");
}

void check_bears_magic(const FileDescriptor& file, const std::string& path) {
  if (bears_state_magic(file.number())) return;
  if (errno != 0) throw system_error("cannot read state file", path, errno);
  throw not_a_state(path, "it does not begin with the magic of a whycache state");
}

// Distinguishes a file from its copies.
struct FileIdentity {
  std::uint64_t inode = 0;
  std::uint64_t device = 0;
  std::int64_t birth_time_ns = 0;

  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

// Returns the kernel's boot id. Throws Error if it is unknown: without it, a file that other
// processes use would look like one from another boot.
Uuid require_boot_id() {
  const Uuid id = boot_id();
  if (id != Uuid{}) return id;
  const std::string path = "/proc/sys/kernel/random/boot_id";
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file && errno != ENOENT) throw system_error("cannot read the kernel's boot id", path, errno);
  throw Error(ErrorKind::invalid,
              "cannot read the kernel's boot id: path=" + path + " (mount /proc)", ENOENT);
}

FileIdentity file_identity(int descriptor, const std::string& path) {
  struct statx status;
  FileIdentity identity;
  if (::statx(descriptor, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &status) != 0) {
    // Denied by a container runtime. Without a birth time, as where the kernel has no statx: a file
    // that was created with one is then verified as if it came from elsewhere.
    struct stat without_birth_time;
    if (errno != EPERM || ::fstat(descriptor, &without_birth_time) != 0)
      throw system_error("cannot stat state file", path, errno);
    identity.inode = without_birth_time.st_ino;
    identity.device = without_birth_time.st_dev;
    return identity;
  }
  identity.inode = status.stx_ino;
  identity.device = makedev(status.stx_dev_major, status.stx_dev_minor);
  if ((status.stx_mask & STATX_BTIME) != 0)
    identity.birth_time_ns = status.stx_btime.tv_sec * 1'000'000'000 + status.stx_btime.tv_nsec;
  return identity;
}

struct stat check_regular_file(const FileDescriptor& file, const std::string& path) {
  struct stat status;
  if (::fstat(file.number(), &status) != 0)
    throw system_error("cannot stat state file", path, errno);
  if (!S_ISREG(status.st_mode)) throw not_a_state(path, "it is not a regular file");
  return status;
}

bool is_zero(std::string_view bytes) { return bytes.find_first_not_of('\0') == bytes.npos; }

// Whether segment 0 of a file begins with a lost header: zeros, then descriptors of segments.
bool is_segment_without_header(std::string_view segment) {
  if (segment.size() < segment_bytes || !is_zero(segment.substr(0, sizeof(HeaderFixed))))
    return false;
  std::size_t directories = 0;
  std::size_t index_pages = 0;
  for (std::uint64_t number = 0; number < segments_per_table; ++number) {
    SegmentDescriptor descriptor;
    std::memcpy(&descriptor, segment.data() + descriptor_offset(number), sizeof descriptor);
    const bool is_known = descriptor.kind <= SegmentKind::filters &&
                          descriptor.size_class < node_class_count && descriptor.reserved == 0 &&
                          (descriptor.kind == SegmentKind::table) == (number == 0);
    if (!is_known) return false;
    directories += descriptor.kind == SegmentKind::index_directory;
    index_pages += descriptor.kind == SegmentKind::index_page;
  }
  return directories == 1 && index_pages > 0;
}

// Whether nothing is lost if the file is replaced: it is empty, holds only zeros, or is a state
// whose header was lost. A power cut can leave each of them.
bool holds_nothing(const FileDescriptor& file, const std::string& path) {
  std::string bytes(segment_bytes, '\0');
  for (std::uint64_t offset = 0;;) {
    const ssize_t got =
        ::pread(file.number(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (got < 0) throw system_error("cannot read state file", path, errno);
    if (got == 0) return true;
    const std::string_view read(bytes.data(), static_cast<std::size_t>(got));
    if (!is_zero(read)) return offset == 0 && is_segment_without_header(read);
    offset += read.size();
    // Skips a hole. Without one, or on an error, continues here.
    if (const off_t data = ::lseek(file.number(), static_cast<off_t>(offset), SEEK_DATA); data > 0)
      offset = static_cast<std::uint64_t>(data);
    else if (errno == ENXIO)
      return true;
  }
}

HeaderFixed read_fixed_header(const FileDescriptor& file, const std::string& path) {
  HeaderFixed fixed;
  const ssize_t got = ::pread(file.number(), &fixed, sizeof fixed, 0);
  if (got < 0) throw system_error("cannot read state file", path, errno);
  if (got == 0) throw not_a_state(path, "it is empty");
  check_bears_magic(file, path);
  if (static_cast<std::size_t>(got) < sizeof fixed)
    throw unusable_state(path, "it is too short to be one");
  return fixed;
}

// The header of the file had no fault.
StateFileResult map_state_file(FileDescriptor file, const struct stat& status,
                               const std::string& path, std::uint64_t bytes_max) {
  if (static_cast<std::uint64_t>(status.st_size) < segment_bytes)
    return {nullptr, "it is cut short: path=" + path, false, nullptr};

  auto mapping = std::make_shared<Mapping>(std::move(file), path, bytes_max, Mapping::Access::read);
  // The file may have grown since it was mapped. Acquire: pairs with the writer's store after
  // growing.
  if (const std::uint64_t bytes = mapping->header().file_bytes.load(std::memory_order_acquire);
      bytes > mapping->usable_bytes() && bytes > mapping->refresh_usable_bytes()) {
    return {nullptr, "it is cut short: path=" + path, false, nullptr};
  }
  // First, so that no process adopts the file once this one has looked at its header.
  if (!mark_in_use(mapping->descriptor()))
    return {nullptr, "another process is verifying it: path=" + path, false, nullptr};
  const HeaderFixed& now = mapping->header().fixed;
  const bool ours = now.boot_id == require_boot_id() && now.state_id == mapping->state_id() &&
                    file_identity(mapping->descriptor(), path) ==
                        FileIdentity{now.inode, now.device, now.birth_time_ns};
  if (ours) return {std::move(mapping), {}, false, nullptr};
  unmark_in_use(mapping->descriptor());
  return {nullptr, "it came from elsewhere and was not verified yet: path=" + path, false,
          std::move(mapping)};
}

}  // namespace

void check_state_location(const StateOptions& options) {
  const std::string directory = parent_directory(options.path);
  check_directory_is_safe(directory, is_shared_with_others(options));
  const std::optional<std::int64_t> type = file_system_type(directory);
  if (!type) throw system_error("cannot use directory", directory, errno);
  if (options.any_file_system) return;
  const FileSystem* const file_system = find_file_system(*type);
  if (file_system == nullptr || !file_system->shares_memory) {
    char hex[32];
    std::snprintf(hex, sizeof hex, "0x%lx", static_cast<unsigned long>(*type));
    throw Error(ErrorKind::invalid,
                "file system not known to share memory between processes: path=" + directory +
                    " type=" + hex + " (choose a local disk or /dev/shm, or set any_file_system)");
  }
  if (!file_system->rewrites_in_place) throw copies_on_write(directory, file_system->name);
}

bool is_shared_with_others(const StateOptions& options) { return (options.mode & 0077) != 0; }

std::uint32_t mode_of_state(const StateOptions& options) {
  if (!options.keeps_mode) return options.mode;
  const FileDescriptor file(open_at_path(options.path.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW));
  struct stat status;
  if (!file || ::fstat(file.number(), &status) != 0 || !S_ISREG(status.st_mode) ||
      !bears_state_magic(file.number()))
    return options.mode;
  return (status.st_mode & 0666) | 0600;
}

FileOwner trusted_owner(const StateOptions& options) {
  return is_shared_with_others(options) ? FileOwner::owner_of_directory : FileOwner::self_or_root;
}

Error copies_on_write(const std::string& directory, const std::string& file_system) {
  return Error(ErrorKind::invalid,
               "file system writes changed blocks to a new place, so that a full disk would end "
               "this process by SIGBUS: path=" +
                   directory + " type=" + file_system +
                   " (set state_path to a directory in /dev/shm, or on ext4 or xfs; or set "
                   "any_file_system to accept that)");
}

std::string path_with_format(const std::string& path) { return path + format_suffix(); }

std::string path_for_format(const std::string& path) {
  struct stat status;
  std::string with_format = path_with_format(path);
  const bool is_absent = ::lstat(path.c_str(), &status) != 0 && errno == ENOENT;
  const bool is_taken =
      is_absent ? ::lstat(with_format.c_str(), &status) == 0 : find_other_format(path).has_value();
  return is_taken ? with_format : path;
}

StateFileResult open_state_file(const StateOptions& options, bool holds_install_locks) {
  // Open the file for writing first. On an overlay file system this copies it up to the layer where
  // writers will change it. A process that may only read continues without that.
  if (!options.read_only)
    FileDescriptor(::open(options.path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW)).close();
  FileDescriptor file = open_file_if_exists(options.path, O_RDONLY | O_NONBLOCK);
  if (!file) {
    const std::optional<std::string> other = find_state_of_other_format(options.path);
    return {nullptr, other.value_or("there is none: path=" + options.path), false, nullptr};
  }
  if (!options.keeps_mode && bears_state_magic(file.number())) {
    check_owner_is_trusted(check_regular_file(file, options.path), options.path,
                           trusted_owner(options), "state file");
    restrict_mode(file, options.mode, options.path, "state file");
  } else if (const int error = errno; !options.keeps_mode && error != 0) {
    check_regular_file(file, options.path);
    throw system_error("cannot read state file", options.path, error);
  }
  return use_state_file(std::move(file), options, holds_install_locks);
}

StateFileResult use_state_file(FileDescriptor file, const StateOptions& options,
                               bool holds_install_locks) {
  const struct stat status = check_regular_file(file, options.path);
  if (!options.any_owner)
    check_owner_is_trusted(status, options.path, trusted_owner(options), "state file");
  if (status.st_nlink > 1) {
    throw Error(
        ErrorKind::invalid,
        "state file has a second name, which other locks would protect: path=" + options.path +
            " links=" + std::to_string(status.st_nlink) + " (remove the other hard links)");
  }
  if (!bears_state_magic(file.number()) && holds_nothing(file, options.path))
    return {nullptr, "it is empty, or its header was lost: path=" + options.path, false, nullptr};
  const HeaderFixed fixed = read_fixed_header(file, options.path);
  if (const std::string fault = header_fault(fixed); !fault.empty()) {
    if (is_of_older_format(fixed)) {
      return {nullptr,
              "it has an older format: found=" + std::to_string(fixed.format_major) +
                  " known=" + std::to_string(state_format_major) + " path=" + options.path,
              false, nullptr, true};
    }
    // Without the locks, another process may be adopting the file.
    if (!holds_install_locks)
      return {nullptr, fault + ": path=" + options.path, false, nullptr,
              fixed.format_major != state_format_major};
    throw unusable_state(options.path, fault);
  }
  return map_state_file(std::move(file), status, options.path, options.bytes_max);
}

StateFileResult open_state_file_read_only(const std::string& path) {
  for (int tries = 0;; ++tries) {
    // Nonblocking: the file may be a pipe.
    FileDescriptor file = open_file_if_exists(path, O_RDONLY | O_NONBLOCK);
    if (!file) throw system_error("cannot open state file", path, ENOENT);
    const struct stat status = check_regular_file(file, path);
    const HeaderFixed fixed = read_fixed_header(file, path);
    const std::string fault = header_fault(fixed);
    if (fault.empty()) return map_state_file(std::move(file), status, path, 0);
    // Another process may be adopting the file, which takes microseconds.
    if (tries == 3) throw unusable_state(path, fault);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

bool is_in_place(const Mapping& mapping) {
  struct stat status;
  return ::lstat(mapping.path().c_str(), &status) == 0 && status.st_ino == mapping.inode() &&
         status.st_dev == mapping.device();
}

bool is_copied_up(const Mapping& mapping) {
  if (file_system_type(parent_directory(mapping.path())) != OVERLAYFS_SUPER_MAGIC) return false;
  const FileDescriptor file(
      open_at_path(mapping.path().c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW));
  HeaderFixed fixed;
  return file && ::pread(file.number(), &fixed, sizeof fixed, 0) == ssize_t{sizeof fixed} &&
         header_fault(fixed).empty() && fixed.state_id != mapping.header().fixed.state_id;
}

void write_fixed_header(Header& header, const Uuid& log_uuid, const std::string& log_name,
                        int descriptor, const std::string& path) {
  const FileIdentity identity = file_identity(descriptor, path);
  HeaderFixed fixed{};
  const bool is_new = header.fixed.format_major == 0;
  std::memcpy(fixed.magic, state_magic, sizeof state_magic);
  fixed.format_major = state_format_major;
  fixed.format_minor = state_format_minor;
  fixed.byte_order = byte_order_mark;
  fixed.header_bytes = header_page_bytes;
  fixed.segment_size = segment_bytes;
  fixed.state_id = random_u64();
  fixed.log_uuid = log_uuid;
  fixed.hash_seed = is_new ? random_u64() : header.fixed.hash_seed;
  fixed.created_us = is_new ? wall_time_us() : header.fixed.created_us;
  fixed.boot_id = require_boot_id();
  fixed.inode = identity.inode;
  fixed.device = identity.device;
  fixed.birth_time_ns = identity.birth_time_ns;
  fixed.log_name_bytes =
      static_cast<std::uint32_t>(std::min(log_name.size(), sizeof fixed.log_name));
  std::memcpy(fixed.log_name, log_name.data(), fixed.log_name_bytes);
  fixed.checksum = fixed.expected_checksum();
  std::memcpy(&header.fixed, &fixed, sizeof fixed);
}

void disown(Header& header) {
  HeaderFixed fixed = header.fixed;
  fixed.boot_id = {};
  fixed.checksum = fixed.expected_checksum();
  std::memcpy(&header.fixed, &fixed, sizeof fixed);
}

bool is_disowned(const HeaderFixed& header) { return header.boot_id == Uuid{}; }

void check_may_be_replaced(const FileDescriptor& file, const StateOptions& options) {
  check_owner_is_trusted(check_regular_file(file, options.path), options.path,
                         trusted_owner(options), "state file");
  if (!bears_state_magic(file.number()) && holds_nothing(file, options.path)) return;
  check_bears_magic(file, options.path);
}

void set_superseded_bit(const FileDescriptor& file, const std::string& path, bool superseded) {
  struct stat status;
  if (::fstat(file.number(), &status) != 0 ||
      status.st_size < static_cast<off_t>(header_page_bytes))
    return;
  void* const mapped =
      ::mmap(nullptr, header_page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.number(), 0);
  if (mapped == MAP_FAILED) throw system_error("cannot map state file", path, errno);
  auto* const header = static_cast<Header*>(mapped);
  if (header_fault(header->fixed).empty() || is_of_older_format(header->fixed)) {
    // Acquired by reads, with the reclaim generation in the same word.
    if (superseded) {
      header->reclaim_generation.fetch_or(superseded_bit, std::memory_order_release);
      // They wait for an update of this file, which will get no more.
      wake_applied_waiters(*header);
    } else {
      header->reclaim_generation.fetch_and(~superseded_bit, std::memory_order_release);
    }
  }
  ::munmap(mapped, header_page_bytes);
}

void supersede(const FileDescriptor& file, const std::string& path) {
  set_superseded_bit(file, path, true);
}

void supersede(const Mapping& mapping) {
  // The mapping's own descriptor is read-only. This opens the same file even if it was unlinked.
  const std::string path = "/proc/self/fd/" + std::to_string(mapping.descriptor());
  const FileDescriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!file) throw system_error("cannot open state file", mapping.path(), errno);
  supersede(file, mapping.path());
}

LogIdentity log_of(const HeaderFixed& header) {
  return {header.log_uuid,
          {header.log_name, std::min<std::size_t>(header.log_name_bytes, sizeof header.log_name)}};
}

StateInfo state_info(const Mapping& mapping) {
  const Header& header = mapping.header();
  const PublishedBlock block = read_published(header);
  StateInfo info;
  info.applied_id = block.id;
  info.chain = block.chain;
  info.digest = {block.digest_low, block.digest_high};
  info.item_count = block.item_count;
  info.item_bytes = block.item_bytes;
  LogIdentity log = log_of(header.fixed);
  info.log_uuid = log.uuid;
  info.log_name = std::move(log.name);
  info.state_id = state_id_of(header);
  info.superseded =
      (header.reclaim_generation.load(std::memory_order_acquire) & superseded_bit) != 0;
  return info;
}

LogPosition log_position(const Mapping& mapping) {
  const PublishedBlock block = read_published(mapping.header());
  return {log_uuid_of(mapping), block.id, block.chain};
}

}  // namespace whycache
