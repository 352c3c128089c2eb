// When a mapping that was replaced may be unmapped: when no thread can still be in a read that began on it.
//
// A thread says that it is reading with plain stores to a record of its own; who wants to unmap makes them visible to itself with
// membarrier(2), which is dear but rare. A record's counter is odd during a read.
//
//   reader                                 switcher
//   counter = odd       (relaxed)          mapping = new     (release)
//   m = mapping         (acquire)          membarrier        every thread's earlier stores are visible, later loads see new
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
  ReadingThread* next = nullptr;        // list of all there ever were; records are used again, never freed
};

// Makes a record for this thread, once.
ReadingThread& register_reading_thread();

// Eight bytes that the dynamic linker can always place, so that reading them costs one instruction.
extern thread_local ReadingThread* this_reading_thread __attribute__((tls_model("initial-exec")));

// Brackets one read.
class Reading {
 public:
  Reading() : thread_(this_reading_thread != nullptr ? *this_reading_thread : register_reading_thread()) {
    thread_.reads.store(thread_.reads.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  ~Reading() { thread_.reads.store(thread_.reads.load(std::memory_order_relaxed) + 1, std::memory_order_release); }
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
