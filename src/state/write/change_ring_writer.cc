#include "state/write/change_ring_writer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/file_system.h"
#include "base/fork_handlers.h"
#include "base/owned_temporary_file.h"
#include "state/file/state_file.h"
#include "update/format.h"
#include "update/update.h"

namespace whycache {
namespace {

constexpr const char* new_ring_suffix = ".new-";
constexpr std::uint64_t growth_bytes_min = std::uint64_t{64} << 10;

struct stat status_of(int descriptor, const std::string& path) {
  struct stat status;
  if (::fstat(descriptor, &status) != 0) throw system_error("cannot stat file", path, errno);
  return status;
}

// Returns the size of a new ring if none was asked for. On a small file system, such as /dev/shm of
// a container, the state needs the space.
std::uint64_t default_ring_bytes(int state_descriptor) {
  struct statvfs status;
  if (::fstatvfs(state_descriptor, &status) != 0 || status.f_blocks == 0)
    return change_ring_bytes_default;
  const std::uint64_t share = status.f_blocks * status.f_frsize / 16;
  return std::clamp(share & ~(change_ring_page_bytes - 1), change_ring_bytes_min,
                    change_ring_bytes_default);
}

// Gives the ring the permission bits, the group and the owner of the state, where this process may.
// The users that may read the one may then read the other, and no others.
void copy_permissions(int ring, const struct stat& state, const std::string& path) {
  const struct stat before = status_of(ring, path);
  // Only root may give a file away. Otherwise the process that created it owns it.
  if (before.st_uid != state.st_uid && ::fchown(ring, state.st_uid, -1) != 0 && errno != EPERM)
    throw system_error("cannot set owner of file", path, errno);
  const bool is_same_group = before.st_gid == state.st_gid || ::fchown(ring, -1, state.st_gid) == 0;
  mode_t mode = state.st_mode & 0666;
  if (!is_same_group) mode &= ~mode_t{0070};
  if ((before.st_mode & 0777) != mode && ::fchmod(ring, mode) != 0 &&
      (before.st_mode & 0777 & ~mode) != 0)
    throw system_error("cannot set mode of file", path, errno);
}

}  // namespace

ChangeRingWriter::ChangeRingWriter(const StateOptions& options, int state_descriptor)
    : path_(options.path + change_ring_suffix), fork_count_(fork_count()) {
  open_or_create(options, state_descriptor);
  map();
}

ChangeRingWriter::~ChangeRingWriter() {
  // A child does not inherit the mapping (MADV_DONTFORK).
  unmap_front(change_ring_page_bytes + data_bytes_);
  // The application may have closed the descriptor, and opened another file with its number.
  if (!is_open_file(file_.number(), device_, inode_)) file_.release();
}

bool ChangeRingWriter::unmap_front(std::uint64_t bytes) noexcept {
  if (base_ == nullptr || fork_count_ != fork_count()) return true;
  const std::uint64_t mapped_bytes = change_ring_page_bytes + data_bytes_;
  const std::uint64_t step = std::min(bytes, mapped_bytes - unmapped_bytes_);
  if (step > 0) ::munmap(base_ + unmapped_bytes_, step);
  unmapped_bytes_ += step;
  return unmapped_bytes_ == mapped_bytes;
}

void ChangeRingWriter::open_or_create(const StateOptions& options, int state_descriptor) {
  if (try_open(options, state_descriptor)) return;
  create(options.changes_bytes ? *options.changes_bytes : default_ring_bytes(state_descriptor),
         state_descriptor);
}

// Returns false if a new ring is to take the place of what is there.
bool ChangeRingWriter::try_open(const StateOptions& options, int state_descriptor) {
  FileDescriptor file = open_file_if_exists(path_, O_RDWR | O_NONBLOCK);
  if (!file) return false;
  const struct stat status = status_of(file.number(), path_);
  if (!S_ISREG(status.st_mode)) {
    throw Error(ErrorKind::invalid, "not a regular file: path=" + path_ +
                                        " (choose a state_path that has no other file there)");
  }
  ChangeRingFixed fixed{};
  if (::pread(file.number(), &fixed, sizeof fixed, 0) < 0)
    throw system_error("cannot read ring of changes", path_, errno);
  if (!is_ring_or_nothing(fixed)) {
    throw Error(ErrorKind::invalid, "not a whycache ring of changes: path=" + path_ +
                                        " (choose a state_path that has no other file there)");
  }
  if (static_cast<std::uint64_t>(status.st_size) < change_ring_page_bytes || status.st_nlink > 1 ||
      !is_trusted_owner(status, path_, trusted_owner(options)) || !is_usable(fixed))
    return false;
  if (options.changes_bytes && *options.changes_bytes != fixed.data_bytes) return false;
  copy_permissions(file.number(), status_of(state_descriptor, options.path), path_);
  // Storing to a block that the file shares with a copy of it would end the process by SIGBUS on a
  // full disk.
  if (can_share_blocks(file.number())) {
    if (const int error = unshare_blocks(file.number(), static_cast<std::uint64_t>(status.st_size)))
      throw system_error("cannot give the ring of changes blocks of its own", path_, error);
  }
  // A copy may have holes.
  constexpr std::uint64_t bytes_of_stat_block = 512;
  const auto file_bytes = static_cast<std::uint64_t>(status.st_size);
  if (static_cast<std::uint64_t>(status.st_blocks) * bytes_of_stat_block < file_bytes) {
    if (const int error = allocate_in_file(file.number(), 0, file_bytes))
      throw system_error("cannot allocate space for the ring of changes", path_, error);
  }
  data_bytes_ = fixed.data_bytes;
  allocated_bytes_ = file_bytes;
  file_ = std::move(file);
  return true;
}

// Feeds that have the previous file open notice that it has no name any more.
void ChangeRingWriter::create(std::uint64_t data_bytes, int state_descriptor) {
  remove_orphans(path_ + new_ring_suffix);
  const OwnedTemporaryFile file(path_ + new_ring_suffix);
  turn_off_copy_on_write(file.descriptor());
  copy_permissions(file.descriptor(), status_of(state_descriptor, path_), file.path());
  if (const int error = allocate_in_file(file.descriptor(), 0, change_ring_page_bytes))
    throw system_error("cannot create ring of changes", file.path(), error);
  ChangeRingFixed fixed{};
  std::memcpy(fixed.magic, change_ring_magic, sizeof change_ring_magic);
  fixed.byte_order = change_ring_byte_order;
  fixed.data_bytes = data_bytes;
  fixed.checksum = fixed.expected_checksum();
  write_all(file.descriptor(), {reinterpret_cast<const char*>(&fixed), sizeof fixed}, file.path());
  if (::rename(file.path().c_str(), path_.c_str()) != 0)
    throw system_error("cannot put ring of changes in place", path_, errno);
  data_bytes_ = data_bytes;
  allocated_bytes_ = change_ring_page_bytes;
  file_ = file.duplicate_descriptor();
}

void ChangeRingWriter::map() {
  const struct stat status = status_of(file_.number(), path_);
  device_ = status.st_dev;
  inode_ = status.st_ino;
  const std::uint64_t bytes = change_ring_page_bytes + data_bytes_;
  void* const mapped =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_.number(), 0);
  if (mapped == MAP_FAILED) throw system_error("cannot map ring of changes", path_, errno);
  base_ = static_cast<std::byte*>(mapped);
  ::madvise(base_, bytes, MADV_DONTFORK);
}

bool ChangeRingWriter::is_in_place() const {
  struct stat status;
  return fork_count_ == fork_count() && ::fstat(file_.number(), &status) == 0 &&
         status.st_ino == inode_ && status.st_dev == device_ && status.st_nlink == 1 &&
         static_cast<std::uint64_t>(status.st_size) >= allocated_bytes_;
}

void ChangeRingWriter::append(std::uint64_t state_id, const PublishedBlock& applied, UpdateId id,
                              std::string_view update) {
  // Relaxed: only the holder of the writer lock stores these.
  const std::uint64_t first = header().tail.load(std::memory_order_relaxed);
  const std::uint64_t last = header().head.load(std::memory_order_relaxed);
  if (!is_sound(first, last)) {
    // A damaged file. Stored in this order, no reader finds records between the two.
    header().head.store(0, std::memory_order_release);
    header().tail.store(0, std::memory_order_release);
    begin_again(state_id);
  } else if (header().state_id.load(std::memory_order_relaxed) != state_id) {
    begin_again(state_id);
  } else {
    const Continuation found = find_continuation(first, last, applied, id, update);
    if (found == Continuation::is_there) return;
    if (found == Continuation::breaks) begin_again(state_id);
  }
  const std::uint64_t bytes = change_record_bytes(update.size());
  if (bytes > data_bytes_) return begin_again(state_id);
  const std::uint64_t position = header().head.load(std::memory_order_relaxed);
  const std::uint64_t place = position % data_bytes_;
  try {
    allocate_up_to(place + bytes > data_bytes_ ? data_bytes_ : place + bytes);
  } catch (const Error&) {
    begin_again(state_id);
    throw;
  }
  drop_oldest_records(bytes);
  // Orders the store of the tail before the bytes that overwrite what was there. Pairs with the
  // acquire fence of a reader between its copy and its load of the tail.
  std::atomic_thread_fence(std::memory_order_release);
  const ChangeRecord record{id, update.size(),
                            change_record_checksum(state_id, position, id, update)};
  copy_in(position, {reinterpret_cast<const char*>(&record), sizeof record});
  copy_in(position + sizeof record, update);
  const std::uint64_t end = position + bytes;
  const ChangeRecordEnd begin = position;
  copy_in(end - sizeof begin, {reinterpret_cast<const char*>(&begin), sizeof begin});
  header().head.store(end, std::memory_order_release);
}

// If the process dies between the two stores, the next writer finds an empty ring of another state,
// and does the same again.
void ChangeRingWriter::begin_again(std::uint64_t state_id) const {
  header().tail.store(header().head.load(std::memory_order_relaxed), std::memory_order_release);
  header().state_id.store(state_id, std::memory_order_release);
}

bool ChangeRingWriter::is_sound(std::uint64_t tail, std::uint64_t head) const {
  constexpr std::uint64_t position_max = std::uint64_t{1} << 62;
  return tail <= head && head - tail <= data_bytes_ && head <= position_max && tail % 8 == 0 &&
         head % 8 == 0 && change_ring_page_bytes + std::min(head, data_bytes_) <= allocated_bytes_;
}

std::optional<std::uint64_t> ChangeRingWriter::record_bytes_at(std::uint64_t position,
                                                               std::uint64_t head) const {
  if (head - position < change_record_bytes(0)) return std::nullopt;
  ChangeRecord record;
  copy_out(position, &record, sizeof record);
  if (record.update_bytes > data_bytes_) return std::nullopt;
  const std::uint64_t bytes = change_record_bytes(record.update_bytes);
  return bytes <= head - position ? std::optional(bytes) : std::nullopt;
}

// Whether the last record is of the update that `applied` says, or of this update itself.
ChangeRingWriter::Continuation ChangeRingWriter::find_continuation(std::uint64_t tail,
                                                                   std::uint64_t head,
                                                                   const PublishedBlock& applied,
                                                                   UpdateId id,
                                                                   std::string_view update) const {
  if (tail == head) return Continuation::follows;
  if (head - tail < change_record_bytes(0)) return Continuation::breaks;
  ChangeRecordEnd position;
  copy_out(head - sizeof position, &position, sizeof position);
  if (position % 8 != 0 || position < tail || position >= head ||
      record_bytes_at(position, head) != head - position)
    return Continuation::breaks;
  ChangeRecord record;
  copy_out(position, &record, sizeof record);
  char begin[common_header_bytes];
  if (record.update_bytes < sizeof begin) return Continuation::breaks;
  copy_out(position + sizeof record, begin, sizeof begin);
  const auto chain = load_little_endian<std::uint64_t>(begin + chain_offset);
  if (record.id == applied.id && chain == applied.chain) return Continuation::follows;
  const std::optional<UpdateHeader> present = peek_header(update);
  return record.id == id && present && chain == present->chain &&
                 record.update_bytes == update.size()
             ? Continuation::is_there
             : Continuation::breaks;
}

// Moves the tail past as many records as it takes. Drops them all if one is damaged.
void ChangeRingWriter::drop_oldest_records(std::uint64_t bytes_needed) const {
  assert(bytes_needed <= data_bytes_);  // else no record would be left, and the loop would not end
  const std::uint64_t head = header().head.load(std::memory_order_relaxed);
  std::uint64_t tail = header().tail.load(std::memory_order_relaxed);
  const std::uint64_t before = tail;
  while (head - tail + bytes_needed > data_bytes_) {
    const std::optional<std::uint64_t> oldest = record_bytes_at(tail, head);
    tail = oldest ? tail + *oldest : head;
  }
  if (tail != before) header().tail.store(tail, std::memory_order_release);
}

// Allocates the blocks of the first `end` bytes of data: a store to a block that is not there would
// end the process by SIGBUS.
void ChangeRingWriter::allocate_up_to(std::uint64_t end) {
  const std::uint64_t needed = change_ring_page_bytes + end;
  if (needed <= allocated_bytes_) return;
  const std::uint64_t wanted =
      std::max(needed, allocated_bytes_ + std::max(growth_bytes_min, allocated_bytes_));
  const std::uint64_t page_mask = change_ring_page_bytes - 1;
  const std::uint64_t bytes =
      std::min((wanted + page_mask) & ~page_mask, change_ring_page_bytes + data_bytes_);
  if (const int error =
          allocate_in_file(file_.number(), allocated_bytes_, bytes - allocated_bytes_))
    throw system_error("cannot allocate space for the ring of changes", path_, error);
  allocated_bytes_ = bytes;
}

void ChangeRingWriter::copy_in(std::uint64_t position, std::string_view bytes) const {
  const std::uint64_t place = position % data_bytes_;
  const std::size_t first = std::min<std::size_t>(bytes.size(), data_bytes_ - place);
  std::byte* const data = base_ + change_ring_page_bytes;
  std::memcpy(data + place, bytes.data(), first);
  if (first < bytes.size()) std::memcpy(data, bytes.data() + first, bytes.size() - first);
}

void ChangeRingWriter::copy_out(std::uint64_t position, void* to, std::size_t bytes) const {
  const std::uint64_t place = position % data_bytes_;
  const std::size_t first = std::min<std::size_t>(bytes, data_bytes_ - place);
  const std::byte* const data = base_ + change_ring_page_bytes;
  std::memcpy(to, data + place, first);
  if (first < bytes) std::memcpy(static_cast<char*>(to) + first, data, bytes - first);
}

void remove_change_ring(const std::string& state_path) {
  const std::string path = state_path + change_ring_suffix;
  {
    const FileDescriptor file(open_at_path(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW));
    struct stat status;
    ChangeRingFixed fixed{};
    if (!file || ::fstat(file.number(), &status) != 0 || !S_ISREG(status.st_mode) ||
        ::pread(file.number(), &fixed, sizeof fixed, 0) < 0 || !is_ring_or_nothing(fixed))
      return;
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    throw system_error("cannot remove ring of changes", path, errno);
}

void ChangeRingKeeper::keep(std::unique_ptr<ChangeRingWriter>& ring, const StateOptions& options,
                            int state_descriptor, std::uint64_t state_id,
                            const PublishedBlock& applied, UpdateId id, std::string_view update,
                            bool is_first) noexcept {
  try {
    if (options.changes_bytes == 0) {
      if (!is_removed_) remove_change_ring(options.path);
      is_removed_ = true;
      return;
    }
    if (ring == nullptr || (is_first && !ring->is_in_place()))
      ring = std::make_unique<ChangeRingWriter>(options, state_descriptor);
    ring->append(state_id, applied, id, update);
    is_failing_ = false;
  } catch (const std::exception& error) {
    ring.reset();
    note_fault(options.path, error.what());
  }
}

void ChangeRingKeeper::note_fault(const std::string& state_path, const char* why) noexcept {
  if (std::exchange(is_failing_, true)) return;
  try {
    unreported_fault_ = "recent changes are not kept, feeds read the log: path=" + state_path +
                        change_ring_suffix + ": " + why;
  } catch (const std::bad_alloc&) {
    is_failing_ = false;  // reported when there is memory
  }
}

}  // namespace whycache
