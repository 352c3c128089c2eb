#include "state/verify.h"

#include <algorithm>
#include <bit>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "state/btree/check.h"
#include "state/btree/cursor.h"
#include "state/btree/mapped_nodes.h"
#include "state/index/lookup.h"

namespace whycache {
namespace {

constexpr std::size_t faults_max = 20;
constexpr std::uint64_t progress_interval = 65536;

class StateVerifier {
 public:
  StateVerifier(const Mapping& mapping,
                const std::function<void(std::uint64_t, std::uint64_t)>& progress)
      : mapping_(mapping),
        bytes_(mapping),
        progress_(progress),
        applied_id_(mapping.header().applied_id.load(std::memory_order_acquire)),
        block_(mapping.header().published[applied_id_ % published_block_count]) {}

  std::vector<std::string> run(bool books) {
    const Header& header = mapping_.header();
    if (const std::string fault = header_fault(header.fixed); !fault.empty()) {
      report(fault);
      return faults_;
    }
    if (block_.checksum != block_.expected_checksum() || block_.id != applied_id_) {
      report("published block does not fit: applied_id=" + std::to_string(applied_id_));
      return faults_;
    }
    if (header.file_bytes.load(std::memory_order_relaxed) > mapping_.usable_bytes()) {
      report("file cut short: file_bytes=" +
             std::to_string(header.file_bytes.load(std::memory_order_relaxed)) +
             " found=" + std::to_string(mapping_.usable_bytes()));
      return faults_;
    }
    live_.assign(mapping_.usable_bytes() / segment_bytes, 0);
    if (verify_index() && verify_keys() && books) verify_allocator_state();
    return faults_;
  }

 private:
  bool report(const std::string& fault) {
    if (faults_.size() < faults_max) faults_.push_back(fault);
    return faults_.size() < faults_max;
  }

  void advance_progress() {
    if (++steps_done_ % progress_interval == 0 && progress_)
      progress_(steps_done_, 2 * block_.item_count);
  }

  // The directory, every part, every word, every entry. False: there is no point in going on.
  bool verify_index() {
    const std::uint64_t word = mapping_.header().index_directory.load(std::memory_order_acquire);
    const unsigned depth = global_depth(word);
    if (!is_index_directory_within(word, mapping_.usable_bytes())) {
      report("index directory out of bounds: word=" + std::to_string(word));
      return false;
    }
    const auto* const slots = bytes_.at<IndexWord>(index_directory_offset(word));
    const std::uint64_t count = std::uint64_t{1} << depth;
    std::unordered_set<std::uint64_t> seen;
    for (std::uint64_t slot = 0; slot < count;) {
      const std::uint64_t one = slots[slot].load(std::memory_order_relaxed);
      const unsigned local = local_depth(one);
      if (local > depth || index_page_offset(one) == 0 ||
          !bytes_.contains(index_page_offset(one), segment_bytes) ||
          !seen.insert(index_page_offset(one)).second) {
        report("index part out of bounds or twice: slot=" + std::to_string(slot) +
               " word=" + std::to_string(one));
        return false;
      }
      const std::uint64_t block = std::uint64_t{1} << (depth - local);
      if (slot % block != 0) {
        report("index part out of place: slot=" + std::to_string(slot));
        return false;
      }
      for (std::uint64_t i = slot; i < slot + block; ++i) {
        if (slots[i].load(std::memory_order_relaxed) != one) {
          report("index directory torn: slot=" + std::to_string(i));
          return false;
        }
      }
      const std::uint64_t filter = index_page_filter_offset(one);
      if (filter < segment_bytes || !bytes_.contains(filter, filter_bytes) ||
          !seen.insert(filter).second) {
        report("index filter out of bounds or twice: slot=" + std::to_string(slot) +
               " word=" + std::to_string(one));
        return false;
      }
      ++live_[filter / segment_bytes];
      filter_bits_[filter / segment_bytes] |= filter_bit(filter);
      if (!verify_index_page(index_page_offset(one), bytes_.at<FilterWord>(filter), slot, depth,
                             local))
        return false;
      slot += block;
    }
    if (live_item_count_ != block_.item_count) {
      report("items in the index=" + std::to_string(live_item_count_) +
             " published=" + std::to_string(block_.item_count));
    }
    if (item_bytes_ != block_.item_bytes) {
      report("bytes of items in the index=" + std::to_string(item_bytes_) +
             " published=" + std::to_string(block_.item_bytes));
    }
    if (digest_ != Digest{block_.digest_low, block_.digest_high}) {
      report("digest=" + to_string(digest_) +
             " published=" + to_string(Digest{block_.digest_low, block_.digest_high}));
    }
    return true;
  }

  bool verify_index_page(std::uint64_t offset, const FilterWord* filter, std::uint64_t slot,
                         unsigned depth, unsigned local) {
    const auto* const words = bytes_.at<IndexWord>(offset);
    std::uint32_t live = 0;
    for (std::uint64_t i = 0; i < index_page_words; ++i) {
      if (i + 64 < index_page_words) {
        const std::uint64_t ahead = word_offset(words[i + 64].load(std::memory_order_relaxed));
        if (bytes_.contains(ahead, 64)) __builtin_prefetch(bytes_.at<char>(ahead));
      }
      const std::uint64_t word = words[i].load(std::memory_order_relaxed);
      if (i % bucket_words != 0 && word != empty_word &&
          words[i - 1].load(std::memory_order_relaxed) == empty_word &&
          !report("index word behind an empty one of its bucket: part=" + std::to_string(offset) +
                  " word=" + std::to_string(i))) {
        return false;
      }
      if (!holds_entry(word)) continue;
      ++live;
      Entry entry;
      const std::uint64_t at = word_offset(word);
      if (at % 8 != 0 || !bytes_.load_entry(at, entry) || entry.key_bytes == 0 ||
          entry.key_bytes > key_bytes_max) {
        return report("entry out of bounds: offset=" + std::to_string(at));
      }
      const std::uint64_t hash = mapping_.hash_of(entry.key());
      const std::uint64_t bucket = i / bucket_words;
      const std::uint64_t home = home_bucket(hash);
      if (tag_of(hash) != word_tag(word) ||
          ((bucket - home) & (index_page_buckets - 1)) != word_displacement(word) ||
          index_directory_slot(hash, depth) >> (depth - local) != slot >> (depth - local)) {
        if (!report("index word does not fit its key: offset=" + std::to_string(at))) return false;
        continue;
      }
      const std::uint32_t bits = filter_bits(word_tag(word));
      if ((filter[home].load(std::memory_order_relaxed) & bits) != bits &&
          !report("key that its filter does not know: offset=" + std::to_string(at))) {
        return false;
      }
      for (std::uint64_t between = home; between != bucket;
           between = (between + 1) & (index_page_buckets - 1)) {
        for (std::uint64_t k = 0; k < bucket_words; ++k) {
          if (words[between * bucket_words + k].load(std::memory_order_relaxed) == empty_word) {
            if (!report("index word behind an empty one: offset=" + std::to_string(at)))
              return false;
          }
        }
      }
      if (entry.id() > applied_id_) {
        if (!report("entry newer than the applied id: offset=" + std::to_string(at) +
                    " id=" + std::to_string(entry.id())))
          return false;
        continue;
      }
      const std::uint64_t bytes = entry.bytes();
      live_[at / segment_bytes] += is_large_entry(bytes) ? 1 : static_cast<std::uint32_t>(bytes);
      if (!entry.erased()) {
        ++live_item_count_;
        item_bytes_ += entry.key_bytes + entry.value_bytes;
        add(digest_, item_digest(entry.key(), entry.value()));
      }
      advance_progress();
    }
    live_[offset / segment_bytes] = live;
    return true;
  }

  // The tree is in order, and each of its keys is found, as many as there are items: so both hold
  // the same keys.
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
      const std::uint64_t directory =
          mapping_.header().index_directory.load(std::memory_order_acquire);
      for (cursor.seek(block_.key_index_root, {}); !cursor.at_end(); cursor.next()) {
        const std::uint64_t hash = mapping_.hash_of(cursor.key());
        const IndexWord* const part = find_index_page(bytes_, directory, hash);
        if (part == nullptr ||
            look_up(bytes_, part, hash, cursor.key(), applied_id_).status != LookupStatus::found) {
          if (!report("key of the key index not found in the point index: key_bytes=" +
                      std::to_string(cursor.key().size())))
            return false;
        }
        advance_progress();
      }
    } catch (const Error& error) {
      report(error.what());
      return false;
    }
    return true;
  }

  void verify_allocator_state() {
    const std::uint64_t count =
        std::min<std::uint64_t>(mapping_.header().allocator_state.segment_count, live_.size());
    for (const auto& [segment, reached] : filter_bits_) {
      const auto& book = *bytes_.at<SegmentDescriptor>(descriptor_offset(segment));
      const bool booked =
          segment < count && book.kind == SegmentKind::filters &&
          (book.filters.in_use_bits & reached) == reached &&
          book.filters.live == static_cast<std::uint32_t>(std::popcount(book.filters.in_use_bits));
      if (!booked && !report("index filter not booked: segment=" + std::to_string(segment) +
                             " booked=" + std::to_string(book.filters.in_use_bits) +
                             " found=" + std::to_string(reached))) {
        return;
      }
    }
    for (std::uint64_t segment = 0; segment < count; ++segment) {
      const auto& book = *bytes_.at<SegmentDescriptor>(descriptor_offset(segment));
      const bool counted = book.kind == SegmentKind::entries || book.kind == SegmentKind::large ||
                           book.kind == SegmentKind::index_page;
      // Nodes and filters count as live until no reader can be there, so that there may be more.
      const bool later = book.kind == SegmentKind::nodes || book.kind == SegmentKind::filters;
      const bool fits = counted ? book.live() == live_[segment]
                        : later ? book.live() >= live_[segment]
                                : live_[segment] == 0;
      if (!fits && !report("segment accounting: segment=" + std::to_string(segment) +
                           " kind=" + std::to_string(static_cast<int>(book.kind)) +
                           " booked=" + std::to_string(book.live()) +
                           " found=" + std::to_string(live_[segment]))) {
        return;
      }
    }
  }

  const Mapping& mapping_;
  MappedBytes bytes_;
  const std::function<void(std::uint64_t, std::uint64_t)>& progress_;
  UpdateId applied_id_;
  PublishedBlock block_;
  std::vector<std::string> faults_;
  std::vector<std::uint32_t> live_;
  std::unordered_map<std::uint64_t, std::uint32_t>
      filter_bits_;  // by segment, as SegmentDescriptor::filters has them
  std::uint64_t live_item_count_ = 0;
  std::uint64_t item_bytes_ = 0;
  Digest digest_;
  std::uint64_t steps_done_ = 0;
};

}  // namespace

std::vector<std::string> verify(const Mapping& mapping, bool books,
                                const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  return StateVerifier(mapping, progress).run(books);
}

}  // namespace whycache
