#include "state/index/point_index.h"

#include <cstring>
#include <string>

#include "state/index/lookup.h"

namespace whycache {
namespace {

// A part is split when this many of its words hold entries, and purged when this many are taken, fillers included.
constexpr std::uint64_t part_live_max = part_words * 8 / 10;
constexpr std::uint64_t part_taken_max = part_words * 9 / 10;

Error damaged_index(const std::string& what, std::uint64_t number) {
  return Error(ErrorKind::corrupt,
               "state file damaged: " + what + "=" + std::to_string(number) + " (delete the state file)");
}

}  // namespace

void PointIndex::create() {
  const std::uint64_t directories = arena_.allocate_segment(SegmentKind::directory);
  arena_.descriptor(directories).used = 1;
  const std::uint64_t place_of_first = directories * segment_bytes + small_directory_place(0);
  const Part first = new_part();
  auto* slot = reinterpret_cast<IndexWord*>(arena_.mapping().writable_base() + place_of_first);
  slot->store(make_slot(first.offset, 0, first.filter_offset), std::memory_order_relaxed);
  arena_.header().directory.store(place_of_first << 8, std::memory_order_release);
}

IndexWord* PointIndex::directory(unsigned& depth) const {
  const std::uint64_t word = arena_.header().directory.load(std::memory_order_relaxed);
  depth = directory_depth(word);
  const Bytes bytes(arena_.mapping());
  if (depth > directory_depth_max || directory_offset(word) < header_page_bytes || directory_offset(word) % 8 != 0 ||
      !bytes.has(directory_offset(word), sizeof(IndexWord) << depth)) {
    throw damaged_index("index directory", word);
  }
  return reinterpret_cast<IndexWord*>(arena_.mapping().writable_base() + directory_offset(word));
}

PointIndex::Part PointIndex::part_at(std::uint64_t offset, std::uint64_t filter_offset) const {
  std::byte* const base = arena_.mapping().writable_base();
  return {reinterpret_cast<IndexWord*>(base + offset), reinterpret_cast<FilterWord*>(base + filter_offset), offset,
          filter_offset};
}

IndexWord* PointIndex::words(std::uint64_t slot) const {
  const std::uint64_t segment = part_offset(slot) / segment_bytes;
  if (arena_.descriptor(segment).kind != SegmentKind::part) throw damaged_index("no index part at segment", segment);
  return reinterpret_cast<IndexWord*>(arena_.mapping().writable_base() + part_offset(slot));
}

PointIndex::Part PointIndex::part(std::uint64_t slot) const {
  words(slot);
  const SegmentDescriptor& filters = arena_.descriptor(part_filter(slot) / segment_bytes);
  if (filters.kind != SegmentKind::filters || (filters.used & filter_bit(part_filter(slot))) == 0)
    throw damaged_index("no index filter at offset", part_filter(slot));
  return part_at(part_offset(slot), part_filter(slot));
}

std::uint64_t PointIndex::slot_of(std::uint64_t hash) const {
  unsigned depth;
  const IndexWord* const slots = directory(depth);
  return slots[directory_slot(hash, depth)].load(std::memory_order_relaxed);
}

SegmentDescriptor& PointIndex::part_descriptor(const IndexWord* word) const {
  const auto offset = static_cast<std::uint64_t>(reinterpret_cast<const std::byte*>(word) - arena_.mapping().base());
  return arena_.descriptor(offset / segment_bytes);
}

Entry PointIndex::entry(std::uint64_t offset) const {
  Entry entry;
  if (offset % 8 != 0 || !Bytes(arena_.mapping()).entry(offset, entry))
    throw damaged_index("no entry at offset", offset);
  return entry;
}

namespace {

// The words a key with this hash may be in, in probing order, until `visit` returns true or there can be no more.
template <typename Visit>
IndexWord* probe(IndexWord* words, std::uint64_t hash, const Visit& visit) {
  const std::uint64_t tag = tag_of(hash);
  for (std::uint64_t displacement = 0; displacement <= displacement_max; ++displacement) {
    IndexWord* const bucket = words + ((home_bucket(hash) + displacement) & (part_buckets - 1)) * bucket_words;
    bool any_empty = false;
    for (std::uint64_t i = 0; i < bucket_words; ++i) {
      const std::uint64_t word = bucket[i].load(std::memory_order_relaxed);
      any_empty |= word == empty_word;
      if (holds_entry(word) && word >> word_offset_bits == (tag << 3 | displacement) && visit(word_offset(word)))
        return &bucket[i];
    }
    if (any_empty) return nullptr;
  }
  return nullptr;
}

}  // namespace

IndexWord* PointIndex::find(std::uint64_t hash, std::string_view key) const {
  return probe(words(slot_of(hash)), hash, [&](std::uint64_t offset) { return entry(offset).key() == key; });
}

IndexWord* PointIndex::find_offset(std::uint64_t hash, std::uint64_t offset) const {
  return probe(words(slot_of(hash)), hash, [&](std::uint64_t found) { return found == offset; });
}

void PointIndex::prefetch(std::uint64_t hash) const {
  const std::uint64_t slot = slot_of(hash);
  // What a damaged directory says is found out by who looks there.
  if (part_offset(slot) > arena_.mapping().usable_bytes() - segment_bytes) return;
  __builtin_prefetch(arena_.mapping().base() + part_offset(slot) + home_offset(hash), 1);
  if (part_filter(slot) > arena_.mapping().usable_bytes() - filter_bytes) return;
  __builtin_prefetch(arena_.mapping().base() + part_filter(slot) + home_bucket(hash) * sizeof(FilterWord), 1);
}

void PointIndex::add_to_filter(const Part& part, std::uint64_t home, std::uint64_t tag) {
  FilterWord& word = part.filter[home];
  const std::uint32_t before = word.load(std::memory_order_relaxed);
  const std::uint32_t bits = before | filter_bits(tag);
  if (bits != before) word.store(bits, std::memory_order_release);
}

bool PointIndex::place(const Part& part, std::uint64_t home, std::uint64_t tag, std::uint64_t offset) {
  for (std::uint64_t displacement = 0; displacement <= displacement_max; ++displacement) {
    IndexWord* const bucket = part.words + ((home + displacement) & (part_buckets - 1)) * bucket_words;
    for (std::uint64_t i = 0; i < bucket_words; ++i) {
      const std::uint64_t word = bucket[i].load(std::memory_order_relaxed);
      if (holds_entry(word)) continue;
      add_to_filter(part, home, tag);
      bucket[i].store(make_word(tag, displacement, offset), std::memory_order_release);
      return true;
    }
  }
  return false;
}

void PointIndex::insert(std::uint64_t hash, std::uint64_t offset) {
  for (;;) {
    const Part part = this->part(slot_of(hash));
    SegmentDescriptor& book = part_descriptor(part.words);
    if (book.live >= part_live_max) {
      split(hash);
      continue;
    }
    if (book.live + book.used >= part_taken_max) {
      purge(hash);
      continue;
    }
    // The first free place near home; a filler there is used up.
    const std::uint64_t tag = tag_of(hash);
    for (std::uint64_t displacement = 0; displacement <= displacement_max; ++displacement) {
      IndexWord* const bucket = part.words + ((home_bucket(hash) + displacement) & (part_buckets - 1)) * bucket_words;
      for (std::uint64_t i = 0; i < bucket_words; ++i) {
        const std::uint64_t word = bucket[i].load(std::memory_order_relaxed);
        if (holds_entry(word)) continue;
        add_to_filter(part, home_bucket(hash), tag);
        if (word == filler_word && book.used > 0) --book.used;
        ++book.live;
        bucket[i].store(make_word(tag, displacement, offset), std::memory_order_release);
        return;
      }
    }
    split(hash);
  }
}

void PointIndex::remove(IndexWord& word) {
  SegmentDescriptor& book = part_descriptor(&word);
  if (book.live > 0) --book.live;
  ++book.used;
  word.store(filler_word, std::memory_order_release);
}

PointIndex::Part PointIndex::new_part() {
  const std::uint64_t filter_offset = arena_.allocate_filter();
  const Part part = part_at(arena_.allocate_segment(SegmentKind::part) * segment_bytes, filter_offset);
  std::memset(static_cast<void*>(part.words), 0, segment_bytes);
  std::memset(static_cast<void*>(part.filter), 0, filter_bytes);
  return part;
}

void PointIndex::retire(const Part& part) { arena_.retire_part(part.offset / segment_bytes, part.filter_offset); }

void PointIndex::publish_part(std::uint64_t from_slot, std::uint64_t slots, const Part& part, unsigned depth) {
  unsigned directory_depth_now;
  IndexWord* const all = directory(directory_depth_now);
  for (std::uint64_t slot = from_slot; slot < from_slot + slots; ++slot) {
    all[slot].store(make_slot(part.offset, depth, part.filter_offset), std::memory_order_release);
  }
}

void PointIndex::split(std::uint64_t hash) {
  unsigned depth;
  IndexWord* slots = directory(depth);
  const std::uint64_t old_word = slots[directory_slot(hash, depth)].load(std::memory_order_relaxed);
  const unsigned local = part_depth(old_word);
  if (local > depth) throw damaged_index("depth of index part", local);
  if (local == depth) {
    double_directory();
    slots = directory(depth);
  }
  const Part old_part = part(old_word);
  const Part first_half = new_part();
  const Part halves[2] = {first_half, new_part()};
  std::uint32_t counts[2] = {0, 0};
  for (std::uint64_t i = 0; i < part_words; ++i) {
    const std::uint64_t word = old_part.words[i].load(std::memory_order_relaxed);
    if (!holds_entry(word)) continue;
    const std::uint64_t home = (i / bucket_words - word_displacement(word)) & (part_buckets - 1);
    const std::size_t half = word_tag(word) >> (23 - local) & 1;
    if (!place(halves[half], home, word_tag(word), word_offset(word))) {
      throw Error(ErrorKind::limit, "too many keys hash alike: index_depth=" + std::to_string(local));
    }
    ++counts[half];
  }
  const std::uint64_t group = std::uint64_t{1} << (depth - local);
  const std::uint64_t first = directory_slot(hash, depth) & ~(group - 1);
  for (std::size_t half = 0; half < 2; ++half) {
    part_descriptor(halves[half].words).live = counts[half];
    publish_part(first + half * group / 2, group / 2, halves[half], local + 1);
  }
  retire(old_part);
}

void PointIndex::purge(std::uint64_t hash) {
  unsigned depth;
  IndexWord* const slots = directory(depth);
  const std::uint64_t old_word = slots[directory_slot(hash, depth)].load(std::memory_order_relaxed);
  const unsigned local = part_depth(old_word);
  if (local > depth) throw damaged_index("depth of index part", local);
  const Part old_part = part(old_word);
  const Part new_one = new_part();
  std::uint32_t count = 0;
  for (std::uint64_t i = 0; i < part_words; ++i) {
    const std::uint64_t word = old_part.words[i].load(std::memory_order_relaxed);
    if (!holds_entry(word)) continue;
    const std::uint64_t home = (i / bucket_words - word_displacement(word)) & (part_buckets - 1);
    if (!place(new_one, home, word_tag(word), word_offset(word))) {
      retire(new_one);
      split(hash);  // which gives them more room
      return;
    }
    ++count;
  }
  part_descriptor(new_one.words).live = count;
  const std::uint64_t group = std::uint64_t{1} << (depth - local);
  publish_part(directory_slot(hash, depth) & ~(group - 1), group, new_one, local);
  retire(old_part);
}

void PointIndex::double_directory() {
  unsigned depth;
  const IndexWord* const old_slots = directory(depth);
  if (depth == directory_depth_max)
    throw Error(ErrorKind::limit, "index cannot grow further: index_depth=" + std::to_string(depth));
  const std::uint64_t old_place = directory_offset(arena_.header().directory.load(std::memory_order_relaxed));
  std::uint64_t place_of_new;
  if (depth + 1 <= small_directory_depth_max) {
    place_of_new = old_place / segment_bytes * segment_bytes + small_directory_place(depth + 1);
  } else {
    place_of_new =
        arena_.allocate_span(SegmentKind::directory, segments_for(sizeof(IndexWord) << (depth + 1))) * segment_bytes;
  }
  auto* const slots = reinterpret_cast<IndexWord*>(arena_.mapping().writable_base() + place_of_new);
  for (std::uint64_t slot = 0; slot < std::uint64_t{1} << depth; ++slot) {
    const std::uint64_t word = old_slots[slot].load(std::memory_order_relaxed);
    slots[2 * slot].store(word, std::memory_order_relaxed);
    slots[2 * slot + 1].store(word, std::memory_order_relaxed);
  }
  arena_.header().directory.store(place_of_new << 8 | (depth + 1), std::memory_order_release);
  // The places of small directories stay; only one that had segments of its own gives them back.
  if (depth >= small_directory_depth_max) {
    const std::uint64_t first = old_place / segment_bytes;
    const std::uint64_t count = arena_.descriptor(first).used;
    for (std::uint64_t i = 0; i < count; ++i) arena_.retire_segment(first + i);
  }
}

}  // namespace whycache
