// The table behind every Memo. Keys are spread over shards, each with a mutex of its own, which is
// held while a key is looked up and never while a value is decoded.
#include <whycache/memo.h>

#include <array>
#include <atomic>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/fork_handlers.h"
#include "base/hash.h"
#include "base/mutex.h"
#include "client/cache_internal.h"
#include "state/read/pin.h"
#include "state/state.h"

namespace whycache::detail {
namespace {

constexpr std::size_t shard_count = 16;

struct MemoEntry {
  std::shared_ptr<const void> object{};
  // Of the value that `object` was decoded from.
  EntryVersion version{};
  // The state had `version` at this position. While it has not moved on, that need not be asked.
  StatePosition checked{};
  // The last value that could not be decoded, while `object` is of an earlier one.
  std::optional<EntryVersion> failed{};
  bool was_used = true;   // since the hand passed
  std::size_t place = 0;  // in MemoShard::ring
};

struct KeyHasher {
  using is_transparent = void;  // NOLINT(readability-identifier-naming): the standard names it
  std::size_t operator()(std::string_view key) const { return hash64(key); }
};
using MemoEntries = std::unordered_map<std::string, MemoEntry, KeyHasher, std::equal_to<>>;

struct alignas(64) MemoShard {
  Mutex mutex;
  MemoEntries entries WHYCACHE_GUARDED_BY(mutex);
  // All entries. The hand goes around them to find one that was not used lately.
  std::vector<MemoEntries::value_type*> ring WHYCACHE_GUARDED_BY(mutex);
  std::size_t hand WHYCACHE_GUARDED_BY(mutex) = 0;
  std::uint64_t hits WHYCACHE_GUARDED_BY(mutex) = 0;
};

// Returns the entry, which is to be destroyed without the mutex: its object may do anything.
MemoEntries::node_type take_entry(MemoShard& shard, MemoEntries::iterator entry)
    WHYCACHE_REQUIRES(shard.mutex) {
  const std::size_t place = entry->second.place;
  shard.ring[place] = shard.ring.back();
  shard.ring[place]->second.place = place;
  shard.ring.pop_back();
  return shard.entries.extract(entry);
}

// Takes an entry that was not used lately. Empty if there is no entry at all.
MemoEntries::node_type take_unused_entry(MemoShard& shard) WHYCACHE_REQUIRES(shard.mutex) {
  if (shard.ring.empty()) return {};
  for (;; ++shard.hand) {
    if (shard.hand >= shard.ring.size()) shard.hand = 0;
    MemoEntries::value_type& entry = *shard.ring[shard.hand];
    if (!std::exchange(entry.second.was_used, false))
      return take_entry(shard, shard.entries.find(entry.first));
  }
}

// What a forked child must not share with its parent: another thread may have held a mutex.
struct MemoShards {
  const std::uint64_t owner_fork_count = fork_count();
  std::array<MemoShard, shard_count> shards;
  std::atomic<std::uint64_t> entry_count{0};
  std::atomic<std::uint64_t> decodes{0};
  std::atomic<std::uint64_t> decode_failures{0};
  MemoShards* next_abandoned = nullptr;

  MemoShard& shard_of(std::string_view key) { return shards[hash64(key, 1) % shard_count]; }
};

// Leaks what the parent had, in a child. A list keeps it reachable for leak checkers.
void abandon(MemoShards* shards) {
  static std::atomic<MemoShards*> abandoned{nullptr};
  shards->next_abandoned = abandoned.load(std::memory_order_relaxed);
  while (
      !abandoned.compare_exchange_weak(shards->next_abandoned, shards, std::memory_order_relaxed)) {
  }
}

bool is_newer(const EntryVersion& version, const EntryVersion& than) {
  return version.state_id != than.state_id || version.version > than.version;
}

}  // namespace

class MemoTable::Impl {
 public:
  Impl(const Cache& cache, Decode decode, const MemoOptions& options)
      : cache_(cache), decode_(std::move(decode)), options_(options) {}
  ~Impl() {
    MemoShards* const shards = shards_.load(std::memory_order_acquire);
    if (shards->owner_fork_count == fork_count()) {
      delete shards;
    } else {
      abandon(shards);
    }
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  std::shared_ptr<const void> get(std::string_view key) {
    MemoShards& all = shards();
    MemoShard& shard = all.shard_of(key);
    const State& state = CacheInternal::state(cache_);
    // First: the version that is found is then of this position or a later one.
    const StatePosition position = reading([&] { return state.position(); });
    EntryVersion present;
    std::optional<bool> is_present;
    {
      const MutexLock lock(shard.mutex);
      const auto found = shard.entries.find(key);
      if (found == shard.entries.end()) {
        is_present = false;
      } else if (found->second.checked == position) {
        return use(shard, found->second);
      } else {
        is_present = state.try_find_version(key, present);
        if (is_present == true && is_of(found->second, present)) {
          found->second.checked = position;
          return use(shard, found->second);
        }
      }
    }
    // Without the mutex: this read may wait for the cache to be opened again.
    if (!is_present && state.find_version(key, present)) {
      const MutexLock lock(shard.mutex);
      const auto found = shard.entries.find(key);
      if (found != shard.entries.end() && is_of(found->second, present)) {
        found->second.checked = position;
        return use(shard, found->second);
      }
    }
    return decode_present(all, shard, key);
  }

  void clear() {
    MemoShards& all = shards();
    for (MemoShard& shard : all.shards) {
      MemoEntries dropped;  // destroyed without the mutex: objects may do anything
      const MutexLock lock(shard.mutex);
      all.entry_count.fetch_sub(shard.entries.size(), std::memory_order_relaxed);
      dropped.swap(shard.entries);
      shard.ring.clear();
    }
  }

  MemoCounters counters() {
    MemoShards& all = shards();
    MemoCounters counters;
    for (MemoShard& shard : all.shards) {
      const MutexLock lock(shard.mutex);
      counters.hits += shard.hits;
      counters.entries += shard.entries.size();
    }
    counters.decodes = all.decodes.load(std::memory_order_relaxed);
    counters.decode_failures = all.decode_failures.load(std::memory_order_relaxed);
    return counters;
  }

 private:
  // Runs a read. If it finds the state damaged, the next update() rebuilds it.
  template <typename Read>
  auto reading(const Read& read) -> decltype(read()) {
    try {
      return read();
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::corrupt) CacheInternal::note_damage(cache_);
      throw;
    }
  }

  // Whether the object is of the present value, or of the last one that could be decoded.
  static bool is_of(const MemoEntry& entry, const EntryVersion& present) {
    return present == entry.version || present == entry.failed;
  }

  static std::shared_ptr<const void> use(MemoShard& shard, MemoEntry& entry)
      WHYCACHE_REQUIRES(shard.mutex) {
    entry.was_used = true;
    ++shard.hits;
    return entry.object;
  }

  MemoShards& shards() {
    MemoShards* present = shards_.load(std::memory_order_acquire);
    if (present->owner_fork_count == fork_count()) [[likely]]
      return *present;
    auto mine = std::make_unique<MemoShards>();
    MemoShards* const of_parent = present;
    // One thread wins if several create it.
    if (!shards_.compare_exchange_strong(present, mine.get(), std::memory_order_acq_rel))
      return *present;
    abandon(of_parent);
    return *mine.release();
  }

  [[gnu::noinline]] std::shared_ptr<const void> decode_present(MemoShards& all, MemoShard& shard,
                                                               std::string_view key) {
    const std::shared_ptr<const Pin> pin = CacheInternal::pin(cache_);
    EntryVersion version{state_id_of(pin->mapping().header()), 0};
    const std::string_view value = reading([&] { return pin->find(key, version.version); });
    if (value.data() == nullptr) {
      remove(all, shard, key);
      return nullptr;
    }
    all.decodes.fetch_add(1, std::memory_order_relaxed);
    std::shared_ptr<const void> object;
    try {
      object = decode_(value);
    } catch (...) {
      all.decode_failures.fetch_add(1, std::memory_order_relaxed);
      if (std::shared_ptr<const void> last = keep_last_good(shard, key, version)) return last;
      throw;
    }
    store(all, shard, key, {object, version, {version.state_id, pin->id()}});
    return object;
  }

  std::shared_ptr<const void> keep_last_good(MemoShard& shard, std::string_view key,
                                             const EntryVersion& version) const {
    if (!options_.keep_last_good) return nullptr;
    const MutexLock lock(shard.mutex);
    const auto found = shard.entries.find(key);
    if (found == shard.entries.end()) return nullptr;
    if (is_newer(version, found->second.version)) found->second.failed = version;
    return found->second.object;
  }

  void store(MemoShards& all, MemoShard& shard, std::string_view key, MemoEntry entry) {
    MemoEntry replaced;  // destroyed without the mutex
    bool is_full = false;
    {
      const MutexLock lock(shard.mutex);
      // Before the entry exists: without memory, none may be left outside the ring.
      if (shard.ring.size() == shard.ring.capacity())
        shard.ring.reserve(std::max<std::size_t>(16, 2 * shard.ring.capacity()));
      const auto [place, is_new] = shard.entries.try_emplace(std::string(key));
      // Another thread may have decoded a newer value meanwhile.
      if (!is_new && !is_newer(entry.version, place->second.version)) return;
      entry.place = is_new ? shard.ring.size() : place->second.place;
      replaced = std::exchange(place->second, std::move(entry));
      if (!is_new) return;
      shard.ring.push_back(&*place);
      is_full = all.entry_count.fetch_add(1, std::memory_order_relaxed) + 1 > options_.entries_max;
    }
    if (is_full) make_room(all, shard);
  }

  void make_room(MemoShards& all, MemoShard& first) {
    const auto index = static_cast<std::size_t>(&first - all.shards.data());
    for (std::size_t i = 0; i < shard_count; ++i) {
      MemoShard& shard = all.shards[(index + 1 + i) % shard_count];
      MemoEntries::node_type taken;  // destroyed without the mutex
      const MutexLock lock(shard.mutex);
      taken = take_unused_entry(shard);
      if (taken.empty()) continue;
      all.entry_count.fetch_sub(1, std::memory_order_relaxed);
      return;
    }
  }

  static void remove(MemoShards& all, MemoShard& shard, std::string_view key) {
    MemoEntries::node_type removed;  // destroyed without the mutex
    const MutexLock lock(shard.mutex);
    const auto found = shard.entries.find(key);
    if (found == shard.entries.end()) return;
    removed = take_entry(shard, found);
    all.entry_count.fetch_sub(1, std::memory_order_relaxed);
  }

  const Cache& cache_;
  const Decode decode_;
  const MemoOptions options_;
  std::atomic<MemoShards*> shards_{new MemoShards};
};

MemoTable::MemoTable(const Cache& cache, Decode decode, const MemoOptions& options) {
  if (options.entries_max == 0)
    throw Error(ErrorKind::invalid, "entries_max out of range: entries_max=0 range=1..");
  impl_ = std::make_unique<Impl>(cache, std::move(decode), options);
}
MemoTable::~MemoTable() = default;

std::shared_ptr<const void> MemoTable::get(std::string_view key) { return impl_->get(key); }
void MemoTable::clear() { impl_->clear(); }
MemoCounters MemoTable::counters() const { return impl_->counters(); }

}  // namespace whycache::detail
