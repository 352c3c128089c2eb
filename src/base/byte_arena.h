// Memory that stays where it is until the arena is destroyed.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "base/mutex.h"

namespace whycache {

// Any number of threads can allocate at once.
class ByteArena {
 public:
  // Returns uninitialized memory.
  char* allocate(std::size_t bytes) WHYCACHE_EXCLUDES(mutex_) {
    std::unique_ptr<char[]> chunk(new char[bytes]);
    char* const begin = chunk.get();
    const MutexLock lock(mutex_);
    chunks_.push_back(std::move(chunk));
    return begin;
  }

 private:
  Mutex mutex_;
  std::vector<std::unique_ptr<char[]>> chunks_ WHYCACHE_GUARDED_BY(mutex_);
};

}  // namespace whycache
