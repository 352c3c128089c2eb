#include "state/verify.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "state/btree/check.h"
#include "state/btree/cursor.h"
#include "state/btree/mapped_nodes.h"
#include "state/index/batch_lookup.h"
#include "state/index/lookup.h"
#include "state/overflow.h"

namespace whycache {
namespace {

constexpr std::size_t faults_max = 20;
constexpr std::uint64_t progress_interval = 65536;
// Entries are prefetched this many words ahead.
constexpr std::uint64_t prefetch_words = 64;
// Keys whose entries are prefetched together.
constexpr std::size_t keys_at_once = 32;

// Loads of index words are relaxed: no process writes meanwhile.
class StateVerifier {
 public:
  StateVerifier(const Mapping& mapping,
                const std::function<void(std::uint64_t, std::uint64_t)>& progress)
      : mapping_(mapping),
        bytes_(mapping),
        progress_(progress),
        applied_id_(mapping.header().applied_id.load(std::memory_order_acquire)),
        block_(mapping.header().published[applied_id_ % published_block_count]) {}

  std::vector<std::string> run(bool with_allocator_state) {
    const Header& header = mapping_.header();
    if (const std::string fault = header_fault(header.fixed); !fault.empty()) {
      report(fault);
      return faults_;
    }
    if (block_.checksum != block_.expected_checksum() || block_.id != applied_id_) {
      report("published block is not of the applied id: applied_id=" + std::to_string(applied_id_));
      return faults_;
    }
    const std::uint64_t file_bytes = header.file_bytes.load(std::memory_order_relaxed);
    if (file_bytes > mapping_.usable_bytes()) {
      report("file cut short: file_bytes=" + std::to_string(file_bytes) +
             " found=" + std::to_string(mapping_.usable_bytes()));
      return faults_;
    }
    live_.assign(mapping_.usable_bytes() / segment_bytes, 0);
    if (verify_index() && verify_keys() && with_allocator_state) verify_allocator_state();
    return faults_;
  }

 private:
  // Returns false if there are enough faults: the caller gives up.
  bool report(const std::string& fault) {
    if (faults_.size() < faults_max) faults_.push_back(fault);
    return faults_.size() < faults_max;
  }

  void advance_progress() {
    if (++steps_done_ % progress_interval == 0 && progress_)
      progress_(steps_done_, 2 * block_.item_count);
  }

  // --- The point index. Each function returns false if continuing is pointless. ---

  bool verify_index() {
    const std::uint64_t word = mapping_.header().index_directory.load(std::memory_order_acquire);
    if (!is_index_directory_within(word, mapping_.usable_bytes())) {
      report("index directory out of bounds: word=" + std::to_string(word));
      return false;
    }
    const unsigned depth = global_depth(word);
    const auto* const slots = bytes_.at<IndexWord>(index_directory_offset(word));
    std::unordered_set<std::uint64_t> seen;
    for (std::uint64_t slot = 0; slot < std::uint64_t{1} << depth;) {
      const std::uint64_t page_word = slots[slot].load(std::memory_order_relaxed);
      if (!verify_directory_word(page_word, slots, slot, depth, seen) ||
          !verify_page(page_word, slot >> (depth - local_depth(page_word)), depth))
        return false;
      slot += std::uint64_t{1} << (depth - local_depth(page_word));
    }
    if (!verify_overflow()) return false;
    compare_totals();
    return true;
  }

  // --- The overflow tree ---

  bool verify_overflow() {
    const MappedNodes nodes(mapping_);
    const NodeOffset root = mapping_.header().overflow_root.load(std::memory_order_acquire);
    try {
      visit_nodes(nodes, root,
                  [this](NodeOffset offset, std::size_t) { ++live_.at(offset / segment_bytes); });
      BTreeCursor cursor(nodes);
      for (cursor.seek(root, {}); !cursor.at_end(); cursor.next()) {
        const std::optional<OverflowRecord> record = decode_overflow_record(cursor.key());
        if (!record) {
          if (!report("overflow record of a wrong form: bytes=" +
                      std::to_string(cursor.key().size())))
            return false;
        } else if (!verify_record(*record)) {
          return false;
        }
      }
    } catch (const std::exception& error) {
      report(error.what());
      return false;
    }
    return true;
  }

  bool verify_record(const OverflowRecord& record) {
    Entry entry;
    if (!bytes_.load_entry(record.offset, entry) || entry.key() != record.key ||
        mapping_.hash_of(record.key) != record.hash) {
      return report("overflow record is not of its key: offset=" + std::to_string(record.offset));
    }
    const std::uint64_t directory =
        mapping_.header().index_directory.load(std::memory_order_acquire);
    const unsigned depth = global_depth(directory);
    const std::uint64_t page_word = bytes_
                                        .at<IndexWord>(index_directory_offset(
                                            directory))[index_directory_slot(record.hash, depth)]
                                        .load(std::memory_order_relaxed);
    const std::uint64_t home = home_bucket(record.hash);
    const auto* const filter = bytes_.at<FilterWord>(index_page_filter_offset(page_word));
    const std::uint32_t bits = filter_bits(tag_of(record.hash));
    if ((filter[home].load(std::memory_order_relaxed) & bits) != bits &&
        !report("key missing from its filter: offset=" + std::to_string(record.offset))) {
      return false;
    }
    const auto* const words = bytes_.at<IndexWord>(index_page_offset(page_word));
    if (!verify_probe_path(words, home, (home + displacement_max + 1) & (index_page_buckets - 1),
                           record.offset))
      return false;
    // Finds the key in the buckets only.
    if (look_up(bytes_, words, record.hash, record.key, applied_id_).status !=
        LookupStatus::overflow) {
      return report("key in an index page and in the overflow tree: offset=" +
                    std::to_string(record.offset));
    }
    if (entry.id() > applied_id_) {
      return report("entry newer than the applied id: offset=" + std::to_string(record.offset) +
                    " id=" + std::to_string(entry.id()));
    }
    count_entry(entry, record.offset);
    return true;
  }

  // --- Index pages ---

  // Checks the word at `slot`, the first of the slots that name its page. `seen`: offsets of the
  // pages and filters of the slots before.
  bool verify_directory_word(std::uint64_t word, const IndexWord* slots, std::uint64_t slot,
                             unsigned depth, std::unordered_set<std::uint64_t>& seen) {
    const std::uint64_t page = index_page_offset(word);
    const unsigned local = local_depth(word);
    if (local > depth || page == 0 || !bytes_.contains(page, segment_bytes) ||
        !seen.insert(page).second) {
      report("index page out of bounds or twice: slot=" + std::to_string(slot) +
             " word=" + std::to_string(word));
      return false;
    }
    const std::uint64_t count = std::uint64_t{1} << (depth - local);
    if (slot % count != 0) {
      report("index page at a wrong slot: slot=" + std::to_string(slot));
      return false;
    }
    for (std::uint64_t i = slot; i < slot + count; ++i) {
      if (slots[i].load(std::memory_order_relaxed) != word) {
        report("index directory torn: slot=" + std::to_string(i));
        return false;
      }
    }
    const std::uint64_t filter = index_page_filter_offset(word);
    if (filter < segment_bytes || !bytes_.contains(filter, filter_bytes) ||
        !seen.insert(filter).second) {
      report("index filter out of bounds or twice: slot=" + std::to_string(slot) +
             " word=" + std::to_string(word));
      return false;
    }
    ++live_[filter / segment_bytes];
    filter_bits_[filter / segment_bytes] |= filter_bit(filter);
    return true;
  }

  // `prefix`: the first bits of the hash of each key in the page, as many as its local depth.
  bool verify_page(std::uint64_t page_word, std::uint64_t prefix, unsigned depth) {
    const std::uint64_t offset = index_page_offset(page_word);
    const auto* const words = bytes_.at<IndexWord>(offset);
    std::uint32_t live = 0;
    for (std::uint64_t i = 0; i < index_page_words; ++i) {
      if (i + prefetch_words < index_page_words) {
        const std::uint64_t ahead =
            word_offset(words[i + prefetch_words].load(std::memory_order_relaxed));
        if (bytes_.contains(ahead, 64)) __builtin_prefetch(bytes_.at<char>(ahead));
      }
      const std::uint64_t word = words[i].load(std::memory_order_relaxed);
      if (i % bucket_words != 0 && word != empty_word &&
          words[i - 1].load(std::memory_order_relaxed) == empty_word &&
          !report("index word behind an empty one of its bucket: page=" + std::to_string(offset) +
                  " word=" + std::to_string(i))) {
        return false;
      }
      if (!holds_entry(word)) continue;
      ++live;
      if (!verify_entry(page_word, i, prefix, depth)) return false;
    }
    live_[offset / segment_bytes] = live;
    return true;
  }

  // The entry that word `i` of the page refers to.
  bool verify_entry(std::uint64_t page_word, std::uint64_t i, std::uint64_t prefix,
                    unsigned depth) {
    const auto* const words = bytes_.at<IndexWord>(index_page_offset(page_word));
    const std::uint64_t word = words[i].load(std::memory_order_relaxed);
    const std::uint64_t offset = word_offset(word);
    Entry entry;
    if (offset % 8 != 0 || !bytes_.load_entry(offset, entry) || entry.key_bytes == 0 ||
        entry.key_bytes > key_bytes_max) {
      return report("entry out of bounds: offset=" + std::to_string(offset));
    }
    const std::uint64_t hash = mapping_.hash_of(entry.key());
    const std::uint64_t bucket = i / bucket_words;
    const std::uint64_t home = home_bucket(hash);
    if (tag_of(hash) != word_tag(word) ||
        ((bucket - home) & (index_page_buckets - 1)) != word_displacement(word) ||
        index_directory_slot(hash, depth) >> (depth - local_depth(page_word)) != prefix) {
      return report("index word is not of its key: offset=" + std::to_string(offset));
    }
    const auto* const filter = bytes_.at<FilterWord>(index_page_filter_offset(page_word));
    const std::uint32_t bits = filter_bits(word_tag(word));
    if ((filter[home].load(std::memory_order_relaxed) & bits) != bits &&
        !report("key missing from its filter: offset=" + std::to_string(offset))) {
      return false;
    }
    if (!verify_probe_path(words, home, bucket, offset)) return false;
    if (entry.id() > applied_id_) {
      return report("entry newer than the applied id: offset=" + std::to_string(offset) +
                    " id=" + std::to_string(entry.id()));
    }
    count_entry(entry, offset);
    return true;
  }

  // A lookup stops at the first bucket with an empty word: between home and the entry is none.
  bool verify_probe_path(const IndexWord* words, std::uint64_t home, std::uint64_t bucket,
                         std::uint64_t offset) {
    for (std::uint64_t between = home; between != bucket;
         between = (between + 1) & (index_page_buckets - 1)) {
      for (std::uint64_t k = 0; k < bucket_words; ++k) {
        if (words[between * bucket_words + k].load(std::memory_order_relaxed) == empty_word &&
            !report("index word behind an empty one: offset=" + std::to_string(offset))) {
          return false;
        }
      }
    }
    return true;
  }

  void count_entry(const Entry& entry, std::uint64_t offset) {
    const std::uint64_t bytes = entry.bytes();
    live_[offset / segment_bytes] += is_large_entry(bytes) ? 1 : static_cast<std::uint32_t>(bytes);
    if (!entry.erased()) {
      ++live_item_count_;
      item_bytes_ += entry.key_bytes + entry.value_bytes;
      add(digest_, item_digest(entry.key(), entry.value()));
    }
    advance_progress();
  }

  void compare_totals() {
    if (live_item_count_ != block_.item_count) {
      report("items in the index=" + std::to_string(live_item_count_) +
             " published=" + std::to_string(block_.item_count));
    }
    if (item_bytes_ != block_.item_bytes) {
      report("bytes of items in the index=" + std::to_string(item_bytes_) +
             " published=" + std::to_string(block_.item_bytes));
    }
    const Digest published{block_.digest_low, block_.digest_high};
    if (digest_ != published)
      report("digest=" + to_string(digest_) + " published=" + to_string(published));
  }

  // --- The key index ---

  // The tree is in order, it has as many keys as there are items, and the point index finds each:
  // so both indexes hold the same keys.
  bool verify_keys() {
    const MappedNodes nodes(mapping_);
    try {
      const BTreeShape shape = visit_nodes(
          nodes, block_.key_index_root,
          [this](NodeOffset offset, std::size_t) { ++live_.at(offset / segment_bytes); });
      if (shape.key_count != block_.item_count) {
        report("keys in the key index=" + std::to_string(shape.key_count) +
               " published items=" + std::to_string(block_.item_count));
      }
      BTreeCursor cursor(nodes);
      cursor.seek(block_.key_index_root, {});
      for (std::vector<std::string_view> keys; cursor.next_batch(keys, keys_at_once) > 0;) {
        prefetch(keys);
        for (const std::string_view key : keys) {
          if (!verify_key(key)) return false;
        }
      }
    } catch (const Error& error) {
      report(error.what());
      return false;
    }
    return true;
  }

  // Returns false if there are enough faults.
  bool verify_key(std::string_view key) {
    const LookupStatus status =
        look_up_everywhere(mapping_, mapping_.hash_of(key), key, applied_id_).status;
    if (status != LookupStatus::found &&
        !report("key of the key index not found in the point index: key_bytes=" +
                std::to_string(key.size()))) {
      return false;
    }
    advance_progress();
    return true;
  }

  // Neighbours in the key index are anywhere in the point index, so each would take two cache
  // misses. The misses of several keys overlap.
  void prefetch(const std::vector<std::string_view>& keys) const {
    const DirectoryCache* const cache =
        mapping_.directory_cache(mapping_.header().index_directory.load(std::memory_order_acquire));
    if (cache == nullptr) return;
    BatchedLookup lookups[keys_at_once];
    for (std::size_t i = 0; i < keys.size(); ++i) lookups[i].find_bucket(*cache, keys[i]);
    for (std::size_t i = 0; i < keys.size(); ++i) lookups[i].find_entry(*cache);
  }

  // --- The allocator state ---

  void verify_allocator_state() {
    const std::uint64_t count =
        std::min<std::uint64_t>(mapping_.header().allocator_state.segment_count, live_.size());
    for (const auto& [segment, bits] : filter_bits_) {
      const auto& descriptor = *bytes_.at<SegmentDescriptor>(descriptor_offset(segment));
      const std::uint32_t in_use = descriptor.filters.in_use_bits;
      const bool is_recorded =
          segment < count && descriptor.kind == SegmentKind::filters && (in_use & bits) == bits &&
          descriptor.filters.live == static_cast<std::uint32_t>(std::popcount(in_use));
      if (!is_recorded &&
          !report("index filter not recorded: segment=" + std::to_string(segment) +
                  " recorded=" + std::to_string(in_use) + " found=" + std::to_string(bits))) {
        return;
      }
    }
    for (std::uint64_t segment = 0; segment < count; ++segment) {
      const auto& descriptor = *bytes_.at<SegmentDescriptor>(descriptor_offset(segment));
      if (!is_live_count_right(descriptor, live_[segment]) &&
          !report("segment accounting: segment=" + std::to_string(segment) +
                  " kind=" + std::to_string(static_cast<int>(descriptor.kind)) + " recorded=" +
                  std::to_string(descriptor.live()) + " found=" + std::to_string(live_[segment]))) {
        return;
      }
    }
  }

  static bool is_live_count_right(const SegmentDescriptor& descriptor, std::uint32_t found) {
    switch (descriptor.kind) {
      case SegmentKind::entries:
      case SegmentKind::large:
      case SegmentKind::index_page: return descriptor.live() == found;
      // Retired nodes and filters count as live until no reader can reach them.
      case SegmentKind::nodes:
      case SegmentKind::filters: return descriptor.live() >= found;
      default: return found == 0;
    }
  }

  const Mapping& mapping_;
  MappedBytes bytes_;
  const std::function<void(std::uint64_t, std::uint64_t)>& progress_;
  UpdateId applied_id_;
  PublishedBlock block_;
  std::vector<std::string> faults_;
  // By segment: what SegmentDescriptor::live() should be.
  std::vector<std::uint32_t> live_;
  // By segment, of those that have filters: what FilterCounts::in_use_bits should contain.
  std::unordered_map<std::uint64_t, std::uint32_t> filter_bits_;
  std::uint64_t live_item_count_ = 0;
  std::uint64_t item_bytes_ = 0;
  Digest digest_;
  std::uint64_t steps_done_ = 0;
};

}  // namespace

std::vector<std::string> verify(const Mapping& mapping, bool with_allocator_state,
                                const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  return StateVerifier(mapping, progress).run(with_allocator_state);
}

}  // namespace whycache
