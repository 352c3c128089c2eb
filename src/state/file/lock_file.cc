#include "state/file/lock_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <new>

#include "base/clock.h"
#include "base/process_lock.h"

namespace whycache {
namespace {

constexpr std::size_t page_bytes = 4096;
constexpr std::uint64_t row_lock_offset = 4096;  // of the OFD byte of row 0
constexpr std::size_t spare_slots_max =
    4;  // kept for the next view while there are plenty; more are given back

static_assert(sizeof(LockFileHeader) <= page_bytes);
static_assert(offsetof(LockFileHeader, waiters) == 192);  // docs/formats/state.md

std::size_t file_bytes_for(std::uint32_t slots) {
  return page_bytes + slots * (sizeof(ProcessRow) + sizeof(ReaderSlot));
}

Error not_a_lock_file(const std::string& path) {
  return Error(ErrorKind::corrupt, "not a whycache lock file: path=" + path +
                                       " (if no process uses the state, delete it)");
}

bool is_same_file(const struct stat& one, const struct stat& other) {
  return one.st_ino == other.st_ino && one.st_dev == other.st_dev;
}

// Makes the file whole under another name and links it into place, so that nobody ever sees half of
// one.
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
      throw system_error("cannot make lock file", path, errno);
    }
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  ::unlink(temporary.c_str());
}

}  // namespace

LockFile::LockFile(std::string path, std::uint32_t mode, std::uint32_t slot_count)
    : path_(std::move(path)) {
  if (slot_count < 1 || slot_count > 65536) {
    throw Error(ErrorKind::invalid, "reader_slots out of range: reader_slots=" +
                                        std::to_string(slot_count) + " range=1..65536");
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
  if (!S_ISREG(status.st_mode) || mapped_bytes_ < page_bytes) throw not_a_lock_file(path_);
  // Who can cut it short can end all who have it mapped.
  if (status.st_uid != ::geteuid() && status.st_uid != 0 && (mode & 0077) == 0) {
    throw Error(ErrorKind::invalid,
                "lock file belongs to another user: path=" + path_ +
                    " owner=" + std::to_string(status.st_uid) +
                    " (choose another place, or give state_mode a group)",
                EPERM);
  }
  // Through an open file of its own: a mapping keeps the open file it came from alive, and with it
  // its locks, in forked children too.
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
      slot_count_ < 1 || slot_count_ > 65536 || mapped_bytes_ < file_bytes_for(slot_count_)) {
    throw not_a_lock_file(path_);
  }
  rows_ = reinterpret_cast<ProcessRow*>(mapped_ + page_bytes);
  slots_ = reinterpret_cast<ReaderSlot*>(mapped_ + page_bytes + slot_count_ * sizeof(ProcessRow));
  std::uint64_t boot;
  const Uuid id = boot_id();
  std::memcpy(&boot, id.data(), sizeof boot);
  if (header_->boot.load(std::memory_order_acquire) != boot) {
    header_->last_poll_time_ns.store(0, std::memory_order_relaxed);
    header_->last_store_poll_time_ns.store(0, std::memory_order_relaxed);
    header_->boot.store(boot, std::memory_order_release);
  }
}

LockFile::~LockFile() {
  for (ReaderSlot* slot : spare_slots_) slot->owner.store(0, std::memory_order_release);
  release();
}

void LockFile::release() noexcept {
  {
    const std::lock_guard guard(mutex_);
    spare_slots_.clear();  // a child forked meanwhile
    file_.close();  // before we are forgotten: a child would keep it open, and our locks with it
  }
  unregister_fork_handler(this);
  if (mapped_ != nullptr) ::munmap(mapped_, mapped_bytes_);
}

void LockFile::check_in_place() const {
  struct stat ours;
  struct stat there;
  if (::fstat(file_.number(), &ours) == 0 && ::stat(path_.c_str(), &there) == 0 &&
      is_same_file(ours, there)) {
    return;
  }
  throw Error(ErrorKind::corrupt, "lock file was removed or replaced while in use: path=" + path_ +
                                      " (close every cache on this state and open it again)");
}

void LockFile::claim_row() {
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (std::uint32_t number = 0; number < slot_count_; ++number) {
      if (!try_lock_byte(file_.number(), row_lock_offset + number)) continue;
      // Whoever had the row is gone, and what it held with it.
      for (std::uint32_t i = 0; i < slot_count_; ++i) {
        if (slots_[i].owner.load(std::memory_order_acquire) >> 32 == number + 1) {
          slots_[i].pinned_id.store(0, std::memory_order_relaxed);
          slots_[i].owner.store(0, std::memory_order_release);
        }
      }
      ProcessRow& mine = row(number);
      const std::uint64_t times = mine.claim_count.fetch_add(1, std::memory_order_relaxed) + 1;
      mine.process_id = static_cast<std::uint64_t>(::getpid());
      std::memset(mine.process_name, 0, sizeof mine.process_name);
      const FileDescriptor name(::open("/proc/self/comm", O_RDONLY | O_CLOEXEC));
      if (name) {
        const ssize_t size = ::read(name.number(), mine.process_name, sizeof mine.process_name - 1);
        if (size > 0 && mine.process_name[size - 1] == '\n') mine.process_name[size - 1] = '\0';
      }
      own_row_ = number;
      owner_word_ = std::uint64_t{number + 1} << 32 | (times & 0xffffffff);
      return;
    }
  }
  throw Error(ErrorKind::limit,
              "too many processes hold views: reader_slots=" + std::to_string(slot_count_) +
                  " path=" + path_ + " (raise reader_slots, and remake the lock file)");
}

ReaderSlot* LockFile::claim_slot() {
  const std::lock_guard guard(mutex_);
  if (!spare_slots_.empty()) {
    ReaderSlot* const slot = spare_slots_.back();
    spare_slots_.pop_back();
    return slot;
  }
  if (!own_row_) claim_row();
  for (int attempt = 0; attempt < 2; ++attempt) {
    for (std::uint32_t i = 0; i < slot_count_; ++i) {
      std::uint64_t nobody = 0;
      if (slots_[i].owner.load(std::memory_order_relaxed) != 0 ||
          !slots_[i].owner.compare_exchange_strong(nobody, owner_word_,
                                                   std::memory_order_acq_rel)) {
        continue;
      }
      slots_[i].pinned_id.store(0, std::memory_order_relaxed);
      std::uint32_t end = header_->slots_end.load(std::memory_order_relaxed);
      while (end < i + 1 &&
             !header_->slots_end.compare_exchange_weak(end, i + 1, std::memory_order_seq_cst)) {
      }
      return &slots_[i];
    }
    // All taken: by the dead, perhaps.
    for (std::uint32_t number = 0; number < slot_count_; ++number) reclaim_dead_row(number);
  }
  throw Error(ErrorKind::limit, "all reader slots are taken: reader_slots=" +
                                    std::to_string(slot_count_) + " holders=" + describe_holders());
}

void LockFile::release_slot(ReaderSlot* slot) noexcept {
  slot->pinned_id.store(0, std::memory_order_release);
  const std::lock_guard guard(mutex_);
  const bool plenty = header_->slots_end.load(std::memory_order_relaxed) <= slot_count_ / 2;
  if (spare_slots_.size() < spare_slots_max && plenty) {
    try {
      spare_slots_.push_back(slot);
      return;
    } catch (const std::bad_alloc&) {  // then it is given back
    }
  }
  slot->owner.store(0, std::memory_order_release);
}

bool LockFile::is_row_alive(std::uint32_t number) {
  return (own_row_ && *own_row_ == number) ||
         is_byte_locked(file_.number(), row_lock_offset + number);
}

bool LockFile::reclaim_dead_row(std::uint32_t number) {
  if (own_row_ && *own_row_ == number) return false;
  if (!try_lock_byte(file_.number(), row_lock_offset + number)) return false;
  for (std::uint32_t i = 0; i < slot_count_; ++i) {
    if (slots_[i].owner.load(std::memory_order_acquire) >> 32 != number + 1) continue;
    slots_[i].pinned_id.store(0, std::memory_order_relaxed);
    slots_[i].owner.store(0, std::memory_order_release);
  }
  unlock_byte(file_.number(), row_lock_offset + number);
  return true;
}

UpdateId LockFile::find_oldest_pinned_id(std::uint64_t state_id, UpdateId below) {
  UpdateId least = below;
  const std::uint32_t end =
      std::min(header_->slots_end.load(std::memory_order_seq_cst), slot_count_);
  for (std::uint32_t i = 0; i < end; ++i) {
    const std::uint64_t pinned = slots_[i].pinned_id.load(std::memory_order_acquire);
    if (pinned == 0 || pinned - 1 >= least) continue;
    if (slots_[i].state_id.load(std::memory_order_acquire) != state_id) continue;
    const std::uint64_t owner = slots_[i].owner.load(std::memory_order_acquire);
    if (owner != 0 && owner >> 32 <= slot_count_) {
      const std::lock_guard guard(mutex_);
      const auto number = static_cast<std::uint32_t>((owner >> 32) - 1);
      if (!is_row_alive(number) && reclaim_dead_row(number)) continue;
    }
    least = pinned - 1;
  }
  return least;
}

std::vector<ReaderSlotInfo> LockFile::slots_taken() {
  const std::lock_guard guard(mutex_);
  std::vector<ReaderSlotInfo> taken;
  for (std::uint32_t i = 0; i < slot_count_; ++i) {
    const std::uint64_t owner = slots_[i].owner.load(std::memory_order_acquire);
    const std::uint64_t pinned = slots_[i].pinned_id.load(std::memory_order_acquire);
    if (owner == 0 || pinned == 0) continue;
    ReaderSlotInfo info;
    info.slot = i;
    info.pinned_id = pinned - 1;
    const std::uint64_t number = (owner >> 32) - 1;
    if (number < slot_count_) {
      info.process_id = row(static_cast<std::uint32_t>(number)).process_id;
      info.process_name =
          std::string(rows_[number].process_name,
                      ::strnlen(rows_[number].process_name, sizeof rows_[number].process_name));
      info.alive = is_row_alive(static_cast<std::uint32_t>(number));
    }
    taken.push_back(info);
  }
  return taken;
}

std::vector<ReaderSlotInfo> LockFile::processes() {
  const std::lock_guard guard(mutex_);
  std::vector<ReaderSlotInfo> found;
  for (std::uint32_t number = 0; number < slot_count_; ++number) {
    if (rows_[number].claim_count.load(std::memory_order_relaxed) == 0 || !is_row_alive(number))
      continue;
    ReaderSlotInfo info;
    info.slot = number;
    info.process_id = rows_[number].process_id;
    info.process_name =
        std::string(rows_[number].process_name,
                    ::strnlen(rows_[number].process_name, sizeof rows_[number].process_name));
    info.alive = true;
    found.push_back(info);
  }
  return found;
}

std::string LockFile::describe_holders() {
  std::map<std::string, int> counts;
  for (std::uint32_t i = 0; i < slot_count_; ++i) {
    const std::uint64_t owner = slots_[i].owner.load(std::memory_order_acquire);
    const std::uint64_t number = (owner >> 32) - 1;
    if (owner == 0 || number >= slot_count_) continue;
    const ProcessRow& holder = rows_[number];
    ++counts[std::string(holder.process_name,
                         ::strnlen(holder.process_name, sizeof holder.process_name)) +
             "[" + std::to_string(holder.process_id) + "]"];
  }
  std::string text;
  for (const auto& [name, count] : counts) {
    if (!text.empty()) text += ",";
    text += name + ":" + std::to_string(count);
  }
  return text;
}

void LockFile::after_fork_in_child() noexcept {
  mutex_.unlock();
  own_row_.reset();
  owner_word_ = 0;
  spare_slots_.clear();
  // The locks the parent's open file holds are the parent's: let go of that file without touching
  // them.
  int number;
  do {
    number = ::open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  } while (number < 0 && errno == EINTR);
  FileDescriptor own(number);
  struct stat ours;
  struct stat parents;
  // Another file by now: its locks would have nothing to do with the slots that are mapped.
  const bool same = own && file_ && ::fstat(own.number(), &ours) == 0 &&
                    ::fstat(file_.number(), &parents) == 0 && is_same_file(ours, parents);
  if (!same) own.close();
  file_ = std::move(own);
}

}  // namespace whycache
