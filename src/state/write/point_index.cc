#include "state/write/point_index.h"

#include <cstring>
#include <string>

#include "state/errors.h"
#include "state/index/lookup.h"

namespace whycache {
namespace {

// A page is split when this many of its words hold entries.
constexpr std::uint64_t index_page_live_max = index_page_words * 8 / 10;
// Its tombstones are dropped when this many words hold an entry or are tombstones.
constexpr std::uint64_t index_page_occupied_max = index_page_words * 9 / 10;

}  // namespace

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

// Calls `visit` with the home bucket and the word of each entry of a page. Stops and returns false
// if `visit` does.
template <typename Visit>
bool visit_entry_words(const IndexWord* words, const Visit& visit) {
  for (std::uint64_t i = 0; i < index_page_words; ++i) {
    const std::uint64_t word = words[i].load(std::memory_order_relaxed);
    if (!holds_entry(word)) continue;
    const std::uint64_t home =
        (i / bucket_words - word_displacement(word)) & (index_page_buckets - 1);
    if (!visit(home, word)) return false;
  }
  return true;
}

// Calls `visit` with the offset of each entry that may have this hash, in probing order. Returns
// the word of the first for which it returns true, or nullptr.
template <typename Visit>
IndexWord* probe(IndexWord* words, std::uint64_t hash, const Visit& visit) {
  const std::uint64_t tag = tag_of(hash);
  for (std::uint64_t displacement = 0; displacement <= displacement_max; ++displacement) {
    IndexWord* const bucket = bucket_at(words, home_bucket(hash) + displacement);
    bool any_empty = false;
    for (std::uint64_t i = 0; i < bucket_words; ++i) {
      const std::uint64_t word = bucket[i].load(std::memory_order_relaxed);
      any_empty |= word == empty_word;
      if (holds_entry(word) &&
          word >> word_offset_bits == (tag << displacement_bits | displacement) &&
          visit(word_offset(word)))
        return &bucket[i];
    }
    if (any_empty) return nullptr;
  }
  return nullptr;
}

}  // namespace

IndexWord* PointIndex::find(std::uint64_t hash, std::string_view key) const {
  return probe(page_words(directory_word(hash)), hash,
               [&](std::uint64_t offset) { return entry(offset).key() == key; });
}

IndexWord* PointIndex::find_offset(std::uint64_t hash, std::uint64_t offset) const {
  return probe(page_words(directory_word(hash)), hash,
               [&](std::uint64_t found) { return found == offset; });
}

void PointIndex::prefetch(std::uint64_t hash) const {
  const std::uint64_t slot = directory_word(hash);
  // Damage is reported by the functions that read the page.
  if (index_page_offset(slot) > allocator_.mapping().usable_bytes() - segment_bytes) return;
  __builtin_prefetch(allocator_.mapping().base() + index_page_offset(slot) + home_offset(hash), 1);
  if (index_page_filter_offset(slot) > allocator_.mapping().usable_bytes() - filter_bytes) return;
  __builtin_prefetch(allocator_.mapping().base() + index_page_filter_offset(slot) +
                         home_bucket(hash) * sizeof(FilterWord),
                     1);
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
    const IndexPage page = page_of(directory_word(hash));
    SegmentDescriptor::PageCounts& counts = page_descriptor(page.words).page;
    if (counts.live >= index_page_live_max) {
      split(hash);
      continue;
    }
    if (counts.live + counts.tombstones >= index_page_occupied_max) {
      drop_tombstones(hash);
      continue;
    }
    const std::optional<std::uint64_t> replaced =
        add_word(page, home_bucket(hash), tag_of(hash), offset);
    if (replaced) {
      if (*replaced == tombstone_word && counts.tombstones > 0) --counts.tombstones;
      ++counts.live;
      return;
    }
    split(hash);
  }
}

void PointIndex::remove(IndexWord& word) {
  SegmentDescriptor::PageCounts& counts = page_descriptor(&word).page;
  if (counts.live > 0) --counts.live;
  ++counts.tombstones;
  word.store(tombstone_word, std::memory_order_release);
}

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

void PointIndex::split(std::uint64_t hash) {
  PageSlots slots = slots_of_page(hash);
  if (slots.count == 1) {
    double_directory();
    slots = slots_of_page(hash);
  }
  const IndexPage old_page = page_of(slots.word);
  const IndexPage first_half = allocate_page();
  const IndexPage halves[2] = {first_half, allocate_page()};
  std::uint32_t counts[2] = {0, 0};
  const bool fits = visit_entry_words(old_page.words, [&](std::uint64_t home, std::uint64_t word) {
    const std::size_t half = word_tag(word) >> (tag_bits - 1 - slots.local_depth) & 1;
    ++counts[half];
    return add_word(halves[half], home, word_tag(word), word_offset(word)).has_value();
  });
  if (!fits) {
    throw Error(ErrorKind::limit,
                "too many keys hash alike: local_depth=" + std::to_string(slots.local_depth));
  }
  for (std::size_t half = 0; half < 2; ++half) {
    page_descriptor(halves[half].words).page.live = counts[half];
    publish_page(slots.first + half * slots.count / 2, slots.count / 2, halves[half],
                 slots.local_depth + 1);
  }
  retire_page(old_page);
}

void PointIndex::drop_tombstones(std::uint64_t hash) {
  const PageSlots slots = slots_of_page(hash);
  const IndexPage old_page = page_of(slots.word);
  const IndexPage new_page = allocate_page();
  std::uint32_t count = 0;
  const bool fits = visit_entry_words(old_page.words, [&](std::uint64_t home, std::uint64_t word) {
    ++count;
    return add_word(new_page, home, word_tag(word), word_offset(word)).has_value();
  });
  if (!fits) {
    retire_page(new_page);
    split(hash);  // two pages have room
    return;
  }
  page_descriptor(new_page.words).page.live = count;
  publish_page(slots.first, slots.count, new_page, slots.local_depth);
  retire_page(old_page);
}

void PointIndex::double_directory() {
  unsigned depth;
  const IndexWord* const old_slots = directory(depth);
  if (depth == global_depth_max)
    throw Error(ErrorKind::limit,
                "index cannot grow further: global_depth=" + std::to_string(depth));
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
