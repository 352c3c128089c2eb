// The state file mapped into this process: read-only for readers, writable for the one writer
// (writable_mapping_cache.h says for how long).
//
// Address space for the largest size the state may have is reserved once, and the file grows inside
// it, so that addresses never move. What lies beyond the end of the file is mapped but must not be
// touched: usable_bytes() is the bound every offset is checked against.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/file.h"
#include "base/fork_handlers.h"
#include "state/file/key_hash.h"
#include "state/file/layout.h"

namespace whycache {

// What the quick ways of reading look at of an entry before they know how long it is: its first
// word, a key and a value that are not long. What lies nearer to the end of the file is read the
// thorough way.
inline constexpr std::uint64_t fast_read_bytes = 512;

// What a look-up needs to know of a mapping, in one cache line: the directory of the point index,
// taken apart and found to lie within the file, and how far the file may be read. Never changed:
// another one is made when the directory doubles, or when the file has grown.
struct alignas(64) DirectoryCache {
  std::uint64_t directory;  // the word of Header::directory this is for
  const IndexWord* slots;
  std::uint64_t slot_shift;  // slot hash >> slot_shift; 64 if there is only one
  const std::byte* base;
  std::uint64_t page_offset_max;   // a part lies within the mapping if its offset is not more
  std::uint64_t entry_offset_max;  // so do an entry's first quick_bytes, if its offset is not more
  KeyHash key_hash;                // its seed for long keys is the first that is not in the line
  const DirectoryCache* next;

  static DirectoryCache empty(const std::byte* base, const KeyHash& key_hash) {
    static constexpr IndexWord no_part{~std::uint64_t{0}};
    return {~std::uint64_t{0}, &no_part, 64, base, 0, 0, key_hash, nullptr};
  }
  static DirectoryCache create(std::uint64_t directory, const std::byte* base,
                               std::uint64_t usable_bytes, const KeyHash& key_hash) {
    return {directory,
            reinterpret_cast<const IndexWord*>(base + index_directory_offset(directory)),
            64 - global_depth(directory),
            base,
            usable_bytes - segment_bytes,
            usable_bytes - fast_read_bytes,
            key_hash,
            nullptr};
  }

  const Header& header() const { return *reinterpret_cast<const Header*>(base); }
  // The one the top bits of the hash say, as many as the directory is deep.
  const IndexWord& slot(std::uint64_t hash) const { return slots[hash >> 1 >> (slot_shift - 1)]; }
  bool matches(std::uint64_t directory_word, std::uint64_t usable_bytes) const {
    return directory == directory_word && entry_offset_max == usable_bytes - fast_read_bytes;
  }
};

class Mapping {
 public:
  enum class Access { read, write };

  // Maps `file`, whose header page has been looked at. `bytes_max` is reserved if the process may,
  // else as much as it may.
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
  // Whether the address space that was reserved holds all of the file, which others may have let
  // grow.
  bool holds_whole_file() const {
    return header().file_bytes.load(std::memory_order_acquire) <= reserved_bytes_;
  }
  // One that is writable is not there in forked children.
  bool belongs_to_this_process() const { return inherited_ || fork_count_ == fork_count(); }
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
  void set_usable_bytes(std::uint64_t bytes) {
    usable_bytes_.store(bytes, std::memory_order_relaxed);
  }

  // For a word of Header::directory, and all of the file that is known to be usable; nullptr if
  // that directory does not lie within it.
  const DirectoryCache* directory_cache(std::uint64_t directory) const {
    const DirectoryCache* const known = last_directory_cache();
    return known->matches(directory, usable_bytes()) ? known
                                                     : find_or_create_directory_cache(directory);
  }
  // The one that was asked for last; never nullptr.
  const DirectoryCache* last_directory_cache() const {
    return last_directory_cache_.load(std::memory_order_acquire);
  }

  const KeyHash& key_hash() const { return key_hash_; }
  std::uint64_t hash_of(std::string_view key) const { return key_hash_(key); }

 private:
  [[gnu::noinline]] const DirectoryCache* find_or_create_directory_cache(
      std::uint64_t directory) const;

  FileDescriptor file_;
  std::string path_;
  std::byte* base_ = nullptr;
  std::uint64_t reserved_bytes_ = 0;
  bool inherited_;  // by forked children, too
  std::uint64_t fork_count_;
  mutable std::atomic<std::uint64_t> usable_bytes_{0};
  KeyHash key_hash_;
  DirectoryCache empty_directory_cache_{};
  // Stored by whichever reader finds or makes one (release), acquired by reads. What it pointed to
  // stays, on the list.
  mutable std::atomic<const DirectoryCache*> last_directory_cache_;
  mutable std::atomic<const DirectoryCache*> directory_caches_{
      nullptr};  // the list, newest first; compare-and-swap, acq_rel
  std::uint64_t hash_seed_ = 0;
  std::uint64_t state_id_ = 0;
  std::uint64_t inode_ = 0;
  std::uint64_t device_ = 0;
};

// Whether the page can be the header of a state this library reads: empty if so, else what is wrong
// with it. Only the fixed part is looked at.
std::string header_fault(const HeaderFixed& header);

// The block of the newest published update, consistent in itself. Throws Error(corrupt).
PublishedBlock read_published(const Header& header);

}  // namespace whycache
