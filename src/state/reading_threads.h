// When a mapping that was replaced may be unmapped: when no thread can still be in a read that began on it.
//
// A thread says that it is reading with plain stores to a record of its own; who wants to unmap makes them visible to
// itself with membarrier(2), which is dear but rare. A record's counter is odd during a read.
//
//   reader                                 switcher
//   counter = odd       (relaxed)          mapping = new     (release)
//   m = mapping         (acquire)          membarrier        every thread's earlier stores are visible,
//                                                            later loads see new
//   ... reads m ...                        counter odd?  ->  wait until it moves
//   counter = even      (release)
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace whycache {

struct alignas(64) ReadingThread {
  std::atomic<std::uint64_t> reads{0};  // owner thread writes, switchers read
  std::atomic<bool> taken{false};
  ReadingThread* next = nullptr;  // list of all there ever were; records are used again, never freed

  // Around one read. By the owner.
  [[gnu::always_inline]] void enter() { count(); }
  [[gnu::always_inline]] void leave() { count(); }

 private:
  [[gnu::always_inline]] void count() {
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
    // The same in one instruction, which compilers don't make of it; stores are released in order there.
    asm volatile("incq %0" : "+m"(reads) : : "memory", "cc");
#else
    std::atomic_signal_fence(std::memory_order_seq_cst);
    reads.store(reads.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
  }
};

// Makes a record for this thread, once.
[[gnu::noinline]] ReadingThread& register_reading_thread();

// What this thread begins a read with.
struct ThisReader {
  // A key may be read the quickest way if its bytes less 8 are below this: two_words_sizes, or 0 while the thread has
  // no record. So one comparison tells both.
  std::uint64_t two_words_sizes = 0;
  ReadingThread* thread = nullptr;
};

// A few bytes that the dynamic linker can always place and that nothing has to be run for, so that reading them costs
// one instruction.
extern constinit thread_local ThisReader this_reader __attribute__((tls_model("initial-exec")));

// Brackets one read.
class Reading {
 public:
  Reading() : thread_(this_reader.thread != nullptr ? *this_reader.thread : register_reading_thread()) {
    thread_.enter();
  }
  ~Reading() { thread_.leave(); }
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;

 private:
  ReadingThread& thread_;
};

// The threads that were reading when it was made. over() is true once each of them has left that read.
class GracePeriod {
 public:
  GracePeriod();
  bool over();

 private:
  struct Waiting {
    const ReadingThread* thread;
    std::uint64_t reads;
  };
  std::vector<Waiting> waiting_;
  bool for_ever_ = false;  // the kernel has no membarrier: nothing can be known
};

}  // namespace whycache
