// The table behind every Memo. Keys are spread over shards, each with a lock of its own. A lock is
// held while an entry is looked up or exchanged, and never while a value is read or decoded, or an
// object is destroyed.
#include <whycache/memo.h>

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/fork_handlers.h"
#include "base/hash.h"
#include "base/random.h"
#include "base/spin_lock.h"
#include "client/cache_internal.h"
#include "client/memo_entries.h"
#include "state/read/pin.h"
#include "state/state.h"

namespace whycache::detail {
namespace {

constexpr unsigned shard_count_log2 = 4;
constexpr std::size_t shard_count = 1 << shard_count_log2;

// A hit holds the lock for a search of the table and the copy of a pointer. A new entry also holds
// it while the table grows, or while the hand looks for one to replace.
struct alignas(64) MemoShard {
  SpinLock lock;
  MemoEntries entries WHYCACHE_GUARDED_BY(lock);
  std::uint64_t hits WHYCACHE_GUARDED_BY(lock) = 0;
};

// What a forked child must not share with its parent: another thread may have held a lock.
struct MemoShards {
  const std::uint64_t owner_fork_count = fork_count();
  // Secret, so that keys that share a slot cannot be chosen.
  const std::uint64_t hash_seed = random_u64();
  std::array<MemoShard, shard_count> shards;
  std::atomic<std::uint64_t> entry_count{0};
  std::atomic<std::uint64_t> decodes{0};
  std::atomic<std::uint64_t> decode_failures{0};
  MemoShards* next_abandoned = nullptr;

  std::uint64_t hash(std::string_view key) const { return hash64(key, hash_seed); }
  // By the highest bits, of which MemoEntries makes no use.
  MemoShard& shard_of(std::uint64_t hash) { return shards[hash >> (64 - shard_count_log2)]; }
};

// Leaks what the parent had, in a child. A list keeps it reachable for leak checkers.
void abandon(MemoShards* shards) {
  static std::atomic<MemoShards*> abandoned{nullptr};
  shards->next_abandoned = abandoned.load(std::memory_order_relaxed);
  while (
      !abandoned.compare_exchange_weak(shards->next_abandoned, shards, std::memory_order_relaxed)) {
  }
}

struct MemoKey {
  std::string_view bytes;
  std::uint64_t hash = 0;
};

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
    const MemoKey wanted{key, all.hash(key)};
    MemoShard& shard = all.shard_of(wanted.hash);
    const State& state = CacheInternal::state(cache_);
    // First: the version that is found is then of this position or a later one.
    const StatePosition position = reading([&] { return state.position(); });
    bool is_known = false;
    {
      const SpinLockGuard guard(shard.lock);
      MemoEntry* const entry = shard.entries.find(wanted.hash, key);
      is_known = entry != nullptr;
      if (is_known && entry->checked == position) return use(shard, *entry);
    }
    // Without the lock: this read may wait for a disk, or for the cache to be opened again.
    EntryVersion present;
    if (is_known && state.find_version(key, present)) {
      const SpinLockGuard guard(shard.lock);
      MemoEntry* const entry = shard.entries.find(wanted.hash, key);
      if (entry != nullptr && is_of(*entry, present)) {
        entry->checked = position;
        return use(shard, *entry);
      }
    }
    return decode_present(all, shard, wanted);
  }

  void clear() {
    MemoShards& all = shards();
    for (MemoShard& shard : all.shards) {
      MemoEntries dropped;  // destroyed without the lock: objects may do anything
      const SpinLockGuard guard(shard.lock);
      all.entry_count.fetch_sub(shard.entries.size(), std::memory_order_relaxed);
      std::swap(dropped, shard.entries);
    }
  }

  MemoCounters counters() {
    MemoShards& all = shards();
    MemoCounters counters;
    for (MemoShard& shard : all.shards) {
      const SpinLockGuard guard(shard.lock);
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

  static std::shared_ptr<const void> use(MemoShard& shard, const MemoEntry& entry)
      WHYCACHE_REQUIRES(shard.lock) {
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
                                                               const MemoKey& key) {
    const std::shared_ptr<const Pin> pin = CacheInternal::pin(cache_);
    EntryVersion version{state_id_of(pin->mapping().header()), 0};
    const std::string_view value = reading([&] { return pin->find(key.bytes, version.version); });
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
    auto entry = std::make_unique<MemoEntry>();
    entry->key = key.bytes;
    entry->object = object;
    entry->checked = {version.state_id, pin->id()};
    entry->version = version;
    store(all, shard, key.hash, std::move(entry));
    return object;
  }

  std::shared_ptr<const void> keep_last_good(MemoShard& shard, const MemoKey& key,
                                             const EntryVersion& version) const {
    if (!options_.keep_last_good) return nullptr;
    const SpinLockGuard guard(shard.lock);
    MemoEntry* const entry = shard.entries.find(key.hash, key.bytes);
    if (entry == nullptr) return nullptr;
    if (is_newer(version, entry->version)) entry->failed = version;
    return entry->object;
  }

  // Whatever is replaced is destroyed without the lock, as `stored` is then its owner.
  void store(MemoShards& all, MemoShard& shard, std::uint64_t hash,
             std::unique_ptr<MemoEntry> stored) const {
    {
      const SpinLockGuard guard(shard.lock);
      if (MemoEntry* const entry = shard.entries.find(hash, stored->key)) {
        // Another thread may have decoded a newer value meanwhile.
        if (is_newer(stored->version, entry->version)) std::swap(*entry, *stored);
        return;
      }
      shard.entries.insert(hash, std::move(stored));
      if (all.entry_count.fetch_add(1, std::memory_order_relaxed) < options_.entries_max) return;
    }
    make_room(all, shard);
  }

  static void make_room(MemoShards& all, MemoShard& first) {
    const auto index = static_cast<std::size_t>(&first - all.shards.data());
    for (std::size_t i = 0; i < shard_count; ++i) {
      MemoShard& shard = all.shards[(index + 1 + i) % shard_count];
      std::unique_ptr<MemoEntry> taken;  // destroyed without the lock
      const SpinLockGuard guard(shard.lock);
      taken = shard.entries.take_unused();
      if (taken == nullptr) continue;
      all.entry_count.fetch_sub(1, std::memory_order_relaxed);
      return;
    }
  }

  static void remove(MemoShards& all, MemoShard& shard, const MemoKey& key) {
    std::unique_ptr<MemoEntry> removed;  // destroyed without the lock
    const SpinLockGuard guard(shard.lock);
    removed = shard.entries.take(key.hash, key.bytes);
    if (removed != nullptr) all.entry_count.fetch_sub(1, std::memory_order_relaxed);
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
