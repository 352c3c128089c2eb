// The fast path of reading one key: one body for every combination of bucket search (portable,
// AVX2), protection (unpinned, pinned) and sink (copy, presence, view).
//
// An unpinned read stores nothing that other processes load. The writer may therefore reuse memory
// under the read, and another file may replace the mapped one:
//
//   reader                                     writer
//   1  reading = 1       (own record, rcu.h)
//   2  c = directory_cache       acquire
//   3  g = reclaim_generation    acquire       store entries, index words, then
//   4  index_directory == c.directory? acquire applied_id = id               release
//   5  slot of the directory     acquire       ...
//   6  bucket                                  take retired entries and pages off the index
//   7  entry word                relaxed       reclaim_generation += 1       release
//   8  entry word <= applied id? acquire       release fence
//   9  entry's key == key?                     overwrite the retired space
//   10 copy the value
//   11 acquire fence
//   12 reclaim_generation == g?  relaxed
//   13 reading = 0       (own record)
//
// Why this is sound:
// - Addresses. The directory cache was checked against the size of the file, and every offset is
//   compared with its bounds before use. Reused memory can yield wrong bytes, but no wild access.
//   The mapping stays until a grace period has elapsed, that is, until 13.
// - Values. The fence in 11 pairs with the writer's. If a load in 4 to 10 saw an overwritten byte,
//   12 sees the raised generation, and the read discards its result. This holds for misses, too.
// - Order. The applied id is loaded after the entry. If the entry's id is not above it, the entry
//   was the newest visible one of its key at a moment during the read. The later one of two events
//   is that moment: its word was loaded in 6, or its update was published. The read takes effect
//   then.
// - A miss takes effect at a load of the bucket (Bucket::has_empty()).
// - Replaced files. The superseded bit is part of `g`. While it is set, every read takes the slow
//   path, which looks for the successor.
//
// A pinned read (Pin) needs steps 4 to 9 only: the writer keeps what a pinned update can reach, and
// the pin keeps the mapping.
//
// A read that cannot decide ends in `sink.read_slowly(owner, key)`. Rare cases are tail calls, so
// that the fast path keeps nothing across a call. docs/decisions/short-reads.md.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "state/file/layout.h"
#include "state/file/mapping.h"
#include "state/index/copy_short.h"
#include "state/index/cpu.h"
#include "state/index/fast_lookup_avx2.h"
#include "state/index/lookup.h"
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

// How a sink copies a value, and what the read does before other code may use vectors.
struct PortableVectors {
  static constexpr bool copies_beyond_values = false;
  [[gnu::always_inline]] static void copy(char* to, const char* from, std::size_t bytes) {
    copy_short(to, from, bytes);
  }
  [[gnu::always_inline]] static void release() {}
};
#if WHYCACHE_AVX2
struct Avx2Vectors {
  static constexpr bool copies_beyond_values = true;
  [[gnu::always_inline]] static void copy(char* to, const char* from, std::size_t bytes) {
    avx2::copy(to, from, bytes);
  }
  [[gnu::always_inline]] static void release() { avx2::zero_upper_vectors(); }
};
#endif

// Ends a read after the bucket search. Returns true if the sink has taken a valid value. Otherwise
// returns what the sink returns, called last and once, so that it can be a tail call. A sink has:
//   bool take<Vectors>(read, entry, key_bytes, value)   takes the bytes, which may still prove torn
//   bool take_slowly(owner, read, key, value)           if take() returned false; leaves the read
//   bool not_found()
//   bool read_slowly(owner, key)                        if the fast path is undecided
// `value` is computed before the branch, by the caller: g++ 12 then needs one callee-saved register
// less in a get. A view computes it from `entry`, for the same reason.
template <typename Vectors, typename Read, typename Owner, typename Sink>
[[gnu::always_inline]] inline bool finish_point_read(const Read& read, FastResult result,
                                                     const FastValue& entry, std::string_view value,
                                                     const Owner& owner, std::string_view key,
                                                     Sink sink) {
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

// The portable search, for keys of 8 to 16 bytes if `two_words`, else of any size.
template <bool two_words, typename Read, typename Owner, typename Sink>
[[gnu::always_inline]] inline bool point_read(const Read& read, const Owner& owner,
                                              std::string_view key, Sink sink) {
  FastValue entry;
  const FastResult result = fast_look_up<two_words>(
      read.directory_cache(), read.header(), key, [&read] { return read.max_entry_word(); }, entry);
  return finish_point_read<PortableVectors>(
      read, result, entry, {entry.value_address(key.size()), entry.bytes}, owner, key, sink);
}

#if WHYCACHE_AVX2
// The AVX2 search, for keys of 8 to 16 bytes. Compilers inline a function with a target attribute
// only into functions that have it, too. This function therefore calls the search, and passes its
// result to finish_point_read(), which has no such attribute.
template <typename Read, typename Owner, typename Sink>
WHYCACHE_INLINE_AVX2 bool point_read_avx2(const Read& read, const Owner& owner,
                                          std::string_view key, Sink sink) {
  FastValue entry;
  const FastResult result = avx2::fast_look_up(
      read.directory_cache(), read.header(), key, [&read] { return read.max_entry_word(); }, entry);
  return finish_point_read<Avx2Vectors>(
      read, result, entry, {entry.value_address(key.size()), entry.bytes}, owner, key, sink);
}

// The same for keys of any size.
template <typename Read, typename Owner, typename Sink>
WHYCACHE_INLINE_AVX2 bool point_read_any_size_avx2(const Read& read, const Owner& owner,
                                                   std::string_view key, Sink sink) {
  FastValue entry;
  const FastResult result = avx2::fast_look_up_any_size(
      read.directory_cache(), read.header(), key, [&read] { return read.max_entry_word(); }, entry);
  return finish_point_read<Avx2Vectors>(
      read, result, entry, {entry.value_address(key.size()), entry.bytes}, owner, key, sink);
}
#endif

}  // namespace whycache
