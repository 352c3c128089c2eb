// Changes the point index. Writer only. Readers use index/lookup.h; the layout is in file/layout.h.
//
// Every change that readers can see is one store (release) of one word: the word of an entry, a
// word of the directory, or Header::index_directory. The writer never changes a page that it splits
// or cleans of tombstones. It fills new pages, puts them in the directory, and retires the old
// page.
// Its own loads are relaxed: no other process stores these words.
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
  explicit PointIndex(Allocator& allocator) : allocator_(allocator) {}

  // Creates the directory and the first page of an empty file.
  void create();

  // Returns the word of the newest entry of `key`, or nullptr if there is none. An erased key may
  // still have one.
  IndexWord* find(std::uint64_t hash, std::string_view key) const;
  // Returns the word that points to `offset`, or nullptr if none does.
  IndexWord* find_offset(std::uint64_t hash, std::uint64_t offset) const;
  void prefetch(std::uint64_t hash) const;

  // Adds the complete entry at `offset`, whose key is not in the index. Throws Error(limit).
  void insert(std::uint64_t hash, std::uint64_t offset);
  // Points `word` to another complete entry of the same key.
  static void replace(IndexWord& word, std::uint64_t offset) {
    const std::uint64_t old = word.load(std::memory_order_relaxed);
    word.store(make_index_word(word_tag(old), word_displacement(old), offset),
               std::memory_order_release);
  }
  void remove(IndexWord& word);

  // Returns the entry at `offset`, which a word of the index holds. Throws Error(corrupt) if no
  // entry can be there.
  Entry entry(std::uint64_t offset) const;

  // A page and its filter.
  struct IndexPage {
    IndexWord* words;
    FilterWord* filter;
    std::uint64_t offset;
    std::uint64_t filter_offset;
  };

  // Returns the bounds-checked directory, and stores its global depth. Throws Error(corrupt).
  IndexWord* directory(unsigned& depth) const;

 private:
  // Returns the word of the directory for keys with this hash.
  std::uint64_t directory_word(std::uint64_t hash) const;
  // Return the page that such a word names, or its words alone. Throw Error(corrupt).
  IndexPage page_of(std::uint64_t slot) const;
  IndexWord* page_words(std::uint64_t slot) const;
  IndexPage page_at(std::uint64_t offset, std::uint64_t filter_offset) const;
  SegmentDescriptor& page_descriptor(const IndexWord* word) const;
  // Stores a word in place of the first empty word or tombstone from its home bucket on. Returns
  // the replaced word, or nullopt if there is no room.
  static std::optional<std::uint64_t> add_word(const IndexPage& page, std::uint64_t home,
                                               std::uint64_t tag, std::uint64_t offset);
  // The slots of the directory that name one page.
  struct PageSlots {
    std::uint64_t first;
    std::uint64_t count;
    unsigned local_depth;
    std::uint64_t word;  // the same in each of them
  };
  // Returns the slots of the page for keys with this hash. Throws Error(corrupt).
  PageSlots slots_of_page(std::uint64_t hash) const;
  // Called before the word of the key is stored.
  static void add_to_filter(const IndexPage& page, std::uint64_t home, std::uint64_t tag);
  void split(std::uint64_t hash);
  // Replaces the page by a copy without tombstones.
  void drop_tombstones(std::uint64_t hash);
  void double_directory();
  // Returns a page of empty words, with an empty filter.
  IndexPage allocate_page();
  void publish_page(std::uint64_t from_slot, std::uint64_t slots, const IndexPage& page,
                    unsigned depth);
  void retire_page(const IndexPage& page);

  Allocator& allocator_;
};

}  // namespace whycache
