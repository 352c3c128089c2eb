#include "state/read/pin.h"

#include <cstring>
#include <string>
#include <utility>

#include "base/fork_handlers.h"
#include "state/errors.h"
#include "state/overflow.h"
#include "state/read/point_read.h"

namespace whycache::detail {

Pin::Pin(std::shared_ptr<const Mapping> mapping, Writers writers)
    : mapping_(std::move(mapping)), fork_count_(fork_count()) {
  if (writers == Writers::any) {
    Pins& pins = mapping_->pins();
    block_ = pins.add(node_);
    pins_ = &pins;
    node_.directory_cache.store(mapping_->last_directory_cache(), std::memory_order_release);
  } else {
    block_ = read_published(mapping_->header());
    // In a forked child, nothing would replace another one. Each find() takes the slow path.
    node_.directory_cache.store(&mapping_->empty_directory_cache(), std::memory_order_release);
  }
  max_entry_word_ = EntryWord::max_at(block_.id);
}

Pin::~Pin() {
  // A forked child has none of its parent's pins.
  if (pins_ != nullptr && fork_count_ == fork_count()) pins_->remove(node_);
}

void Pin::check_not_forked() const {
  if (fork_count_ != fork_count()) {
    throw Error(ErrorKind::invalid, "view was opened before fork: open another one in the child");
  }
}

// Returns a view of the mapped value, without data if the key is absent. A result of false means
// undecided.
struct Pin::ViewValue {
  template <typename Vectors>
  [[gnu::always_inline]] bool take(const PinnedRead& read, const FastValue& entry,
                                   std::size_t key_bytes, std::string_view) const {
    target = entry.value(key_bytes);
    return is_value_mapped(read.directory_cache(), target);
  }
  [[gnu::always_inline]] static bool take_slowly(const Pin&, const PinnedRead&, std::string_view,
                                                 std::string_view) {
    return false;
  }
  [[gnu::always_inline]] bool not_found() const {
    target = {};
    return true;
  }
  [[gnu::always_inline]] static bool read_slowly(const Pin&, std::string_view) { return false; }

  std::string_view& target;
};

#if WHYCACHE_AVX2
[[gnu::noinline, WHYCACHE_TARGET_AVX2]] std::string_view Pin::find_any_size_avx2(
    const Pin& pin, std::string_view key) {
  const PinnedRead read(pin.directory_cache(), pin.max_entry_word_);
  std::string_view value;
  if (point_read_any_size_avx2(read, pin, key, ViewValue{value})) [[likely]]
    return value;
  return pin.slow_find(key);
}

[[WHYCACHE_TARGET_AVX2]] std::string_view Pin::find_avx2(const Pin& pin, std::string_view key) {
  if (!fits_two_words(key.size())) [[unlikely]]
    return find_any_size_avx2(pin, key);
  const PinnedRead read(pin.directory_cache(), pin.max_entry_word_);
  std::string_view value;
  if (point_read_avx2(read, pin, key, ViewValue{value})) [[likely]]
    return value;
  return pin.slow_find(key);
}
#endif

template <bool two_words>
[[gnu::noinline]] std::string_view Pin::find_portable(const Pin& pin, std::string_view key) {
  if (two_words && !fits_two_words(key.size())) return find_portable<false>(pin, key);
  const PinnedRead read(pin.directory_cache(), pin.max_entry_word_);
  std::string_view value;
  if (point_read<two_words>(read, pin, key, ViewValue{value})) [[likely]]
    return value;
  return pin.slow_find(key);
}

Pin::FindFunction* Pin::select_find() {
#if WHYCACHE_AVX2
  if (has_avx2()) return find_avx2;
#endif
  return find_portable<true>;
}

std::optional<UpdateId> Pin::version_of(std::string_view key) const {
  UpdateId version = 0;
  return find(key, version).data() == nullptr ? std::nullopt : std::optional(version);
}

std::string_view Pin::find(std::string_view key, UpdateId& version) const {
  const char* key_in_entry = nullptr;
  const std::string_view value = slow_find(key, &key_in_entry);
  if (value.data() != nullptr) version = entry_word_before(key_in_entry, key, value).id();
  return value;
}

// The fast path may have lacked a newer one.
void Pin::renew_directory_cache() const {
  const DirectoryCache* const newest = mapping_->last_directory_cache();
  // Most slow reads have other reasons. They store nothing that other threads load.
  if (pins_ != nullptr && node_.directory_cache.load(std::memory_order_relaxed) != newest)
    node_.directory_cache.store(newest, std::memory_order_release);
}

std::string_view Pin::slow_find(std::string_view key, const char** key_in_entry) const {
  check_not_forked();
  const std::uint64_t hash = mapping_->hash_of(key);
  // A torn result mostly means that the file has grown since this process asked for its size. It
  // may grow again during the next attempt: a look-up starts at the newest version, wherever that
  // is, and follows the chain back from there. The loop ends once the size no longer changes.
  LookupResult result{LookupStatus::torn, {}};
  std::uint64_t usable = 0;
  for (;;) {
    result = look_up_everywhere(*mapping_, hash, key, block_.id);
    if (result.status != LookupStatus::torn) {
      renew_directory_cache();
      if (key_in_entry != nullptr) *key_in_entry = result.key;
      return result.value;
    }
    const std::uint64_t usable_before = std::exchange(usable, mapping_->refresh_usable_bytes());
    if (usable == usable_before) break;
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
