#include "state/point_index.h"

#include <cstring>
#include <string>

#include "state/lookup.h"

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
  std::uint64_t offset;
  new_part(offset);
  auto* slot = reinterpret_cast<IndexWord*>(arena_.mapping().writable_base() + place_of_first);
  slot->store(offset, std::memory_order_relaxed);
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

IndexWord* PointIndex::part(std::uint64_t offset) const {
  const std::uint64_t segment = offset / segment_bytes;
  if (arena_.descriptor(segment).kind != SegmentKind::part) throw damaged_index("no index part at segment", segment);
  return reinterpret_cast<IndexWord*>(arena_.mapping().writable_base() + offset);
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
  unsigned depth;
  IndexWord* const slots = directory(depth);
  IndexWord* const words = part(part_offset(slots[directory_slot(hash, depth)].load(std::memory_order_relaxed)));
  return probe(words, hash, [&](std::uint64_t offset) { return entry(offset).key() == key; });
}

IndexWord* PointIndex::find_offset(std::uint64_t hash, std::uint64_t offset) const {
  unsigned depth;
  IndexWord* const slots = directory(depth);
  IndexWord* const words = part(part_offset(slots[directory_slot(hash, depth)].load(std::memory_order_relaxed)));
  return probe(words, hash, [&](std::uint64_t found) { return found == offset; });
}

void PointIndex::prefetch(std::uint64_t hash) const {
  unsigned depth;
  IndexWord* const slots = directory(depth);
  const std::uint64_t offset = part_offset(slots[directory_slot(hash, depth)].load(std::memory_order_relaxed));
  // What a damaged directory says is found out by who looks there.
  if (offset > arena_.mapping().usable_bytes() - segment_bytes) return;
  __builtin_prefetch(arena_.mapping().base() + offset + home_offset(hash), 1);
}

bool PointIndex::place(IndexWord* words, std::uint64_t home, std::uint64_t tag, std::uint64_t offset) {
  for (std::uint64_t displacement = 0; displacement <= displacement_max; ++displacement) {
    IndexWord* const bucket = words + ((home + displacement) & (part_buckets - 1)) * bucket_words;
    for (std::uint64_t i = 0; i < bucket_words; ++i) {
      const std::uint64_t word = bucket[i].load(std::memory_order_relaxed);
      if (holds_entry(word)) continue;
      bucket[i].store(make_word(tag, displacement, offset), std::memory_order_release);
      return true;
    }
  }
  return false;
}

void PointIndex::insert(std::uint64_t hash, std::uint64_t offset) {
  for (;;) {
    unsigned depth;
    IndexWord* const slots = directory(depth);
    IndexWord* const words = part(part_offset(slots[directory_slot(hash, depth)].load(std::memory_order_relaxed)));
    SegmentDescriptor& book = part_descriptor(words);
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
      IndexWord* const bucket = words + ((home_bucket(hash) + displacement) & (part_buckets - 1)) * bucket_words;
      for (std::uint64_t i = 0; i < bucket_words; ++i) {
        const std::uint64_t word = bucket[i].load(std::memory_order_relaxed);
        if (holds_entry(word)) continue;
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

IndexWord* PointIndex::new_part(std::uint64_t& offset) {
  const std::uint64_t segment = arena_.allocate_segment(SegmentKind::part);
  offset = segment * segment_bytes;
  std::byte* const memory = arena_.mapping().writable_base() + offset;
  std::memset(memory, 0, segment_bytes);
  return reinterpret_cast<IndexWord*>(memory);
}

void PointIndex::publish_part(std::uint64_t from_slot, std::uint64_t slots, std::uint64_t offset, unsigned depth) {
  unsigned directory_depth_now;
  IndexWord* const all = directory(directory_depth_now);
  for (std::uint64_t slot = from_slot; slot < from_slot + slots; ++slot) {
    all[slot].store(offset | depth, std::memory_order_release);
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
  IndexWord* const old_words = part(part_offset(old_word));
  std::uint64_t offsets[2];
  IndexWord* halves[2] = {new_part(offsets[0]), nullptr};
  halves[1] = new_part(offsets[1]);
  std::uint32_t counts[2] = {0, 0};
  for (std::uint64_t i = 0; i < part_words; ++i) {
    const std::uint64_t word = old_words[i].load(std::memory_order_relaxed);
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
    arena_.descriptor(offsets[half] / segment_bytes).live = counts[half];
    publish_part(first + half * group / 2, group / 2, offsets[half], local + 1);
  }
  arena_.retire_segment(part_offset(old_word) / segment_bytes);
}

void PointIndex::purge(std::uint64_t hash) {
  unsigned depth;
  IndexWord* const slots = directory(depth);
  const std::uint64_t old_word = slots[directory_slot(hash, depth)].load(std::memory_order_relaxed);
  const unsigned local = part_depth(old_word);
  if (local > depth) throw damaged_index("depth of index part", local);
  IndexWord* const old_words = part(part_offset(old_word));
  std::uint64_t offset;
  IndexWord* const words = new_part(offset);
  std::uint32_t count = 0;
  for (std::uint64_t i = 0; i < part_words; ++i) {
    const std::uint64_t word = old_words[i].load(std::memory_order_relaxed);
    if (!holds_entry(word)) continue;
    const std::uint64_t home = (i / bucket_words - word_displacement(word)) & (part_buckets - 1);
    if (!place(words, home, word_tag(word), word_offset(word))) {
      arena_.retire_segment(offset / segment_bytes);
      split(hash);  // which gives them more room
      return;
    }
    ++count;
  }
  arena_.descriptor(offset / segment_bytes).live = count;
  const std::uint64_t group = std::uint64_t{1} << (depth - local);
  publish_part(directory_slot(hash, depth) & ~(group - 1), group, offset, local);
  arena_.retire_segment(part_offset(old_word) / segment_bytes);
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
