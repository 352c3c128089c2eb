#include "state/file/pins.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cassert>
#include <cerrno>
#include <chrono>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/process_lock.h"
#include "base/signals.h"
#include "state/errors.h"
#include "state/file/header.h"
#include "state/file/use_locks.h"

namespace whycache {
namespace {

// How long a lock that no view needs is kept for the next one, if the last one came this soon.
constexpr std::chrono::milliseconds keep_time{4};

}  // namespace

Pins::Pins(MappedFile mapped) : mapped_(std::move(mapped)) {
  if (::fstat(mapped_.descriptor, &identity_) != 0)
    throw system_error("cannot stat state file", mapped_.path, errno);
  process_id_ = static_cast<std::uint64_t>(::getpid());
  // No other thread has the object yet.
  register_fork_handler(this, [this]() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { use(open_again()); });
}

Pins::~Pins() {
  unregister_fork_handler(this);
  {
    const MutexLock lock(mutex_);
    ending_ = true;
    // A child that is forked from here on inherits the open file, but no lock.
    if (locked_id_) unlock();
  }
  changed_.notify_all();
  if (releaser_.joinable()) releaser_.join();
  if (kept_alive_ != nullptr) ::munmap(kept_alive_, header_page_bytes);
  if (!is_this_file(file_)) file_.release();
}

bool Pins::is_this_file(const FileDescriptor& file) const noexcept {
  return is_open_file(file.number(), identity_.st_dev, identity_.st_ino);
}

FileDescriptor Pins::open_again() const {
  int error = ENOENT;
  // By its path, which may name another file by now; or, through /proc, the very file.
  const std::string link = "/proc/self/fd/" + std::to_string(mapped_.descriptor);
  for (const std::string& path : {mapped_.path, link}) {
    const int follow = path == link ? 0 : O_NOFOLLOW;
    const int number = open_at_path(path.c_str(), O_RDONLY | O_NONBLOCK | follow);
    if (number < 0) error = errno;
    FileDescriptor file(number);
    if (is_this_file(file)) return file;
  }
  throw system_error("cannot open state file for a view", mapped_.path, error);
}

// The open file of the present lock, if there is one, is forgotten.
void Pins::use(FileDescriptor file) noexcept {
  void* mapped = ::mmap(nullptr, header_page_bytes, PROT_NONE, MAP_SHARED, file.number(), 0);
  // Without it, the lock depends on the descriptor alone.
  if (mapped == MAP_FAILED) mapped = nullptr;
  if (mapped != nullptr) ::madvise(mapped, header_page_bytes, MADV_DONTFORK);
  if (void* const before = std::exchange(kept_alive_, mapped)) ::munmap(before, header_page_bytes);
  // The application may have closed the descriptor, and opened another file with its number.
  if (!is_this_file(file_)) file_.release();
  file_ = std::move(file);
}

void Pins::lock(UpdateId id) {
  // Only a process of an earlier version locks these bytes exclusively, while it adopts the file.
  const auto take = [&](const FileDescriptor& file) {
    if (try_lock_byte_shared(file.number(), pin_byte(id, process_id_))) return;
    throw Error(ErrorKind::unavailable, "state file is being adopted by another process: path=" +
                                            mapped_.path + " (retry)");
  };
  if (is_this_file(file_)) {
    take(file_);
    if (locked_id_ && *locked_id_ != id)
      unlock_byte(file_.number(), pin_byte(*locked_id_, process_id_));
  } else {
    FileDescriptor again = open_again();
    take(again);
    use(std::move(again));
  }
  locked_id_ = id;
  note_move();
}

void Pins::unlock() noexcept {
  assert(locked_id_);
  // If the application has closed the descriptor, only the mapping keeps the lock. If another file
  // has its number now, the lock stays until this process takes another one or forgets the file.
  if (!try_unlock_byte(file_.number(), pin_byte(*locked_id_, process_id_)) &&
      kept_alive_ != nullptr)
    ::munmap(std::exchange(kept_alive_, nullptr), header_page_bytes);
  locked_id_.reset();
  moved_at_ns_ = boot_time_ns();
}

void Pins::note_move() noexcept {
  const std::int64_t now_ns = boot_time_ns();
  in_quick_succession_ =
      moved_at_ns_ != 0 && now_ns - moved_at_ns_ < std::chrono::nanoseconds(keep_time).count();
  moved_at_ns_ = now_ns;
}

PublishedBlock Pins::lock_newest() {
  const Header& header = mapped_.header;
  for (;;) {
    const PublishedBlock block = read_published(header);
    lock(block.id);
    // Pairs with the seq_cst fence of the writer between raising the horizon and looking for locks
    // (Allocator::advance_horizon): either it finds this lock, or we see its horizon.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const UpdateId horizon = header.reclaim_horizon.load(std::memory_order_acquire);
    if (horizon <= block.id) return block;
    // The writer never raises the horizon beyond the applied id.
    if (horizon > header.applied_id.load(std::memory_order_acquire)) {
      unlock();
      throw corrupt_state("reclaim_horizon=" + std::to_string(horizon) + " path=" + mapped_.path);
    }
  }
}

PublishedBlock Pins::add(PinNode& pin) {
  const MutexLock held(mutex_);
  // A lock at this id or an older one protects the newest update, too.
  PublishedBlock block = locked_id_ ? read_published(mapped_.header) : lock_newest();
  if (newest_ == nullptr && block.id < *locked_id_) {  // another state was copied over the file
    unlock();
    block = lock_newest();
  }
  if (block.id < (newest_ != nullptr ? newest_->id : *locked_id_))
    throw corrupt_state("applied id went back: path=" + mapped_.path + " update", block.id);
  pin.id = block.id;
  pin.previous = newest_;
  pin.next = nullptr;
  (newest_ != nullptr ? newest_->next : oldest_) = &pin;
  newest_ = &pin;
  return block;
}

void Pins::remove(PinNode& pin) noexcept {
  MutexLock held(mutex_);
  (pin.previous != nullptr ? pin.previous->next : oldest_) = pin.next;
  (pin.next != nullptr ? pin.next->previous : newest_) = pin.previous;
  if (has_surplus_ || (oldest_ != nullptr && oldest_->id == *locked_id_)) return;
  if (!in_quick_succession_ || !start_releaser()) return release_surplus();
  has_surplus_ = true;
  held.unlock();
  changed_.notify_one();
}

bool Pins::release_surplus_now() noexcept {
  const MutexLock held(mutex_);
  const std::optional<UpdateId> before = locked_id_;
  release_surplus();
  return locked_id_ != before;
}

void Pins::release_surplus() noexcept {
  if (oldest_ == nullptr) {
    if (locked_id_) unlock();
    return;
  }
  try {
    if (oldest_->id != *locked_id_) lock(oldest_->id);
  } catch (const std::exception&) {
    // The lock stays where it is: it protects more than is needed.
  }
}

bool Pins::start_releaser() noexcept {
  if (releaser_.joinable()) return true;
  try {
    const BlockedSignals blocked;
    releaser_ = std::thread([this] { run_releaser(); });
    return true;
  } catch (const std::exception&) {  // no thread, or no memory for one
    return false;
  }
}

void Pins::run_releaser() {
  MutexLock held(mutex_);
  for (;;) {
    while (!ending_ && !has_surplus_) changed_.wait(held.native());
    // The mutex is held while it runs.
    const auto is_ending = [this]() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { return ending_; };
    if (changed_.wait_for(held.native(), keep_time, is_ending)) return;
    release_surplus();
    has_surplus_ = false;
  }
}

void Pins::after_fork_in_child() noexcept {
  // The thread that may wait for it does not exist here.
  new (&changed_) std::condition_variable;
  new (&releaser_) std::thread;
  has_surplus_ = false;
  for (PinNode* pin = oldest_; pin != nullptr; pin = pin->next)
    pin->directory_cache.store(&mapped_.empty_directory_cache, std::memory_order_release);
  oldest_ = newest_ = nullptr;
  locked_id_.reset();
  kept_alive_ = nullptr;  // not mapped here
  process_id_ = static_cast<std::uint64_t>(::getpid());
  try {
    use(open_again());
  } catch (const std::exception&) {
    // The next view tries again, and reports it. The inherited descriptor is the parent's.
    file_.close();
  }
  mutex_.unlock();
}

}  // namespace whycache
