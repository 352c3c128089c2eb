// Changes the point index. Writer only. Readers use index/lookup.h; the layout is in file/layout.h.
//
// Every change that readers can see is one store (release) of one word: the word of an entry, a
// word of the directory, Header::index_directory, or Header::overflow_root. The writer never
// changes a page that it splits or cleans of tombstones. It fills new pages, puts them in the
// directory, and retires the old page. Its own loads are relaxed: no other process stores these
// words.
//
// Keys may be chosen by an attacker who knows the hash seed. No set of keys makes a change fail:
// - A key whose eight buckets are full has a record in the overflow tree (state/overflow.h).
// - The directory stays small if doubling it would hardly divide a page (may_double_directory_for).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "state/btree/node_store.h"
#include "state/file/layout.h"
#include "state/index/lookup.h"
#include "state/write/allocator.h"

namespace whycache {

class BTreeWriter;

// Where the index has the newest entry of a key. Valid until the index changes.
struct IndexLocation {
  IndexWord* word;  // null: the entry has a record in the overflow tree
  std::uint64_t offset;
};

class PointIndex {
 public:
  explicit PointIndex(Allocator& allocator);
  ~PointIndex();

  // Creates the directory and the first page of an empty file.
  void create();

  // Called before the first change of an update, and after its last: the overflow tree is changed
  // apart from the readers, and becomes visible as a whole.
  void begin_update();
  void publish_overflow();

  // Returns where the newest entry of `key` is, or nullopt if there is none. An erased key may
  // still have one.
  std::optional<IndexLocation> find(std::uint64_t hash, std::string_view key) const;
  // The same, but only if it is the entry at `offset`.
  std::optional<IndexLocation> find_offset(std::uint64_t hash, std::uint64_t offset) const;
  // Returns the word of the newest entry of `key`, or nullptr if no index page has it. Does not use
  // the descriptors, so that recovery can call it.
  IndexWord* find_word(std::uint64_t hash, std::string_view key) const;
  // Prefetches the home bucket of a hash.
  void prefetch(std::uint64_t hash) const;
  // Prefetches what only insert() needs: the filter of that bucket.
  void prefetch_filter(std::uint64_t hash) const;
  // Returns the entry that find() will most probably look at first, to prefetch it; nullptr: none.
  // Reads the home bucket.
  const std::byte* likely_entry(std::uint64_t hash) const;

  // Adds the complete entry at `offset`, whose key is not in the index. Throws Error(limit) if the
  // state may not grow.
  void insert(std::uint64_t hash, std::uint64_t offset);
  // Points the index to another complete entry of the same key.
  void replace(const IndexLocation& location, std::uint64_t hash, std::uint64_t offset);
  static void replace(IndexWord& word, std::uint64_t offset) {
    const std::uint64_t old = word.load(std::memory_order_relaxed);
    word.store(make_index_word(word_tag(old), word_displacement(old), offset),
               std::memory_order_release);
  }
  void remove(const IndexLocation& location, std::uint64_t hash);

  // The overflow tree with the changes of the update in progress.
  NodeOffset overflow_root() const { return overflow_root_; }

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
  // Splits the page for keys with this hash in two. Returns false if that is impossible or useless.
  bool try_split(std::uint64_t hash);
  // Replaces the page by a copy without tombstones. Returns false if that is impossible.
  bool try_drop_tombstones(std::uint64_t hash);
  std::optional<std::uint64_t> first_bucket_to_copy(const PageSlots& slots) const;
  // Replaces the page of these slots by one page or two, without tombstones, and with those of its
  // overflow records that find room. `first_bucket`: of first_bucket_to_copy().
  void replace_page(const PageSlots& slots, std::size_t page_count, std::uint64_t first_bucket);
  template <typename Add>
  std::vector<std::string> visit_records_of_page(const PageSlots& slots, const Add& add) const;
  // Whether to double the directory, so that a page with one slot can be split.
  bool may_double_directory_for(const PageSlots& slots);
  void double_directory();
  // Returns a page of empty words, with an empty filter.
  IndexPage allocate_page();
  void publish_page(std::uint64_t from_slot, std::uint64_t slots, const IndexPage& page,
                    unsigned depth);
  void retire_page(const IndexPage& page);
  void add_record(std::uint64_t hash, std::uint64_t offset);
  void erase_record(std::uint64_t hash, std::uint64_t offset);
  BTreeWriter& overflow_writer();

  Allocator& allocator_;
  NodeOffset overflow_root_ = 0;
  std::unique_ptr<BTreeWriter> overflow_writer_;  // created by its first use, which is rare
};

}  // namespace whycache
