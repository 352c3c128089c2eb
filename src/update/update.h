// The bytes of one update, and of one part of a base. Pure functions; they believe nothing they
// read. Format, byte by byte, with test vectors: docs/formats/update.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/error.h>
#include <whycache/types.h>

namespace whycache {

// Ties each update to all before it: chain(0) comes from the log's uuid, chain(n) from chain(n-1)
// and every other byte of update n.
std::uint64_t chain_start(const Uuid& log_uuid);

// Who wrote an update, and when: for people, and for finding out whether a lost answer meant a lost
// update.
struct Authorship {
  std::int64_t time_us = 0;           // wall clock
  Uuid writer_id{};                   // random, per Cache object
  std::uint64_t writer_sequence = 0;  // counts that writer's updates
  std::string writer_name;            // at most 255 bytes
  std::string note;                   // at most 255 bytes
};

// One decoded update. Keys and values of `changes` lie in the decoded bytes or in `storage`.
struct Update {
  UpdateId id = 0;
  std::uint64_t chain = 0;
  bool erases_all = false;  // before the changes, everything there was is erased
  Authorship authorship;
  std::vector<Change> changes;  // in the order written; a key may come twice: the last one counts
  std::string storage;          // the decompressed changes, if they were compressed
};

// Decodes `bytes` into `update` (reused, so that its memory is), all of it before anything is
// believed. The keys and values point into `bytes` or into update.storage. Throws Error corrupt:
// cut short, lengths beyond the end, key or value out of bounds, more bytes than there can be when
// decompressed, unknown version or flag; `update` has no changes then.
void decode_update(std::string_view bytes, Update& update);

// Throws Error corrupt unless `bytes` is update `id` and follows an update with chain
// `previous_chain`. Checks version, id and chain only; decode_update() may still refuse it. Returns
// its chain.
std::uint64_t verify_chain(std::string_view bytes, UpdateId id, std::uint64_t previous_chain);

// Id and chain as they stand in the bytes; nullopt if these cannot be an update.
struct UpdateHeader {
  UpdateId id;
  std::uint64_t chain;
};
std::optional<UpdateHeader> peek_header(std::string_view bytes);

// An update before it has a place in the log: the changes are encoded (and compressed) once, and
// sealed with an id and the chain each time an append is tried.
class Draft {
 public:
  // Throws Error invalid if writer name or note are too long.
  explicit Draft(const Authorship& authorship, bool erases_all = false);

  // Adds a change if the sealed update then has at most `bytes_max` bytes before compression; else
  // returns false and is unchanged. Throws Error invalid for an empty or too long key, limit for a
  // value too large. An update also has room for no more than 2^20 changes.
  bool add(const Change& change, std::size_t bytes_max);
  std::size_t change_count() const { return change_count_; }
  // How long the sealed update would be now, before compression.
  std::size_t uncompressed_bytes() const;
  // Compresses what was added if it pays. No more changes may be added.
  void finish();
  // The bytes for the log; finishes first. Valid until the next seal(). Costs nanoseconds once
  // finished.
  std::string_view seal(UpdateId id, std::uint64_t previous_chain);
  // The chain seal() put in last.
  std::uint64_t chain() const { return chain_; }

 private:
  bool erases_all_;
  bool is_finished_ = false;
  std::string fields_;   // with its size
  std::string changes_;  // while adding
  std::size_t change_count_ = 0;
  std::string sealed_;  // once finished; seal() fills in id and chain
  std::uint64_t content_hash_ = 0;
  std::uint64_t chain_ = 0;
};

// A base is a sequence of parts: sorted items, cut so that each part stays within a size.
struct BaseInfo {
  UpdateId base = 0;
  std::uint64_t chain = 0;  // of update `base`
  std::uint64_t item_count = 0;
  Digest digest;

  friend bool operator==(const BaseInfo&, const BaseInfo&) = default;
};

struct BasePart {
  UpdateId base = 0;
  std::uint64_t number = 0;      // from 0
  std::optional<BaseInfo> last;  // in the last part only: what all parts together must amount to
  std::vector<Item> items;       // strictly ascending keys, across parts too
  std::string storage;           // the keys in full, and the values if they were compressed
};

// Decodes and verifies one part (each carries a checksum) into `part` (reused, so that its memory
// is). The items point into `bytes` or into part.storage. Throws Error corrupt; `part` has no items
// then. That part follows part, and that the keys ascend from one to the next, is for the caller to
// check.
void decode_base_part(std::string_view bytes, BasePart& part);

// Collects items, in ascending key order, into one part after another.
class BasePartEncoder {
 public:
  explicit BasePartEncoder(UpdateId base) : base_(base) {}
  // False: this part is full (it would pass `bytes_max` before compression), nothing added; take
  // finish() and go on with the next. The first item of a part always fits. Throws Error corrupt
  // for a key or value out of bounds or a key that does not come after the one before: such a base
  // could not be read again.
  bool add(const Item& item, std::size_t bytes_max);
  bool empty() const { return item_count_ == 0; }
  // The bytes of this part, valid until the next call; the encoder is ready for the next part then.
  std::string_view finish(const std::optional<BaseInfo>& last);

 private:
  UpdateId base_;
  std::uint64_t number_ = 0;
  std::uint64_t item_count_ = 0;  // of this part, like the next two
  std::uint64_t key_bytes_ = 0;   // in full
  std::string items_;
  std::string previous_key_;  // of this part or the one before
  std::string encoded_part_;
};

}  // namespace whycache
