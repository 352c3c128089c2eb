#include "state/read/rcu.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <new>
#include <thread>

#include "base/fork_handlers.h"
#include "base/thread_end_key.h"
#include "state/file/key_hash.h"

namespace whycache {

constinit thread_local ThisReader this_reader __attribute__((tls_model("initial-exec"))) = {};

void ThisReader::start_probing_filter() {
  fast_key_size_count = 0;
  fast_thread = nullptr;
  hits_ = 0;
}

bool record_miss() {
  ThisReader& reader = this_reader;
  if (++reader.misses_ >= ThisReader::misses_max) reader.start_probing_filter();
  return false;
}

void ThisReader::stop_probing_filter() {
  fast_key_size_count = whycache::two_words_size_count;
  fast_thread = thread;
  misses_ = 0;
}

namespace {

std::atomic<ReaderThread*> all_reader_threads{nullptr};

bool membarrier(int command) { return ::syscall(SYS_membarrier, command, 0, 0) == 0; }

// A process has to register before its first membarrier. While it has one thread, that takes
// microseconds; later it waits for a grace period of the kernel, which takes 10 ms, or many times
// that on a busy machine. So the library registers when it is loaded. Forked children inherit it.
[[maybe_unused]] const bool registered_when_loaded =
    membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);

// Release: pairs with the acquire of the thread that takes the record next.
void release_record(void* record) {
  this_reader = {};
  static_cast<ReaderThread*>(record)->taken.store(false, std::memory_order_release);
}
constinit ThreadEndKey thread_end_key(release_record);
[[maybe_unused]] const ThreadEndKey::Lifetime thread_end_key_lifetime(thread_end_key);

// The parent's threads do not exist in the child, and never leave the reads they were in.
class ReaderThreadsForkHandler final : public ForkHandler {
 public:
  void after_fork_in_child() noexcept override {
    // Acquire: pairs with the release of register_reader_thread() in a thread of the parent.
    for (ReaderThread* thread = all_reader_threads.load(std::memory_order_acquire);
         thread != nullptr; thread = thread->next) {
      if (thread == this_reader.thread) continue;
      thread->reading.store(0, std::memory_order_relaxed);
      thread->taken.store(false, std::memory_order_relaxed);
    }
  }
};

// Registered before there are threads, see register_fork_handler().
constinit ReaderThreadsForkHandler reader_threads_fork_handler;
[[maybe_unused]] const bool fork_handler_registered = [] {
  register_fork_handler(&reader_threads_fork_handler);
  return true;
}();

// `thread` is taken by this thread. Gives it back if the end of this thread cannot be noticed.
void set_this_reader(ReaderThread& thread) {
  try {
    thread_end_key.set(&thread);
  } catch (...) {
    thread.taken.store(false, std::memory_order_release);
    throw;
  }
  this_reader.fast_key_size_count = two_words_size_count;
  this_reader.fast_thread = &thread;
  this_reader.thread = &thread;
}

}  // namespace

ReaderThread& register_reader_thread() {
  for (ReaderThread* thread = all_reader_threads.load(std::memory_order_acquire); thread != nullptr;
       thread = thread->next) {
    bool taken = false;
    if (thread->taken.compare_exchange_strong(taken, true, std::memory_order_acq_rel)) {
      set_this_reader(*thread);
      return *thread;
    }
  }
  auto* made = new ReaderThread;
  made->taken.store(true, std::memory_order_relaxed);
  made->next = all_reader_threads.load(std::memory_order_relaxed);
  while (!all_reader_threads.compare_exchange_weak(made->next, made, std::memory_order_release,
                                                   std::memory_order_relaxed)) {
  }
  set_this_reader(*made);
  return *made;
}

namespace {

// Loads several times and yields in between, because a busy thread is outside a read only briefly.
bool is_reading(const ReaderThread& thread) {
  constexpr int looks = 16;
  for (int i = 0; i < looks; ++i) {
    if (i > 0) std::this_thread::yield();
    if (thread.reading.load(std::memory_order_acquire) == 0) return false;
  }
  return true;
}

}  // namespace

GracePeriod::GracePeriod() {
  if (!membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) &&
      !(membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) &&
        membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED))) {
    never_elapses_ = true;
    return;
  }
  for (ReaderThread* thread = all_reader_threads.load(std::memory_order_acquire); thread != nullptr;
       thread = thread->next) {
    if (is_reading(*thread)) pending_threads_.push_back(thread);
  }
}

bool GracePeriod::elapsed() {
  if (never_elapses_) return false;
  std::erase_if(pending_threads_, [](const ReaderThread* thread) { return !is_reading(*thread); });
  return pending_threads_.empty();
}

}  // namespace whycache
