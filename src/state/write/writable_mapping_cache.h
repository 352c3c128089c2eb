// Caches the writable mapping of a process that writes again and again. To map the file, touch its
// pages and unmap it takes longer than to apply a small update
// (docs/decisions/keep-the-mapping.md).
//
// The cache keeps the mapping if the process began a write within 100 ms of the end of the one
// before. It unmaps it when
//
// - update(), a view or a write finds that the last write was 100 ms ago or earlier. If many pages
//   were touched, each such call unmaps for a quarter of a millisecond. A write that finds a
//   mapping of which a part is missing unmaps the rest.
// - the file is replaced, or the cache is closed.
//
// It keeps none where address space is limited. A limit that is set later is found by the first
// write that comes 100 ms after it.
//
// No process writes through it without the writer lock.
#pragma once

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/file.h"
#include "base/file_system.h"
#include "state/file/mapping.h"
#include "state/file/state_change.h"
#include "state/write/change_ring_writer.h"

namespace whycache {

// Used only by the holder of the writer lock.
struct WritableMapping {
  WritableMapping(const std::string& path, std::uint64_t bytes_max)
      : mapping(open_file(path, O_RDWR), path, bytes_max, Mapping::Access::write),
        can_share_blocks(whycache::can_share_blocks(mapping.descriptor())),
        is_space_limited(mapping.reserved_bytes() < std::min(bytes_max, state_bytes_limit)) {}

  Mapping mapping;
  const bool can_share_blocks;
  // The process may not have as much address space as the state, or as much locked memory.
  const bool is_space_limited;
  // The last change of the file when this was taken from the cache.
  FileChange last_change = no_change_known;
  // Part of it has been unmapped: it can only be unmapped further, and destroyed.
  bool is_being_unmapped = false;
  // The ring of recent changes; null until the first update is applied.
  std::unique_ptr<ChangeRingWriter> ring;

  // Unmaps the next `bytes` of the ring, then of the state. Returns whether everything is unmapped.
  bool unmap_front(std::uint64_t bytes) noexcept {
    if (ring && !ring->unmap_front(bytes)) return false;
    ring.reset();
    return mapping.unmap_front(bytes);
  }
};

class WritableMappingCache {
 public:
  WritableMappingCache() = default;
  WritableMappingCache(const WritableMappingCache&) = delete;
  WritableMappingCache& operator=(const WritableMappingCache&) = delete;
  ~WritableMappingCache() { unmap(); }

  // Removes the mapping from the cache and returns it, if it is one of the file that `current`
  // maps. Returns null otherwise. The caller holds the writer lock. Throws Error(corrupt) if the
  // file has become shorter.
  std::unique_ptr<WritableMapping> take(const Mapping& current);
  // Caches the mapping, or unmaps it if another write soon is unlikely. The caller still holds the
  // writer lock.
  void put(std::unique_ptr<WritableMapping> writable) noexcept;

  // Any thread may call these at any time.

  // Unmaps the cached mapping, and makes put() unmap from now on.
  void disable() noexcept {
    disabled_.store(true, std::memory_order_seq_cst);
    unmap();
  }
  // Ends disable().
  void enable() noexcept { disabled_.store(false, std::memory_order_seq_cst); }
  // Unmaps the cached mapping, however long that takes.
  // seq_cst: acquires what put() released with the pointer; for the order with disabled_ see there.
  void unmap() noexcept {
    std::unique_ptr<WritableMapping>(cached_.exchange(nullptr, std::memory_order_seq_cst)).reset();
  }
  // Relaxed: only a hint; unmap() takes the pointer.
  bool has_mapping() const noexcept { return cached_.load(std::memory_order_relaxed) != nullptr; }
  // Relaxed: the same.
  void unmap_if_idle() noexcept {
    if (cached_.load(std::memory_order_relaxed) != nullptr && is_idle()) [[unlikely]]
      unmap_part();
  }
  // The same, however long it takes.
  void unmap_whole_if_idle() noexcept {
    while (cached_.load(std::memory_order_relaxed) != nullptr && is_idle() && !unmap_part()) {
    }
  }

 private:
  bool is_idle() const noexcept;
  bool is_space_limited(std::int64_t now_ns) noexcept;
  // Returns false if a part is left for the next call.
  [[gnu::noinline]] bool unmap_part() noexcept;

  // Private memory: nothing remains when the process dies.

  // Stored by put() and unmap_part(), removed by take(), unmap() and unmap_part(), always by
  // exchange, or by compare-and-swap for null. The thread that gets the pointer owns the mapping.
  // Its acquire pairs with the release of the store.
  std::atomic<WritableMapping*> cached_{nullptr};
  // CLOCK_BOOTTIME of the end of the last write; 0: none. Stored by put(), under the writer lock;
  // loaded by is_idle(). Relaxed: with an outdated value the mapping is unmapped too early or too
  // late, and nothing else depends on it.
  std::atomic<std::int64_t> last_write_time_ns_{0};
  // disable() stores it, then removes the pointer. put() and unmap_part() store the pointer, then
  // load it. All are seq_cst, so at least one of the two sees the store of the other.
  std::atomic<bool> disabled_{false};
  // All under the writer lock.
  // Whether the write under way began soon after the one before. Set by take(), used by put().
  bool wrote_lately_ = false;
  // Whether address space was limited when the kernel was last asked, and when that was.
  bool is_space_limited_ = false;
  std::int64_t limit_time_ns_ = 0;
};

}  // namespace whycache
