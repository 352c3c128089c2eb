#include "state/read/rcu.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <thread>

#include "base/fork_handlers.h"
#include "state/index/key_hash.h"

namespace whycache {

constinit thread_local ThisReader this_reader __attribute__((tls_model("initial-exec"))) = {};

void ThisReader::expect_none() {
  two_words_sizes = 0;
  quick = nullptr;
  hits_ = 0;
}

bool missed() {
  ThisReader& reader = this_reader;
  if (++reader.misses_ >= ThisReader::misses_max) reader.expect_none();
  return false;
}

void ThisReader::expect_some() {
  two_words_sizes = whycache::two_words_sizes;
  quick = thread;
  misses_ = 0;
}

namespace {

std::atomic<ReadingThread*> all_threads{nullptr};

bool membarrier(int command) { return ::syscall(SYS_membarrier, command, 0, 0) == 0; }

// Gives the record back when the thread ends.
struct RecordOwner {
  ReadingThread* record = nullptr;
  ~RecordOwner() {
    this_reader = {};
    if (record != nullptr) record->taken.store(false, std::memory_order_release);
  }
};

// The threads of a parent do not exist in its child, and will never leave the reads they were in.
class ForgetThreads final : public ForkListener {
 public:
  void after_fork_in_child() noexcept override {
    for (ReadingThread* thread = all_threads.load(std::memory_order_relaxed); thread != nullptr;
         thread = thread->next) {
      if (thread == this_reader.thread) continue;
      thread->reading.store(0, std::memory_order_relaxed);
      thread->taken.store(false, std::memory_order_relaxed);
    }
  }
};

// Before there are threads, see register_fork_listener().
constinit ForgetThreads forget_threads;
[[maybe_unused]] const bool forgetting = [] {
  register_fork_listener(&forget_threads);
  return true;
}();

void begin_to_read(ReadingThread& thread) {
  this_reader.two_words_sizes = two_words_sizes;
  this_reader.quick = &thread;
  this_reader.thread = &thread;
}

}  // namespace

ReadingThread& register_reading_thread() {
  thread_local RecordOwner owner;
  for (ReadingThread* thread = all_threads.load(std::memory_order_acquire); thread != nullptr; thread = thread->next) {
    bool taken = false;
    if (thread->taken.compare_exchange_strong(taken, true, std::memory_order_acq_rel)) {
      owner.record = thread;
      begin_to_read(*thread);
      return *thread;
    }
  }
  auto* made = new ReadingThread;
  made->taken.store(true, std::memory_order_relaxed);
  made->next = all_threads.load(std::memory_order_relaxed);
  while (!all_threads.compare_exchange_weak(made->next, made, std::memory_order_release, std::memory_order_relaxed)) {
  }
  owner.record = made;
  begin_to_read(*made);
  return *made;
}

namespace {

// Looked at several times, with time in between for the thread to go on: between two reads there is little.
bool is_reading(const ReadingThread& thread) {
  constexpr int looks = 16;
  for (int i = 0; i < looks; ++i) {
    if (i > 0) std::this_thread::yield();
    if (thread.reading.load(std::memory_order_acquire) == 0) return false;
  }
  return true;
}

}  // namespace

GracePeriod::GracePeriod() {
  // A process has to register before its first.
  if (!membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) &&
      !(membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) && membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED))) {
    for_ever_ = true;
    return;
  }
  for (ReadingThread* thread = all_threads.load(std::memory_order_acquire); thread != nullptr; thread = thread->next) {
    if (is_reading(*thread)) waiting_.push_back(thread);
  }
}

bool GracePeriod::over() {
  if (for_ever_) return false;
  std::erase_if(waiting_, [](const ReadingThread* thread) { return !is_reading(*thread); });
  return waiting_.empty();
}

}  // namespace whycache
