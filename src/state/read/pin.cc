#include "state/read/pin.h"

#include <string>
#include <utility>

#include "base/fork_handlers.h"
#include "state/errors.h"
#include "state/index/fast_lookup_avx2.h"

namespace whycache::detail {

Pin::Pin(std::shared_ptr<const Mapping> mapping, std::shared_ptr<LockFile> readers)
    : mapping_(std::move(mapping)), readers_(std::move(readers)), fork_count_(fork_count()) {
  slot_ = readers_->claim_slot();
  try {
    pin_newest();
  } catch (...) {
    readers_->release_slot(slot_);
    throw;
  }
  max_entry_word_ = EntryWord::max_at(block_.id);
}

Pin::Pin(std::shared_ptr<const Mapping> mapping)
    : mapping_(std::move(mapping)),
      fork_count_(fork_count()),
      block_(read_published(mapping_->header())),
      max_entry_word_(EntryWord::max_at(block_.id)) {}

Pin::~Pin() {
  // In a child the slot is the parent's.
  if (slot_ != nullptr && fork_count_ == fork_count()) readers_->release_slot(slot_);
}

void Pin::pin_newest() {
  const Header& header = mapping_->header();
  slot_->state_id.store(mapping_->state_id(), std::memory_order_release);
  for (;;) {
    block_ = read_published(header);
    slot_->pinned_id.store(block_.id + 1, std::memory_order_release);
    // Pairs with the writer's fence between raising the horizon and looking at the slots: it sees
    // our pin, or we see its horizon.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const UpdateId horizon = header.reclaim_horizon.load(std::memory_order_acquire);
    if (horizon <= block_.id) return;
    // It is never raised beyond the applied id.
    if (horizon > header.applied_id.load(std::memory_order_acquire)) {
      throw corrupt_state("reclaim_horizon=" + std::to_string(horizon) +
                          " path=" + mapping_->path());
    }
  }
}

void Pin::check_not_forked() const {
  if (fork_count_ != fork_count()) {
    throw Error(ErrorKind::invalid, "view was opened before fork: open another one in the child");
  }
}

template <bool two_words>
[[gnu::always_inline]] inline std::string_view Pin::fast_find(std::string_view key) const {
  if (fork_count_ == fork_count()) [[likely]] {
    const DirectoryCache& plan = *mapping_->last_directory_cache();
    FastValue found;
    const FastResult quick = fast_look_up<two_words>(
        plan, plan.header(), key, [this] { return max_entry_word_; }, found);
    if (quick == FastResult::found) [[likely]] {
      const std::string_view value(found.key + key.size(), found.bytes);
      if (is_value_mapped(plan, value)) [[likely]]
        return value;
    }
    if (quick == FastResult::not_found) return {};
  }
  return slow_find(*this, key);
}

#if WHYCACHE_AVX2
// What find_anywhere() does.
[[WHYCACHE_FOR_AVX2]] std::string_view Pin::find_avx2(const Pin& pin, std::string_view key) {
  if (!fits_two_words(key.size())) [[unlikely]]
    return find_any_size(pin, key);
  if (pin.fork_count_ == fork_count()) [[likely]] {
    const DirectoryCache& plan = *pin.mapping_->last_directory_cache();
    FastValue found;
    const FastResult quick = avx2::fast_look_up(
        plan, plan.header(), key, [&pin] { return pin.max_entry_word_; }, found);
    avx2::zero_upper_vectors();
    if (quick == FastResult::found) [[likely]] {
      const std::string_view value(found.key + key.size(), found.bytes);
      if (is_value_mapped(plan, value)) [[likely]]
        return value;
    }
    if (quick == FastResult::not_found) return {};
  }
  return slow_find(pin, key);
}
#endif

[[gnu::noinline]] std::string_view Pin::slow_find(const Pin& pin, std::string_view key) {
  const LookupResult result = pin.get(key);
  return result.status == LookupStatus::found ? result.value : std::string_view();
}

[[gnu::noinline]] std::string_view Pin::find_any_size(const Pin& pin, std::string_view key) {
  return pin.fast_find<false>(key);
}

std::string_view Pin::find_portable(const Pin& pin, std::string_view key) {
  return fits_two_words(key.size()) ? pin.fast_find<true>(key) : find_any_size(pin, key);
}

Pin::FindFunction* Pin::select_find() {
#if WHYCACHE_AVX2
  if (has_avx2()) return find_avx2;
#endif
  return find_portable;
}

LookupResult Pin::get(std::string_view key) const {
  check_not_forked();
  const std::uint64_t hash = mapping_->hash_of(key);
  const MappedBytes bytes(*mapping_);
  const IndexWord* part = find_index_page(
      bytes, mapping_->header().index_directory.load(std::memory_order_acquire), hash);
  LookupResult result{LookupStatus::torn, {}};
  if (part != nullptr) result = look_up(bytes, part, hash, key, block_.id);
  return result.status == LookupStatus::torn ? look_up_with_refresh(key, hash) : result;
}

LookupResult Pin::look_up_with_refresh(std::string_view key, std::uint64_t hash) const {
  // Most likely the file has grown since this process looked at its size, and may do so again
  // before it has looked at the key: what it comes upon is the newest version, wherever that is,
  // and goes back from there.
  LookupResult result{LookupStatus::torn, {}};
  std::uint64_t usable = mapping_->refresh_usable_bytes();
  for (;;) {
    const MappedBytes bytes(*mapping_);
    const IndexWord* part = find_index_page(
        bytes, mapping_->header().index_directory.load(std::memory_order_acquire), hash);
    if (part != nullptr) result = look_up(bytes, part, hash, key, block_.id);
    if (result.status != LookupStatus::torn) return result;
    if (std::exchange(usable, mapping_->refresh_usable_bytes()) == usable) break;
  }
  if (mapping_->header().file_bytes.load(std::memory_order_acquire) > mapping_->reserved_bytes()) {
    throw Error(ErrorKind::limit,
                "state outgrew the address space reserved for this view: path=" + mapping_->path() +
                    " reserved_bytes=" + std::to_string(mapping_->reserved_bytes()) +
                    " (open another view; raise state_bytes_max, or the limit on address space, "
                    "see ulimit -v)");
  }
  throw corrupt_state("path=" + mapping_->path() + " update=" + std::to_string(block_.id));
}

}  // namespace whycache::detail
