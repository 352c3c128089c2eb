#include "state/write/applier.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <optional>

#include "state/btree/check.h"
#include "state/btree/cursor.h"
#include "state/errors.h"
#include "state/index/lookup.h"

namespace whycache {
namespace {

// The bucket of a change is prefetched this far ahead of the one being applied, and the entry that
// it will replace when the bucket has arrived.
constexpr std::size_t prefetch_distance = 12;
constexpr std::size_t entry_prefetch_distance = 6;
// Entries whose buckets are prefetched before the first of them is cleaned or skipped.
constexpr std::size_t cleaning_batch = 64;
constexpr int cleaned_segments_max = 8;

Digest digest_of(const PublishedBlock& block) { return {block.digest_low, block.digest_high}; }

void set_digest(PublishedBlock& block, const Digest& digest) {
  block.digest_low = digest.low;
  block.digest_high = digest.high;
}

// `previous`: offset of the previous version, 0 if there is none.
void write_entry(std::byte* to, UpdateId id, bool erased, std::string_view key,
                 std::string_view value, std::uint64_t previous) {
  const auto put = [&to](const void* from, std::size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
    to += bytes;
  };
  const auto put_word = [&put](std::uint64_t word) { put(&word, sizeof word); };
  const bool wide = erased || is_wide_entry(key.size(), value.size());
  if (wide) {
    put_word(EntryWord::wide(id, erased, key.size()).word());
    put_word(WideWord(previous, value.size()).word());
  } else {
    put_word(EntryWord::narrow(id, key.size(), value.size(), previous != 0).word());
  }
  put(key.data(), key.size());
  put(value.data(), value.size());
  if (wide || previous == 0) return;
  to += -(key.size() + value.size()) % 8;
  put_word(previous);
}

void check_id(UpdateId id) {
  if (id > state_update_id_max) {
    throw Error(
        ErrorKind::limit,
        "a state cannot hold an update of this id: id=" + std::to_string(id) +
            " id_max=" + std::to_string(state_update_id_max) +
            " (put its items into a new log: whycache scan --json | whycache import --log NEW -)");
  }
}

}  // namespace

Applier::Applier(Mapping& mapping, Readers readers, std::uint64_t bytes_max)
    : mapping_(mapping),
      allocator_(mapping, readers, bytes_max),
      point_index_(allocator_),
      key_index_(allocator_) {}

const PublishedBlock& Applier::published() const {
  const Header& header = mapping_.header();
  const PublishedBlock& block =
      header.published[header.applied_id.load(std::memory_order_relaxed) % published_block_count];
  if (block.checksum != block.expected_checksum()) {
    throw corrupt_state("published block of update",
                        header.applied_id.load(std::memory_order_relaxed));
  }
  return block;
}

void Applier::create(std::uint64_t chain) {
  Header& header = mapping_.writable_header();
  header.allocator_state.segment_count = 1;
  allocator_.descriptor(0).kind = SegmentKind::table;
  header.file_bytes.store(mapping_.usable_bytes(), std::memory_order_relaxed);
  allocator_.begin_update(0);
  allocator_.grow(4);
  point_index_.create();
  pending_block_ = PublishedBlock{};
  pending_block_.chain = chain;
  publish();
}

// If the writer dies before the last store, the update stays invisible and recovery rolls it back.
// After it, the update is complete.
void Applier::publish() {
  Header& header = mapping_.writable_header();
  point_index_.publish_overflow();
  pending_block_.checksum = pending_block_.expected_checksum();
  // Pairs with the acquire fence of read_published(). A reader that sees any byte of the new block
  // also sees the applied ids stored before. From these it knows that its block is overwritten.
  std::atomic_thread_fence(std::memory_order_release);
  header.published[pending_block_.id % published_block_count] = pending_block_;
  // Release: pairs with the acquire loads of the applied id by readers, which then see the block,
  // the entries, the index words and the nodes of the update.
  header.applied_id.store(pending_block_.id, std::memory_order_release);
}

void Applier::apply(const Update& update) {
  const PublishedBlock& current = published();
  if (update.id != current.id + 1) {
    throw Error(ErrorKind::invalid, "update out of order: id=" + std::to_string(update.id) +
                                        " applied_id=" + std::to_string(current.id));
  }
  check_id(update.id);
  pending_block_ = current;
  pending_block_.id = update.id;
  pending_block_.chain = update.chain;
  allocator_.begin_update(update.id);
  point_index_.begin_update();
  key_changes_.clear();
  if (update.erases_all) {
    erase_all();
    // erase() has recorded every key as removed. The key index has none of them any more:
    // erase_all() has dropped the entire tree.
    key_changes_.clear();
  }
  const std::size_t count = update.changes.size();
  hashes_.resize(count);
  for (std::size_t i = 0; i < count; ++i) hashes_[i] = mapping_.hash_of(update.changes[i].key);
  // Only the last change of a key is applied. Otherwise a reader could find the entry of an earlier
  // change, then load the new applied id, and return a value that was never published.
  last_changes_.find(update.changes, hashes_);
  for (std::size_t i = 0; i < std::min(count, prefetch_distance); ++i)
    point_index_.prefetch(hashes_[i]);
  for (std::size_t i = 0; i < std::min(count, entry_prefetch_distance); ++i)
    prefetch_entry(hashes_[i]);
  for (std::size_t i = 0; i < count; ++i) {
    if (i + prefetch_distance < count) point_index_.prefetch(hashes_[i + prefetch_distance]);
    if (i + entry_prefetch_distance < count) prefetch_entry(hashes_[i + entry_prefetch_distance]);
    if (!last_changes_.is_last(i)) continue;
    const Change& change = update.changes[i];
    if (change.kind == Change::Kind::set) {
      set(change.key, change.value, hashes_[i]);
    } else {
      erase(change.key, hashes_[i]);
    }
  }
  update_key_index();
  publish();
}

// Prefetches what set() reads of an old entry: its key, and its value for the digest. If there
// seems to be none, what it will change.
void Applier::prefetch_entry(std::uint64_t hash) const {
  const std::byte* const entry = point_index_.likely_entry(hash);
  if (entry == nullptr) return point_index_.prefetch_filter(hash);
  __builtin_prefetch(entry);
  prefetch_entry_tail(reinterpret_cast<const char*>(entry));
}

void Applier::load(std::span<const Item> items, UpdateId id) {
  check_id(id);
  allocator_.begin_update(id);
  point_index_.begin_update();
  pending_block_.id = id;
  for (const Item& item : items) set(item.key, item.value, mapping_.hash_of(item.key));
  std::vector<std::string_view> keys;
  keys.reserve(items.size());
  for (const Item& item : items) keys.push_back(item.key);
  pending_block_.key_index_root = key_index_.insert_sorted(pending_block_.key_index_root, keys);
  key_changes_.clear();  // filled by set(); the keys are in the tree already
  point_index_.publish_overflow();
}

void Applier::finish_load(UpdateId id, std::uint64_t chain) {
  check_id(id);
  pending_block_.id = id;
  pending_block_.chain = chain;
  publish();
}

void Applier::set(std::string_view key, std::string_view value, std::uint64_t hash) {
  assert(allocator_.update_id() == pending_block_.id);
  clean_if_needed(entry_bytes(key.size(), value.size(), true));
  const std::optional<IndexLocation> location = point_index_.find(hash, key);
  std::uint64_t previous = 0;
  bool was_there = false;
  std::uint64_t old_bytes = 0;
  if (location) {
    const Entry old = point_index_.entry(location->offset);
    // No reader will ever see an entry of this update, which is the mark of erase_all(). Refer to
    // the one before.
    previous = old.id() == pending_block_.id ? old.previous_offset() : location->offset;
    old_bytes = old.bytes();
    was_there = !old.erased();
    if (was_there) {
      Digest digest = digest_of(pending_block_);
      subtract(digest, item_digest(key, old.value()));
      set_digest(pending_block_, digest);
      pending_block_.item_bytes -= old.key_bytes + old.value_bytes;
    }
  }
  const bool wide_or_previous = is_wide_entry(key.size(), value.size()) || previous != 0;
  const std::uint64_t offset = allocator_.allocate_entry(
      entry_bytes(key.size(), value.size(), wide_or_previous), Allocator::EntryOrigin::written);
  write_entry(mapping_.writable_base() + offset, pending_block_.id, false, key, value, previous);
  if (location) {
    point_index_.replace(*location, hash, offset);
    allocator_.retire_entry(location->offset, old_bytes);
  } else {
    point_index_.insert(hash, offset);
  }
  Digest digest = digest_of(pending_block_);
  add(digest, item_digest(key, value));
  set_digest(pending_block_, digest);
  pending_block_.item_bytes += key.size() + value.size();
  if (!was_there) {
    ++pending_block_.item_count;
    key_changes_.push_back({key, true});
  }
}

void Applier::erase(std::string_view key, std::uint64_t hash) {
  assert(allocator_.update_id() == pending_block_.id);
  clean_if_needed(entry_bytes(key.size(), 0, true));
  const std::optional<IndexLocation> location = point_index_.find(hash, key);
  if (!location) return;
  const Entry old = point_index_.entry(location->offset);
  if (old.erased()) return;
  Digest digest = digest_of(pending_block_);
  subtract(digest, item_digest(key, old.value()));
  set_digest(pending_block_, digest);
  pending_block_.item_bytes -= old.key_bytes + old.value_bytes;
  --pending_block_.item_count;
  key_changes_.push_back({key, false});

  const std::uint64_t previous =
      old.id() == pending_block_.id ? old.previous_offset() : location->offset;
  const std::uint64_t offset =
      allocator_.allocate_entry(entry_bytes(key.size(), 0, true), Allocator::EntryOrigin::written);
  write_entry(mapping_.writable_base() + offset, pending_block_.id, true, key, {}, previous);
  point_index_.replace(*location, hash, offset);
  allocator_.retire_entry(location->offset, old.bytes());
}

void Applier::erase_all() {
  // Iterates over the published tree, which erase() does not change.
  BTreeCursor cursor(allocator_);
  for (cursor.seek(pending_block_.key_index_root, {}); !cursor.at_end(); cursor.next())
    erase(cursor.key(), mapping_.hash_of(cursor.key()));
  // Retiring a node writes to its header, so collect the nodes first.
  std::vector<NodeOffset> nodes_to_retire;
  visit_nodes(allocator_, pending_block_.key_index_root,
              [&](NodeOffset offset, std::size_t) { nodes_to_retire.push_back(offset); });
  for (const NodeOffset offset : nodes_to_retire) allocator_.retire_node(offset);
  pending_block_.key_index_root = 0;
}

void Applier::update_key_index() {
  if (key_changes_.empty()) return;  // most updates only replace values
  if (key_changes_.size() == 1) {
    pending_block_.key_index_root =
        key_changes_[0].is_insertion
            ? key_index_.insert(pending_block_.key_index_root, key_changes_[0].key)
            : key_index_.erase(pending_block_.key_index_root, key_changes_[0].key);
    return;
  }
  key_sort_.sort(key_changes_);
  // apply() has made one change per key.
  assert(std::adjacent_find(key_changes_.begin(), key_changes_.end(),
                            [](const KeyChange& a, const KeyChange& b) {
                              return a.key == b.key;
                            }) == key_changes_.end());
  std::vector<std::string_view> inserted;
  for (const KeyChange& change : key_changes_) {
    if (change.is_insertion) {
      inserted.push_back(change.key);
    } else {
      pending_block_.key_index_root = key_index_.erase(pending_block_.key_index_root, change.key);
    }
  }
  if (!inserted.empty())
    pending_block_.key_index_root =
        key_index_.insert_sorted(pending_block_.key_index_root, inserted);
}

void Applier::clean_if_needed(std::uint64_t bytes) {
  if (!allocator_.needs_segment(bytes)) return;
  for (int cleaned = 0; cleaned < cleaned_segments_max; ++cleaned) {
    const std::uint64_t segment = allocator_.cleaning_candidate();
    if (segment == 0) return;
    clean_segment(segment);
  }
}

void Applier::clean_segment(std::uint64_t segment) {
  const UpdateId oldest_visible = allocator_.advance_horizon();
  const std::uint64_t end =
      std::min<std::uint64_t>(allocator_.descriptor(segment).entries.used_bytes, segment_bytes);
  allocator_.begin_cleaning(segment);
  const std::uint64_t first = segment * segment_bytes;
  bool generation_incremented = false;

  // A batch of entries at a time: prefetches all their buckets before it uses the first.
  struct EntryLocation {
    std::uint64_t offset;
    std::uint64_t hash;
  };
  EntryLocation batch[cleaning_batch];
  std::uint64_t within = 0;
  while (within < end) {
    std::size_t count = 0;
    for (; count < cleaning_batch && within < end; ++count) {
      const Entry entry = point_index_.entry(first + within);
      const std::uint64_t bytes = entry.bytes();
      if (entry.key_bytes == 0 || bytes > end - within) {
        throw corrupt_state("entry at offset", first + within);
      }
      batch[count] = {first + within, mapping_.hash_of(entry.key())};
      point_index_.prefetch(batch[count].hash);
      within += bytes;
    }
    for (std::size_t i = 0; i < count; ++i) {
      const std::optional<IndexLocation> location =
          point_index_.find_offset(batch[i].hash, batch[i].offset);
      if (!location) continue;  // garbage
      const Entry entry = point_index_.entry(batch[i].offset);
      const std::uint64_t bytes = entry.bytes();
      if (entry.erased() && entry.id() <= oldest_visible) {
        // No view can see a value of this key any more, so drop the mark too. A point read that
        // began earlier must start again: it might look for the previous version.
        if (!generation_incremented) allocator_.increment_generation();
        generation_incremented = true;
        point_index_.remove(*location, batch[i].hash);
      } else {
        const std::uint64_t copy =
            allocator_.allocate_entry(bytes, Allocator::EntryOrigin::cleaned);
        std::memcpy(mapping_.writable_base() + copy, mapping_.base() + batch[i].offset, bytes);
        point_index_.replace(*location, batch[i].hash, copy);
      }
      allocator_.retire_entry(batch[i].offset, bytes);
    }
  }
  allocator_.retire_segment(segment);
}

}  // namespace whycache
