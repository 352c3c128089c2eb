#include "state/write/allocator.h"

#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <string>

#include "state/errors.h"

namespace whycache {
namespace {

// Garbage among the entries is left alone up to this share of their segments.
constexpr std::uint64_t garbage_divisor = 5;  // one in five
constexpr std::uint64_t garbage_segments_min = 6;
constexpr std::uint64_t growth_segments_max = 256;

std::uint8_t utilization_list_of(std::uint32_t live) {
  return static_cast<std::uint8_t>(std::min<std::uint64_t>(
      live * utilization_list_count / segment_bytes, utilization_list_count - 1));
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
  const UpdateId applied = header().applied_id.load(std::memory_order_relaxed);
  if (readers_ == nullptr) return applied;
  header().reclaim_horizon.store(applied, std::memory_order_release);
  // Pairs with the fence of a view between its pin and its look at the horizon: one of us sees the
  // other.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return readers_->find_oldest_pinned_id(mapping_.state_id(), applied);
}

bool Allocator::has_views() {
  if (readers_ == nullptr) return false;
  // As in visible_from(): either we see the pin, or its owner sees all we stored before.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return readers_->find_oldest_pinned_id(mapping_.state_id(), UINT64_MAX) != UINT64_MAX;
}

void Allocator::increment_generation() {
  // Release: who acquires the raised number sees the updates published before, and looks for
  // nothing older. One step, since whoever supersedes the file may do so meanwhile.
  header().reclaim_generation.fetch_add(1, std::memory_order_release);
  // Pairs with the acquire fence of a point read: who sees what is written from here on sees the
  // raised number.
  std::atomic_thread_fence(std::memory_order_release);
}

// --- Lists of segments ---

void Allocator::link(std::uint32_t& head, std::uint64_t segment) {
  SegmentDescriptor& one = descriptor(segment);
  one.previous = 0;
  one.next = head;
  if (head != 0) descriptor(head).previous = static_cast<std::uint32_t>(segment);
  head = static_cast<std::uint32_t>(segment);
}

void Allocator::unlink(std::uint32_t& head, std::uint64_t segment) {
  SegmentDescriptor& one = descriptor(segment);
  if (one.previous != 0) {
    descriptor(one.previous).next = one.next;
  } else {
    head = one.next;
  }
  if (one.next != 0) descriptor(one.next).previous = one.previous;
  one.next = one.previous = 0;
}

void Allocator::link_free_segment(std::uint64_t segment) {
  SegmentDescriptor& one = descriptor(segment);
  one = SegmentDescriptor{};
  one.kind = SegmentKind::free;
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

void Allocator::link_retired_segment(std::uint64_t segment, UpdateId stamp) {
  SegmentDescriptor& one = descriptor(segment);
  one = SegmentDescriptor{};
  one.kind = SegmentKind::retired;
  one.stamp = stamp;
  AllocatorState& all = allocator_state();
  if (all.retired_tail != 0) {
    descriptor(all.retired_tail).next = static_cast<std::uint32_t>(segment);
  } else {
    all.retired_head = static_cast<std::uint32_t>(segment);
  }
  all.retired_tail = static_cast<std::uint32_t>(segment);
  ++all.retired_count;
}

void Allocator::retire_segment(std::uint64_t segment) { link_retired_segment(segment, update_id_); }

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
  SegmentDescriptor& one = descriptor(segment);
  const auto number = static_cast<unsigned>(std::countr_one(one.filters.in_use_bits));
  if (one.kind != SegmentKind::filters || number >= filters_per_segment)
    throw corrupt_state("free filter", segment);
  one.filters.in_use_bits |= 1U << number;
  if (++one.filters.live == filters_per_segment) {
    unlink(partial, segment);
    one.on_partial_list = 0;
  }
  return segment * segment_bytes + number * filter_bytes;
}

void Allocator::free_filter(std::uint64_t offset) {
  const std::uint64_t segment = offset / segment_bytes;
  SegmentDescriptor& one = descriptor(segment);
  const std::uint32_t bit = filter_bit(offset);
  if (one.kind != SegmentKind::filters || (one.filters.in_use_bits & bit) == 0 ||
      one.filters.live == 0)
    throw corrupt_state("no filter at offset", offset);
  one.filters.in_use_bits &= ~bit;
  --one.filters.live;
  if (one.on_partial_list == 0) link_filter_segment(segment);
  if (one.filters.live > 0) return;
  unlink(allocator_state().partial_filter_segments, segment);
  link_free_segment(segment);
}

void Allocator::reclaim_segments() {
  AllocatorState& all = allocator_state();
  const UpdateId applied = header().applied_id.load(std::memory_order_relaxed);
  const bool any_segments = all.retired_head != 0 && descriptor(all.retired_head).stamp <= applied;
  if (!any_segments) return;
  const UpdateId visible = advance_horizon();
  bool raised = false;
  while (all.retired_head != 0) {
    const std::uint32_t segment = all.retired_head;
    const SegmentDescriptor& one = descriptor(segment);
    if (one.kind != SegmentKind::retired)
      throw corrupt_state("segment on the retired list in use", segment);
    if (one.stamp > visible) break;
    if (!raised) increment_generation();
    raised = true;
    all.retired_head = one.next;
    if (all.retired_head == 0) all.retired_tail = 0;
    --all.retired_count;
    if (one.retired_filter != 0) free_filter(one.retired_filter * filter_bytes);
    link_free_segment(segment);
  }
}

void Allocator::grow(std::uint64_t segments_wanted) {
  AllocatorState& all = allocator_state();
  const std::uint64_t count = all.segment_count;
  const std::uint64_t count_max = std::min(bytes_max_, mapping_.reserved_bytes()) / segment_bytes;
  std::uint64_t more = std::max(segments_wanted, std::min(count / 128, growth_segments_max));
  more = std::min(more, count_max > count ? count_max - count : 0);
  // A limit on the size of files would end the process with a signal; say it instead.
  struct rlimit file_limit;
  if (::getrlimit(RLIMIT_FSIZE, &file_limit) == 0 && file_limit.rlim_cur != RLIM_INFINITY) {
    const std::uint64_t allowed = file_limit.rlim_cur / segment_bytes;
    more = std::min(more, allowed > count ? allowed - count : 0);
  }
  if (more < segments_wanted) {
    throw Error(ErrorKind::limit,
                "state is full: state_bytes=" + std::to_string(count * segment_bytes) +
                    " state_bytes_max=" + std::to_string(bytes_max_) + " path=" + mapping_.path() +
                    " (raise Options::state_bytes_max, or the limits of the process on file size "
                    "and address space)");
  }
  for (;;) {
    const int error =
        allocate_in_file(mapping_.descriptor(), count * segment_bytes, more * segment_bytes);
    if (error == 0) break;
    if (more == segments_wanted)
      throw system_error("cannot grow state file", mapping_.path(), error);
    more = segments_wanted;  // there may still be room for what is needed right now
  }
  mapping_.set_usable_bytes((count + more) * segment_bytes);
  header().file_bytes.store((count + more) * segment_bytes, std::memory_order_release);
  all.segment_count = static_cast<std::uint32_t>(count + more);
  // From the end, so that the list hands them out in ascending order.
  for (std::uint64_t segment = count + more; segment-- > count;) {
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
    grow(allocator_state().segment_count % segments_per_table == 0
             ? 2
             : 1);  // the first may become a table
    segment = take_free_segment();
  }
  SegmentDescriptor& one = descriptor(segment);
  one = SegmentDescriptor{};
  one.kind = kind;
  return segment;
}

std::uint64_t Allocator::find_free_run(std::uint64_t count) const {
  std::uint64_t run = 0;
  for (std::uint64_t segment = 1; segment < allocator_state().segment_count; ++segment) {
    run = descriptor(segment).kind == SegmentKind::free ? run + 1 : 0;
    if (run == count) return segment + 1 - count;
  }
  return 0;
}

std::uint64_t Allocator::allocate_span(SegmentKind first_kind, std::uint64_t count) {
  std::uint64_t first = find_free_run(count);
  if (first == 0) {
    reclaim_segments();
    first = find_free_run(count);
  }
  if (first == 0) {
    // A table may come to lie among the new ones and cut the run in two.
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

void Allocator::link_sealed_segment(std::uint64_t segment) {
  SegmentDescriptor& one = descriptor(segment);
  const std::uint8_t list = utilization_list_of(one.entries.live_bytes);
  one.utilization_list = static_cast<std::uint8_t>(list + 1);
  link(allocator_state().utilization_lists[list], segment);
}

void Allocator::seal_segment(std::uint32_t& open) {
  if (open == 0) return;
  const std::uint32_t segment = open;
  open = 0;
  if (descriptor(segment).entries.live_bytes == 0) {
    --allocator_state().entry_segment_count;
    retire_segment(segment);
  } else {
    link_sealed_segment(segment);
  }
}

bool Allocator::needs_segment(std::uint64_t bytes) const {
  return is_large_entry(bytes) || allocator_state().active_segment == 0 ||
         descriptor(allocator_state().active_segment).entries.used_bytes + bytes > segment_bytes;
}

std::uint64_t Allocator::allocate_entry(std::uint64_t bytes, bool copy) {
  AllocatorState& all = allocator_state();
  if (is_large_entry(bytes)) {
    const std::uint64_t first = allocate_span(SegmentKind::large, segments_for(bytes));
    descriptor(first).span.live = 1;
    return first * segment_bytes;
  }
  std::uint32_t& open = copy ? all.cleaning_segment : all.active_segment;
  if (open == 0 || descriptor(open).entries.used_bytes + bytes > segment_bytes) {
    seal_segment(open);
    const std::uint64_t segment = allocate_segment(SegmentKind::entries);
    ++all.entry_segment_count;
    open = static_cast<std::uint32_t>(segment);
  }
  SegmentDescriptor& one = descriptor(open);
  const std::uint64_t offset = open * segment_bytes + one.entries.used_bytes;
  one.entries.used_bytes += static_cast<std::uint32_t>(bytes);
  one.entries.live_bytes += static_cast<std::uint32_t>(bytes);
  all.entry_live_bytes += bytes;
  return offset;
}

void Allocator::retire_entry(std::uint64_t offset, std::uint64_t bytes) {
  const std::uint64_t segment = offset / segment_bytes;
  SegmentDescriptor& one = descriptor(segment);
  if (one.kind == SegmentKind::large) {
    const std::uint64_t count = one.span.segment_count;
    for (std::uint64_t i = 0; i < count; ++i) retire_segment(segment + i);
    return;
  }
  if (one.kind != SegmentKind::entries || one.entries.live_bytes < bytes)
    throw corrupt_state("entry in a segment of another kind", segment);
  one.entries.live_bytes -= static_cast<std::uint32_t>(bytes);
  allocator_state().entry_live_bytes -= bytes;
  if (one.utilization_list == 0) return;  // open, or being cleared
  const std::uint8_t list = static_cast<std::uint8_t>(one.utilization_list - 1);
  if (list >= utilization_list_count)
    throw corrupt_state("segment on a list that cannot be", segment);
  if (one.entries.live_bytes == 0) {
    unlink(allocator_state().utilization_lists[list], segment);
    --allocator_state().entry_segment_count;
    retire_segment(segment);
  } else if (utilization_list_of(one.entries.live_bytes) != list) {
    unlink(allocator_state().utilization_lists[list], segment);
    link_sealed_segment(segment);
  }
}

std::uint64_t Allocator::cleaning_candidate() const {
  const AllocatorState& all = allocator_state();
  const std::uint64_t bytes = all.entry_segment_count * segment_bytes;
  if (all.entry_segment_count < garbage_segments_min ||
      (bytes - all.entry_live_bytes) * garbage_divisor <= bytes)
    return 0;
  // When views keep what was retired from being reused, moving entries about only makes more of it.
  if (all.retired_count > all.entry_segment_count / 2 + garbage_segments_min) return 0;
  for (std::size_t list = 0; list < utilization_list_count - 2; ++list) {
    if (all.utilization_lists[list] != 0) return all.utilization_lists[list];
  }
  return 0;
}

void Allocator::begin_cleaning(std::uint64_t segment) {
  SegmentDescriptor& one = descriptor(segment);
  if (one.kind != SegmentKind::entries || one.utilization_list == 0 ||
      one.utilization_list > utilization_list_count) {
    throw corrupt_state("segment on a list that cannot be", segment);
  }
  unlink(allocator_state().utilization_lists[one.utilization_list - 1], segment);
  one.utilization_list = 0;
  --allocator_state().entry_segment_count;
}

// --- Nodes ---

const std::byte* Allocator::node(NodeOffset offset, std::size_t& bytes) const {
  const std::uint64_t segment = offset / segment_bytes;
  const SegmentDescriptor& one = descriptor(segment);
  const std::uint64_t within = offset % segment_bytes;
  if (one.kind != SegmentKind::nodes || one.size_class >= node_class_count ||
      within % node_bytes_of(one.size_class) != 0) {
    throw corrupt_state("no node at offset", offset);
  }
  bytes = node_bytes_of(one.size_class);
  return mapping_.base() + offset;
}

NodeOffset Allocator::allocate_node(std::size_t size_class) {
  AllocatorState& all = allocator_state();
  std::uint32_t& partial = all.partial_node_segments[size_class];
  if (partial == 0 && all.retired_nodes_head != 0 &&
      node_header(all.retired_nodes_head).stamp <=
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
  SegmentDescriptor& one = descriptor(segment);
  const std::size_t bytes = node_bytes_of(size_class);
  const std::uint64_t count = segment_bytes / bytes;
  std::uint64_t number;
  if (one.free_node != 0) {
    number = one.free_node - 1;
    if (one.kind != SegmentKind::nodes || one.size_class != size_class || number >= count)
      throw corrupt_state("free node", segment);
    one.free_node =
        static_cast<std::uint32_t>(node_header(segment * segment_bytes + number * bytes).next);
    // The one after this will be wanted soon, and nobody had to do with it for long.
    if (one.free_node != 0 && one.free_node <= count) {
      const std::byte* const next =
          mapping_.base() + segment * segment_bytes + (one.free_node - 1) * bytes;
      for (std::size_t line = 0; line < node_bytes_of(0); line += 64)
        __builtin_prefetch(next + line, 1);
    }
  } else {
    number = one.nodes.handed_out;
    if (one.kind != SegmentKind::nodes || number >= count)
      throw corrupt_state("nodes handed out", segment);
    ++one.nodes.handed_out;
  }
  ++one.nodes.live;
  if (one.free_node == 0 && one.nodes.handed_out == count) {
    unlink(partial, segment);
    one.on_partial_list = 0;
  }
  const NodeOffset offset = segment * segment_bytes + number * bytes;
  NodeHeader& node = node_header(offset);
  node = NodeHeader{};
  node.stamp = update_id_;
  node.size_class = static_cast<std::uint8_t>(size_class);
  return offset;
}

void Allocator::free_node(NodeOffset offset) {
  const std::uint64_t segment = offset / segment_bytes;
  SegmentDescriptor& one = descriptor(segment);
  if (one.kind != SegmentKind::nodes || one.size_class >= node_class_count || one.nodes.live == 0)
    throw corrupt_state("no node at offset", offset);
  const std::size_t bytes = node_bytes_of(one.size_class);
  std::uint32_t& partial = allocator_state().partial_node_segments[one.size_class];
  node_header(offset).next = one.free_node;
  node_header(offset).stamp = 0;
  one.free_node = static_cast<std::uint32_t>(offset % segment_bytes / bytes + 1);
  --one.nodes.live;
  if (one.on_partial_list == 0) {
    one.on_partial_list = 1;
    link(partial, segment);
  }
  const bool only_one = partial == segment && one.next == 0;
  if (one.nodes.live == 0 && !only_one) {
    unlink(partial, segment);
    retire_segment(segment);
  }
}

void Allocator::link_retired_node(NodeOffset offset, UpdateId stamp) {
  NodeHeader& node = node_header(offset);
  node.next = 0;
  node.stamp = stamp;
  AllocatorState& all = allocator_state();
  if (all.retired_nodes_tail != 0) {
    node_header(all.retired_nodes_tail).next = offset;
  } else {
    all.retired_nodes_head = offset;
  }
  all.retired_nodes_tail = offset;
}

void Allocator::retire_node(NodeOffset offset) {
  if (is_private(offset)) {
    free_node(offset);
  } else {
    link_retired_node(offset, update_id_);
  }
}

void Allocator::reclaim_nodes(UpdateId visible) {
  AllocatorState& all = allocator_state();
  while (all.retired_nodes_head != 0) {
    const NodeOffset offset = all.retired_nodes_head;
    std::size_t bytes;
    node(offset, bytes);  // checks the offset
    const NodeHeader& one = node_header(offset);
    if (one.stamp > visible) return;
    all.retired_nodes_head = one.next;
    if (one.next != 0 && one.next < mapping_.usable_bytes())
      __builtin_prefetch(mapping_.base() + one.next, 1);
    if (all.retired_nodes_head == 0) all.retired_nodes_tail = 0;
    free_node(offset);
  }
}

}  // namespace whycache
