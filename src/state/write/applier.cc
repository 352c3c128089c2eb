#include "state/write/applier.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "state/index/lookup.h"

namespace whycache {
namespace {

// How far ahead of the change being applied the memory it will touch is asked for.
constexpr std::size_t prefetch_distance = 12;
constexpr int clear_at_once_max = 8;

Digest digest_of(const PublishedBlock& block) { return {block.digest_low, block.digest_high}; }

void set_digest(PublishedBlock& block, const Digest& digest) {
  block.digest_low = digest.low;
  block.digest_high = digest.high;
}

// `previous`: offset of the version before, 0 if there is none.
void write_entry(std::byte* to, UpdateId id, bool erased, std::string_view key, std::string_view value,
                 std::uint64_t previous) {
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
    throw Error(ErrorKind::limit,
                "a state cannot hold an update of this id: id=" + std::to_string(id) +
                    " id_max=" + std::to_string(state_update_id_max) +
                    " (put its items into a new log: whycache scan --json | whycache import --log NEW -)");
  }
}

}  // namespace

Applier::Applier(Mapping& mapping, LockFile* readers, std::uint64_t bytes_max)
    : mapping_(mapping), arena_(mapping, readers, bytes_max), index_(arena_), keys_(arena_) {}

const PublishedBlock& Applier::published() const {
  const Header& header = mapping_.header();
  const PublishedBlock& block =
      header.published[header.applied_id.load(std::memory_order_relaxed) % published_block_count];
  if (block.checksum != block.expected_checksum()) {
    throw Error(ErrorKind::corrupt, "state file damaged: published block of update=" +
                                        std::to_string(header.applied_id.load(std::memory_order_relaxed)) +
                                        " (delete the state file)");
  }
  return block;
}

void Applier::create(std::uint64_t chain) {
  Header& header = mapping_.writable_header();
  header.books.segment_count = 1;
  arena_.descriptor(0).kind = SegmentKind::table;
  header.file_bytes.store(mapping_.usable_bytes(), std::memory_order_relaxed);
  arena_.begin_update(0);
  arena_.grow(4);
  index_.create();
  next_ = PublishedBlock{};
  next_.chain = chain;
  publish();
}

void Applier::publish() {
  Header& header = mapping_.writable_header();
  next_.checksum = next_.expected_checksum();
  // Pairs with the acquire fence of read_published(): who sees the block written over sees that the updates since were
  // published.
  std::atomic_thread_fence(std::memory_order_release);
  header.published[next_.id % published_block_count] = next_;
  // Everything of the update is written; from here on it is what readers see.
  header.applied_id.store(next_.id, std::memory_order_release);
}

void Applier::apply(const Update& update) {
  const PublishedBlock& current = published();
  if (update.id != current.id + 1) {
    throw Error(ErrorKind::invalid,
                "update out of order: id=" + std::to_string(update.id) + " applied_id=" + std::to_string(current.id));
  }
  check_id(update.id);
  next_ = current;
  next_.id = update.id;
  next_.chain = update.chain;
  arena_.begin_update(update.id);
  moves_.clear();
  if (update.erases_all) {
    erase_everything();
    moves_.clear();
  }
  const std::size_t count = update.changes.size();
  hashes_.resize(count);
  for (std::size_t i = 0; i < count; ++i) hashes_[i] = mapping_.hash_of(update.changes[i].key);
  find_what_counts(update.changes);
  for (std::size_t i = 0; i < std::min(count, prefetch_distance); ++i) index_.prefetch(hashes_[i]);
  for (std::size_t i = 0; i < count; ++i) {
    if (i + prefetch_distance < count) index_.prefetch(hashes_[i + prefetch_distance]);
    if (!counts_[i]) continue;
    const Change& change = update.changes[i];
    if (change.kind == Change::Kind::set) {
      set(change.key, change.value, hashes_[i]);
    } else {
      erase(change.key, hashes_[i]);
    }
  }
  carry_keys_over();
  publish();
}

// Of several changes of one key the last one counts, and only that is made: a reader that found what the first made
// just before it was replaced would take it for a value that was published.
void Applier::find_what_counts(std::span<const Change> changes) {
  const std::size_t count = changes.size();
  counts_.assign(count, true);
  if (count < 2) return;
  const std::size_t places = std::bit_ceil(count * 2);
  later_.assign(places, 0);  // by hash: 1 + which change, or 0
  for (std::size_t i = count; i-- > 0;) {
    std::size_t place = hashes_[i] & (places - 1);
    for (; later_[place] != 0; place = (place + 1) & (places - 1)) {
      const std::size_t other = later_[place] - 1;
      if (hashes_[other] != hashes_[i] || changes[other].key != changes[i].key) continue;
      counts_[i] = false;
      break;
    }
    if (counts_[i]) later_[place] = i + 1;
  }
}

void Applier::load(std::span<const Item> items, UpdateId id) {
  arena_.begin_update(id);
  next_.id = id;
  for (const Item& item : items) set(item.key, item.value, mapping_.hash_of(item.key));
  std::vector<std::string_view> keys;
  keys.reserve(items.size());
  for (const Item& item : items) keys.push_back(item.key);
  next_.keys_root = keys_.insert_sorted(next_.keys_root, keys);
  moves_.clear();
}

void Applier::loaded(UpdateId id, std::uint64_t chain) {
  check_id(id);
  next_.id = id;
  next_.chain = chain;
  publish();
}

void Applier::set(std::string_view key, std::string_view value, std::uint64_t hash) {
  make_room(entry_bytes(key.size(), value.size(), true));
  IndexWord* const word = index_.find(hash, key);
  std::uint64_t previous = 0;
  bool was_there = false;
  std::uint64_t old_offset = 0;
  std::uint64_t old_bytes = 0;
  if (word != nullptr) {
    old_offset = word_offset(word->load(std::memory_order_relaxed));
    const Entry old = index_.entry(old_offset);
    // A version of this very update was made by one that erases everything, and is nothing anybody will ever see.
    previous = old.id() == next_.id ? old.previous() : old_offset;
    old_bytes = old.bytes();
    was_there = !old.erased();
    if (was_there) {
      Digest digest = digest_of(next_);
      subtract(digest, item_digest(key, old.value()));
      set_digest(next_, digest);
      next_.item_bytes -= old.key_bytes + old.value_bytes;
    }
  }
  const bool wide_or_previous = is_wide_entry(key.size(), value.size()) || previous != 0;
  const std::uint64_t offset = arena_.allocate_entry(entry_bytes(key.size(), value.size(), wide_or_previous), false);
  write_entry(mapping_.writable_base() + offset, next_.id, false, key, value, previous);
  if (word != nullptr) {
    PointIndex::replace(*word, offset);
    arena_.entry_died(old_offset, old_bytes);
  } else {
    index_.insert(hash, offset);
  }
  Digest digest = digest_of(next_);
  add(digest, item_digest(key, value));
  set_digest(next_, digest);
  next_.item_bytes += key.size() + value.size();
  if (!was_there) {
    ++next_.item_count;
    moves_.push_back({key, true});
  }
}

void Applier::erase(std::string_view key, std::uint64_t hash) {
  make_room(entry_bytes(key.size(), 0, true));
  IndexWord* const word = index_.find(hash, key);
  if (word == nullptr) return;
  const std::uint64_t old_offset = word_offset(word->load(std::memory_order_relaxed));
  const Entry old = index_.entry(old_offset);
  if (old.erased()) return;
  Digest digest = digest_of(next_);
  subtract(digest, item_digest(key, old.value()));
  set_digest(next_, digest);
  next_.item_bytes -= old.key_bytes + old.value_bytes;
  --next_.item_count;
  moves_.push_back({key, false});

  const std::uint64_t previous = old.id() == next_.id ? old.previous() : old_offset;
  const std::uint64_t offset = arena_.allocate_entry(entry_bytes(key.size(), 0, true), false);
  write_entry(mapping_.writable_base() + offset, next_.id, true, key, {}, previous);
  PointIndex::replace(*word, offset);
  arena_.entry_died(old_offset, old.bytes());
}

void Applier::erase_everything() {
  // The keys are taken from the tree as it was published; it stands still while the entries go.
  KeysCursor cursor(arena_);
  for (cursor.seek(next_.keys_root, {}); !cursor.at_end(); cursor.next())
    erase(cursor.key(), mapping_.hash_of(cursor.key()));
  visit_nodes(arena_, next_.keys_root, [this](NodeOffset offset, std::size_t) { moved_nodes_.push_back(offset); });
  for (const NodeOffset offset : moved_nodes_) arena_.retire(offset);
  moved_nodes_.clear();
  next_.keys_root = 0;
}

void Applier::carry_keys_over() {
  if (moves_.empty()) return;
  if (moves_.size() == 1) {
    next_.keys_root =
        moves_[0].appears ? keys_.insert(next_.keys_root, moves_[0].key) : keys_.erase(next_.keys_root, moves_[0].key);
    return;
  }
  // A key appears and disappears by turns, so what it does first and last says what it did in all.
  std::stable_sort(moves_.begin(), moves_.end(), [](const KeyMove& a, const KeyMove& b) { return a.key < b.key; });
  std::vector<std::string_view> appeared;
  for (auto begin = moves_.begin(); begin != moves_.end();) {
    const auto end = std::find_if(begin, moves_.end(), [&](const KeyMove& move) { return move.key != begin->key; });
    const bool net = begin->appears == (end - 1)->appears;
    if (net && begin->appears) appeared.push_back(begin->key);
    if (net && !begin->appears) next_.keys_root = keys_.erase(next_.keys_root, begin->key);
    begin = end;
  }
  if (!appeared.empty()) next_.keys_root = keys_.insert_sorted(next_.keys_root, appeared);
}

void Applier::make_room(std::uint64_t bytes) {
  if (!arena_.needs_segment(bytes)) return;
  for (int cleared = 0; cleared < clear_at_once_max; ++cleared) {
    const std::uint64_t segment = arena_.sparse_segment();
    if (segment == 0) return;
    clear_segment(segment);
  }
}

void Applier::clear_segment(std::uint64_t segment) {
  const UpdateId visible = arena_.visible_from();
  const std::uint64_t end = std::min<std::uint64_t>(arena_.descriptor(segment).used, segment_bytes);
  arena_.begin_clearing(segment);
  const std::uint64_t first = segment * segment_bytes;
  bool raised = false;

  // A few entries at a time: their buckets are asked for together, then looked at.
  struct Place {
    std::uint64_t offset;
    std::uint64_t hash;
  };
  Place places[prefetch_distance];
  std::uint64_t within = 0;
  while (within < end) {
    std::size_t count = 0;
    for (; count < prefetch_distance && within < end; ++count) {
      const Entry entry = index_.entry(first + within);
      const std::uint64_t bytes = entry.bytes();
      if (entry.key_bytes == 0 || bytes > end - within) {
        throw Error(ErrorKind::corrupt, "state file damaged: entry at offset=" + std::to_string(first + within) +
                                            " (delete the state file)");
      }
      places[count] = {first + within, mapping_.hash_of(entry.key())};
      index_.prefetch(places[count].hash);
      within += bytes;
    }
    for (std::size_t i = 0; i < count; ++i) {
      IndexWord* const word = index_.find_offset(places[i].hash, places[i].offset);
      if (word == nullptr) continue;
      const Entry entry = index_.entry(places[i].offset);
      const std::uint64_t bytes = entry.bytes();
      if (entry.erased() && entry.id() <= visible) {
        // Everybody sees the key gone already, so that its last trace may go. A point read that began earlier has to
        // begin again: it might look for the version before.
        if (!raised) arena_.raise_generation();
        raised = true;
        index_.remove(*word);
      } else {
        const std::uint64_t copy = arena_.allocate_entry(bytes, true);
        std::memcpy(mapping_.writable_base() + copy, mapping_.base() + places[i].offset, bytes);
        PointIndex::replace(*word, copy);
      }
      arena_.entry_died(places[i].offset, bytes);
    }
  }
  arena_.retire_segment(segment);
}

}  // namespace whycache
