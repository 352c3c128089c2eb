// The updates of one state file that this process has pinned for its views.
//
// One lock of the kernel, on the byte of the oldest of them (use_locks.h), protects all: a writer
// that finds it reuses nothing that a reader at that id or a later one can reach. Taking such a
// lock and releasing it costs some 3 us. So a process that needs it again within milliseconds keeps
// it next time, and most views cost no system call. A thread then releases it. It starts when it is
// first needed.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <thread>

#include "base/file.h"
#include "base/fork_handlers.h"
#include "base/mutex.h"
#include "state/file/layout.h"

namespace whycache {

struct DirectoryCache;

// A member of the list of pins. Its owner keeps it in place.
struct PinNode {
  UpdateId id = 0;
  PinNode* previous = nullptr;
  PinNode* next = nullptr;
  // Reads of the view load it first. The owner stores it (release), reads acquire it. In a forked
  // child, Pins replaces it with one that sends each read to its slow path, which fails there.
  std::atomic<const DirectoryCache*> directory_cache{nullptr};
};

// Any number of threads may use it. A forked child has no pins, and locks of its own.
class Pins final : public ForkHandler {
 public:
  // The file, as it is mapped: its header, its path, and an open file of it. All outlive this.
  struct MappedFile {
    const Header& header;
    std::string path;
    int descriptor;
    // One that matches no directory.
    const DirectoryCache& empty_directory_cache;
  };
  // Opens the file once more: the locks of an open file are shared with forked children that
  // inherit it. Throws Error if that is not possible.
  explicit Pins(MappedFile mapped);
  ~Pins();
  Pins(const Pins&) = delete;
  Pins& operator=(const Pins&) = delete;

  // Pins the newest update and returns its block. Throws Error(corrupt) if the file is damaged, and
  // any Error if the file cannot be locked.
  PublishedBlock add(PinNode& pin);
  void remove(PinNode& pin) noexcept;
  // Releases at once what is kept for the next view. Returns whether there was any.
  bool release_surplus_now() noexcept;

 private:
  // One function locks the mutex, another one unlocks it.
  void before_fork() noexcept override WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { mutex_.lock(); }
  void after_fork_in_parent() noexcept override WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
    mutex_.unlock();
  }
  void after_fork_in_child() noexcept override WHYCACHE_NO_THREAD_SAFETY_ANALYSIS;

  FileDescriptor open_again() const;
  bool is_this_file(const FileDescriptor& file) const noexcept;
  void use(FileDescriptor file) noexcept WHYCACHE_REQUIRES(mutex_);
  // Takes the lock at `id` instead of the present one. Changes nothing if it throws.
  void lock(UpdateId id) WHYCACHE_REQUIRES(mutex_);
  void unlock() noexcept WHYCACHE_REQUIRES(mutex_);
  void note_move() noexcept WHYCACHE_REQUIRES(mutex_);
  PublishedBlock lock_newest() WHYCACHE_REQUIRES(mutex_);
  // Moves the lock to the oldest pin, or releases it if there is none.
  void release_surplus() noexcept WHYCACHE_REQUIRES(mutex_);
  // Starts the releaser if it does not run yet. Returns whether it runs.
  bool start_releaser() noexcept WHYCACHE_REQUIRES(mutex_);
  void run_releaser();

  const MappedFile mapped_;
  struct stat identity_ {};
  std::uint64_t process_id_ = 0;
  Mutex mutex_;
  FileDescriptor file_ WHYCACHE_GUARDED_BY(mutex_);
  // A page of it, never accessed: the open file, and with it the lock, lives on even if the
  // application closes all descriptors.
  void* kept_alive_ WHYCACHE_GUARDED_BY(mutex_) = nullptr;
  PinNode* oldest_ WHYCACHE_GUARDED_BY(mutex_) = nullptr;
  PinNode* newest_ WHYCACHE_GUARDED_BY(mutex_) = nullptr;
  std::optional<UpdateId> locked_id_ WHYCACHE_GUARDED_BY(mutex_);
  // CLOCK_BOOTTIME, of the last time that the lock was moved or released; 0: never.
  std::int64_t moved_at_ns_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  // Whether that had been a short time before it was taken or moved again.
  bool in_quick_succession_ WHYCACHE_GUARDED_BY(mutex_) = false;

  std::condition_variable changed_;
  std::thread releaser_ WHYCACHE_GUARDED_BY(mutex_);
  bool has_surplus_ WHYCACHE_GUARDED_BY(mutex_) = false;  // the releaser is to run
  bool ending_ WHYCACHE_GUARDED_BY(mutex_) = false;
};

}  // namespace whycache
