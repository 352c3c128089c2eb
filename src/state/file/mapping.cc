#include "state/file/mapping.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "state/errors.h"

namespace whycache {
namespace {

// One per growth of the file. It grows by a 128th, or 64 MiB if that is less: 840 times up to
// 8 GiB, 17,000 times up to a TiB.
constexpr std::size_t directory_caches_max = 20'000;
// One more per directory. A sound file has at most twenty.
constexpr std::size_t extra_directories_max = 1000;

// Maps the file with `reserved_bytes` of address space. If the process may not have that much, maps
// less and updates `reserved_bytes`. Returns nullptr, with errno set, if not even the file fits.
//
// Where address space is limited, a reader takes a quarter of what is left, or what the file needs:
// the writer's mapping needs as much again, and a reader maps a file that has outgrown its mapping
// again. A writer takes half of what is left, so that what a builder builds can be mapped for
// reading; or twice the size of the file, but leaves an eighth for other threads.
std::byte* map_with_room(int descriptor, Mapping::Access access, std::uint64_t file_bytes,
                         std::uint64_t& reserved_bytes) {
  const bool is_writer = access == Mapping::Access::write;
  const int protection = is_writer ? PROT_READ | PROT_WRITE : PROT_READ;
  bool is_limited = is_address_space_limited();
  void* mapped;
  while ((mapped = ::mmap(nullptr, reserved_bytes, protection, MAP_SHARED, descriptor, 0)) ==
         MAP_FAILED) {
    // Limited by RLIMIT_AS, by valgrind (EINVAL), or for a process that locks its memory (EAGAIN).
    const bool is_too_much = errno == ENOMEM || errno == EINVAL || errno == EAGAIN;
    if (!is_too_much || reserved_bytes == file_bytes) return nullptr;
    is_limited = true;
    reserved_bytes = std::max(reserved_bytes - reserved_bytes / 8, file_bytes);
  }
  auto* const base = static_cast<std::byte*>(mapped);
  if (!is_limited) return base;
  const std::uint64_t for_writer =
      std::max(reserved_bytes / 2, std::min(reserved_bytes - reserved_bytes / 8, 2 * file_bytes));
  const std::uint64_t wanted = std::max(is_writer ? for_writer : reserved_bytes / 4, file_bytes);
  const std::uint64_t kept = (wanted + segment_bytes - 1) / segment_bytes * segment_bytes;
  if (kept >= reserved_bytes) return base;
  ::munmap(base + kept, reserved_bytes - kept);
  reserved_bytes = kept;
  return base;
}

// Returns the next step for a state file that was cut short.
std::string what_to_do_with(int descriptor) {
  return bears_state_magic(descriptor)
             ? " (close every cache on it and delete it, it is rebuilt from the log)"
             : " (another program has replaced its contents: choose another state_path)";
}

}  // namespace

Mapping::Mapping(FileDescriptor file, std::string path, std::uint64_t bytes_max, Access access)
    : file_(std::move(file)),
      path_(std::move(path)),
      inherited_(access == Access::read),
      fork_count_(fork_count()),
      last_directory_cache_(&empty_directory_cache_) {
  struct stat status;
  if (::fstat(file_.number(), &status) != 0)
    throw system_error("cannot stat state file", path_, errno);
  const auto file_bytes = static_cast<std::uint64_t>(status.st_size);
  if (file_bytes < segment_bytes) {
    throw Error(ErrorKind::corrupt, "state file cut short: path=" + path_ +
                                        " bytes=" + std::to_string(file_bytes) +
                                        what_to_do_with(file_.number()));
  }
  inode_ = status.st_ino;
  device_ = status.st_dev;
  // Another process with a larger bytes_max may have grown the file. Leave room for more.
  reserved_bytes_ = file_bytes > bytes_max
                        ? 2 * file_bytes
                        : std::max(std::min(bytes_max, state_bytes_limit), file_bytes);
  base_ = map_with_room(file_.number(), access, file_bytes, reserved_bytes_);
  if (base_ == nullptr) {
    const int error = errno;
    throw Error(ErrorKind::limit,
                "cannot map state file: path=" + path_ + " bytes=" + std::to_string(file_bytes) +
                    " reason=\"" + std::system_category().message(error) +
                    "\" (raise the limit on address space, see ulimit -v; or on locked memory, see "
                    "ulimit -l)",
                error);
  }
  // A hint, effective where the file system has huge pages (tmpfs).
  ::madvise(base_, reserved_bytes_, MADV_HUGEPAGE);
  if (access == Access::write) ::madvise(base_, reserved_bytes_, MADV_DONTFORK);
  usable_bytes_.store(file_bytes / segment_bytes * segment_bytes, std::memory_order_relaxed);
  hash_seed_ = header().fixed.hash_seed;
  key_hash_ = KeyHash(hash_seed_);
  empty_directory_cache_ = DirectoryCache::empty(base_, key_hash_);
  state_id_ = header().fixed.state_id;
}

Mapping::~Mapping() {
  delete pins_.load(std::memory_order_acquire);
  for (const DirectoryCache* cache = directory_caches_; cache != nullptr;)
    delete std::exchange(cache, cache->next);
  // In a child that did not inherit the mapping, something else may have its address.
  if (base_ != nullptr && belongs_to_this_process() && !is_unmapped())
    ::munmap(base_ + unmapped_bytes_, reserved_bytes_ - unmapped_bytes_);
  // The application may have closed the descriptor, and opened another file with its number.
  if (!is_open_file(file_.number(), device_, inode_)) file_.release();
}

bool Mapping::unmap_front(std::uint64_t bytes) noexcept {
  if (!belongs_to_this_process()) unmapped_bytes_ = reserved_bytes_;
  const bool is_last = usable_bytes() <= unmapped_bytes_ + bytes;
  const std::uint64_t end = is_last ? reserved_bytes_ : unmapped_bytes_ + bytes;
  if (end > unmapped_bytes_) ::munmap(base_ + unmapped_bytes_, end - unmapped_bytes_);
  unmapped_bytes_ = end;
  return is_last;
}

Pins& Mapping::pins() const {
  if (Pins* const known = pins_.load(std::memory_order_acquire)) return *known;
  auto created = std::make_unique<Pins>(
      Pins::MappedFile{header(), path_, descriptor(), empty_directory_cache_});
  Pins* known = nullptr;
  if (pins_.compare_exchange_strong(known, created.get(), std::memory_order_acq_rel))
    return *created.release();
  return *known;
}

bool Mapping::release_surplus_pins() const noexcept {
  Pins* const known = pins_.load(std::memory_order_acquire);
  return known != nullptr && known->release_surplus_now();
}

bool is_address_space_limited() {
  struct rlimit limit;
  return ::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY;
}

std::uint64_t Mapping::refresh_usable_bytes() const {
  // Loaded before the kernel is asked: another thread may learn a larger size meanwhile.
  const std::uint64_t known = usable_bytes();
  struct stat status;
  // The application may have closed the descriptor, and opened another file with its number.
  const auto is_this_file = [&] { return status.st_dev == device_ && status.st_ino == inode_; };
  if (::fstat(file_.number(), &status) != 0 || !is_this_file()) {
    const int error = errno;
    if (::lstat(path_.c_str(), &status) != 0 || !is_this_file())
      throw system_error("cannot stat state file", path_, error);
  }
  learn_file_bytes(known, static_cast<std::uint64_t>(status.st_size));
  return usable_bytes();
}

void Mapping::learn_file_bytes(std::uint64_t known, std::uint64_t file_bytes) const {
  const std::uint64_t bytes = std::min(file_bytes, reserved_bytes_) / segment_bytes * segment_bytes;
  if (bytes < known) {
    throw Error(ErrorKind::corrupt, "state file became shorter while in use: path=" + path_ +
                                        " bytes=" + std::to_string(bytes) + " known=" +
                                        std::to_string(known) + what_to_do_with(file_.number()));
  }
  while (known < bytes &&
         !usable_bytes_.compare_exchange_weak(known, bytes, std::memory_order_relaxed)) {
  }
}

const DirectoryCache* Mapping::find_or_create_directory_cache(std::uint64_t directory) const {
  const std::uint64_t usable = usable_bytes();
  if (!is_index_directory_within(directory, usable)) return nullptr;
  const DirectoryCache* first = directory_caches_.load(std::memory_order_acquire);
  const DirectoryCache* of_smaller_file = nullptr;
  std::size_t count = 0;
  for (const DirectoryCache* found = first; found != nullptr; found = found->next, ++count) {
    if (found->matches(directory, usable)) {
      last_directory_cache_.store(found, std::memory_order_release);
      return found;
    }
    if (of_smaller_file == nullptr && found->directory == directory) of_smaller_file = found;
  }
  // Callers have bounds of their own, so a cache for a smaller file will do: entries beyond its
  // bounds take the slow path.
  if (count >= directory_caches_max && of_smaller_file != nullptr) return of_smaller_file;
  if (count >= directory_caches_max + extra_directories_max) return nullptr;
  // Without a mutex: a fork at any moment leaves nothing locked in the child.
  auto* const created =
      new DirectoryCache(DirectoryCache::create(directory, base_, usable, key_hash_));
  created->next = first;
  while (!directory_caches_.compare_exchange_weak(created->next, created, std::memory_order_acq_rel,
                                                  std::memory_order_acquire)) {
    // Another reader pushed one meanwhile, most likely the same.
    if (const DirectoryCache* const newest = created->next;
        newest != nullptr && newest->matches(directory, usable)) {
      delete created;
      last_directory_cache_.store(newest, std::memory_order_release);
      return newest;
    }
  }
  last_directory_cache_.store(created, std::memory_order_release);
  return created;
}

}  // namespace whycache
