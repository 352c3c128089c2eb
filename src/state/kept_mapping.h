// The writable mapping that a process which writes again and again keeps between two updates: mapping a file, touching
// its pages and unmapping it takes longer than applying a small update (docs/decisions/keep-the-mapping.md).
//
// It is kept only by who wrote twice within keep_ns, and until the next update() or write that comes later than that,
// or the cache is closed. Nobody writes to it without the writer lock.
#pragma once

#include <fcntl.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/file.h"
#include "state/mapping.h"

namespace whycache {

// Of whoever holds the writer lock.
struct WritableMapping {
  WritableMapping(const std::string& path, std::uint64_t bytes_max)
      : mapping(open_file(path, O_RDWR), path, bytes_max, Mapping::Access::write) {}

  Mapping mapping;
  std::size_t changes = 0;  // made in it so far: each touches some pages, which unmapping has to go through
};

class KeptMapping {
 public:
  KeptMapping() = default;
  KeptMapping(const KeptMapping&) = delete;
  KeptMapping& operator=(const KeptMapping&) = delete;
  ~KeptMapping() { drop(); }

  // The one that is kept, if it can be used to write to the file that `present` maps. The caller holds the writer lock.
  std::unique_ptr<WritableMapping> take(const Mapping& present);
  // Keeps it, or unmaps it. The caller still holds the writer lock.
  void leave(std::unique_ptr<WritableMapping> writable) noexcept;
  // Any thread may call these at any time.
  void drop() noexcept { std::unique_ptr<WritableMapping>(kept_.exchange(nullptr, std::memory_order_acq_rel)).reset(); }
  void drop_if_idle() noexcept {
    if (kept_.load(std::memory_order_relaxed) != nullptr && is_idle()) [[unlikely]]
      drop();
  }

 private:
  bool is_idle() const noexcept;

  // Whoever takes the pointer out owns what it points to.
  std::atomic<WritableMapping*> kept_{nullptr};
  std::atomic<std::int64_t> left_at_ns_{0};  // CLOCK_BOOTTIME, when somebody wrote last; 0: nobody did
};

}  // namespace whycache
