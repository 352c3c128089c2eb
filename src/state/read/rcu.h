// When a mapping that was replaced may be unmapped: when no thread can still be in a read that
// began on it.
//
// A thread says that it is reading with plain stores to a record of its own; who wants to unmap
// makes them visible to itself with membarrier(2), which is dear but rare.
//
//   reader                                 switcher
//   reading = 1         (relaxed)          mapping = new     (release)
//   m = mapping         (acquire)          membarrier        every thread's earlier stores are visible,
//                                                            later loads see new
//   ... reads m ...                        reading?      ->  wait until it was seen not to be, once
//   reading = 0         (release)
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace whycache {

struct alignas(64) ReaderThread {
  std::atomic<std::uint64_t> reading{0};  // owner thread writes, switchers read
  std::atomic<bool> taken{false};
  ReaderThread* next = nullptr;  // list of all there ever were; records are used again, never freed

  // Around one read. By the owner. The compiler must not move what is read to before or behind.
  [[gnu::always_inline]] void enter() {
    reading.store(1, std::memory_order_relaxed);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  [[gnu::always_inline]] void leave() {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    reading.store(0, std::memory_order_release);
  }
};

// Makes a record for this thread, once.
[[gnu::noinline]] ReaderThread& register_reader_thread();

// What this thread begins a read with.
struct ThisReader {
  // A key may be read the quickest way if its bytes less 8 are below this: two_words_sizes, or 0
  // while `quick` is not there. So one comparison tells both.
  std::uint64_t fast_key_size_count = 0;
  // `thread`, unless it looks into the index's filter first: begun after some misses, as reads that
  // find their keys do not count, and ended by a few keys in a row that were there.
  ReaderThread* fast_thread = nullptr;
  ReaderThread* thread = nullptr;  // nullptr: the thread has no record yet

  // A read that looked into the filter first did not find a key there.
  void record_filter_exclusion() { hits_ = 0; }
  // It did find a key.
  void record_hit() {
    if (++hits_ == hits_max) stop_probing_filter();
  }

 private:
  friend bool record_miss();
  // Every so many misses the filter is tried, until as many keys in a row were there as hits_max.
  static constexpr unsigned misses_max = 16;
  static constexpr unsigned hits_max = 4;

  void start_probing_filter();
  void stop_probing_filter();

  unsigned misses_ = 0;
  unsigned hits_ = 0;
};

// Says that a key was not found: false, so that a read can end with it.
[[gnu::noinline]] bool record_miss();

// A few bytes that the dynamic linker can always place and that nothing has to be run for, so that
// reading them costs one instruction.
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

// The threads that were reading when it was made. over() is true once each of them was seen not to
// be reading; a thread that does nothing else may be seen between two reads only when it was asked
// for several times.
class GracePeriod {
 public:
  GracePeriod();
  bool elapsed();

 private:
  std::vector<const ReaderThread*> pending_threads_;
  bool never_elapses_ = false;  // the kernel has no membarrier: nothing can be known
};

}  // namespace whycache
