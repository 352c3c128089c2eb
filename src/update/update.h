// The encodings of an update and of a part of a base. Pure functions; all input is untrusted.
// Format, byte by byte, with test vectors: docs/formats/update.md.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/error.h>
#include <whycache/types.h>

namespace whycache {

// Returns chain(0), which depends on the log's uuid. chain(n) depends on chain(n-1) and on every
// other byte of update n, so it ties each update to all before it.
std::uint64_t chain_start(const Uuid& log_uuid);

// The author and time of an update: for people, and to find out whether an append whose answer was
// lost is in the log.
struct Authorship {
  std::int64_t time_us = 0;           // wall clock
  Uuid writer_id{};                   // random, per Cache object
  std::uint64_t writer_sequence = 0;  // counts that writer's updates
  std::string writer_name;            // at most 255 bytes
  std::string note;                   // at most 255 bytes
};

// One decoded update. Keys and values of `changes` point into the decoded bytes or into `storage`.
struct Update {
  UpdateId id = 0;
  std::uint64_t chain = 0;
  bool erases_all = false;  // erases all keys before the changes are applied
  Authorship authorship;
  std::vector<Change> changes;  // in order; of several changes of one key, the last one counts
  std::string storage;          // the decompressed changes, if they were compressed
  std::string_view encoded;     // what it was decoded from
};

// Decodes all of `bytes` into `update`, whose memory it reuses. The keys and values point into
// `bytes` or into update.storage. Throws Error(corrupt) if the bytes are truncated, a length
// exceeds them, a key, a value or the decompressed size is out of bounds, or a version or flag is
// unknown. `update` then has no changes.
void decode_update(std::string_view bytes, Update& update);

// Decodes author and time alone, which takes less time. Throws Error(corrupt).
Authorship decode_authorship(std::string_view bytes);

// Returns the chain of `bytes`. Throws Error(corrupt) unless it is update `id` and follows an
// update with chain `previous_chain`. Checks only version, id and chain; decode_update() may still
// reject it.
std::uint64_t verify_chain(std::string_view bytes, UpdateId id, std::uint64_t previous_chain);

struct UpdateHeader {
  UpdateId id;
  std::uint64_t chain;
};
// Returns id and chain as the bytes state them, or nullopt if the bytes cannot be an update.
std::optional<UpdateHeader> peek_header(std::string_view bytes);

inline bool is_erase(const Change& change) { return change.kind == Change::Kind::erase; }

// An update that has no id yet. It encodes and compresses the changes once. seal() adds id and
// chain, for each attempt to append.
class Draft {
 public:
  // Throws Error(invalid) if writer name or note is too long.
  explicit Draft(const Authorship& authorship, bool erases_all = false);

  // Adds a change. Returns false, and adds nothing, if the sealed update would then exceed
  // `bytes_max` bytes before compression, or 2^20 changes. Throws Error(invalid) if the key is
  // empty or too long, Error(limit) if the value is too large.
  bool add(const Change& change, std::size_t bytes_max);
  // Allocates the memory that add() of these changes takes.
  void reserve(std::span<const Change> changes);
  std::size_t change_count() const { return change_count_; }
  // Returns the current size of the sealed update before compression.
  std::size_t uncompressed_bytes() const;
  // Compresses the changes if it pays. No changes may be added after that.
  void finish();
  // Returns the bytes for the log, valid until the next seal(). Calls finish() first; after that it
  // takes nanoseconds.
  std::string_view seal(UpdateId id, std::uint64_t previous_chain);
  // Decodes what the last seal() returned, as decode_update() does.
  void decode_sealed(Update& update);
  // Returns the chain that the last seal() stored.
  std::uint64_t chain() const { return chain_; }

 private:
  bool erases_all_;
  bool is_finished_ = false;
  std::string fields_;  // after their size
  // While adding; then memory for decode_sealed().
  std::string changes_;
  std::size_t change_count_ = 0;
  std::string sealed_;  // once finished; seal() stores id and chain
  std::uint64_t content_hash_ = 0;
  std::uint64_t chain_ = 0;
};

// A base is a sequence of parts of sorted items; each part stays within a size. This is the summary
// of all parts.
struct BaseInfo {
  UpdateId base = 0;
  std::uint64_t chain = 0;  // of update `base`
  std::uint64_t item_count = 0;
  Digest digest;

  friend bool operator==(const BaseInfo&, const BaseInfo&) = default;
};

// The author and time of a base, for people to read.
struct BaseAuthorship {
  std::int64_t time_us = 0;  // wall clock
  std::string writer_name;   // at most 255 bytes
  std::string note;          // at most 255 bytes

  friend bool operator==(const BaseAuthorship&, const BaseAuthorship&) = default;
};

struct BasePart {
  UpdateId base = 0;
  std::uint64_t number = 0;      // from 0
  std::optional<BaseInfo> last;  // in the last part only: the summary of all parts
  BaseAuthorship authorship;     // in the first part only; empty if an earlier version wrote it
  std::vector<Item> items;       // strictly ascending keys, across parts too
  std::string storage;           // the keys in full, and the values if they were compressed
};

// Decodes one part into `part`, whose memory it reuses, and verifies its checksum. The items point
// into `bytes` or into part.storage. Throws Error(corrupt); `part` then has no items. The caller
// must check that parts follow each other and that keys ascend from one part to the next.
void decode_base_part(std::string_view bytes, BasePart& part);

// Encodes items, in ascending order of their keys, into one part after another.
class BasePartEncoder {
 public:
  // Throws Error(invalid) if writer name or note is too long.
  explicit BasePartEncoder(UpdateId base, const BaseAuthorship& authorship = {});
  // Adds an item. Returns false, and adds nothing, if the part would exceed `bytes_max` bytes
  // before compression: call finish(), then add the item to the next part. The first item of a part
  // always fits. Throws Error(corrupt) if a key or value is out of bounds, or the key does not
  // ascend: such a base could not be read.
  bool add(const Item& item, std::size_t bytes_max);
  bool empty() const { return item_count_ == 0; }
  // Returns the bytes of this part, valid until the next call, and starts the next part.
  std::string_view finish(const std::optional<BaseInfo>& last);

 private:
  UpdateId base_;
  std::string authorship_fields_;  // of the first part
  std::uint64_t number_ = 0;
  // The part that is being encoded:
  std::uint64_t item_count_ = 0;
  std::uint64_t key_bytes_ = 0;  // in full
  std::string items_;

  std::string previous_key_;  // of this part or the previous one
  std::string encoded_part_;
};

}  // namespace whycache
