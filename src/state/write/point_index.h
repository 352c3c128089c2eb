// Changing the point index; reading it is lookup.h, its layout is layout.h. Writer only.
//
// Every change readers can see is one store of one word: an entry's word, a directory's word,
// Header::directory. A part that is split or purged is left as it is; two new ones (or one) take
// its place in the directory, and it is retired.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "state/file/layout.h"
#include "state/index/lookup.h"
#include "state/write/allocator.h"

namespace whycache {

class PointIndex {
 public:
  explicit PointIndex(Allocator& arena) : allocator_(arena) {}

  // The directory and the first part of an empty file.
  void create();

  // The word that holds the newest entry of `key`; nullptr if there is none (a key that was erased
  // may still have one).
  IndexWord* find(std::uint64_t hash, std::string_view key) const;
  // The word that points to `offset`; nullptr if none does.
  IndexWord* find_offset(std::uint64_t hash, std::uint64_t offset) const;
  void prefetch(std::uint64_t hash) const;

  // `key` is not in the index. The entry at `offset` is complete. Throws Error limit.
  void insert(std::uint64_t hash, std::uint64_t offset);
  // Points `word` to another entry of the same key.
  static void replace(IndexWord& word, std::uint64_t offset) {
    const std::uint64_t old = word.load(std::memory_order_relaxed);
    word.store(make_index_word(word_tag(old), word_displacement(old), offset),
               std::memory_order_release);
  }
  void remove(IndexWord& word);

  // The entry's header at `offset`, which the index gave. Throws Error corrupt if none can be
  // there.
  Entry entry(std::uint64_t offset) const;

  // A part and its filter.
  struct IndexPage {
    IndexWord* words;
    FilterWord* filter;
    std::uint64_t offset;
    std::uint64_t filter_offset;
  };

  // The bounds-checked directory: its words and depth. Throws Error corrupt.
  IndexWord* directory(unsigned& depth) const;

 private:
  // The word of the directory for keys with this hash.
  std::uint64_t directory_word(std::uint64_t hash) const;
  // The part that such a word names, or its words alone. Throw Error corrupt.
  IndexPage page_of(std::uint64_t slot) const;
  IndexWord* page_words(std::uint64_t slot) const;
  IndexPage page_at(std::uint64_t offset, std::uint64_t filter_offset) const;
  SegmentDescriptor& page_descriptor(const IndexWord* word) const;
  // Stores a word in the first free place near its home bucket. Returns what was there, empty_word
  // or tombstone_word; nullopt if there is no room.
  static std::optional<std::uint64_t> add_word(const IndexPage& page, std::uint64_t home,
                                               std::uint64_t tag, std::uint64_t offset);
  // The slots of the directory that name one page.
  struct PageSlots {
    std::uint64_t first;
    std::uint64_t count;
    unsigned local_depth;
    std::uint64_t word;  // what each of them holds
  };
  // Of the page for keys with this hash. Throws Error(corrupt).
  PageSlots slots_of_page(std::uint64_t hash) const;
  // Before the word of a key is stored.
  static void add_to_filter(const IndexPage& part, std::uint64_t home, std::uint64_t tag);
  void split(std::uint64_t hash);
  // The same part again, without its fillers.
  void drop_tombstones(std::uint64_t hash);
  void double_directory();
  // Zeroed, for filling.
  IndexPage allocate_page();
  void publish_page(std::uint64_t from_slot, std::uint64_t slots, const IndexPage& part,
                    unsigned depth);
  void retire_page(const IndexPage& part);

  Allocator& allocator_;
};

}  // namespace whycache
