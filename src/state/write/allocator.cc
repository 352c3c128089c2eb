#include "state/write/allocator.h"

#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <string>

#include "state/errors.h"
#include "state/file/use_locks.h"

namespace whycache {
namespace {

// Cleaning starts when more than one byte in `garbage_divisor` of the entry segments is garbage.
constexpr std::uint64_t garbage_divisor = 5;
constexpr std::uint64_t garbage_segments_min = 6;
constexpr std::uint64_t growth_segments_max = 256;

std::size_t utilization_list_number(std::uint32_t live_bytes) {
  return std::min<std::uint64_t>(live_bytes * utilization_list_count / segment_bytes,
                                 utilization_list_count - 1);
}

}  // namespace

SegmentDescriptor& Allocator::descriptor(std::uint64_t segment) const {
  if (segment >= allocator_state().segment_count ||
      (segment + 1) * segment_bytes > mapping_.usable_bytes()) {
    throw corrupt_state("segment beyond the end", segment);
  }
  return *reinterpret_cast<SegmentDescriptor*>(mapping_.writable_base() +
                                               descriptor_offset(segment));
}

NodeHeader& Allocator::node_header(NodeOffset offset) const {
  if (offset % node_bytes_of(0) != 0 || offset < segment_bytes || offset >= mapping_.usable_bytes())
    throw corrupt_state("no node at offset", offset);
  return *reinterpret_cast<NodeHeader*>(mapping_.writable_base() + offset);
}

UpdateId Allocator::advance_horizon() {
  // Relaxed: only the holder of the writer lock stores the applied id.
  const UpdateId applied = header().applied_id.load(std::memory_order_relaxed);
  if (readers_ == Readers::none) return applied;
  // Release: pairs with the acquire load of the horizon in Pins (file/pins.cc).
  header().reclaim_horizon.store(applied, std::memory_order_release);
  // Pairs with the seq_cst fence of Pins between taking its lock and loading the horizon: either we
  // find the lock, or Pins sees the new horizon.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return oldest_pinned_id(applied);
}

bool Allocator::has_views() {
  if (readers_ == Readers::none) return false;
  // Pairs with the seq_cst fence of Pins, as in advance_horizon(): either we find the lock, or its
  // owner sees everything stored before this fence.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return oldest_pinned_id(UINT64_MAX) != UINT64_MAX;
}

UpdateId Allocator::oldest_pinned_id(UpdateId below) const {
  const int descriptor = mapping_.descriptor();
  const UpdateId oldest = find_oldest_pinned_id(descriptor, below);
  // The application may have closed the descriptor: another file under its number has no pins.
  if (!is_open_file(descriptor, mapping_.device(), mapping_.inode())) {
    throw Error(ErrorKind::unavailable,
                "descriptor of the state file was closed by the application: path=" +
                    mapping_.path() + " (retry)");
  }
  return oldest;
}

void Allocator::increment_generation() {
  // Release: pairs with the acquire load of the generation at the start of a point read, which then
  // sees the updates published before. An atomic add, because a process that replaces the file may
  // set superseded_bit at the same time.
  header().reclaim_generation.fetch_add(1, std::memory_order_release);
  // Pairs with the acquire fence of OptimisticRead::validate(): a point read that saw any of the
  // following stores sees the new generation.
  std::atomic_thread_fence(std::memory_order_release);
}

// --- Lists of segments ---

void Allocator::link(std::uint32_t& head, std::uint64_t segment) {
  SegmentDescriptor& added = descriptor(segment);
  added.previous = 0;
  added.next = head;
  if (head != 0) descriptor(head).previous = static_cast<std::uint32_t>(segment);
  head = static_cast<std::uint32_t>(segment);
}

void Allocator::unlink(std::uint32_t& head, std::uint64_t segment) {
  SegmentDescriptor& removed = descriptor(segment);
  if (removed.previous != 0) {
    descriptor(removed.previous).next = removed.next;
  } else {
    head = removed.next;
  }
  if (removed.next != 0) descriptor(removed.next).previous = removed.previous;
  removed.next = removed.previous = 0;
}

void Allocator::link_free_segment(std::uint64_t segment) {
  SegmentDescriptor& freed = descriptor(segment);
  freed = SegmentDescriptor{};
  freed.kind = SegmentKind::free;
  link(allocator_state().free_head, segment);
  ++allocator_state().free_count;
}

std::uint64_t Allocator::take_free_segment() {
  const std::uint32_t segment = allocator_state().free_head;
  if (segment == 0) return 0;
  if (descriptor(segment).kind != SegmentKind::free)
    throw corrupt_state("segment on the free list in use", segment);
  unlink(allocator_state().free_head, segment);
  --allocator_state().free_count;
  return segment;
}

// The list is in the order of stamps, so that reclaim_segments() can stop at the first segment that
// a reader may reach.
void Allocator::link_retired_segment(std::uint64_t segment, UpdateId stamp) {
  SegmentDescriptor& retired = descriptor(segment);
  retired = SegmentDescriptor{};
  retired.kind = SegmentKind::retired;
  retired.stamp = stamp;
  AllocatorState& state = allocator_state();
  if (state.retired_tail != 0) {
    descriptor(state.retired_tail).next = static_cast<std::uint32_t>(segment);
  } else {
    state.retired_head = static_cast<std::uint32_t>(segment);
  }
  state.retired_tail = static_cast<std::uint32_t>(segment);
  ++state.retired_count;
}

void Allocator::retire_segment(std::uint64_t segment) { link_retired_segment(segment, update_id_); }

void Allocator::reclaim_segments() {
  AllocatorState& state = allocator_state();
  const UpdateId applied = header().applied_id.load(std::memory_order_relaxed);
  if (state.retired_head == 0 || descriptor(state.retired_head).stamp > applied) return;
  UpdateId oldest_visible = advance_horizon();
  if (descriptor(state.retired_head).stamp > oldest_visible && mapping_of_views_ != nullptr &&
      mapping_of_views_->release_surplus_pins())
    oldest_visible = advance_horizon();
  bool incremented = false;
  while (state.retired_head != 0) {
    const std::uint32_t segment = state.retired_head;
    const SegmentDescriptor& retired = descriptor(segment);
    if (retired.kind != SegmentKind::retired)
      throw corrupt_state("segment on the retired list in use", segment);
    if (retired.stamp > oldest_visible) break;
    if (!incremented) increment_generation();
    incremented = true;
    state.retired_head = retired.next;
    if (state.retired_head == 0) state.retired_tail = 0;
    --state.retired_count;
    if (retired.retired_filter != 0) free_filter(retired.retired_filter * filter_bytes);
    link_free_segment(segment);
  }
}

// --- Filters of the point index ---

void Allocator::retire_index_page(std::uint64_t segment, std::uint64_t filter) {
  retire_segment(segment);
  descriptor(segment).retired_filter = static_cast<std::uint32_t>(filter / filter_bytes);
}

void Allocator::link_filter_segment(std::uint64_t segment) {
  descriptor(segment).on_partial_list = 1;
  link(allocator_state().partial_filter_segments, segment);
}

std::uint64_t Allocator::allocate_filter() {
  std::uint32_t& partial = allocator_state().partial_filter_segments;
  if (partial == 0) link_filter_segment(allocate_segment(SegmentKind::filters));
  const std::uint64_t segment = partial;
  SegmentDescriptor& holder = descriptor(segment);
  const auto number = static_cast<unsigned>(std::countr_one(holder.filters.in_use_bits));
  if (holder.kind != SegmentKind::filters || number >= filters_per_segment)
    throw corrupt_state("free filter", segment);
  holder.filters.in_use_bits |= 1U << number;
  if (++holder.filters.live == filters_per_segment) {
    unlink(partial, segment);
    holder.on_partial_list = 0;
  }
  return segment * segment_bytes + number * filter_bytes;
}

void Allocator::free_filter(std::uint64_t offset) {
  const std::uint64_t segment = offset / segment_bytes;
  SegmentDescriptor& holder = descriptor(segment);
  const std::uint32_t bit = filter_bit(offset);
  if (holder.kind != SegmentKind::filters || (holder.filters.in_use_bits & bit) == 0 ||
      holder.filters.live == 0)
    throw corrupt_state("no filter at offset", offset);
  holder.filters.in_use_bits &= ~bit;
  --holder.filters.live;
  if (holder.on_partial_list == 0) link_filter_segment(segment);
  if (holder.filters.live > 0) return;
  unlink(allocator_state().partial_filter_segments, segment);
  link_free_segment(segment);
}

// --- Segments ---

std::uint64_t Allocator::segments_to_add(std::uint64_t segments_wanted) const {
  const std::uint64_t count = allocator_state().segment_count;
  std::uint64_t added = std::max(segments_wanted, std::min(count / 128, growth_segments_max));
  struct Limit {
    std::uint64_t bytes;
    int error;
    const char* next_step;
  };
  Limit limit{bytes_max_, EFBIG, "raise Options::state_bytes_max"};
  if (mapping_.reserved_bytes() < limit.bytes)
    limit = {mapping_.reserved_bytes(), ENOMEM,
             "raise the process's limit on address space, see ulimit -v"};
  struct rlimit file_limit;
  if (::getrlimit(RLIMIT_FSIZE, &file_limit) == 0 && file_limit.rlim_cur < limit.bytes)
    limit = {file_limit.rlim_cur, EFBIG, "raise the process's limit on file size, see ulimit -f"};
  const std::uint64_t count_max = limit.bytes / segment_bytes;
  added = std::min(added, count_max > count ? count_max - count : 0);
  if (added < segments_wanted) {
    throw Error(ErrorKind::limit,
                "state is full: state_bytes=" + std::to_string(count * segment_bytes) +
                    " limit_bytes=" + std::to_string(limit.bytes) + " path=" + mapping_.path() +
                    " (" + limit.next_step + ")",
                limit.error);
  }
  return added;
}

// A writer that dies in here leaves a file that is longer than file_bytes, or free segments on no
// list. Recovery retires such segments; the next grow() takes over the rest of the file.
void Allocator::grow(std::uint64_t segments_wanted) {
  AllocatorState& state = allocator_state();
  const std::uint64_t count = state.segment_count;
  std::uint64_t added = segments_to_add(segments_wanted);
  for (;;) {
    const int error =
        allocate_in_file(mapping_.descriptor(), count * segment_bytes, added * segment_bytes);
    if (error == 0) break;
    if (added == segments_wanted)
      throw system_error("cannot grow state file", mapping_.path(), error);
    added = segments_wanted;  // the disk may have room for what is needed now
  }
  mapping_.set_usable_bytes((count + added) * segment_bytes);
  // Release: pairs with the acquire loads of readers that found an offset beyond what they know.
  // The blocks are allocated already.
  header().file_bytes.store((count + added) * segment_bytes, std::memory_order_release);
  state.segment_count = static_cast<std::uint32_t>(count + added);
  // From the end, so that the free list starts with the lowest number.
  for (std::uint64_t segment = count + added; segment-- > count;) {
    if (segment % segments_per_table == 0) {
      descriptor(segment) = SegmentDescriptor{};
      descriptor(segment).kind = SegmentKind::table;
    } else {
      link_free_segment(segment);
    }
  }
}

std::uint64_t Allocator::allocate_segment(SegmentKind kind) {
  std::uint64_t segment = take_free_segment();
  if (segment == 0) {
    reclaim_segments();
    segment = take_free_segment();
  }
  if (segment == 0) {
    const bool next_is_table = allocator_state().segment_count % segments_per_table == 0;
    grow(next_is_table ? 2 : 1);
    segment = take_free_segment();
  }
  assert(segment != 0);
  SegmentDescriptor& allocated = descriptor(segment);
  allocated = SegmentDescriptor{};
  allocated.kind = kind;
  return segment;
}

// Returns the first of `count` adjacent free segments, or 0.
std::uint64_t Allocator::find_free_run(std::uint64_t count) const {
  std::uint64_t run = 0;
  for (std::uint64_t segment = 1; segment < allocator_state().segment_count; ++segment) {
    run = descriptor(segment).kind == SegmentKind::free ? run + 1 : 0;
    if (run == count) return segment + 1 - count;
  }
  return 0;
}

std::uint64_t Allocator::allocate_span(SegmentKind first_kind, std::uint64_t count) {
  assert(count > 0);
  std::uint64_t first = find_free_run(count);
  if (first == 0) {
    reclaim_segments();
    first = find_free_run(count);
  }
  if (first == 0) {
    // A table among the new segments may cut the run in two.
    const std::uint64_t end = allocator_state().segment_count;
    const bool table_between =
        (end + count - 1) / segments_per_table != (end == 0 ? 0 : (end - 1) / segments_per_table);
    grow(table_between ? 2 * count + 1 : count);
    first = find_free_run(count);
  }
  if (first == 0) throw corrupt_state("no run of free segments after growing", count);
  for (std::uint64_t segment = first; segment < first + count; ++segment) {
    unlink(allocator_state().free_head, segment);
    --allocator_state().free_count;
    descriptor(segment) = SegmentDescriptor{};
    descriptor(segment).kind = segment == first ? first_kind : SegmentKind::continuation;
  }
  descriptor(first).span.segment_count = static_cast<std::uint32_t>(count);
  return first;
}

// --- Entries ---

std::uint32_t& Allocator::utilization_list_of(std::uint64_t segment) const {
  const SegmentDescriptor& sealed = descriptor(segment);
  if (sealed.kind != SegmentKind::entries || sealed.utilization_list == 0 ||
      sealed.utilization_list > utilization_list_count)
    throw corrupt_state("segment on an impossible utilization list", segment);
  return allocator_state().utilization_lists[sealed.utilization_list - 1];
}

void Allocator::link_sealed_segment(std::uint64_t segment) {
  SegmentDescriptor& sealed = descriptor(segment);
  const std::size_t number = utilization_list_number(sealed.entries.live_bytes);
  sealed.utilization_list = static_cast<std::uint8_t>(number + 1);
  link(allocator_state().utilization_lists[number], segment);
}

void Allocator::seal_segment(std::uint32_t& active) {
  if (active == 0) return;
  const std::uint32_t segment = active;
  active = 0;
  if (descriptor(segment).entries.live_bytes == 0) {
    --allocator_state().entry_segment_count;
    retire_segment(segment);
  } else {
    link_sealed_segment(segment);
  }
}

bool Allocator::needs_segment(std::uint64_t bytes) const {
  const std::uint32_t active = allocator_state().active_segment;
  return is_large_entry(bytes) || active == 0 ||
         descriptor(active).entries.used_bytes + bytes > segment_bytes;
}

std::uint64_t Allocator::allocate_entry(std::uint64_t bytes, EntryOrigin origin) {
  assert(bytes > 0 && bytes % sizeof(EntryWord) == 0);
  AllocatorState& state = allocator_state();
  if (is_large_entry(bytes)) {
    const std::uint64_t first = allocate_span(SegmentKind::large, segments_for(bytes));
    descriptor(first).span.live = 1;
    return first * segment_bytes;
  }
  std::uint32_t& active =
      origin == EntryOrigin::cleaned ? state.cleaning_segment : state.active_segment;
  if (active == 0 || descriptor(active).entries.used_bytes + bytes > segment_bytes) {
    seal_segment(active);
    const std::uint64_t segment = allocate_segment(SegmentKind::entries);
    ++state.entry_segment_count;
    active = static_cast<std::uint32_t>(segment);
  }
  SegmentDescriptor& holder = descriptor(active);
  const std::uint64_t offset = active * segment_bytes + holder.entries.used_bytes;
  holder.entries.used_bytes += static_cast<std::uint32_t>(bytes);
  holder.entries.live_bytes += static_cast<std::uint32_t>(bytes);
  state.entry_live_bytes += bytes;
  return offset;
}

void Allocator::retire_entry(std::uint64_t offset, std::uint64_t bytes) {
  const std::uint64_t segment = offset / segment_bytes;
  SegmentDescriptor& holder = descriptor(segment);
  if (holder.kind == SegmentKind::large) {
    const std::uint64_t count = holder.span.segment_count;
    for (std::uint64_t i = 0; i < count; ++i) retire_segment(segment + i);
    return;
  }
  if (holder.kind != SegmentKind::entries || holder.entries.live_bytes < bytes)
    throw corrupt_state("entry in a segment of another kind", segment);
  holder.entries.live_bytes -= static_cast<std::uint32_t>(bytes);
  allocator_state().entry_live_bytes -= bytes;
  if (holder.utilization_list == 0) return;  // not sealed, or being cleaned
  std::uint32_t& list = utilization_list_of(segment);
  if (holder.entries.live_bytes == 0) {
    unlink(list, segment);
    --allocator_state().entry_segment_count;
    retire_segment(segment);
  } else if (utilization_list_number(holder.entries.live_bytes) + 1 != holder.utilization_list) {
    unlink(list, segment);
    link_sealed_segment(segment);
  }
}

std::uint64_t Allocator::cleaning_candidate() const {
  const AllocatorState& state = allocator_state();
  const std::uint64_t bytes = state.entry_segment_count * segment_bytes;
  if (state.entry_segment_count < garbage_segments_min ||
      (bytes - state.entry_live_bytes) * garbage_divisor <= bytes)
    return 0;
  // While views prevent the reuse of retired segments, moving entries only adds to these.
  if (state.retired_count > state.entry_segment_count / 2 + garbage_segments_min) return 0;
  for (std::size_t list = 0; list < utilization_list_count - 2; ++list) {
    if (state.utilization_lists[list] != 0) return state.utilization_lists[list];
  }
  return 0;
}

void Allocator::begin_cleaning(std::uint64_t segment) {
  unlink(utilization_list_of(segment), segment);
  descriptor(segment).utilization_list = 0;
  --allocator_state().entry_segment_count;
}

// --- Nodes ---

const std::byte* Allocator::node(NodeOffset offset, std::size_t& bytes) const {
  const SegmentDescriptor& holder = descriptor(offset / segment_bytes);
  if (holder.kind != SegmentKind::nodes || holder.size_class >= node_class_count ||
      offset % segment_bytes % node_bytes_of(holder.size_class) != 0) {
    throw corrupt_state("no node at offset", offset);
  }
  bytes = node_bytes_of(holder.size_class);
  return mapping_.base() + offset;
}

NodeOffset Allocator::allocate_node(std::size_t size_class) {
  assert(size_class < node_class_count);
  AllocatorState& state = allocator_state();
  std::uint32_t& partial = state.partial_node_segments[size_class];
  if (partial == 0 && state.retired_nodes_head != 0 &&
      node_header(state.retired_nodes_head).stamp <=
          header().applied_id.load(std::memory_order_relaxed)) {
    reclaim_nodes(advance_horizon());
  }
  if (partial == 0) {
    const std::uint64_t segment = allocate_segment(SegmentKind::nodes);
    descriptor(segment).size_class = static_cast<std::uint8_t>(size_class);
    descriptor(segment).on_partial_list = 1;
    link(partial, segment);
  }
  const std::uint64_t segment = partial;
  const std::size_t bytes = node_bytes_of(size_class);
  const NodeOffset offset = segment * segment_bytes + take_node(segment, size_class) * bytes;
  SegmentDescriptor& holder = descriptor(segment);
  ++holder.nodes.live;
  if (holder.free_node == 0 && holder.nodes.handed_out == segment_bytes / bytes) {
    unlink(partial, segment);
    holder.on_partial_list = 0;
  }
  NodeHeader& node = node_header(offset);
  node = NodeHeader{};
  node.stamp = update_id_;
  node.size_class = static_cast<std::uint8_t>(size_class);
  return offset;
}

// Returns the number of a free node within the segment, and takes it off the list.
std::uint64_t Allocator::take_node(std::uint64_t segment, std::size_t size_class) {
  SegmentDescriptor& holder = descriptor(segment);
  const std::size_t bytes = node_bytes_of(size_class);
  const std::uint64_t count = segment_bytes / bytes;
  if (holder.free_node == 0) {
    if (holder.kind != SegmentKind::nodes || holder.nodes.handed_out >= count)
      throw corrupt_state("nodes handed out", segment);
    return holder.nodes.handed_out++;
  }
  const std::uint64_t number = holder.free_node - 1;
  if (holder.kind != SegmentKind::nodes || holder.size_class != size_class || number >= count)
    throw corrupt_state("free node", segment);
  holder.free_node =
      static_cast<std::uint32_t>(node_header(segment * segment_bytes + number * bytes).next);
  // The next free node will be allocated soon, and is most likely in no cache.
  if (holder.free_node != 0 && holder.free_node <= count) {
    const std::byte* const next =
        mapping_.base() + segment * segment_bytes + (holder.free_node - 1) * bytes;
    for (std::size_t line = 0; line < node_bytes_of(0); line += 64)
      __builtin_prefetch(next + line, 1);
  }
  return number;
}

void Allocator::free_node(NodeOffset offset) {
  const std::uint64_t segment = offset / segment_bytes;
  SegmentDescriptor& holder = descriptor(segment);
  if (holder.kind != SegmentKind::nodes || holder.size_class >= node_class_count ||
      holder.nodes.live == 0)
    throw corrupt_state("no node at offset", offset);
  const std::size_t bytes = node_bytes_of(holder.size_class);
  std::uint32_t& partial = allocator_state().partial_node_segments[holder.size_class];
  node_header(offset).next = holder.free_node;
  node_header(offset).stamp = 0;
  holder.free_node = static_cast<std::uint32_t>(offset % segment_bytes / bytes + 1);
  --holder.nodes.live;
  if (holder.on_partial_list == 0) {
    holder.on_partial_list = 1;
    link(partial, segment);
  }
  const bool is_only_partial = partial == segment && holder.next == 0;
  if (holder.nodes.live == 0 && !is_only_partial) {
    unlink(partial, segment);
    retire_segment(segment);
  }
}

void Allocator::link_retired_node(NodeOffset offset, UpdateId stamp) {
  NodeHeader& node = node_header(offset);
  node.next = 0;
  node.stamp = stamp;
  AllocatorState& state = allocator_state();
  if (state.retired_nodes_tail != 0) {
    node_header(state.retired_nodes_tail).next = offset;
  } else {
    state.retired_nodes_head = offset;
  }
  state.retired_nodes_tail = offset;
}

void Allocator::retire_node(NodeOffset offset) {
  if (is_private(offset)) {
    free_node(offset);
  } else {
    link_retired_node(offset, update_id_);
  }
}

// Frees the retired nodes that no view can hold. Point reads do not visit nodes, so the reclaim
// generation stays.
void Allocator::reclaim_nodes(UpdateId oldest_visible) {
  AllocatorState& state = allocator_state();
  while (state.retired_nodes_head != 0) {
    const NodeOffset offset = state.retired_nodes_head;
    std::size_t bytes;
    node(offset, bytes);  // checks the offset
    const NodeHeader& retired = node_header(offset);
    if (retired.stamp > oldest_visible) return;
    state.retired_nodes_head = retired.next;
    if (retired.next != 0 && retired.next < mapping_.usable_bytes())
      __builtin_prefetch(mapping_.base() + retired.next, 1);
    if (state.retired_nodes_head == 0) state.retired_nodes_tail = 0;
    free_node(offset);
  }
}

}  // namespace whycache
