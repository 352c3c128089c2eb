// The state file mapped into this process: read-only for readers, writable for the one writer.
//
// Address space for the largest size the state may have is reserved once, and the file grows inside it, so that
// addresses never move. What lies beyond the end of the file is mapped but must not be touched: usable_bytes() is the
// bound every offset is checked against.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/file.h"
#include "state/key_hash.h"
#include "state/layout.h"

namespace whycache {

// The directory of the point index, taken apart and found to lie within the file: the usable bytes never become less.
struct Directory {
  std::uint64_t word;  // of Header::directory
  const IndexWord* slots;
  unsigned shift;  // 63 - depth
  const Directory* next;

  const IndexWord& slot(std::uint64_t hash) const {
    return slots[hash >> 1 >> shift];
  }  // in two steps: the depth may be 0
};

class Mapping {
 public:
  enum class Access { read, write };

  // Maps `file`, whose header page has been looked at. `bytes_max` is reserved if the process may, else as much as it
  // may.
  Mapping(FileDescriptor file, std::string path, std::uint64_t bytes_max, Access access);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const std::byte* base() const { return base_; }
  std::byte* writable_base() const { return base_; }
  const Header& header() const { return *reinterpret_cast<const Header*>(base_); }
  Header& writable_header() const { return *reinterpret_cast<Header*>(base_); }
  const std::string& path() const { return path_; }
  int descriptor() const { return file_.number(); }
  std::uint64_t reserved_bytes() const { return reserved_bytes_; }
  // Copies of what never changes, in private memory.
  std::uint64_t hash_seed() const { return hash_seed_; }
  std::uint64_t state_id() const { return state_id_; }
  std::uint64_t inode() const { return inode_; }
  std::uint64_t device() const { return device_; }

  // Offsets below this may be read. Grows with the file, never shrinks.
  std::uint64_t usable_bytes() const { return usable_bytes_.load(std::memory_order_relaxed); }
  // Asks the kernel how long the file is now. A file that became shorter is damaged: Error corrupt.
  std::uint64_t refresh_usable_bytes() const;
  // The writer grew the file.
  void set_usable_bytes(std::uint64_t bytes) { usable_bytes_.store(bytes, std::memory_order_relaxed); }

  // The directory of the point index that a word of Header::directory stands for; nullptr if it does not lie within the
  // file.
  const Directory* directory(std::uint64_t word) const {
    const Directory* const known = directory_.load(std::memory_order_acquire);
    return known->word == word ? known : find_directory(word);
  }
  // The one that was asked for last.
  const Directory* last_directory() const { return directory_.load(std::memory_order_acquire); }

  const KeyHash& key_hash() const { return key_hash_; }
  std::uint64_t hash_of(std::string_view key) const { return key_hash_(key); }

 private:
  [[gnu::noinline]] const Directory* find_directory(std::uint64_t word) const;

  FileDescriptor file_;
  std::string path_;
  std::byte* base_ = nullptr;
  std::uint64_t reserved_bytes_ = 0;
  bool inherited_;  // by forked children, too
  std::uint64_t fork_count_;
  mutable std::atomic<std::uint64_t> usable_bytes_{0};
  KeyHash key_hash_;
  // Never nullptr. Release, acquired by reads. What it pointed to stays, on the list: a directory doubles twenty times
  // at most.
  mutable std::atomic<const Directory*> directory_;
  mutable std::atomic<const Directory*> directories_{nullptr};
  std::uint64_t hash_seed_ = 0;
  std::uint64_t state_id_ = 0;
  std::uint64_t inode_ = 0;
  std::uint64_t device_ = 0;
};

// Whether the page can be the header of a state this library reads: empty if so, else what is wrong with it. Only the
// fixed part is looked at.
std::string header_fault(const HeaderFixed& header);

}  // namespace whycache
