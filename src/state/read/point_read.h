// The fast path of reading one key: one body for every combination of bucket search (portable,
// AVX2), protection (unpinned, pinned) and sink (copy, presence, view).
//
// An unpinned read writes nothing that other processes see. The writer may therefore reuse memory
// while the read looks at it, and another file may replace the mapped one:
//
//   reader                                     writer
//   reading = 1        (own record, rcu.h)
//   c = directory_cache       acquire          directory_cache = new, then a grace period, then unmap
//   g = reclaim_generation    acquire    <--   publish an update: applied_id = id        release
//   d = index_directory       acquire          retire entries and index pages
//   d == c.directory?                          reclaim_generation += 1                   relaxed
//   slot of d                 acquire          release fence
//   bucket                                     write over retired space
//   entry word                relaxed
//   w = word of applied_id    acquire    <--   stored last, after the entries it publishes
//   entry word <= w?  entry's key == key?
//   copy the value                       <--   (may be torn)
//   acquire fence
//   reclaim_generation == g?  relaxed          the fences pair: a read that met reused memory sees
//   reading = 0        (own record)            the raised generation, and discards its result
//
// Why this is sound:
// - Addresses: the directory cache of a mapping is checked against the usable bytes of the file.
//   Each offset is compared with its bounds before use, so garbage leads to a wrong value at worst.
//   The mapping stays until the grace period has elapsed, which waits for `reading = 0`.
// - Values: a torn value is discarded by the last comparison. A miss is compared in the same way.
// - Order: the applied id is loaded after the entry. If the entry is visible at that id, there was
//   a moment during the read when it was its key's newest visible entry: when the bucket was loaded
//   or when its update was published. The read takes effect at that moment.
// - A miss takes effect when the bucket is loaded (Bucket::has_empty()).
// - Replaced files: the superseded bit is part of `g`. While it is set, reads take the slow path,
//   which looks for the successor.
//
// A pinned read (Pin) needs neither generation nor ReaderThread: the writer keeps what a pinned
// update can reach, and the pin keeps the mapping.
//
// Any doubt ends in `sink.read_slowly(owner, key)`, called last so that the fast path needs no
// stack frame. docs/decisions/short-reads.md has the measurements.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "state/file/layout.h"
#include "state/file/mapping.h"
#include "state/index/cpu.h"
#include "state/index/fast_lookup_avx2.h"
#include "state/index/lookup.h"
#include "state/index/copy_short.h"
#include "state/read/rcu.h"

namespace whycache {

// Protects a read by the thread's ReaderThread and by the reclaim generation.
class UnpinnedRead {
 public:
  // Enters the read section. The caller leaves it with leave(), on every path.
  [[gnu::always_inline]] UnpinnedRead(ReaderThread& thread,
                                      const std::atomic<const DirectoryCache*>& directory_cache)
      : thread_(thread),
        directory_cache_(enter(thread, directory_cache)),
        header_(directory_cache_.header()),
        optimistic_(header_) {}

  [[gnu::always_inline]] const DirectoryCache& directory_cache() const { return directory_cache_; }
  [[gnu::always_inline]] const Header& header() const { return header_; }
  [[gnu::always_inline]] const OptimisticRead& optimistic() const { return optimistic_; }
  // Loaded once an entry is found, so that it needs no register until then.
  [[gnu::always_inline]] std::uint64_t max_entry_word() const {
    return header_.applied_id.max_entry_word(std::memory_order_acquire);
  }
  [[gnu::always_inline]] bool superseded() const { return optimistic_.superseded(); }
  [[gnu::always_inline]] bool validate() const { return optimistic_.validate(header_); }
  [[gnu::always_inline]] void leave() const { thread_.leave(); }

 private:
  // Acquire: pairs with the release store of CurrentFile, which also publishes the cache's members.
  [[gnu::always_inline]] static const DirectoryCache& enter(
      ReaderThread& thread, const std::atomic<const DirectoryCache*>& directory_cache) {
    thread.enter();
    return *directory_cache.load(std::memory_order_acquire);
  }

  ReaderThread& thread_;
  const DirectoryCache& directory_cache_;
  const Header& header_;
  OptimisticRead optimistic_;
};

// Protected by a pin that outlives it: nothing that it can reach is reused or unmapped.
class PinnedRead {
 public:
  [[gnu::always_inline]] PinnedRead(const DirectoryCache& directory_cache,
                                    const std::uint64_t& max_entry_word)
      : directory_cache_(directory_cache), max_entry_word_(max_entry_word) {}

  [[gnu::always_inline]] const DirectoryCache& directory_cache() const { return directory_cache_; }
  [[gnu::always_inline]] const Header& header() const { return directory_cache_.header(); }
  [[gnu::always_inline]] std::uint64_t max_entry_word() const { return max_entry_word_; }
  [[gnu::always_inline]] static bool superseded() { return false; }
  [[gnu::always_inline]] static bool validate() { return true; }
  [[gnu::always_inline]] static void leave() {}

 private:
  const DirectoryCache& directory_cache_;
  const std::uint64_t& max_entry_word_;
};

// How a sink copies, and what has to be done before code runs that uses other vectors.
struct PortableVectors {
  [[gnu::always_inline]] static void copy(char* to, const char* from, std::size_t bytes) {
    copy_short(to, from, bytes);
  }
  [[gnu::always_inline]] static void release() {}
};
#if WHYCACHE_AVX2
struct Avx2Vectors {
  [[gnu::always_inline]] static void copy(char* to, const char* from, std::size_t bytes) {
    avx2::copy(to, from, bytes);
  }
  [[gnu::always_inline]] static void release() { avx2::zero_upper_vectors(); }
};
#endif

// Ends a read after the bucket search. Returns true if the sink has taken a valid value, else what
// the sink returns:
//   bool take<Vectors>(read, value)       takes bytes that may yet prove torn; false: did not
//   bool take_slowly(owner, read, key, value)    after false; leaves the read section
//   bool not_found()
//   bool read_slowly(owner, key)
// Each is called last and once, so that it can be a tail call.
template <typename Vectors, typename Read, typename Owner, typename Sink>
[[gnu::always_inline]] inline bool finish_point_read(const Read& read, FastResult result,
                                                     const FastValue& entry, const Owner& owner,
                                                     std::string_view key, Sink sink) {
  const std::string_view value(entry.value_address(key.size()), entry.bytes);
  if (result == FastResult::found && !read.superseded()) [[likely]] {
    if (!sink.template take<Vectors>(read, entry, key.size(), value)) [[unlikely]] {
      Vectors::release();
      return sink.take_slowly(owner, read, key, value);
    }
    Vectors::release();
    if (read.validate()) [[likely]] {
      read.leave();
      return true;
    }
  } else if (result == FastResult::not_found && !read.superseded() && read.validate()) {
    Vectors::release();
    read.leave();
    return sink.not_found();
  }
  Vectors::release();
  read.leave();
  return sink.read_slowly(owner, key);
}

// Keys of 8 to 16 bytes if `two_words`, else of any size.
template <bool two_words, typename Read, typename Owner, typename Sink>
[[gnu::always_inline]] inline bool point_read(const Read& read, const Owner& owner,
                                              std::string_view key, Sink sink) {
  FastValue entry;
  const FastResult result = fast_look_up<two_words>(
      read.directory_cache(), read.header(), key, [&read] { return read.max_entry_word(); }, entry);
  return finish_point_read<PortableVectors>(read, result, entry, owner, key, sink);
}

#if WHYCACHE_AVX2
// Keys of 8 to 16 bytes. The caller is compiled for AVX2, as is what calls avx2:: functions:
// compilers inline into a function only what needs no more of the processor than it does itself.
template <typename Read, typename Owner, typename Sink>
WHYCACHE_INLINE_AVX2 bool point_read_avx2(const Read& read, const Owner& owner,
                                          std::string_view key, Sink sink) {
  FastValue entry;
  const FastResult result = avx2::fast_look_up(
      read.directory_cache(), read.header(), key, [&read] { return read.max_entry_word(); }, entry);
  return finish_point_read<Avx2Vectors>(read, result, entry, owner, key, sink);
}
#endif

}  // namespace whycache
