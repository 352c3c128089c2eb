#include "state/write/point_index.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <string>

#include <utility>
#include <vector>

#include "state/btree/cursor.h"
#include "state/btree/writer.h"
#include "state/errors.h"
#include "state/index/lookup.h"
#include "state/overflow.h"

namespace whycache {
namespace {

// A page is split when this many of its words hold entries.
constexpr std::uint64_t index_page_live_max = index_page_words * 8 / 10;
// Its tombstones are dropped when this many words hold an entry or are tombstones.
constexpr std::uint64_t index_page_occupied_max = index_page_words * 9 / 10;
// Unless fewer than these are tombstones: a page that cannot be split may be full of entries.
constexpr std::uint64_t index_page_tombstones_min = index_page_words / 10;
// If eight adjacent buckets are full, the page is split only if it has this many entries, or is one
// of the first pages, which are few. Random hashes do not fill eight buckets of a page with fewer.
// Chosen hashes are not worth 256 KiB for each 64 of them.
constexpr std::uint64_t index_page_split_live_min = index_page_live_max / 2;
constexpr unsigned first_pages_depth = 4;
// The directory is doubled for a page if each half gets at least one entry in so many.
constexpr std::uint64_t useful_split_divisor = 8;

}  // namespace

PointIndex::PointIndex(Allocator& allocator) : allocator_(allocator) {}
PointIndex::~PointIndex() = default;

void PointIndex::create() {
  const std::uint64_t directories = allocator_.allocate_segment(SegmentKind::index_directory);
  allocator_.descriptor(directories).span.segment_count = 1;
  const std::uint64_t offset = directories * segment_bytes + small_index_directory_offset(0);
  const IndexPage first = allocate_page();
  auto* slot = reinterpret_cast<IndexWord*>(allocator_.mapping().writable_base() + offset);
  slot->store(make_directory_word(first.offset, 0, first.filter_offset), std::memory_order_relaxed);
  allocator_.header().index_directory.store(make_index_directory(offset, 0),
                                            std::memory_order_release);
}

IndexWord* PointIndex::directory(unsigned& depth) const {
  const std::uint64_t word = allocator_.header().index_directory.load(std::memory_order_relaxed);
  depth = global_depth(word);
  if (!is_index_directory_within(word, allocator_.mapping().usable_bytes()))
    throw corrupt_state("index directory", word);
  return reinterpret_cast<IndexWord*>(allocator_.mapping().writable_base() +
                                      index_directory_offset(word));
}

PointIndex::IndexPage PointIndex::page_at(std::uint64_t offset, std::uint64_t filter_offset) const {
  std::byte* const base = allocator_.mapping().writable_base();
  return {reinterpret_cast<IndexWord*>(base + offset),
          reinterpret_cast<FilterWord*>(base + filter_offset), offset, filter_offset};
}

IndexWord* PointIndex::page_words(std::uint64_t slot) const {
  const std::uint64_t segment = index_page_offset(slot) / segment_bytes;
  if (allocator_.descriptor(segment).kind != SegmentKind::index_page)
    throw corrupt_state("no index page at segment", segment);
  return reinterpret_cast<IndexWord*>(allocator_.mapping().writable_base() +
                                      index_page_offset(slot));
}

PointIndex::IndexPage PointIndex::page_of(std::uint64_t slot) const {
  page_words(slot);
  const SegmentDescriptor& filters =
      allocator_.descriptor(index_page_filter_offset(slot) / segment_bytes);
  if (filters.kind != SegmentKind::filters ||
      (filters.filters.in_use_bits & filter_bit(index_page_filter_offset(slot))) == 0)
    throw corrupt_state("no index filter at offset", index_page_filter_offset(slot));
  return page_at(index_page_offset(slot), index_page_filter_offset(slot));
}

std::uint64_t PointIndex::directory_word(std::uint64_t hash) const {
  unsigned depth;
  const IndexWord* const slots = directory(depth);
  return slots[index_directory_slot(hash, depth)].load(std::memory_order_relaxed);
}

SegmentDescriptor& PointIndex::page_descriptor(const IndexWord* word) const {
  const auto offset = static_cast<std::uint64_t>(reinterpret_cast<const std::byte*>(word) -
                                                 allocator_.mapping().base());
  return allocator_.descriptor(offset / segment_bytes);
}

Entry PointIndex::entry(std::uint64_t offset) const {
  Entry entry;
  if (offset % 8 != 0 || !MappedBytes(allocator_.mapping()).load_entry(offset, entry))
    throw corrupt_state("no entry at offset", offset);
  return entry;
}

namespace {

IndexWord* bucket_at(IndexWord* words, std::uint64_t number) {
  return words + (number & (index_page_buckets - 1)) * bucket_words;
}

// Calls `visit` with the home bucket and the word of each entry of a page, from `first_bucket` on
// and around.
template <typename Visit>
void visit_entry_words(const IndexWord* words, std::uint64_t first_bucket, const Visit& visit) {
  for (std::uint64_t i = 0; i < index_page_words; ++i) {
    const std::uint64_t at = (first_bucket * bucket_words + i) & (index_page_words - 1);
    const std::uint64_t word = words[at].load(std::memory_order_relaxed);
    if (!holds_entry(word)) continue;
    visit((at / bucket_words - word_displacement(word)) & (index_page_buckets - 1), word);
  }
}

// Whether a key with this tag belongs in the second half of a page of this local depth.
std::size_t half_of(std::uint64_t tag, unsigned local_depth) {
  return tag >> (tag_bits - 1 - local_depth) & 1;
}

struct ProbeResult {
  IndexWord* word;    // null: not found
  bool may_overflow;  // not found, and no bucket has an empty word
};

// Calls `visit` with the offset of each entry that may have this hash, in probing order, until it
// returns true.
template <typename Visit>
ProbeResult probe(IndexWord* words, std::uint64_t hash, const Visit& visit) {
  const std::uint64_t tag = tag_of(hash);
  for (std::uint64_t displacement = 0; displacement <= displacement_max; ++displacement) {
    IndexWord* const words_of_bucket = bucket_at(words, home_bucket(hash) + displacement);
    const Bucket bucket(words_of_bucket);
    std::uint32_t matches = bucket.matches(tag << displacement_bits | displacement);
    for (; matches != 0; matches = Bucket::without_first_match(matches)) {
      const std::uint64_t word = bucket.first_match(matches);
      if (holds_entry(word) && visit(word_offset(word)))
        return {&words_of_bucket[Bucket::first_match_number(matches)], false};
    }
    if (bucket.has_empty()) return {nullptr, false};
  }
  return {nullptr, true};
}

}  // namespace

std::optional<IndexLocation> PointIndex::find(std::uint64_t hash, std::string_view key) const {
  const ProbeResult probed =
      probe(page_words(directory_word(hash)), hash,
            [&](std::uint64_t offset) { return entry(offset).key() == key; });
  if (probed.word != nullptr)
    return IndexLocation{probed.word, word_offset(probed.word->load(std::memory_order_relaxed))};
  if (!probed.may_overflow || overflow_root_ == 0) return std::nullopt;
  const std::uint64_t offset = find_overflow_record(allocator_, overflow_root_, hash, key);
  return offset == 0 ? std::nullopt : std::optional(IndexLocation{nullptr, offset});
}

std::optional<IndexLocation> PointIndex::find_offset(std::uint64_t hash,
                                                     std::uint64_t offset) const {
  const ProbeResult probed = probe(page_words(directory_word(hash)), hash,
                                   [&](std::uint64_t found) { return found == offset; });
  if (probed.word != nullptr) return IndexLocation{probed.word, offset};
  if (!probed.may_overflow || overflow_root_ == 0 ||
      find_overflow_record(allocator_, overflow_root_, hash, entry(offset).key()) != offset)
    return std::nullopt;
  return IndexLocation{nullptr, offset};
}

IndexWord* PointIndex::find_word(std::uint64_t hash, std::string_view key) const {
  const std::uint64_t page = index_page_offset(directory_word(hash));
  if (page > allocator_.mapping().usable_bytes() - segment_bytes)
    throw corrupt_state("no index page at offset", page);
  auto* const words = reinterpret_cast<IndexWord*>(allocator_.mapping().writable_base() + page);
  return probe(words, hash, [&](std::uint64_t offset) { return entry(offset).key() == key; }).word;
}

void PointIndex::prefetch(std::uint64_t hash) const {
  const std::uint64_t slot = directory_word(hash);
  // Damage is reported by the functions that read the page.
  if (index_page_offset(slot) > allocator_.mapping().usable_bytes() - segment_bytes) return;
  __builtin_prefetch(allocator_.mapping().base() + index_page_offset(slot) + home_offset(hash), 1);
}

void PointIndex::prefetch_filter(std::uint64_t hash) const {
  const std::uint64_t slot = directory_word(hash);
  if (index_page_filter_offset(slot) > allocator_.mapping().usable_bytes() - filter_bytes) return;
  __builtin_prefetch(allocator_.mapping().base() + index_page_filter_offset(slot) +
                         home_bucket(hash) * sizeof(FilterWord),
                     1);
}

const std::byte* PointIndex::likely_entry(std::uint64_t hash) const {
  const std::byte* const base = allocator_.mapping().base();
  const std::uint64_t bytes = allocator_.mapping().usable_bytes();
  const std::uint64_t page = index_page_offset(directory_word(hash));
  if (page > bytes - segment_bytes) return nullptr;
  const Bucket home(reinterpret_cast<const IndexWord*>(base + page + home_offset(hash)));
  const std::uint32_t matches = home.tag_matches(tag_of(hash));
  if (matches == 0) return nullptr;
  const std::uint64_t offset = word_offset(home.first_match(matches));
  return offset <= bytes - segment_bytes ? base + offset : nullptr;
}

void PointIndex::add_to_filter(const IndexPage& page, std::uint64_t home, std::uint64_t tag) {
  FilterWord& word = page.filter[home];
  const std::uint32_t before = word.load(std::memory_order_relaxed);
  const std::uint32_t bits = before | filter_bits(tag);
  if (bits != before) word.store(bits, std::memory_order_release);
}

std::optional<std::uint64_t> PointIndex::add_word(const IndexPage& page, std::uint64_t home,
                                                  std::uint64_t tag, std::uint64_t offset) {
  for (std::uint64_t displacement = 0; displacement <= displacement_max; ++displacement) {
    IndexWord* const bucket = bucket_at(page.words, home + displacement);
    for (std::uint64_t i = 0; i < bucket_words; ++i) {
      const std::uint64_t replaced = bucket[i].load(std::memory_order_relaxed);
      if (holds_entry(replaced)) continue;
      add_to_filter(page, home, tag);
      bucket[i].store(make_index_word(tag, displacement, offset), std::memory_order_release);
      return replaced;
    }
  }
  return std::nullopt;
}

void PointIndex::insert(std::uint64_t hash, std::uint64_t offset) {
  for (;;) {
    const std::uint64_t slot = directory_word(hash);
    const IndexPage page = page_of(slot);
    SegmentDescriptor::PageCounts& counts = page_descriptor(page.words).page;
    if (counts.live >= index_page_live_max && try_split(hash)) continue;
    if (counts.live + counts.tombstones >= index_page_occupied_max &&
        counts.tombstones >= index_page_tombstones_min && try_drop_tombstones(hash))
      continue;
    const std::optional<std::uint64_t> replaced =
        add_word(page, home_bucket(hash), tag_of(hash), offset);
    if (replaced) {
      if (*replaced == tombstone_word && counts.tombstones > 0) --counts.tombstones;
      ++counts.live;
      return;
    }
    if ((counts.live >= index_page_split_live_min || local_depth(slot) < first_pages_depth) &&
        try_split(hash))
      continue;
    add_to_filter(page, home_bucket(hash), tag_of(hash));
    add_record(hash, offset);
    return;
  }
}

void PointIndex::replace(const IndexLocation& location, std::uint64_t hash, std::uint64_t offset) {
  if (location.word != nullptr) {
    replace(*location.word, offset);
    return;
  }
  erase_record(hash, location.offset);
  add_record(hash, offset);
}

void PointIndex::remove(const IndexLocation& location, std::uint64_t hash) {
  if (location.word == nullptr) {
    erase_record(hash, location.offset);
    return;
  }
  SegmentDescriptor::PageCounts& counts = page_descriptor(location.word).page;
  if (counts.live > 0) --counts.live;
  ++counts.tombstones;
  location.word->store(tombstone_word, std::memory_order_release);
}

// --- The overflow tree ---

void PointIndex::begin_update() {
  overflow_root_ = allocator_.header().overflow_root.load(std::memory_order_relaxed);
}

void PointIndex::publish_overflow() {
  std::atomic<std::uint64_t>& root = allocator_.header().overflow_root;
  // Release: readers acquire it, and see the nodes, their entries, and the pages published before.
  if (root.load(std::memory_order_relaxed) != overflow_root_)
    root.store(overflow_root_, std::memory_order_release);
}

BTreeWriter& PointIndex::overflow_writer() {
  if (!overflow_writer_) overflow_writer_ = std::make_unique<BTreeWriter>(allocator_);
  return *overflow_writer_;
}

void PointIndex::add_record(std::uint64_t hash, std::uint64_t offset) {
  overflow_root_ =
      overflow_writer().insert(overflow_root_, encode({hash, entry(offset).key(), offset}));
}

void PointIndex::erase_record(std::uint64_t hash, std::uint64_t offset) {
  overflow_root_ =
      overflow_writer().erase(overflow_root_, encode({hash, entry(offset).key(), offset}));
}

// --- Pages ---

PointIndex::IndexPage PointIndex::allocate_page() {
  const std::uint64_t filter_offset = allocator_.allocate_filter();
  const IndexPage page =
      page_at(allocator_.allocate_segment(SegmentKind::index_page) * segment_bytes, filter_offset);
  std::memset(static_cast<void*>(page.words), 0, segment_bytes);
  std::memset(static_cast<void*>(page.filter), 0, filter_bytes);
  return page;
}

void PointIndex::retire_page(const IndexPage& page) {
  allocator_.retire_index_page(page.offset / segment_bytes, page.filter_offset);
}

void PointIndex::publish_page(std::uint64_t from_slot, std::uint64_t slots, const IndexPage& page,
                              unsigned depth) {
  unsigned global_depth_now;
  IndexWord* const directory_slots = directory(global_depth_now);
  for (std::uint64_t slot = from_slot; slot < from_slot + slots; ++slot) {
    directory_slots[slot].store(make_directory_word(page.offset, depth, page.filter_offset),
                                std::memory_order_release);
  }
}

PointIndex::PageSlots PointIndex::slots_of_page(std::uint64_t hash) const {
  unsigned depth;
  const IndexWord* const slots = directory(depth);
  const std::uint64_t slot = index_directory_slot(hash, depth);
  const std::uint64_t word = slots[slot].load(std::memory_order_relaxed);
  const unsigned local = local_depth(word);
  if (local > depth) throw corrupt_state("depth of index page", local);
  const std::uint64_t count = std::uint64_t{1} << (depth - local);
  return {slot & ~(count - 1), count, local, word};
}

// Returns the bucket to begin with when the entries of a page are copied in the order of their
// buckets: one after a bucket with an empty word. No word is displaced across that bucket. Each
// word therefore finds room in its old bucket at the latest: only words of the same bucket, copied
// before it, can be there. Returns nullopt if no bucket has an empty word.
std::optional<std::uint64_t> PointIndex::first_bucket_to_copy(const PageSlots& slots) const {
  const IndexWord* const words = page_of(slots.word).words;
  const SegmentDescriptor::PageCounts& counts = page_descriptor(words).page;
  if (counts.live + counts.tombstones >= index_page_words) return std::nullopt;
  for (std::uint64_t bucket = 0; bucket < index_page_buckets; ++bucket) {
    if (Bucket(words + bucket * bucket_words).has_empty())
      return (bucket + 1) & (index_page_buckets - 1);
  }
  return std::nullopt;
}

bool PointIndex::try_split(std::uint64_t hash) {
  PageSlots slots = slots_of_page(hash);
  const bool needs_doubling = slots.count == 1;
  if (needs_doubling && !may_double_directory_for(slots)) return false;
  const std::optional<std::uint64_t> first_bucket = first_bucket_to_copy(slots);
  if (!first_bucket) return false;
  if (needs_doubling) {
    double_directory();
    slots = slots_of_page(hash);
  }
  replace_page(slots, 2, *first_bucket);
  return true;
}

bool PointIndex::try_drop_tombstones(std::uint64_t hash) {
  const PageSlots slots = slots_of_page(hash);
  const std::optional<std::uint64_t> first_bucket = first_bucket_to_copy(slots);
  if (!first_bucket) return false;
  replace_page(slots, 1, *first_bucket);
  return true;
}

// Chosen hashes may agree in all the bits that the directory can take. Doubling it would not divide
// their page, but cost every other read: the directory would no longer fit a cache. As long as it
// shares one segment with smaller ones, it costs nothing.
bool PointIndex::may_double_directory_for(const PageSlots& slots) {
  const unsigned depth = slots.local_depth;
  if (depth < small_index_directory_depth_max) return true;
  if (depth == global_depth_max) return false;
  const IndexPage page = page_of(slots.word);
  SegmentDescriptor& descriptor = page_descriptor(page.words);
  if (descriptor.split_refused == depth + 1) return false;
  std::uint64_t counts[2] = {0, 0};
  visit_entry_words(page.words, 0, [&](std::uint64_t, std::uint64_t word) {
    ++counts[half_of(word_tag(word), depth)];
  });
  if (std::min(counts[0], counts[1]) * useful_split_divisor >= counts[0] + counts[1]) return true;
  descriptor.split_refused = static_cast<std::uint8_t>(depth + 1);
  return false;
}

// Calls `add` for each overflow record of the keys of a page, until the page is left. Returns those
// for which it returned true, in ascending order.
template <typename Add>
std::vector<std::string> PointIndex::visit_records_of_page(const PageSlots& slots,
                                                           const Add& add) const {
  std::vector<std::string> added;
  if (overflow_root_ == 0) return added;
  const unsigned shift = 64 - slots.local_depth;
  const auto page_number = [shift](std::uint64_t hash) { return hash >> 1 >> (shift - 1); };
  unsigned depth;
  directory(depth);
  // The first hash of the page: its slot is slots.first.
  const std::uint64_t first_hash = depth == 0 ? 0 : slots.first << (64 - depth);
  BTreeCursor cursor(allocator_);
  for (cursor.seek(overflow_root_, overflow_seek_key(first_hash)); !cursor.at_end();
       cursor.next()) {
    const std::optional<OverflowRecord> record = decode_overflow_record(cursor.key());
    if (!record) throw corrupt_state("record of the overflow tree", first_hash);
    if (page_number(record->hash) != page_number(first_hash)) break;
    if (add(home_bucket(record->hash), tag_of(record->hash), record->offset))
      added.emplace_back(cursor.key());
  }
  return added;
}

void PointIndex::replace_page(const PageSlots& slots, std::size_t page_count,
                              std::uint64_t first_bucket) {
  const IndexPage old_page = page_of(slots.word);
  IndexPage pages[2] = {allocate_page(), IndexPage{}};
  if (page_count == 2) pages[1] = allocate_page();
  std::uint32_t counts[2] = {0, 0};
  const auto add = [&](std::uint64_t home, std::uint64_t tag, std::uint64_t offset) {
    const std::size_t half = page_count == 2 ? half_of(tag, slots.local_depth) : 0;
    if (!add_word(pages[half], home, tag, offset)) {
      add_to_filter(pages[half], home, tag);
      return false;
    }
    ++counts[half];
    return true;
  };
  visit_entry_words(old_page.words, first_bucket, [&](std::uint64_t home, std::uint64_t word) {
    if (!add(home, word_tag(word), word_offset(word)))
      throw corrupt_state("index page with words at wrong places", old_page.offset);
  });
  const std::vector<std::string> moved = visit_records_of_page(slots, add);

  const unsigned depth = slots.local_depth + (page_count == 2 ? 1 : 0);
  const std::uint64_t slot_count = slots.count / page_count;
  for (std::size_t i = 0; i < page_count; ++i) {
    page_descriptor(pages[i].words).page.live = counts[i];
    publish_page(slots.first + i * slot_count, slot_count, pages[i], depth);
  }
  retire_page(old_page);
  if (moved.empty()) return;
  const std::vector<std::string_view> erased(moved.begin(), moved.end());
  overflow_root_ = overflow_writer().erase_sorted(overflow_root_, erased);
}

void PointIndex::double_directory() {
  unsigned depth;
  const IndexWord* const old_slots = directory(depth);
  assert(depth < global_depth_max);
  const std::uint64_t old_offset =
      index_directory_offset(allocator_.header().index_directory.load(std::memory_order_relaxed));
  std::uint64_t new_offset;
  if (depth + 1 <= small_index_directory_depth_max) {
    new_offset =
        old_offset / segment_bytes * segment_bytes + small_index_directory_offset(depth + 1);
  } else {
    new_offset = allocator_.allocate_span(SegmentKind::index_directory,
                                          segments_for(sizeof(IndexWord) << (depth + 1))) *
                 segment_bytes;
  }
  auto* const slots =
      reinterpret_cast<IndexWord*>(allocator_.mapping().writable_base() + new_offset);
  for (std::uint64_t slot = 0; slot < std::uint64_t{1} << depth; ++slot) {
    const std::uint64_t word = old_slots[slot].load(std::memory_order_relaxed);
    slots[2 * slot].store(word, std::memory_order_relaxed);
    slots[2 * slot + 1].store(word, std::memory_order_relaxed);
  }
  allocator_.header().index_directory.store(make_index_directory(new_offset, depth + 1),
                                            std::memory_order_release);
  // Small directories share one segment, which stays. A larger one had segments of its own.
  if (depth >= small_index_directory_depth_max) {
    const std::uint64_t first = old_offset / segment_bytes;
    const std::uint64_t count = allocator_.descriptor(first).span.segment_count;
    for (std::uint64_t i = 0; i < count; ++i) allocator_.retire_segment(first + i);
  }
}

}  // namespace whycache
