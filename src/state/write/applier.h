// Applies updates to a writable mapping: entries, point index, key index and digest, and then the
// one store that makes the update visible.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "state/btree/writer.h"
#include "state/file/mapping.h"
#include "state/write/allocator.h"
#include "state/write/key_sort.h"
#include "state/write/point_index.h"
#include "update/last_changes.h"
#include "update/update.h"

namespace whycache {

class Applier {
 public:
  Applier(Mapping& mapping, Readers readers, std::uint64_t bytes_max);

  // Creates an empty state at update 0 in a file whose fixed header is written.
  void create(std::uint64_t chain);

  // Applies update applied_id + 1 and publishes it. Throws Error(invalid) for another id,
  // Error(limit) if the state may not grow, Error(corrupt) if the file is damaged. After an
  // exception nothing of the update is visible, but the file needs recovery (recovery.h) before the
  // next one. The caller therefore leaves Header::writer_active set.
  void apply(const Update& update);

  // Both calls are for a file that no other process can open yet. First, load() adds items in
  // ascending key order, as entries of update `id`. Then finish_load() publishes them as the state
  // at the same `id`.
  void load(std::span<const Item> items, UpdateId id);
  void finish_load(UpdateId id, std::uint64_t chain);

  Allocator& allocator() { return allocator_; }
  PointIndex& point_index() { return point_index_; }
  // Throws Error(corrupt) if the block of the applied id is damaged.
  const PublishedBlock& published() const;

 private:
  // set() and erase() change the point index, and record in key_changes_ whether the key was
  // inserted or removed.
  void set(std::string_view key, std::string_view value, std::uint64_t hash);
  void erase(std::string_view key, std::uint64_t hash);
  // Calls erase() for every key, so it fills key_changes_ too. Then drops the entire key index.
  void erase_all();
  void prefetch_entry(std::uint64_t hash) const;
  // Applies key_changes_ to the key index.
  void update_key_index();
  // The segment cleaner. Runs before the caller looks for the entry of a key, because cleaning
  // moves entries.
  void clean_if_needed(std::uint64_t bytes);
  void clean_segment(std::uint64_t segment);
  void publish();

  Mapping& mapping_;
  Allocator allocator_;
  PointIndex point_index_;
  BTreeWriter key_index_;
  PublishedBlock pending_block_{};  // of the update in progress
  // Keys that the update in progress inserts or removes, at most one change per key. Filled by
  // set() and erase(), used by update_key_index(). The keys point into the update
  // (those that erase_all() records dangle, and are dropped at once).
  std::vector<KeyChange> key_changes_;
  // Kept between updates to reuse their memory.
  std::vector<std::uint64_t> hashes_;  // of the key of each change
  LastChanges last_changes_;
  KeySort key_sort_;
};

}  // namespace whycache
