#include "state/file/lock_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <map>
#include <new>
#include <utility>

#include "base/clock.h"
#include "base/process_lock.h"

namespace whycache {
namespace {

constexpr std::size_t page_bytes = 4096;
// The byte whose OFD lock represents row 0.
constexpr std::uint64_t row_lock_offset = 4096;
constexpr std::uint32_t slot_count_max = 65536;
// Slots kept for the next view while no more than half of all were ever used.
constexpr std::size_t spare_slots_max = 4;
// ReaderSlot::owner holds 1 + row above this bit.
constexpr unsigned owner_row_shift = 32;

static_assert(sizeof(LockFileHeader) <= page_bytes);
static_assert(offsetof(LockFileHeader, waiters) == 192);  // docs/formats/state.md

std::size_t file_bytes_for(std::uint32_t slots) {
  return page_bytes + slots * (sizeof(ProcessRow) + sizeof(ReaderSlot));
}

// Advises deleting the file only if it is whycache's: it bears the magic, or a power cut came
// before the magic was on the disk.
Error not_a_lock_file(const FileDescriptor& file, const std::string& path) {
  char magic[sizeof lock_file_magic] = {};
  const bool is_readable = ::pread(file.number(), magic, sizeof magic, 0) >= 0;
  constexpr char no_magic[sizeof magic] = {};
  const bool is_ours = is_readable && (std::memcmp(magic, lock_file_magic, sizeof magic) == 0 ||
                                       std::memcmp(magic, no_magic, sizeof magic) == 0);
  return Error(ErrorKind::corrupt,
               "not a whycache lock file: path=" + path +
                   (is_ours ? " (if no process uses the state, delete it)"
                            : " (choose a state_path that has no other file at PATH.lock)"));
}

std::string process_name(const ProcessRow& row) {
  return std::string(row.process_name, ::strnlen(row.process_name, sizeof row.process_name));
}

// The rows and slots of a mapped lock file, for tools.
struct LockFileView {
  const ProcessRow* rows;
  const ReaderSlot* slots;
  std::uint32_t slot_count;
  int descriptor;
  // To this process, its own lock looks free.
  std::optional<std::uint32_t> own_row{};

  bool is_row_alive(std::uint32_t row) const {
    return own_row == row || is_byte_locked(descriptor, row_lock_offset + row);
  }

  std::vector<ReaderSlotInfo> slots_taken() const {
    std::vector<ReaderSlotInfo> taken;
    for (std::uint32_t i = 0; i < slot_count; ++i) {
      const std::uint64_t owner = slots[i].owner.load(std::memory_order_acquire);
      const std::uint64_t pinned = slots[i].pinned_id.load(std::memory_order_acquire);
      if (owner == 0 || pinned == 0) continue;
      ReaderSlotInfo info;
      info.slot = i;
      info.pinned_id = pinned - 1;
      const std::uint64_t row = (owner >> owner_row_shift) - 1;
      if (row < slot_count) {
        info.process_id = rows[row].process_id;
        info.process_name = process_name(rows[row]);
        info.alive = is_row_alive(static_cast<std::uint32_t>(row));
      }
      taken.push_back(info);
    }
    return taken;
  }

  std::vector<ReaderSlotInfo> processes() const {
    std::vector<ReaderSlotInfo> alive;
    for (std::uint32_t row = 0; row < slot_count; ++row) {
      if (rows[row].claim_count.load(std::memory_order_relaxed) == 0 || !is_row_alive(row))
        continue;
      ReaderSlotInfo info;
      info.slot = row;
      info.process_id = rows[row].process_id;
      info.process_name = process_name(rows[row]);
      info.alive = true;
      alive.push_back(info);
    }
    return alive;
  }
};

bool is_same_file(const struct stat& a, const struct stat& b) {
  return a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

// Writes the whole file under another name and links it into place, so that no process sees a
// partial one. If another process was faster, its file stays.
void create_lock_file(const std::string& path, std::uint32_t mode, std::uint32_t slots) {
  const std::string temporary =
      path + ".new-" + std::to_string(::getpid()) + "-" + std::to_string(boot_time_ns());
  FileDescriptor file = open_file(temporary, O_RDWR | O_CREAT | O_EXCL, 0600);
  try {
    if (::fchmod(file.number(), mode) != 0)
      throw system_error("cannot set mode of file", temporary, errno);
    if (const int error = allocate_in_file(file.number(), 0, file_bytes_for(slots))) {
      throw system_error("cannot allocate lock file", temporary, error);
    }
    std::uint32_t counts[2] = {slots, 0};
    write_all(file.number(), {lock_file_magic, sizeof lock_file_magic}, temporary);
    write_all(file.number(), {reinterpret_cast<const char*>(counts), sizeof counts}, temporary);
    if (::link(temporary.c_str(), path.c_str()) != 0 && errno != EEXIST) {
      throw system_error("cannot create lock file", path, errno);
    }
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  ::unlink(temporary.c_str());
}

}  // namespace

std::optional<LockFileInfo> read_lock_file(const std::string& path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat status;
  if (!file || ::fstat(file.number(), &status) != 0) return std::nullopt;
  const auto bytes = static_cast<std::size_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || bytes < page_bytes) return std::nullopt;
  const auto unmap = [bytes](void* address) { ::munmap(address, bytes); };
  void* const mapped = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.number(), 0);
  if (mapped == MAP_FAILED) throw system_error("cannot map lock file", path, errno);
  const std::unique_ptr<void, decltype(unmap)> mapping(mapped, unmap);

  const auto* const header = static_cast<const LockFileHeader*>(mapped);
  const std::uint32_t slot_count = header->slot_count;
  if (std::memcmp(header->magic, lock_file_magic, sizeof lock_file_magic) != 0 || slot_count < 1 ||
      slot_count > slot_count_max || bytes < file_bytes_for(slot_count)) {
    return std::nullopt;
  }
  const auto* const rows = static_cast<const std::byte*>(mapped) + page_bytes;
  const LockFileView view{
      reinterpret_cast<const ProcessRow*>(rows),
      reinterpret_cast<const ReaderSlot*>(rows + slot_count * sizeof(ProcessRow)), slot_count,
      file.number()};
  return LockFileInfo{slot_count, view.slots_taken(), view.processes()};
}

LockFile::LockFile(std::string path, std::uint32_t mode, std::uint32_t slot_count)
    : path_(std::move(path)) {
  if (slot_count < 1 || slot_count > slot_count_max) {
    throw Error(ErrorKind::invalid,
                "reader_slots out of range: reader_slots=" + std::to_string(slot_count) +
                    " range=1.." + std::to_string(slot_count_max));
  }
  if (!open_file_if_exists(path_, O_RDWR)) create_lock_file(path_, mode, slot_count);
  register_fork_handler(this, [this] { file_ = open_file(path_, O_RDWR); });
  try {
    map(mode);
  } catch (...) {
    release();
    throw;
  }
}

void LockFile::map(std::uint32_t mode) {
  struct stat status;
  if (::fstat(file_.number(), &status) != 0)
    throw system_error("cannot stat lock file", path_, errno);
  mapped_bytes_ = static_cast<std::size_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || mapped_bytes_ < page_bytes) throw not_a_lock_file(file_, path_);
  // The owner of the file could truncate it, which kills every process that has it mapped.
  if (status.st_uid != ::geteuid() && status.st_uid != 0 && (mode & 0077) == 0) {
    throw Error(ErrorKind::invalid,
                "lock file belongs to another user: path=" + path_ +
                    " owner=" + std::to_string(status.st_uid) +
                    " (choose another place, or give state_mode a group)",
                EPERM);
  }
  // Mapped through a second open file: a mapping keeps the open file that it came from alive, and
  // with it the locks, even in forked children.
  const FileDescriptor mappable = open_file(path_, O_RDWR);
  struct stat mappable_status;
  if (::fstat(mappable.number(), &mappable_status) != 0)
    throw system_error("cannot stat lock file", path_, errno);
  if (!is_same_file(mappable_status, status))
    throw Error(ErrorKind::unavailable,
                "lock file was replaced while it was opened: path=" + path_);
  void* mapped =
      ::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, mappable.number(), 0);
  if (mapped == MAP_FAILED) throw system_error("cannot map lock file", path_, errno);
  mapped_ = static_cast<std::byte*>(mapped);
  header_ = reinterpret_cast<LockFileHeader*>(mapped_);
  slot_count_ = header_->slot_count;
  if (std::memcmp(header_->magic, lock_file_magic, sizeof lock_file_magic) != 0 ||
      slot_count_ < 1 || slot_count_ > slot_count_max ||
      mapped_bytes_ < file_bytes_for(slot_count_)) {
    throw not_a_lock_file(file_, path_);
  }
  rows_ = reinterpret_cast<ProcessRow*>(mapped_ + page_bytes);
  slots_ = reinterpret_cast<ReaderSlot*>(mapped_ + page_bytes + slot_count_ * sizeof(ProcessRow));
}

LockFile::~LockFile() {
  for (ReaderSlot* slot : spare_slots_) slot->owner.store(0, std::memory_order_release);
  release();
}

void LockFile::release() noexcept {
  {
    const MutexLock lock(mutex_);
    // A child forked from here on must neither use the slots nor keep the file and its locks open.
    spare_slots_.clear();
    file_.close();
  }
  unregister_fork_handler(this);
  if (mapped_ != nullptr) ::munmap(mapped_, mapped_bytes_);
}

void LockFile::check_in_place() const {
  struct stat ours;
  struct stat present;
  if (::fstat(file_.number(), &ours) == 0 && ::stat(path_.c_str(), &present) == 0 &&
      is_same_file(ours, present)) {
    return;
  }
  throw Error(ErrorKind::corrupt, "lock file was removed or replaced while in use: path=" + path_ +
                                      " (close every cache on this state and open it again)");
}

void LockFile::free_slots_of(std::uint32_t row) {
  for (std::uint32_t i = 0; i < slot_count_; ++i) {
    if (slots_[i].owner.load(std::memory_order_acquire) >> owner_row_shift != row + 1) continue;
    slots_[i].pinned_id.store(0, std::memory_order_relaxed);
    slots_[i].owner.store(0, std::memory_order_release);
  }
}

void LockFile::claim_row() {
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (std::uint32_t number = 0; number < slot_count_; ++number) {
      if (!try_lock_byte(file_.number(), row_lock_offset + number)) continue;
      free_slots_of(number);  // of the process that had this row before, which is dead
      ProcessRow& row = rows_[number];
      const std::uint64_t claims = row.claim_count.fetch_add(1, std::memory_order_relaxed) + 1;
      row.process_id = static_cast<std::uint64_t>(::getpid());
      std::memset(row.process_name, 0, sizeof row.process_name);
      const FileDescriptor name(::open("/proc/self/comm", O_RDONLY | O_CLOEXEC));
      if (name) {
        const ssize_t size = ::read(name.number(), row.process_name, sizeof row.process_name - 1);
        if (size > 0 && row.process_name[size - 1] == '\n') row.process_name[size - 1] = '\0';
      }
      own_row_ = number;
      owner_word_ = std::uint64_t{number + 1} << owner_row_shift | (claims & 0xffffffff);
      return;
    }
  }
  throw Error(ErrorKind::limit,
              "too many processes hold views: reader_slots=" + std::to_string(slot_count_) +
                  " path=" + path_ + " (raise reader_slots, and recreate the lock file)");
}

ReaderSlot* LockFile::claim_slot() {
  const MutexLock lock(mutex_);
  if (!spare_slots_.empty()) {
    ReaderSlot* const slot = spare_slots_.back();
    spare_slots_.pop_back();
    return slot;
  }
  if (!own_row_) claim_row();
  assert(own_row_ && owner_word_ != 0);
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (std::uint32_t i = 0; i < slot_count_; ++i) {
      std::uint64_t no_owner = 0;
      if (slots_[i].owner.load(std::memory_order_relaxed) != 0 ||
          !slots_[i].owner.compare_exchange_strong(no_owner, owner_word_,
                                                   std::memory_order_acq_rel)) {
        continue;
      }
      slots_[i].pinned_id.store(0, std::memory_order_relaxed);
      std::uint32_t end = header_->slots_end.load(std::memory_order_relaxed);
      while (end < i + 1 &&
             !header_->slots_end.compare_exchange_weak(end, i + 1, std::memory_order_relaxed)) {
      }
      return &slots_[i];
    }
    // All are taken. Some may belong to dead processes.
    for (std::uint32_t row = 0; row < slot_count_; ++row) reclaim_dead_row(row);
  }
  throw Error(ErrorKind::limit, "all reader slots are taken: reader_slots=" +
                                    std::to_string(slot_count_) + " holders=" + describe_holders());
}

void LockFile::release_slot(ReaderSlot* slot) noexcept {
  assert(slot >= slots_ && slot < slots_ + slot_count_);
  // Release: the writer that acquires the 0 may reuse what this process read under the pin.
  slot->pinned_id.store(0, std::memory_order_release);
  const MutexLock lock(mutex_);
  const bool plenty = header_->slots_end.load(std::memory_order_relaxed) <= slot_count_ / 2;
  if (spare_slots_.size() < spare_slots_max && plenty) {
    try {
      spare_slots_.push_back(slot);
      return;
    } catch (const std::bad_alloc&) {
      // No memory to keep the slot. Free it.
    }
  }
  slot->owner.store(0, std::memory_order_release);
}

bool LockFile::is_row_alive(std::uint32_t row) const {
  return own_row_ == row || is_byte_locked(file_.number(), row_lock_offset + row);
}

bool LockFile::reclaim_dead_row(std::uint32_t row) {
  if (own_row_ == row || !try_lock_byte(file_.number(), row_lock_offset + row)) return false;
  free_slots_of(row);
  unlock_byte(file_.number(), row_lock_offset + row);
  return true;
}

UpdateId LockFile::find_oldest_pinned_id(std::uint64_t state_id, UpdateId below) {
  UpdateId oldest = below;
  const std::uint32_t end =
      std::min(header_->slots_end.load(std::memory_order_relaxed), slot_count_);
  for (std::uint32_t i = 0; i < end; ++i) {
    const std::uint64_t pinned = slots_[i].pinned_id.load(std::memory_order_acquire);
    if (pinned == 0 || pinned - 1 >= oldest) continue;
    if (slots_[i].state_id.load(std::memory_order_acquire) != state_id) continue;
    const std::uint64_t owner = slots_[i].owner.load(std::memory_order_acquire);
    if (owner != 0 && owner >> owner_row_shift <= slot_count_) {
      const MutexLock lock(mutex_);
      const auto row = static_cast<std::uint32_t>((owner >> owner_row_shift) - 1);
      if (!is_row_alive(row) && reclaim_dead_row(row)) continue;
    }
    oldest = pinned - 1;
  }
  assert(oldest <= below);
  return oldest;
}

std::vector<ReaderSlotInfo> LockFile::slots_taken() {
  const MutexLock lock(mutex_);
  return LockFileView{rows_, slots_, slot_count_, file_.number(), own_row_}.slots_taken();
}

std::vector<ReaderSlotInfo> LockFile::processes() {
  const MutexLock lock(mutex_);
  return LockFileView{rows_, slots_, slot_count_, file_.number(), own_row_}.processes();
}

std::string LockFile::describe_holders() const {
  std::map<std::string, int> counts;
  for (std::uint32_t i = 0; i < slot_count_; ++i) {
    const std::uint64_t owner = slots_[i].owner.load(std::memory_order_acquire);
    const std::uint64_t row = (owner >> owner_row_shift) - 1;
    if (owner == 0 || row >= slot_count_) continue;
    ++counts[process_name(rows_[row]) + "[" + std::to_string(rows_[row].process_id) + "]"];
  }
  std::string text;
  for (const auto& [name, count] : counts) {
    if (!text.empty()) text += ",";
    text += name + ":" + std::to_string(count);
  }
  return text;
}

void LockFile::after_fork_in_child() noexcept {
  own_row_.reset();
  owner_word_ = 0;
  spare_slots_.clear();
  // The locks on the inherited open file are the parent's: close it without unlocking them.
  int number;
  do {
    number = ::open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  } while (number < 0 && errno == EINTR);
  FileDescriptor own(number);
  struct stat ours;
  struct stat parents;
  // The locks of another file at this path would have nothing to do with the slots mapped here.
  const bool same = own && file_ && ::fstat(own.number(), &ours) == 0 &&
                    ::fstat(file_.number(), &parents) == 0 && is_same_file(ours, parents);
  if (!same) own.close();
  file_ = std::move(own);
  mutex_.unlock();
}

}  // namespace whycache
