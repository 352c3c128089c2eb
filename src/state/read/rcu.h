// Decides when a replaced mapping may be unmapped: when no thread can still be in a read that began
// on it.
//
// A reading thread announces itself with plain stores to its own record. The switching thread makes
// these stores visible to itself with membarrier(2), which is expensive but rare.
//
//   reader                                 switcher
//   reading = 1         (relaxed)          mapping = new     (release)
//   m = mapping         (acquire)          membarrier        earlier stores of every thread are
//                                                            visible, later loads see new
//   ... reads m ...                        reading?   ->     wait until it was 0 once
//   reading = 0         (release)                            (acquire)
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace whycache {

struct alignas(64) ReaderThread {
  // The owner stores, switchers load (acquire; pairs with leave()).
  std::atomic<std::uint64_t> reading{0};
  std::atomic<bool> taken{false};
  // The list of all records ever made; they are reused, never freed.
  ReaderThread* next = nullptr;

  // enter() and leave() bracket one read of the owner. The signal fences keep the compiler from
  // moving its loads out. The release store of leave() pairs with the acquire load of a switcher,
  // which then unmaps.
  [[gnu::always_inline]] void enter() {
    reading.store(1, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  [[gnu::always_inline]] void leave() {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    reading.store(0, std::memory_order_release);
  }
};

// Registers this thread: takes a free record or makes one. Throws std::bad_alloc without memory.
[[gnu::noinline]] ReaderThread& register_reader_thread();

// The first data that a read of this thread needs.
struct ThisReader {
  // The fast path takes a key if its size less 8 is below this: two_words_size_count, or 0 while
  // `fast_thread` is null. One comparison checks both.
  std::uint64_t fast_key_size_count = 0;
  // Equals `thread`, or null while reads of this thread probe the filter first. They start to after
  // some misses, and stop after a few hits in a row. Reads that hit are not counted, so that they
  // cost nothing.
  ReaderThread* fast_thread = nullptr;
  // Null: the thread has no record yet.
  ReaderThread* thread = nullptr;

  // Records that the filter excluded a key.
  void record_filter_exclusion() { hits_ = 0; }
  // Records that a read which probed the filter first found its key.
  void record_hit() {
    if (++hits_ == hits_max) stop_probing_filter();
  }

 private:
  friend bool record_miss();
  // After misses_max misses the filter is probed, until hits_max hits in a row.
  static constexpr unsigned misses_max = 16;
  static constexpr unsigned hits_max = 4;

  void start_probing_filter();
  void stop_probing_filter();

  unsigned misses_ = 0;
  unsigned hits_ = 0;
};

// Counts a miss. Returns false, so that a read can end with a tail call.
[[gnu::noinline]] bool record_miss();

// Initial-exec and constinit: the dynamic linker can always place these few bytes, and no code runs
// to initialize them, so that a load costs one instruction.
extern constinit thread_local ThisReader this_reader __attribute__((tls_model("initial-exec")));

// Brackets one read.
class ReadSection {
 public:
  ReadSection()
      : thread_(this_reader.thread != nullptr ? *this_reader.thread : register_reader_thread()) {
    thread_.enter();
  }
  ~ReadSection() { thread_.leave(); }
  ReadSection(const ReadSection&) = delete;
  ReadSection& operator=(const ReadSection&) = delete;

 private:
  ReaderThread& thread_;
};

// The threads that were reading at construction. elapsed() returns true once each of them has been
// seen outside a read. A thread that reads all the time is between two reads only briefly: it may
// take several calls.
class GracePeriod {
 public:
  GracePeriod();
  bool elapsed();

 private:
  std::vector<const ReaderThread*> pending_threads_;
  // The kernel has no membarrier: nothing is known.
  bool never_elapses_ = false;
};

}  // namespace whycache
