// Carries updates into a writable mapping: entries, point index, key index, digest, and the one
// store that makes it visible.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "state/btree/writer.h"
#include "state/file/lock_file.h"
#include "state/file/mapping.h"
#include "state/write/allocator.h"
#include "state/write/point_index.h"
#include "update/update.h"

namespace whycache {

class Applier {
 public:
  // `readers` is null for a file that nobody else can open yet.
  Applier(Mapping& mapping, LockFile* readers, std::uint64_t bytes_max);

  // Lays out an empty state at update 0 in a file whose fixed header is written.
  void create(std::uint64_t chain);

  // Applies update applied_id + 1 and publishes it. If an exception leaves it, nothing of the
  // update is visible, and the file has to be recovered before the next one (recovery.h): leave
  // Header::writer_active set.
  void apply(const Update& update);

  // For a file that nobody else can open yet: items in ascending key order, published by loaded().
  void load(std::span<const Item> items, UpdateId id);
  void finish_load(UpdateId id, std::uint64_t chain);

  Allocator& allocator() { return allocator_; }
  PointIndex& point_index() { return point_index_; }
  const PublishedBlock& published() const;

 private:
  void set(std::string_view key, std::string_view value, std::uint64_t hash);
  void erase(std::string_view key, std::uint64_t hash);
  void erase_all();
  void mark_last_change_per_key(std::span<const Change> changes);
  void update_key_index();
  // Wins space back before new entries are written, so that entries do not move under the hands of
  // the caller.
  void clean_if_needed(std::uint64_t bytes);
  void clean_segment(std::uint64_t segment);
  void publish();

  struct KeyChange {
    std::string_view key;
    bool is_insertion;
  };

  Mapping& mapping_;
  Allocator allocator_;
  PointIndex point_index_;
  BTreeWriter key_index_;
  PublishedBlock pending_block_{};      // of the update under way
  std::vector<KeyChange> key_changes_;  // keys that appear or disappear, in order
  std::vector<std::uint64_t> hashes_;
  std::vector<bool> is_last_;  // of each change of an update, whether it is the last one of its key
  std::vector<std::size_t> last_slots_;
  std::vector<NodeOffset> nodes_to_retire_;
};

}  // namespace whycache
