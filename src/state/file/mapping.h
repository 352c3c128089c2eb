// The state file mapped into this process: read-only for readers, writable for the one writer
// (writable_mapping_cache.h says for how long).
//
// Address space for the largest size the state may have is reserved once, and the file grows inside
// it, so that addresses never move. Pages beyond the end of the file are mapped but must not be
// touched: every offset is checked against usable_bytes().
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/file.h"
#include "base/fork_handlers.h"
#include "state/file/header.h"
#include "state/file/key_hash.h"
#include "state/file/layout.h"
#include "state/file/pins.h"

namespace whycache {

// The fast path reads up to this many bytes of an entry before it knows the entry's size: the first
// word, a key and a value that are not long. Entries closer to the end of the file take the slow
// path.
inline constexpr std::uint64_t fast_read_bytes = 512;

// The directory of the point index, decoded and bounds-checked, and the bounds of the file: all
// that a lookup needs to know about a mapping, in one cache line. Immutable: a new one is created
// when the directory doubles or the file has grown.
struct alignas(64) DirectoryCache {
  std::uint64_t directory;  // the value of Header::index_directory that this is for
  const IndexWord* slots;
  std::uint64_t slot_shift;  // slot hash >> slot_shift; 64 if there is only one
  const std::byte* base;
  // An index page up to this offset is within the mapping.
  std::uint64_t page_offset_max;
  // The first fast_read_bytes of an entry up to this offset are, too.
  std::uint64_t entry_offset_max;
  KeyHash key_hash;  // its last member, the seed for long keys, is in the next cache line
  const DirectoryCache* next;

  // One that matches no directory, and whose only slot names no page within a file.
  static DirectoryCache empty(const std::byte* base, const KeyHash& key_hash) {
    static constexpr IndexWord no_page{~std::uint64_t{0}};
    return {~std::uint64_t{0}, &no_page, 64, base, 0, 0, key_hash, nullptr};
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
  // The slot that the first bits of the hash select. Shifts twice, because slot_shift may be 64.
  const IndexWord& slot(std::uint64_t hash) const { return slots[hash >> 1 >> (slot_shift - 1)]; }
  bool matches(std::uint64_t directory_word, std::uint64_t usable_bytes) const {
    return directory == directory_word && entry_offset_max == usable_bytes - fast_read_bytes;
  }
};

// Whether a mapping could take address space that the application needs.
bool is_address_space_limited();

class Mapping {
 public:
  enum class Access { read, write };

  // Maps `file`, whose header page the caller has checked. Reserves `bytes_max` of address space,
  // or less if the process may not have as much as it likes. Throws Error(limit) if not even the
  // file fits, Error(corrupt) if it has no whole segment.
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
  // Whether the reserved address space holds the whole file, which other processes may have grown.
  bool holds_whole_file() const {
    return header().file_bytes.load(std::memory_order_acquire) <= reserved_bytes_;
  }
  // The updates of this file that this process has pinned. Throws Error if the file cannot be
  // opened for it.
  Pins& pins() const;
  // Unmaps the next `bytes`, a multiple of the page size, from the front on, or all if no byte of
  // the file is beyond them. Returns whether everything is unmapped. The first call ends all use
  // but this and destruction. Not for several threads at once.
  bool unmap_front(std::uint64_t bytes) noexcept;
  bool is_unmapped() const { return unmapped_bytes_ == reserved_bytes_; }
  // Pins::release_surplus_now(), if there are any.
  bool release_surplus_pins() const noexcept;
  // A forked child does not inherit a writable mapping.
  bool belongs_to_this_process() const { return inherited_ || fork_count_ == fork_count(); }
  // Copies of header fields that never change, in private memory.
  std::uint64_t hash_seed() const { return hash_seed_; }
  std::uint64_t state_id() const { return state_id_; }
  std::uint64_t inode() const { return inode_; }
  std::uint64_t device() const { return device_; }

  // Offsets below this may be read. Never shrinks. Relaxed: the kernel reported the size, or this
  // process grew the file; no data is published with it.
  std::uint64_t usable_bytes() const { return usable_bytes_.load(std::memory_order_relaxed); }
  // Asks the kernel for the size of the file. Throws Error(corrupt) if the file became shorter.
  std::uint64_t refresh_usable_bytes() const;
  // The same, if the kernel has just said the size. For the writer, which shares its mapping with
  // no thread: another one could have learned a larger size meanwhile.
  void refresh_usable_bytes(std::uint64_t file_bytes) const {
    learn_file_bytes(usable_bytes(), file_bytes);
  }
  // For the writer, after it grew the file.
  void set_usable_bytes(std::uint64_t bytes) {
    usable_bytes_.store(bytes, std::memory_order_relaxed);
  }

  // Returns the cache for a value of Header::index_directory and the present usable_bytes(), or
  // nullptr if that directory is not within them.
  const DirectoryCache* directory_cache(std::uint64_t directory) const {
    const DirectoryCache* const known = last_directory_cache();
    return known->matches(directory, usable_bytes()) ? known
                                                     : find_or_create_directory_cache(directory);
  }
  // The one that was returned last, or an empty one; never nullptr.
  const DirectoryCache* last_directory_cache() const {
    return last_directory_cache_.load(std::memory_order_acquire);
  }

  // One that matches no directory.
  const DirectoryCache& empty_directory_cache() const { return empty_directory_cache_; }

  const KeyHash& key_hash() const { return key_hash_; }
  std::uint64_t hash_of(std::string_view key) const { return key_hash_(key); }

 private:
  [[gnu::noinline]] const DirectoryCache* find_or_create_directory_cache(
      std::uint64_t directory) const;
  // Throws Error(corrupt) if the file has become shorter than `known`, which is what usable_bytes()
  // was before the kernel was asked.
  void learn_file_bytes(std::uint64_t known, std::uint64_t file_bytes) const;

  FileDescriptor file_;
  std::string path_;
  std::byte* base_ = nullptr;
  std::uint64_t reserved_bytes_ = 0;
  std::uint64_t unmapped_bytes_ = 0;  // of the front, by unmap_front()
  bool inherited_;                    // by forked children
  std::uint64_t fork_count_;
  mutable std::atomic<std::uint64_t> usable_bytes_{0};
  KeyHash key_hash_;
  DirectoryCache empty_directory_cache_{};
  // Created when first needed: without a mutex, so that a fork at any moment leaves nothing locked.
  // Stored by compare-and-swap (acq_rel), loaded by views (acquire).
  mutable std::atomic<Pins*> pins_{nullptr};
  // Stored by the reader that finds or creates one (release), acquired by reads. The previous one
  // stays on the list.
  mutable std::atomic<const DirectoryCache*> last_directory_cache_;
  // The list, newest first. Readers push by compare-and-swap (acq_rel) and walk it (acquire).
  mutable std::atomic<const DirectoryCache*> directory_caches_{nullptr};
  std::uint64_t hash_seed_ = 0;
  std::uint64_t state_id_ = 0;
  std::uint64_t inode_ = 0;
  std::uint64_t device_ = 0;
};

}  // namespace whycache
