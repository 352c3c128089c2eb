// The writable mapping that a process which writes again and again keeps between two updates:
// mapping a file, touching its pages and unmapping it takes longer than applying a small update
// (docs/decisions/keep-the-mapping.md).
//
// It is kept if the process wrote twice within 10 ms, and until the next update(), view or write
// that comes later than that, until many pages were touched through it, the file is replaced, or
// the cache is closed. Nobody writes to it without the writer lock.
#pragma once

#include <fcntl.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/file.h"
#include "state/file/mapping.h"

namespace whycache {

// Written to by whoever holds the writer lock.
struct WritableMapping {
  WritableMapping(const std::string& path, std::uint64_t bytes_max)
      : mapping(open_file(path, O_RDWR), path, bytes_max, Mapping::Access::write) {}

  Mapping mapping;
  std::size_t touched_pages = 0;  // touched so far, about: unmapping has to go through them
};

class WritableMappingCache {
 public:
  WritableMappingCache() = default;
  WritableMappingCache(const WritableMappingCache&) = delete;
  WritableMappingCache& operator=(const WritableMappingCache&) = delete;
  ~WritableMappingCache() { unmap(); }

  // The one that is kept, if it can be used to write to the file that `present` maps. The caller
  // holds the writer lock. Throws Error corrupt if the file became shorter.
  std::unique_ptr<WritableMapping> take(const Mapping& present);
  // Keeps it if there is reason to; else unmaps it. The caller still holds the writer lock.
  void put(std::unique_ptr<WritableMapping> writable) noexcept;
  // Any thread may call these at any time.
  void disable() noexcept {
    disabled_.store(true, std::memory_order_seq_cst);
    unmap();
  }
  void unmap() noexcept {
    std::unique_ptr<WritableMapping>(cached_.exchange(nullptr, std::memory_order_seq_cst)).reset();
  }
  void unmap_if_idle() noexcept {
    if (cached_.load(std::memory_order_relaxed) != nullptr && is_idle()) [[unlikely]]
      unmap();
  }

 private:
  bool is_idle() const noexcept;

  // All of this is in private memory, and gone with the process.
  // Put in by keep(), taken out by take() and drop(), always by exchange: whoever gets the pointer
  // owns what it points to, and acquires what was released with it.
  std::atomic<WritableMapping*> cached_{nullptr};
  // CLOCK_BOOTTIME, when somebody wrote last; 0: nobody did. Stored by keep() and take(), under the
  // writer lock; loaded by whoever looks whether it is idle. Relaxed: a value of before unmaps too
  // early or too late, and no more.
  std::atomic<std::int64_t> last_write_time_ns_{0};
  // Stored by keep_nothing(), which then takes the pointer out; loaded by keep() after it has put
  // one in. All four are seq_cst: one of the two sees the other.
  std::atomic<bool> disabled_{false};
};

}  // namespace whycache
