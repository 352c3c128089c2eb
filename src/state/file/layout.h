// The bytes of the state file. docs/formats/state.md says the same in prose.
//
//   segment 0                 header page, descriptors of segments 0..8063
//   segment 1 ..              directory, index pages, their filters, tree nodes, entries, free ...
//   segment 8064              (header page unused), descriptors of segments 8064..16127
//   ...
//
// Everything is addressed by its offset from the start of the file. Integers are little-endian.
//
// Only the holder of the writer lock writes the file, except for Header::poll_record. Readers map
// it read-only. The writer publishes what readers load meanwhile by single stores. A comment at
// each such word names the order of the store and of the loads that it pairs with.
#pragma once

#include <atomic>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include <whycache/types.h>

#include "base/hash.h"

namespace whycache {

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

// --- Segments ---

inline constexpr std::uint64_t segment_bytes = std::uint64_t{256} << 10;
inline constexpr std::uint64_t header_page_bytes = 4096;

enum class SegmentKind : std::uint8_t {
  free = 0,             // on the list of free segments
  table = 1,            // header page and descriptors
  index_directory = 2,  // of the point index
  index_page = 3,       // of the point index
  nodes = 4,            // of the key index, all of one size class
  entries = 5,          // one after the other
  large = 6,            // the first segment of an entry that needs several
  continuation = 7,     // its other segments
  retired = 8,          // unreachable for new readers; free once no view is older than `stamp`
  filters = 9           // of the point index, sixteen
};

// The allocator's record of one segment. Writer only. A field with a meaning per kind is a union:
// `kind` says which member is in use. Links are segment numbers; 0, the first table, ends a list.
struct SegmentDescriptor {
  struct PageCounts {
    std::uint32_t live;  // words that hold an entry
    std::uint32_t tombstones;
  };
  struct NodeCounts {
    std::uint32_t live;        // nodes that are not free
    std::uint32_t handed_out;  // nodes from the front that were allocated at least once
  };
  struct EntryCounts {
    std::uint32_t live_bytes;  // of entries that the point index refers to
    std::uint32_t used_bytes;  // from the front, allocated
  };
  struct SpanCounts {
    std::uint32_t live;           // large: 1
    std::uint32_t segment_count;  // this one and its continuations
  };
  struct FilterCounts {
    std::uint32_t live;         // filters in use
    std::uint32_t in_use_bits;  // one per filter, the lowest for the first; filter_bit()
  };

  SegmentKind kind;
  std::uint8_t size_class;  // nodes
  union {
    std::uint8_t utilization_list;  // entries, sealed: 1 + number of its utilization list
    std::uint8_t on_partial_list;   // nodes, filters: 1 if some are free
    // index_page: 1 + the global depth at which doubling the directory for it proved useless, or 0
    std::uint8_t split_refused;
  };
  std::uint8_t reserved;
  union {
    PageCounts page;  // index_page
    NodeCounts nodes;
    EntryCounts entries;
    SpanCounts span;  // index_directory, large
    FilterCounts filters;
  };
  std::uint32_t next;
  std::uint32_t previous;
  union {
    // nodes: 1 + number of the first free node, the head of a list through NodeHeader::next.
    std::uint32_t free_node;
    // retired: offset / filter_bytes of the filter to free with it, if it was an index page.
    std::uint32_t retired_filter;
  };
  std::uint64_t stamp;  // retired: the first update id at which no reader can reach it

  // The first count, whatever the kind. All count structs begin with it.
  std::uint32_t live() const { return page.live; }
};
static_assert(sizeof(SegmentDescriptor) == 32);
static_assert(offsetof(SegmentDescriptor, size_class) == 1);
static_assert(offsetof(SegmentDescriptor, utilization_list) == 2);
static_assert(offsetof(SegmentDescriptor, on_partial_list) == 2);
static_assert(offsetof(SegmentDescriptor, split_refused) == 2);
static_assert(offsetof(SegmentDescriptor, page) == 4);
static_assert(offsetof(SegmentDescriptor, nodes) == 4);
static_assert(offsetof(SegmentDescriptor, entries) == 4);
static_assert(offsetof(SegmentDescriptor, span) == 4);
static_assert(offsetof(SegmentDescriptor, filters) == 4);
static_assert(offsetof(SegmentDescriptor, next) == 12);
static_assert(offsetof(SegmentDescriptor, previous) == 16);
static_assert(offsetof(SegmentDescriptor, free_node) == 20);
static_assert(offsetof(SegmentDescriptor, retired_filter) == 20);
static_assert(offsetof(SegmentDescriptor, stamp) == 24);
static_assert(sizeof(SegmentDescriptor::PageCounts) == 8);
static_assert(sizeof(SegmentDescriptor::NodeCounts) == 8);
static_assert(sizeof(SegmentDescriptor::EntryCounts) == 8);
static_assert(sizeof(SegmentDescriptor::SpanCounts) == 8);
static_assert(sizeof(SegmentDescriptor::FilterCounts) == 8);

inline constexpr std::uint64_t segments_per_table =
    (segment_bytes - header_page_bytes) / sizeof(SegmentDescriptor);
static_assert(segments_per_table == 8064);

inline constexpr std::uint64_t descriptor_offset(std::uint64_t segment) {
  const std::uint64_t table = segment / segments_per_table * segments_per_table;
  return table * segment_bytes + header_page_bytes +
         segment % segments_per_table * sizeof(SegmentDescriptor);
}

// --- Entries ---

// An entry is one version of one key's value. The writer completes it before the index points to
// it, and never changes it afterwards. Most entries are narrow:
//
//   narrow   EntryWord, key, value, up to a multiple of 8 bytes;
//            offset of the previous version, if there is one
//   wide     EntryWord, WideWord, key, value, up to a multiple of 8 bytes
//
// A read waits for memory, so an entry spans as few cache lines as possible. The offset of the
// previous version is rarely used, so a narrow entry keeps it behind the value.

// The first word of an entry. A read of the newest version of a narrow entry needs no other.
class EntryWord {
 public:
  // Narrow, from the top: 39 bits id, 1 bit for a previous version, 16 bits value bytes, 8 bits key
  // bytes. Wide: 39 bits id, 1 bit for erased, 16 bits key bytes, 8 ones.
  static constexpr unsigned key_bytes_bits = 8;
  static constexpr unsigned value_bytes_shift = key_bytes_bits;
  static constexpr unsigned value_bytes_bits = 16;
  static constexpr unsigned flag_shift = value_bytes_shift + value_bytes_bits;
  static constexpr unsigned id_shift = flag_shift + 1;
  static constexpr unsigned id_bits = 64 - id_shift;

  static constexpr std::uint64_t wide_mark = (std::uint64_t{1} << key_bytes_bits) - 1;
  static constexpr std::uint64_t narrow_key_bytes_max = wide_mark - 1;
  static constexpr std::uint64_t narrow_value_bytes_max =
      (std::uint64_t{1} << value_bytes_bits) - 1;

  EntryWord() = default;
  constexpr explicit EntryWord(std::uint64_t word) : word_(word) {}
  static constexpr EntryWord narrow(UpdateId id, std::uint64_t key_bytes, std::uint64_t value_bytes,
                                    bool has_previous) {
    assert(id < UpdateId{1} << id_bits && key_bytes <= wide_mark &&
           value_bytes <= narrow_value_bytes_max);
    return EntryWord(id << id_shift | std::uint64_t{has_previous} << flag_shift |
                     value_bytes << value_bytes_shift | key_bytes);
  }
  static EntryWord wide(UpdateId id, bool erased, std::uint64_t key_bytes) {
    return narrow(id, wide_mark, key_bytes, erased);
  }

  constexpr std::uint64_t word() const { return word_; }
  UpdateId id() const { return word_ >> id_shift; }
  bool is_wide() const { return narrow_key_bytes() == wide_mark; }

  std::uint64_t narrow_key_bytes() const { return word_ & wide_mark; }
  std::uint64_t narrow_value_bytes() const {
    return word_ >> value_bytes_shift & narrow_value_bytes_max;
  }
  bool narrow_has_previous() const { return flag(); }

  std::uint64_t wide_key_bytes() const { return narrow_value_bytes(); }
  bool erased() const { return is_wide() && flag(); }

  // The greatest word that an entry of update `id`, or of an earlier update, can have.
  static constexpr std::uint64_t max_at(UpdateId id) {
    return id << id_shift | ((std::uint64_t{1} << id_shift) - 1);
  }
  // Whether the entry is narrow, hence not erased, with a key of this size. The size is at most
  // narrow_key_bytes_max.
  bool is_narrow_with(std::uint64_t key_bytes) const {
    return static_cast<std::uint8_t>(word_) == static_cast<std::uint8_t>(key_bytes);
  }

 private:
  bool flag() const { return (word_ >> flag_shift & 1) != 0; }

  std::uint64_t word_ = 0;
};
static_assert(sizeof(EntryWord) == 8);
static_assert(EntryWord::id_bits == 39);
static_assert(key_bytes_max <= EntryWord::narrow_value_bytes_max);

// Entries are at multiples of eight bytes; words hold offset >> offset_unit_shift.
inline constexpr unsigned offset_unit_shift = 3;

// offset / 8 of the previous version (0: none) << 24 | value bytes
class WideWord {
 public:
  static constexpr unsigned value_bytes_bits = 24;
  static constexpr unsigned previous_shift = value_bytes_bits;
  static constexpr std::uint64_t wide_value_bytes_max = (std::uint64_t{1} << value_bytes_bits) - 1;

  explicit WideWord(std::uint64_t word) : word_(word) {}
  WideWord(std::uint64_t previous, std::uint64_t value_bytes)
      : word_(previous >> offset_unit_shift << previous_shift | value_bytes) {
    assert(value_bytes <= wide_value_bytes_max);
  }
  std::uint64_t word() const { return word_; }
  std::uint64_t previous_offset() const { return word_ >> previous_shift << offset_unit_shift; }
  std::uint64_t value_bytes() const { return word_ & wide_value_bytes_max; }

 private:
  std::uint64_t word_;
};
static_assert(value_bytes_max <= WideWord::wide_value_bytes_max);

inline constexpr UpdateId state_update_id_max = (UpdateId{1} << EntryWord::id_bits) - 1;
inline constexpr std::uint64_t state_bytes_limit = std::uint64_t{1} << 40;

// An entry that erases its key is wide, too.
inline constexpr bool is_wide_entry(std::uint64_t key_bytes, std::uint64_t value_bytes) {
  return key_bytes > EntryWord::narrow_key_bytes_max ||
         value_bytes > EntryWord::narrow_value_bytes_max;
}
// The whole size. `wide_or_previous`: the entry is wide, or has a previous version.
inline constexpr std::uint64_t entry_bytes(std::uint64_t key_bytes, std::uint64_t value_bytes,
                                           bool wide_or_previous) {
  const std::uint64_t words = wide_or_previous ? 2 : 1;
  return words * sizeof(std::uint64_t) + ((key_bytes + value_bytes + 7) & ~std::uint64_t{7});
}
inline constexpr bool is_large_entry(std::uint64_t bytes) { return bytes > segment_bytes; }
inline constexpr std::uint64_t segments_for(std::uint64_t bytes) {
  return (bytes + segment_bytes - 1) / segment_bytes;
}

// --- Point index ---

// An extendible hash table (Fagin et al., 1979). directory[hash >> (64 - global depth)] names an
// index page of 4,096 buckets. A bucket has eight words and is one cache line. The home bucket of a
// key begins at byte hash & 0x3ffc0 of the page. A full bucket overflows into the next ones, up to
// 7 further. A lookup continues while a bucket has no empty word. A word never becomes empty again
// (the word of a removed key becomes a tombstone), so stopping there is right. If all eight buckets
// are full, a key that belongs there may be in the overflow tree (state/overflow.h).
//
// The tag is the top of the hash. It holds the bits that index the directory, so a page is split by
// its words alone.

// Stored by the writer once the entry is complete (release), acquired by readers.
using IndexWord = std::atomic<std::uint64_t>;

inline constexpr std::uint64_t bucket_words = 8;
inline constexpr std::uint64_t index_page_buckets = 4096;
inline constexpr std::uint64_t index_page_words = index_page_buckets * bucket_words;
inline constexpr std::uint64_t displacement_max = 7;
inline constexpr unsigned global_depth_max = 20;
inline constexpr std::uint64_t empty_word = 0;
inline constexpr std::uint64_t tombstone_word = 1;
static_assert(index_page_words * sizeof(IndexWord) == segment_bytes);

// 24 bits tag, 3 bits displacement from the home bucket, 37 bits offset / 8.
inline constexpr unsigned word_offset_bits = 37;
inline constexpr unsigned displacement_shift = word_offset_bits;
inline constexpr unsigned displacement_bits = 3;
inline constexpr unsigned tag_shift = displacement_shift + displacement_bits;
inline constexpr unsigned tag_bits = 64 - tag_shift;
static_assert(tag_bits == 24 && displacement_max < 1U << displacement_bits);
static_assert(state_bytes_limit >> offset_unit_shift <= std::uint64_t{1} << word_offset_bits);

inline constexpr std::uint64_t tag_of(std::uint64_t hash) { return hash >> tag_shift; }
inline constexpr std::uint64_t bucket_bytes = bucket_words * sizeof(IndexWord);
// Where the home bucket begins within its page.
inline constexpr unsigned home_shift = 6;
static_assert(bucket_bytes == std::uint64_t{1} << home_shift);
inline constexpr std::uint64_t home_offset(std::uint64_t hash) {
  return hash & (index_page_buckets - 1) << home_shift;
}
inline constexpr std::uint64_t home_bucket(std::uint64_t hash) {
  return home_offset(hash) / bucket_bytes;
}
inline constexpr std::uint64_t make_index_word(std::uint64_t tag, std::uint64_t displacement,
                                               std::uint64_t offset) {
  assert(tag < std::uint64_t{1} << tag_bits && displacement <= displacement_max);
  return tag << tag_shift | displacement << displacement_shift | offset >> offset_unit_shift;
}
inline constexpr std::uint64_t word_offset(std::uint64_t word) {
  return word << (64 - word_offset_bits) >> (64 - word_offset_bits - offset_unit_shift);
}
inline constexpr std::uint64_t word_tag(std::uint64_t word) { return word >> tag_shift; }
inline constexpr std::uint64_t word_displacement(std::uint64_t word) {
  return word >> displacement_shift & ((1U << displacement_bits) - 1);
}
inline constexpr bool holds_entry(std::uint64_t word) { return word > tombstone_word; }

// Each index page has a filter, which excludes most keys that are not in the page: for each home
// bucket a Bloom filter (Burton H. Bloom, 1970) of 32 bits, three of them per key. The writer sets
// a key's bits before it stores the key's word, and never clears them. Each new page has a new
// filter. The writer stores filter words (release) before the applied id that makes the key
// visible; readers acquire them.
using FilterWord = std::atomic<std::uint32_t>;
inline constexpr std::uint64_t filter_bytes = index_page_buckets * sizeof(FilterWord);
inline constexpr std::uint64_t filters_per_segment = segment_bytes / filter_bytes;
static_assert(filters_per_segment == 16);
// The bit of FilterCounts::in_use_bits for the filter at `offset`.
inline constexpr std::uint32_t filter_bit(std::uint64_t offset) {
  return std::uint32_t{1} << offset % segment_bytes / filter_bytes;
}
// The three bits of a key. They derive from the lowest bits of the tag, because a split does not
// read keys.
inline constexpr std::uint32_t filter_bits(std::uint64_t tag) {
  constexpr std::uint32_t top = 0x80000000;
  return top >> (tag & 31) | top >> (tag >> 5 & 31) | top >> (tag >> 10 & 31);
}

// A word of the directory: 27 bits offset of the filter / 16 KiB, 5 bits local depth, 32 bits
// offset of the index page / 256 KiB.
inline constexpr unsigned local_depth_shift = 32;
inline constexpr unsigned local_depth_bits = 5;
inline constexpr unsigned filter_shift = local_depth_shift + local_depth_bits;
static_assert(state_bytes_limit / filter_bytes <= std::uint64_t{1} << (64 - filter_shift));
static_assert(global_depth_max < 1U << local_depth_bits);

inline constexpr std::uint64_t make_directory_word(std::uint64_t page, unsigned local_depth,
                                                   std::uint64_t filter) {
  assert(local_depth < 1U << local_depth_bits);
  return filter / filter_bytes << filter_shift | std::uint64_t{local_depth} << local_depth_shift |
         page / segment_bytes;
}
inline constexpr std::uint64_t index_page_offset(std::uint64_t slot) {
  return std::uint64_t{static_cast<std::uint32_t>(slot)} * segment_bytes;
}
inline constexpr unsigned local_depth(std::uint64_t slot) {
  return static_cast<unsigned>(slot >> local_depth_shift & ((1U << local_depth_bits) - 1));
}
inline constexpr std::uint64_t index_page_filter_offset(std::uint64_t slot) {
  return (slot >> filter_shift) * filter_bytes;
}

// Header::index_directory: offset of the directory << 8 | global depth.
inline constexpr unsigned global_depth_bits = 8;
inline constexpr std::uint64_t make_index_directory(std::uint64_t offset, unsigned global_depth) {
  assert(offset < state_bytes_limit && global_depth <= global_depth_max);
  return offset << global_depth_bits | global_depth;
}
inline constexpr std::uint64_t index_directory_offset(std::uint64_t word) {
  return word >> global_depth_bits;
}
inline constexpr unsigned global_depth(std::uint64_t word) {
  return static_cast<unsigned>(word & ((1U << global_depth_bits) - 1));
}
// Whether a directory that `word` may describe lies within the first `usable_bytes` of the file.
inline constexpr bool is_index_directory_within(std::uint64_t word, std::uint64_t usable_bytes) {
  const std::uint64_t offset = index_directory_offset(word);
  return global_depth(word) <= global_depth_max && offset >= header_page_bytes &&
         offset % sizeof(IndexWord) == 0 && offset <= usable_bytes &&
         sizeof(IndexWord) << global_depth(word) <= usable_bytes - offset;
}
inline constexpr std::uint64_t index_directory_slot(std::uint64_t hash, unsigned depth) {
  return hash >> 1 >> (63 - depth);  // in two steps: depth may be 0
}
// Directories of depth 0 to 14 share one segment, each at its own offset, so that doubling never
// overwrites what readers use.
inline constexpr unsigned small_index_directory_depth_max = 14;
inline constexpr std::uint64_t small_index_directory_offset(unsigned depth) {
  return std::uint64_t{8} << depth;
}

// --- Header page ---

// Written when the file is created, and again when it is adopted after a copy or a reboot.
struct HeaderFixed {
  char magic[8];               // "whycache"
  std::uint16_t format_major;  // a file of another major is refused
  std::uint16_t format_minor;
  std::uint32_t byte_order;    // 0x01020304 as this machine writes it
  std::uint32_t header_bytes;  // header_page_bytes
  std::uint32_t segment_size;  // segment_bytes
  std::uint64_t state_id;      // random, of this file
  Uuid log_uuid;
  std::uint64_t hash_seed;  // random; of the point index
  std::int64_t created_us;
  Uuid boot_id;  // the boot in which the file was created or adopted
  // The file's identity then. A copy has another inode; a later file that reuses the inode number
  // has another birth time. The birth time is 0 if the file system does not keep it.
  std::uint64_t inode;
  std::uint64_t device;
  std::int64_t birth_time_ns;
  std::uint32_t log_name_bytes;
  char log_name[396];
  std::uint64_t checksum;  // hash64 of all before

  std::uint64_t expected_checksum() const {
    return hash64({reinterpret_cast<const char*>(this), offsetof(HeaderFixed, checksum)});
  }
};
static_assert(sizeof(HeaderFixed) == 512);

inline constexpr char state_magic[8] = {'w', 'h', 'y', 'c', 'a', 'c', 'h', 'e'};
inline constexpr std::uint16_t state_format_major = 4;
inline constexpr std::uint16_t state_format_minor = 1;
// A file of an older format, from this one on, has the same fixed header and reclaim generation. It
// is replaced by a new file, which is built from the log.
inline constexpr std::uint16_t state_format_major_replaced_min = 3;
inline constexpr std::uint32_t byte_order_mark = 0x01020304;

// Facts about the state as of one update id. The writer writes block id % 8 before it stores
// applied_id (release), and overwrites it only after seven more updates.
struct PublishedBlock {
  UpdateId id;
  std::uint64_t chain;
  std::uint64_t digest_low;
  std::uint64_t digest_high;
  std::uint64_t item_count;
  std::uint64_t item_bytes;
  std::uint64_t key_index_root;
  std::uint64_t checksum;  // hash64 of all before

  std::uint64_t expected_checksum() const {
    return hash64({reinterpret_cast<const char*>(this), offsetof(PublishedBlock, checksum)});
  }
};
static_assert(sizeof(PublishedBlock) == 64);
inline constexpr std::size_t published_block_count = 8;

inline constexpr std::size_t utilization_list_count = 16;
inline constexpr std::size_t node_class_count = 4;

// Writer only. Not to be trusted if the previous writer died (writer_active): recovery rebuilds it.
struct AllocatorState {
  std::uint32_t segment_count;
  std::uint32_t free_head;
  std::uint32_t free_count;
  std::uint32_t retired_head;  // in the order of their stamps
  std::uint32_t retired_tail;
  std::uint32_t retired_count;
  std::uint32_t active_segment;    // takes new entries; 0: none
  std::uint32_t cleaning_segment;  // takes entries that the cleaner copies; 0: none
  std::uint32_t partial_node_segments[node_class_count];  // with free nodes
  std::uint32_t partial_filter_segments;                  // with free filters
  // Sealed segments of entries, by how much of them is live.
  std::uint32_t utilization_lists[utilization_list_count];
  std::uint64_t retired_nodes_head;  // in the order of their stamps
  std::uint64_t retired_nodes_tail;
  std::uint64_t entry_segment_count;  // segments of kind `entries`
  std::uint64_t entry_live_bytes;     // in them
};

// The top bit of reclaim_generation: another file has replaced this one.
inline constexpr std::uint64_t superseded_bit = std::uint64_t{1} << 63;

// The applied id, stored as EntryWord::max_at() of it: a reader compares the word of an entry with
// it without unpacking either.
class AppliedId {
 public:
  UpdateId load(std::memory_order order) const {
    return EntryWord(max_entry_word_.load(order)).id();
  }
  std::uint64_t max_entry_word(std::memory_order order) const {
    return max_entry_word_.load(order);
  }
  void store(UpdateId id, std::memory_order order) {
    max_entry_word_.store(EntryWord::max_at(id), order);
  }
  // The low half, on which processes sleep until the next update (applied_wait.h). It changes with
  // each update, and repeats after 128 of them.
  const std::uint32_t* low_half() const {
    static_assert(EntryWord::id_shift < 32 && std::endian::native == std::endian::little);
    return reinterpret_cast<const std::uint32_t*>(&max_entry_word_);
  }

 private:
  std::atomic<std::uint64_t> max_entry_word_;
};
static_assert(sizeof(AppliedId) == 8);

// A time of the log's last poll (poll_record.h). Written by the holder of StateLock::follow through
// pwrite(2), behind a seq_cst fence. Readers acquire the time and compare the seal.
struct PollTime {
  std::atomic<std::int64_t> time_ns;  // CLOCK_BOOTTIME; 0: none
  std::atomic<std::uint64_t> seal;
};

struct PollRecord {
  PollTime last;
  // When the log's own store last answered. `last` may be the answer of a cache in front of it.
  // Written just before it: if the process dies in between, the store was polled anyway.
  PollTime last_of_store;
  // The head that the last answer named. Relaxed: for display only.
  std::atomic<std::uint64_t> known_head;
};
static_assert(sizeof(PollRecord) == 40);
inline constexpr std::size_t machine_counters_max = 32;

struct Header {
  HeaderFixed fixed;

  // --- The cache line that every point read loads ---

  // The writer raises it (release), executes a release fence, and overwrites retired space. Readers
  // acquire it before a read, and load it again behind an acquire fence after it. A process that
  // replaces the file sets superseded_bit (release).
  alignas(64) std::atomic<std::uint64_t> reclaim_generation;
  // The last store of an update (release). Readers acquire it before they load anything else of it.
  AppliedId applied_id;
  // The writer stores it once the directory is complete (release); readers acquire it.
  std::atomic<std::uint64_t> index_directory;
  // Root of the overflow tree of the point index; 0: it is empty. The writer stores it (release)
  // before the applied id of the update that changes the tree. Readers acquire it, under a pin.
  std::atomic<std::uint64_t> overflow_root;

  // --- The cache line that views load ---

  // No view starts below this id. The writer stores it (release), executes a seq_cst fence, and
  // loads the reader slots. A reader stores its pin, executes a seq_cst fence, and loads this
  // (acquire). Either the writer sees the pin, or the reader sees the horizon.
  alignas(64) std::atomic<std::uint64_t> reclaim_horizon;
  // Allocated and usable. Stored by the writer once the file has grown (release); readers acquire
  // it.
  std::atomic<std::uint64_t> file_bytes;
  // A WriterMark (write/recovery.h): 1 while a writer is at work, or after one died at work; 2
  // after an update failed. Stored under the writer lock: 1 relaxed, before a compiler fence
  // (mark_writer_active()), the others with release. The next writer acquires it.
  std::atomic<std::uint64_t> writer_active;

  alignas(64) PublishedBlock published[published_block_count];
  alignas(64) AllocatorState allocator_state;

  // The only part that is written without the writer lock.
  alignas(64) PollRecord poll_record;

  // The sums of what processes have counted (machine_counters.h). The holder of the writer lock
  // adds, any process loads; relaxed, since the numbers are for display. A writer that dies between
  // two of them leaves out the rest of its own.
  alignas(64) std::atomic<std::uint64_t> machine_counters[machine_counters_max];
};
static_assert(sizeof(Header) <= header_page_bytes);
static_assert(offsetof(Header, reclaim_generation) == 512);
static_assert(offsetof(Header, overflow_root) == 536);
static_assert(offsetof(Header, reclaim_horizon) == 576);
static_assert(offsetof(Header, published) == 640);
static_assert(offsetof(Header, allocator_state) == 1152);
static_assert(offsetof(Header, poll_record) == 1344);
static_assert(offsetof(Header, machine_counters) == 1408);

}  // namespace whycache
