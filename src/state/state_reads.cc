// The reads of a State: point reads on the fast path and the slow one, and pins.
#include <array>
#include <cassert>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/string_length.h"
#include "state/index/lookup.h"
#include "state/read/current_file.h"
#include "state/read/pin.h"
#include "state/read/point_read.h"
#include "state/read/rcu.h"
#include "state/state.h"
#include "state/state_files.h"

namespace whycache {
namespace {

constexpr int point_read_attempts_max = 4;

// Extends the usable bytes if the file has grown since this process asked for its size: a read may
// have met an offset in the new part.
void refresh_if_grown(const Mapping& mapping) {
  if (mapping.header().file_bytes.load(std::memory_order_acquire) > mapping.usable_bytes())
    mapping.refresh_usable_bytes();
}

// Copies a value of any size. If the string already has the value's size, the copy uses the
// string's size instead of the one in the entry. The processor then knows all addresses before the
// entry arrives from memory. It can start on the entry's later cache lines, and on code that reads
// the copy.
void copy_into(std::string& value, std::string_view found) {
  const std::size_t bytes_before = value.size();
  // Hidden before the comparison. After it, the compiler would know that both sizes are equal, and
  // might hide the other one.
  const std::size_t bytes = hide_from_optimizer(bytes_before);
  if (bytes_before == found.size()) {
    std::memcpy(value.data(), found.data(), bytes);
  } else if (has_bytes_beyond_length && found.size() <= value.capacity()) {
    // As assign() does, in half as many instructions: the value is not in the string itself.
    std::memcpy(value.data(), found.data(), found.size());
    set_length(value, found.size());
  } else {
    value.assign(found.data(), found.size());
  }
}

// Passes finish_get() its arguments without spilling registers on the fast path. Set immediately
// before the call. Not re-entrant.
struct PendingGet {
  const State* state;
  const Header* header;
  OptimisticRead read;
};
constinit thread_local PendingGet pending_get
    __attribute__((tls_model("initial-exec"))) = {nullptr, nullptr, OptimisticRead()};

static_assert(copy_short_bytes_max <= fast_value_bytes_max);

// Whether CopyValue::take_short() can be used for kept strings.
bool copies_beyond_values() {
#if WHYCACHE_AVX2
  return has_bytes_beyond_length && has_avx2();
#else
  return false;
#endif
}

// Whether a string that has memory has too little for take_short(). A value that fits into the
// string itself, without memory, is no reason to allocate any.
bool needs_room_for_short_values(const std::string& value, std::size_t bytes) {
  const std::size_t capacity_without_memory = std::string().capacity();
  return bytes <= copy_short_bytes_max && value.capacity() < copy_short_bytes_max &&
         value.capacity() > capacity_without_memory && copies_beyond_values();
}

// A thread expects the next value that it gets into a new string to have this size: that of the
// last one, if the one before it had the same, else 0.
struct ExpectedSize {
  static constexpr std::size_t bytes_max = 4096;

  void note(std::size_t value_bytes) {
    expected = value_bytes == last && value_bytes <= bytes_max ? value_bytes : 0;
    last = value_bytes;
  }

  std::size_t expected = 0;
  std::size_t last = 0;
};
constinit thread_local ExpectedSize expected_size __attribute__((tls_model("initial-exec")));

}  // namespace

// Copies the value into a string that most often has the value's size already.
struct State::CopyValue {
  // The addresses of the copy must not depend on the size in the entry, which comes from memory.
  // Hidden before the comparison: after it, the compiler would take either, since they are equal.
  // The comparison comes first, because it is predicted where sizes vary. The other would not be.
  template <typename Vectors>
  [[gnu::always_inline]] bool take(const UnpinnedRead&, const FastValue&, std::size_t,
                                   std::string_view value) const {
    const std::size_t bytes_before = target.size();
    const std::size_t bytes = hide_from_optimizer(bytes_before);
    if (value.size() != bytes_before) [[unlikely]]
      return take_short<Vectors>(value);
    if (bytes > copy_short_bytes_max) [[unlikely]]
      return false;
    Vectors::copy(target.data(), value.data(), bytes);
    return true;
  }
  [[gnu::always_inline]] static bool not_found() { return record_miss(); }
  // Copies a value of another size than the string has. If sizes vary, the processor predicts a
  // branch that depends on the size wrong, and starts nothing of what follows before the entry is
  // there. take_short() therefore copies as much as a short value can have, and sets the length
  // afterwards. The bytes behind the value are within the mapping, too (fast_read_bytes). The
  // writer may be writing to them. A thread sanitizer does not see that, since with it all reads
  // are portable.
  template <typename Vectors>
  [[gnu::always_inline]] bool take_short(std::string_view value) const {
    if (!Vectors::copies_beyond_values || !has_bytes_beyond_length ||
        value.size() > copy_short_bytes_max || target.capacity() < copy_short_bytes_max)
      return false;
    Vectors::copy(target.data(), value.data(), copy_short_bytes_max);
    set_length(target, value.size());
    return true;
  }
  [[gnu::always_inline]] bool take_slowly(const State& state, const UnpinnedRead& read,
                                          std::string_view key, std::string_view value) const {
    pending_get = {&state, &read.header(), read.optimistic()};
    return finish_get(key, target, value);
  }
  [[gnu::always_inline]] bool read_slowly(const State& state, std::string_view key) const {
    return state.slow_read(key, *this);
  }
  void take_any(const Mapping&, std::string_view, std::string_view value) const {
    copy_into(target, value);
  }

  std::string& target;
};

// Copies the value into a buffer that most often has the value's size already, and leaves to the
// caller what the fast path cannot decide.
struct State::CopyToBuffer {
  template <typename Vectors>
  [[gnu::always_inline]] bool take(const UnpinnedRead&, const FastValue&, std::size_t,
                                   std::string_view value) const {
    const std::size_t bytes_before = target.bytes;
    const std::size_t bytes = hide_from_optimizer(bytes_before);
    if (value.size() != bytes_before) [[unlikely]]
      return false;
    if (bytes > copy_short_bytes_max) [[unlikely]]
      return false;
    Vectors::copy(target.data, value.data(), bytes);
    return true;
  }
  [[gnu::always_inline]] static bool not_found() { return record_miss(); }
  [[gnu::always_inline]] bool take_slowly(const State& state, const UnpinnedRead& read,
                                          std::string_view, std::string_view value) const {
    pending_get = {&state, &read.header(), read.optimistic()};
    return finish_try_get(target, value);
  }
  // A miss in a full bucket comes here, too, and each key of such a bucket whose word was
  // displaced.
  [[gnu::always_inline]] bool read_slowly(const State& state, std::string_view key) const {
    return try_slowly(state, key, target);
  }
  [[gnu::noinline]] static bool try_slowly(const State& state, std::string_view key,
                                           ValueBuffer& target) {
    bool is_copied = false;
    const ReadOutcome outcome = state.read_once(key, [&](const Mapping&, std::string_view value) {
      if (value.size() > target.bytes_max) return;
      if (value.size() != target.bytes && !target.resize(target, value.size())) return;
      std::memcpy(target.data, value.data(), value.size());
      is_copied = true;
    });
    const bool is_found = outcome == ReadOutcome::found && is_copied;
    target.is_undecided = !is_found && outcome != ReadOutcome::not_found;
    return is_found;
  }

  ValueBuffer& target;
};

// Takes the update id of the entry instead of its value.
struct State::FindVersion {
  template <typename Vectors>
  [[gnu::always_inline]] bool take(const UnpinnedRead& read, const FastValue& entry, std::size_t,
                                   std::string_view) const {
    const auto* const word = reinterpret_cast<const std::uint64_t*>(entry.entry);
    target.version = EntryWord(__atomic_load_n(word, __ATOMIC_RELAXED)).id();
    target.state_id = state_id_of(read.header());
    return true;
  }
  [[gnu::always_inline]] static bool not_found() { return record_miss(); }
  [[gnu::always_inline]] bool take_slowly(const State& state, const UnpinnedRead&,
                                          std::string_view key, std::string_view) const {
    return read_slowly(state, key);  // never called: take() accepts every value
  }
  [[gnu::always_inline]] bool read_slowly(const State& state, std::string_view key) const {
    return state.slow_read(key, *this);
  }
  void take_any(const Mapping& mapping, std::string_view key, std::string_view value) const {
    target.version = entry_word_before(value.data() - key.size(), key, value).id();
    target.state_id = state_id_of(mapping.header());
  }

  EntryVersion& target;
};

// As FindVersion, but makes one attempt instead of taking the slow path.
struct State::TryFindVersion {
  template <typename Vectors>
  [[gnu::always_inline]] bool take(const UnpinnedRead& read, const FastValue& entry,
                                   std::size_t hidden_bytes, std::string_view value) const {
    return sink.take<Vectors>(read, entry, hidden_bytes, value);
  }
  [[gnu::always_inline]] static bool not_found() { return record_miss(); }
  [[gnu::always_inline]] bool take_slowly(const State& state, const UnpinnedRead&,
                                          std::string_view key, std::string_view) const {
    return read_slowly(state, key);  // never called: take() accepts every value
  }
  [[gnu::always_inline]] bool read_slowly(const State& state, std::string_view key) const {
    const ReadOutcome outcome =
        state.read_once(key, [&](const Mapping& mapping, std::string_view value) {
          sink.take_any(mapping, key, value);
        });
    is_decided = outcome == ReadOutcome::found || outcome == ReadOutcome::not_found;
    return outcome == ReadOutcome::found;
  }

  FindVersion sink;
  bool& is_decided;
};

// The end of finish_get() for a value for which the string needs more memory.
bool State::finish_get_in_new_memory(std::string_view key, std::string& value,
                                     std::string_view found) {
  // A function that allocates memory may read another state meanwhile.
  const PendingGet get = pending_get;
  bool holds = false;
  {
    // Memory may be missing.
    struct LeaveOnExit {
      ~LeaveOnExit() { this_reader.thread->leave(); }
    } const leaving;
    // As much as CopyValue::take_short() copies. But a new string gets as much as it needs.
    if (copies_beyond_values() && !value.empty() && found.size() <= copy_short_bytes_max)
      value.reserve(copy_short_bytes_max);
    value.assign(found);
    holds = get.read.validate(*get.header);
  }
  return holds || CopyValue{value}.read_slowly(*get.state, key);
}

bool State::finish_get(std::string_view key, std::string& value, std::string_view found) {
  // This may be the cache of another file by now. Then the value does not lie within its mapping,
  // and the slow path decides.
  const DirectoryCache& cache =
      *pending_get.state->directory_cache_.load(std::memory_order_acquire);
  // Hidden before the comparison, as in CopyValue.
  const std::size_t bytes_before = value.size();
  const std::size_t bytes = hide_from_optimizer(bytes_before);
  bool holds = false;
  if (is_value_mapped(cache, found)) [[likely]] {
    if (found.size() == bytes_before) {
      std::memcpy(value.data(), found.data(), bytes);
    } else if (has_bytes_beyond_length && found.size() <= value.capacity() &&
               !needs_room_for_short_values(value, found.size())) {
      // As assign() does, in half as many instructions.
      std::memcpy(value.data(), found.data(), found.size());
      set_length(value, found.size());
    } else {
      return finish_get_in_new_memory(key, value, found);
    }
    holds = pending_get.read.validate(*pending_get.header);
  }
  this_reader.thread->leave();
  return holds || CopyValue{value}.read_slowly(*pending_get.state, key);
}

// As finish_get(), but does not wait.
bool State::finish_try_get(ValueBuffer& buffer, std::string_view found) {
  const PendingGet get = pending_get;
  const DirectoryCache& cache = *get.state->directory_cache_.load(std::memory_order_acquire);
  bool holds = false;
  // Hidden before the comparison, as in CopyToBuffer.
  std::size_t bytes = hide_from_optimizer(std::size_t{buffer.bytes});
  if (found.size() != buffer.bytes) bytes = found.size();
  if (is_value_mapped(cache, found) && found.size() <= buffer.bytes_max &&
      (found.size() == buffer.bytes || buffer.resize(buffer, found.size()))) [[likely]] {
    std::memcpy(buffer.data, found.data(), bytes);
    holds = get.read.validate(*get.header);
  }
  this_reader.thread->leave();
  buffer.is_undecided = !holds;
  return holds;
}

#if WHYCACHE_AVX2
template <typename Sink>
WHYCACHE_INLINE_AVX2 bool State::read_avx2(const State& state, std::string_view key, Sink sink) {
  ReaderThread* const thread = this_reader.fast_thread;
  if (!fits_two_words(key.size())) [[unlikely]]
    return read_any_size_avx2(state, key, sink);
  if (thread != nullptr) [[likely]]
    return point_read_avx2(UnpinnedRead(*thread, state.directory_cache_), state, key, sink);
  if (this_reader.thread == nullptr) [[unlikely]]
    return state.read(key, sink, false);
  const UnpinnedRead read(*this_reader.thread, state.directory_cache_);
  const bool excluded = avx2::filter_excludes(read.directory_cache(), read.header(), key) &&
                        !read.superseded() && read.validate();
  // Not read.leave(): keeping the record's address would cost every get one more register.
  this_reader.thread->leave();
  if (!excluded) return state.read(key, sink, true);
  this_reader.record_filter_exclusion();
  return false;
}

template <typename Sink>
[[WHYCACHE_TARGET_AVX2, gnu::noinline]] bool State::read_any_size_avx2(const State& state,
                                                                       std::string_view key,
                                                                       Sink sink) {
  ReaderThread* const thread = this_reader.fast_thread;
  if (thread == nullptr) [[unlikely]]
    return state.read(key, sink, false);
  return point_read_any_size_avx2(UnpinnedRead(*thread, state.directory_cache_), state, key, sink);
}

[[WHYCACHE_TARGET_AVX2]] bool State::get_avx2(const State& state, std::string_view key,
                                              std::string& value) {
  return read_avx2(state, key, CopyValue{value});
}

[[WHYCACHE_TARGET_AVX2]] bool State::try_get_avx2(const State& state, std::string_view key,
                                                  ValueBuffer& buffer) {
  return read_avx2(state, key, CopyToBuffer{buffer});
}
#endif

template <typename Sink>
[[gnu::always_inline]] inline bool State::read_portable(const State& state, std::string_view key,
                                                        Sink sink) {
  if (key.size() - 8 < this_reader.fast_key_size_count) [[likely]]
    return point_read<true>(UnpinnedRead(*this_reader.fast_thread, state.directory_cache_), state,
                            key, sink);
  return state.read(key, sink, false);
}

// Makes a string of the size that the value is expected to have, so that no address of the copy
// depends on memory that has not arrived.
std::optional<std::string> State::get(std::string_view key) const {
  std::optional<std::string> value(std::in_place);
  const std::size_t expected = expected_size.expected;
  if (expected != 0) {
    value->reserve(expected);
    set_length(*value, expected);
  }
  if (!get(key, *value)) {
    value.reset();
  } else if (value->size() != expected) {
    expected_size.note(value->size());
    // Does not keep memory for what was expected.
    if (value->capacity() / 2 > value->size()) value.emplace(std::string(*value));
  }
  return value;
}

bool State::find_version(std::string_view key, EntryVersion& version) const {
  return read_portable(*this, key, FindVersion{version});
}

std::optional<bool> State::try_find_version(std::string_view key,
                                            EntryVersion& version) const noexcept {
  bool is_decided = true;
  const bool found = read_portable(*this, key, TryFindVersion{{version}, is_decided});
  return is_decided ? std::optional(found) : std::nullopt;
}

template <typename Sink>
bool State::read(std::string_view key, Sink sink, bool passed_filter) const {
  const ThisReader& reader = this_reader;
  if (reader.fast_thread != nullptr)
    return point_read<false>(UnpinnedRead(*reader.fast_thread, directory_cache_), *this, key, sink);
  if (reader.thread == nullptr) [[unlikely]]
    return sink.read_slowly(*this, key);
  if (!passed_filter && filter_excludes(*reader.thread, key)) return false;
  const UnpinnedRead read(*reader.thread, directory_cache_);
  const bool found = fits_two_words(key.size()) ? point_read<true>(read, *this, key, sink)
                                                : point_read<false>(read, *this, key, sink);
  if (found) this_reader.record_hit();
  return found;
}

bool State::filter_excludes(ReaderThread& thread, std::string_view key) const {
  const UnpinnedRead read(thread, directory_cache_);
  const DirectoryCache& cache = read.directory_cache();
  const bool excludes = whycache::filter_excludes(cache, read.header(), cache.key_hash(key)) &&
                        !read.superseded() && read.validate();
  read.leave();
  if (excludes) this_reader.record_filter_exclusion();
  return excludes;
}

State::GetFunction* State::select_get() {
#if WHYCACHE_AVX2
  if (has_avx2()) return get_avx2;
#endif
  return [](const State& state, std::string_view key, std::string& value) {
    return read_portable(state, key, CopyValue{value});
  };
}

State::TryGetFunction* State::select_try_get() {
#if WHYCACHE_AVX2
  if (has_avx2()) return try_get_avx2;
#endif
  return [](const State& state, std::string_view key, ValueBuffer& buffer) {
    return read_portable(state, key, CopyToBuffer{buffer});
  };
}

template <typename Take>
ReadOutcome State::read_once(std::string_view key, const Take& take) const noexcept {
  // To register the thread takes memory, which may be missing.
  if (this_reader.thread == nullptr) return ReadOutcome::retry;
  try {
    const ReadSection reading;
    const Mapping* const mapping = files_->current_file.unowned_mapping();
    if (mapping == nullptr) return ReadOutcome::retry;
    // The slow path renews the directory cache, and asks the owner while fast reads are disabled,
    // when it is that of no file.
    const DirectoryCache* const cache = directory_cache_.load(std::memory_order_acquire);
    if (cache != mapping->last_directory_cache()) return ReadOutcome::retry;
    const ReadOutcome outcome =
        try_point_read(*mapping, MappedBytes(*mapping, *cache), key,
                       [&](std::string_view value) { take(*mapping, value); });
    if (outcome == ReadOutcome::not_found) record_miss();
    return outcome;
  } catch (const std::exception&) {
    return ReadOutcome::retry;  // damage, which the slow path reports
  }
}

bool State::may_wait_for_file() const noexcept {
  try {
    const ReadSection reading;
    const Mapping* const mapping = files_->current_file.unowned_mapping();
    return mapping == nullptr || is_superseded(*mapping) || !mapping->holds_whole_file();
  } catch (const std::exception&) {  // this thread gets no record, so nothing is known
    return true;
  }
}

template <typename Sink>
bool State::slow_read(std::string_view key, Sink sink) const {
  if (owner_ == nullptr) return slow_read_of_file(key, sink);
  owner_->before_slow_read();
  try {
    return slow_read_of_file(key, sink);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::corrupt) owner_->note_damage();
    throw;
  }
}

template <typename Sink>
bool State::slow_read_of_file(std::string_view key, Sink sink) const {
  ReadOutcome outcome = ReadOutcome::superseded;
  const auto read_without_pin = [&] {
    const ReadSection reading;
    const Mapping* const mapping = files_->current_file.unowned_mapping();
    for (int tries = 0; mapping != nullptr && tries < point_read_attempts_max; ++tries) {
      outcome = try_point_read(*mapping, MappedBytes(*mapping), key, [&](std::string_view value) {
        sink.take_any(*mapping, key, value);
      });
      if (mapping->last_directory_cache() != directory_cache_.load(std::memory_order_relaxed))
        files_->current_file.refresh_directory_cache(*mapping);
      if (outcome != ReadOutcome::retry) return;
      refresh_if_grown(*mapping);
    }
  };
  read_without_pin();
  if (outcome == ReadOutcome::superseded && files_->current_file.newest_mapping() != nullptr)
    read_without_pin();
  if (outcome == ReadOutcome::found) return true;
  if (outcome == ReadOutcome::not_found) return record_miss();
  // Keeps the value mapped until it is copied.
  const std::shared_ptr<const detail::Pin> held = pin();
  const std::string_view value = held->find(key);
  if (value.data() == nullptr) return record_miss();
  sink.take_any(held->mapping(), key, value);
  return true;
}

void State::enable_fast_reads(bool enabled) const {
  files_->current_file.enable_fast_reads(enabled);
}

std::shared_ptr<const detail::Pin> State::pin() const {
  unmap_if_idle();
  std::shared_ptr<Mapping> mapping = files_->current_file.newest_mapping();
  if (!mapping) throw Error(ErrorKind::unavailable, "no usable state: " + unusable_reason());
  // For reads by one attempt, in processes that never take the slow path.
  if (mapping->last_directory_cache() != directory_cache_.load(std::memory_order_relaxed))
    files_->current_file.refresh_directory_cache(*mapping);
  return std::make_shared<const detail::Pin>(std::move(mapping));
}

std::size_t State::get_multi(std::span<const std::string_view> keys,
                             std::span<std::optional<std::string>> values) const {
  assert(values.size() == keys.size());
  std::size_t found = 0;
  std::size_t next = 0;  // keys before it are done
  const auto reset_before = [&](std::size_t end) {
    for (; next < end; ++next) values[next].reset();
  };
  pin()->get_many(keys, [&](std::size_t i, const LookupResult& result) {
    reset_before(i);
    next = i + 1;
    ++found;
    if (values[i]) {
      values[i]->assign(result.value);
    } else {
      values[i].emplace(result.value);
    }
  });
  reset_before(keys.size());
  return found;
}

}  // namespace whycache
