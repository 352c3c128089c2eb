#include "state/file/mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "state/errors.h"

namespace whycache {
namespace {

// One per growth of the file. It grows by a 128th, or 64 MiB if that is less: 840 times up to
// 8 GiB, 17,000 times up to a TiB.
constexpr std::size_t directory_caches_max = 20'000;
// One more per directory. A sound file has at most twenty.
constexpr std::size_t extra_directories_max = 1000;

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
  const int protection = access == Access::write ? PROT_READ | PROT_WRITE : PROT_READ;
  // Another process with a larger bytes_max may have grown the file. Leave room for more.
  reserved_bytes_ = file_bytes > bytes_max
                        ? 2 * file_bytes
                        : std::max(std::min(bytes_max, state_bytes_limit), file_bytes);
  for (;;) {
    void* mapped = ::mmap(nullptr, reserved_bytes_, protection, MAP_SHARED, file_.number(), 0);
    if (mapped != MAP_FAILED) {
      base_ = static_cast<std::byte*>(mapped);
      break;
    }
    // Address space may be limited: by RLIMIT_AS, by valgrind (EINVAL), or for a process that locks
    // its memory (EAGAIN). Give up room to grow first.
    const bool is_too_much = errno == ENOMEM || errno == EINVAL || errno == EAGAIN;
    if (!is_too_much || reserved_bytes_ == file_bytes) {
      const int error = errno;
      throw Error(ErrorKind::limit,
                  "cannot map state file: path=" + path_ +
                      " bytes=" + std::to_string(reserved_bytes_) +
                      " (raise the limit on address space, see ulimit -v)",
                  error);
    }
    reserved_bytes_ = std::max(reserved_bytes_ / 2, file_bytes);
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
  for (const DirectoryCache* cache = directory_caches_; cache != nullptr;)
    delete std::exchange(cache, cache->next);
  // In a child that did not inherit the mapping, something else may have its address.
  if (base_ != nullptr && belongs_to_this_process()) ::munmap(base_, reserved_bytes_);
}

std::uint64_t Mapping::refresh_usable_bytes() const {
  // Loaded before the kernel is asked: another thread may learn a larger size meanwhile.
  std::uint64_t known = usable_bytes();
  struct stat status;
  if (::fstat(file_.number(), &status) != 0)
    throw system_error("cannot stat state file", path_, errno);
  const std::uint64_t bytes =
      std::min(static_cast<std::uint64_t>(status.st_size), reserved_bytes_) / segment_bytes *
      segment_bytes;
  if (bytes < known) {
    throw Error(ErrorKind::corrupt, "state file became shorter while in use: path=" + path_ +
                                        " bytes=" + std::to_string(bytes) + " known=" +
                                        std::to_string(known) + what_to_do_with(file_.number()));
  }
  while (known < bytes &&
         !usable_bytes_.compare_exchange_weak(known, bytes, std::memory_order_relaxed)) {
  }
  return usable_bytes();
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

bool bears_state_magic(int descriptor) {
  char magic[sizeof state_magic];
  return ::pread(descriptor, magic, sizeof magic, 0) == sizeof magic &&
         std::memcmp(magic, state_magic, sizeof magic) == 0;
}

std::string header_fault(const HeaderFixed& header) {
  if (std::memcmp(header.magic, state_magic, sizeof state_magic) != 0)
    return "it does not begin with the magic of a whycache state";
  if (header.byte_order != byte_order_mark)
    return "it was created on a machine of another byte order";
  if (header.format_major != state_format_major) {
    return "its format is unknown: found=" + std::to_string(header.format_major) +
           " known=" + std::to_string(state_format_major);
  }
  if (header.header_bytes != header_page_bytes || header.segment_size != segment_bytes)
    return "its header has impossible sizes";
  const std::uint64_t checksum =
      hash64({reinterpret_cast<const char*>(&header), offsetof(HeaderFixed, checksum)});
  if (checksum != header.checksum || header.log_name_bytes > sizeof header.log_name)
    return "its header is damaged";
  return {};
}

PublishedBlock read_published(const Header& header) {
  for (;;) {
    const UpdateId id = header.applied_id.load(std::memory_order_acquire);
    PublishedBlock block;
    std::memcpy(&block, &header.published[id % published_block_count], sizeof block);
    // The copy is consistent unless seven more updates were published meanwhile: only then does
    // the writer overwrite the block. Pairs with the release fence in Applier before that write.
    std::atomic_thread_fence(std::memory_order_acquire);
    if (header.applied_id.load(std::memory_order_relaxed) - id >= published_block_count - 1)
      continue;
    if (block.id != id || block.checksum != block.expected_checksum()) {
      throw corrupt_state("published block of update", id);
    }
    return block;
  }
}

}  // namespace whycache
