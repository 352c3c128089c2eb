// Where a cursor puts its keys together from the prefix of a node and their suffixes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "base/byte_arena.h"

namespace whycache {

// Memory for batches of keys. Without an arena, each batch overwrites the previous one. With one,
// keys stay valid as long as the arena.
class KeyBuffer {
 public:
  explicit KeyBuffer(ByteArena* arena) : arena_(arena) {}

  // Returns room for a batch of at most so many bytes.
  char* reserve(std::size_t bytes) {
    if (arena_ == nullptr) {
      if (reused_.size() < bytes) reused_.resize(bytes);
      return reused_.data();
    }
    if (bytes > left_) {
      left_ = std::max(bytes, chunk_bytes_);
      begin_ = arena_->allocate(left_);
      // Short at first, for callers that want only a few keys.
      chunk_bytes_ = std::min(chunk_bytes_ * 4, chunk_bytes_max);
    }
    return begin_;
  }
  // Keeps the bytes of the batch up to `end`.
  void keep(char* end) {
    if (arena_ == nullptr) return;
    left_ -= static_cast<std::size_t>(end - begin_);
    begin_ = end;
  }

 private:
  static constexpr std::size_t chunk_bytes_max = std::size_t{64} << 10;

  ByteArena* arena_;
  std::vector<char> reused_;
  char* begin_ = nullptr;  // of the rest of the newest chunk
  std::size_t left_ = 0;
  std::size_t chunk_bytes_ = 256;
};

}  // namespace whycache
