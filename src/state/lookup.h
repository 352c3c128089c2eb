// Finding a key's value in the mapped file, as of an update id. What a reader runs; a hit touches two cache lines that are not warm
// already: the bucket and the entry.
//
// A reader that pinned nothing may meet memory that is being used again. So it believes no number before it compared it with the
// size of the mapping, and no result before it found the reclaim generation unmoved (point_read below).
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "state/layout.h"
#include "state/mapping.h"

namespace whycache {

enum class Found : std::uint8_t {
  no,
  yes,
  impossible  // bytes that cannot be: memory used again meanwhile, a file that grew, or a damaged file
};

struct LookupResult {
  Found found = Found::no;
  std::string_view value;
  const char* key = nullptr;  // the key's bytes in the entry
};

// An entry's header, loaded once: memory that is used again may change between two looks, so that what was checked is what is used.
struct Entry {
  EntryHeader header;
  const char* data;  // key, then value

  std::string_view key() const { return {data, header.key_bytes()}; }
  std::string_view value() const { return {data + header.key_bytes(), header.value_bytes()}; }
};

// The file's bytes as one reader sees them during one read.
class Bytes {
 public:
  explicit Bytes(const Mapping& mapping) : base_(mapping.base()), usable_(mapping.usable_bytes()) {}

  bool has(std::uint64_t offset, std::uint64_t bytes) const { return offset <= usable_ && bytes <= usable_ - offset; }
  template <typename T>
  const T* at(std::uint64_t offset) const {
    return reinterpret_cast<const T*>(base_ + offset);
  }
  // False if there can be no entry. Its key and value lie within the mapping otherwise.
  bool entry(std::uint64_t offset, Entry& entry) const {
    if (offset < header_page_bytes || !has(offset, sizeof(EntryHeader))) return false;
    const auto* words = at<std::uint64_t>(offset);
    entry.header.id_and_key = __atomic_load_n(words, __ATOMIC_RELAXED);
    entry.header.previous_and_value = __atomic_load_n(words + 1, __ATOMIC_RELAXED);
    entry.data = at<char>(offset + sizeof(EntryHeader));
    return has(offset, sizeof(EntryHeader) + entry.header.key_bytes() + entry.header.value_bytes());
  }

 private:
  const std::byte* base_;
  std::uint64_t usable_;
};

// Where a key's home bucket is; nullptr if the directory cannot be right. First of the three steps of a look-up, so that several
// look-ups can be under way at once, each waiting for its own cache misses.
inline const IndexWord* find_part(const Bytes& bytes, std::uint64_t directory, std::uint64_t hash) {
  const unsigned depth = directory_depth(directory);
  if (depth > directory_depth_max) return nullptr;
  const std::uint64_t slot = directory_offset(directory) + directory_slot(hash, depth) * sizeof(IndexWord);
  if (slot % sizeof(IndexWord) != 0 || !bytes.has(slot, sizeof(IndexWord))) return nullptr;
  const std::uint64_t part = part_offset(bytes.at<IndexWord>(slot)->load(std::memory_order_acquire));
  if (!bytes.has(part, segment_bytes)) return nullptr;
  return bytes.at<IndexWord>(part);
}

inline const IndexWord* home_of(const IndexWord* part, std::uint64_t hash) {
  return part + home_bucket(hash) * bucket_words;
}

// Goes from `entry` of `key` back to the version that was current at `id`. `no`: there was none.
inline Found version_at(const Bytes& bytes, Entry& entry, std::string_view key, UpdateId id) {
  while (entry.header.id() > id) {
    const UpdateId newer = entry.header.id();
    const std::uint64_t previous = entry.header.previous();
    if (previous == 0) return Found::no;
    if (!bytes.entry(previous, entry) || entry.header.id() >= newer || entry.key() != key) return Found::impossible;
  }
  return entry.header.erased() ? Found::no : Found::yes;
}

// The value `key` had at update `id`.
inline LookupResult look_up(const Bytes& bytes, const IndexWord* part, std::uint64_t hash, std::string_view key, UpdateId id) {
  const std::uint64_t tag = tag_of(hash);
  std::uint64_t bucket = home_bucket(hash);
  for (std::uint64_t displacement = 0; displacement <= displacement_max; ++displacement) {
    const IndexWord* words = part + bucket * bucket_words;
    const std::uint64_t wanted = tag << 3 | displacement;
    bool any_empty = false;
    for (std::uint64_t i = 0; i < bucket_words; ++i) {
      const std::uint64_t word = words[i].load(std::memory_order_acquire);
      any_empty |= word == empty_word;
      if (word >> word_offset_bits != wanted) continue;
      Entry entry;
      if (!bytes.entry(word_offset(word), entry)) return {Found::impossible, {}};
      if (entry.header.key_bytes() != key.size() || std::memcmp(entry.data, key.data(), key.size()) != 0) continue;
      const Found found = version_at(bytes, entry, key, id);
      if (found != Found::yes) return {found, {}};
      return {Found::yes, entry.value(), entry.data};
    }
    if (any_empty) return {Found::no, {}};
    bucket = (bucket + 1) & (part_buckets - 1);
  }
  return {Found::no, {}};
}

// Asks for the memory of the entry that look_up() will most likely want.
inline void prefetch_entry(const Bytes& bytes, const IndexWord* part, std::uint64_t hash) {
  const IndexWord* words = home_of(part, hash);
  const std::uint64_t wanted = tag_of(hash) << 3;
  for (std::uint64_t i = 0; i < bucket_words; ++i) {
    const std::uint64_t word = words[i].load(std::memory_order_relaxed);
    if (word >> word_offset_bits != wanted || !bytes.has(word_offset(word), 128)) continue;
    __builtin_prefetch(bytes.at<char>(word_offset(word)));
    __builtin_prefetch(bytes.at<char>(word_offset(word) + 64));
    return;
  }
}

enum class ReadOutcome : std::uint8_t { no, yes, again, superseded };

// One try of a read that pins nothing. Calls `use(value)` while the value may still prove worthless: it may copy, but must not
// act on what it sees until `yes` is returned.
template <typename Use>
ReadOutcome try_point_read(const Mapping& mapping, std::string_view key, const Use& use) {
  const Header& header = mapping.header();
  // Acquire: whatever was retired before this generation is out of the index for us, and the applied id is at least its stamp.
  const std::uint64_t generation = header.reclaim_generation.load(std::memory_order_acquire);
  if ((generation & superseded_bit) != 0) return ReadOutcome::superseded;
  const UpdateId id = header.applied_id.load(std::memory_order_acquire);
  const Bytes bytes(mapping);
  const std::uint64_t hash = mapping.hash_of(key);
  const IndexWord* part = find_part(bytes, header.directory.load(std::memory_order_acquire), hash);
  if (part == nullptr) return ReadOutcome::again;
  const LookupResult result = look_up(bytes, part, hash, key, id);
  if (result.found == Found::impossible) return ReadOutcome::again;
  if (result.found == Found::yes) use(result.value);
  // Pairs with the writer's release fence after raising the generation: if anything read above was written over, this
  // load sees the raised number.
  std::atomic_thread_fence(std::memory_order_acquire);
  const std::uint64_t now = header.reclaim_generation.load(std::memory_order_relaxed);
  if ((now & ~superseded_bit) != generation) return ReadOutcome::again;
  return result.found == Found::yes ? ReadOutcome::yes : ReadOutcome::no;
}

}  // namespace whycache
