#include "log/memory_log.h"

#include <cassert>
#include <chrono>
#include <condition_variable>
#include <map>
#include <optional>
#include <stop_token>
#include <utility>
#include <vector>

#include "base/call_limit.h"
#include "base/fork_handlers.h"
#include "base/mutex.h"
#include "base/random.h"
#include "log/log_checks.h"

namespace whycache {

using BaseParts = std::vector<std::string>;

class MemoryLog::Store final : ForkHandler {
 public:
  Store() { register_fork_handler(this); }
  ~Store() { unregister_fork_handler(this); }

  bool is_forked_copy() const { return is_forked_copy_; }
  Extent extent() const WHYCACHE_REQUIRES(mutex) {
    const UpdateId head = updates.empty() ? base : updates.rbegin()->first;
    assert(head - base == updates.size());  // ids are dense above the base
    return {uuid, base, base_chain, head};
  }

  const Uuid uuid = random_uuid();
  Mutex mutex;
  UpdateId base WHYCACHE_GUARDED_BY(mutex) = 0;
  std::uint64_t base_chain WHYCACHE_GUARDED_BY(mutex) = 0;
  std::shared_ptr<const BaseParts> base_parts WHYCACHE_GUARDED_BY(mutex) =
      std::make_shared<BaseParts>();
  std::map<UpdateId, std::string> updates WHYCACHE_GUARDED_BY(mutex);
  std::condition_variable appended;  // or a waiter is to look at its stop

 private:
  void after_fork_in_child() noexcept override {
    is_forked_copy_ = true;
    forget_waiters_of_parent(appended);
  }

  // Written in a child by its only thread, before there are others.
  bool is_forked_copy_ = false;
};

MemoryLog::MemoryLog() : MemoryLog("memory:", std::make_shared<Store>()) {}
MemoryLog::MemoryLog(std::string name, std::shared_ptr<Store> store)
    : name_(std::move(name)), store_(std::move(store)) {}
MemoryLog::~MemoryLog() = default;

std::unique_ptr<MemoryLog> MemoryLog::shared(const std::string& name) {
  struct SharedStores {
    Mutex mutex;
    std::map<std::string, std::shared_ptr<Store>> by_name WHYCACHE_GUARDED_BY(mutex);
  };
  // Never destroyed: a thread may open a log while the process exits.
  static auto* const stores = new SharedStores;
  const MutexLock lock(stores->mutex);
  std::shared_ptr<Store>& store = stores->by_name[name];
  if (!store) store = std::make_shared<Store>();
  return std::unique_ptr<MemoryLog>(new MemoryLog("memory:" + name, store));
}

// Checked before the mutex is locked: in a child, a thread of the parent may hold it.
MemoryLog::Store& MemoryLog::store() const {
  if (store_->is_forked_copy()) {
    throw Error(
        ErrorKind::invalid,
        "memory log belongs to the process that created it, and this is a child of that process");
  }
  return *store_;
}

Extent MemoryLog::extent() {
  Store& store = this->store();
  const MutexLock lock(store.mutex);
  return store.extent();
}

Log::Appended MemoryLog::append(UpdateId id, std::string_view bytes) {
  check_update(id, bytes);
  Store& store = this->store();
  const MutexLock lock(store.mutex);
  const Extent extent = store.extent();
  if (id <= extent.base) return Appended::below_base;
  // Beyond the next id, the caller has seen another log; reading again shows that.
  if (id != extent.head + 1) return Appended::taken;
  store.updates.emplace(id, bytes);
  store.appended.notify_all();
  return Appended::yes;
}

Extent MemoryLog::read(UpdateId first, UpdateId last, const VisitUpdate& visit) {
  // Copies the next update at or after `first`, so that `visit` may be slow and may use the log.
  const auto next = [&]() -> std::optional<std::pair<UpdateId, std::string>> {
    Store& store = this->store();
    const MutexLock lock(store.mutex);
    const auto update = store.updates.lower_bound(first);
    if (update == store.updates.end() || update->first > last) return std::nullopt;
    return *update;
  };
  std::optional<UpdateId> expected;
  while (const auto update = next()) {
    // A rewrite has deleted the next update: the caller sees it in the extent.
    if (expected && update->first != *expected) break;
    if (!visit(update->first, update->second)) break;
    expected = first = update->first + 1;
  }
  return extent();
}

bool MemoryLog::wait(UpdateId after, std::chrono::nanoseconds at_most) {
  Store& store = this->store();
  const Deadline deadline =
      CallLimit::deadline(std::chrono::ceil<std::chrono::milliseconds>(at_most));
  const std::stop_callback on_stop(deadline.stop(), [&] {
    const MutexLock lock(store.mutex);
    store.appended.notify_all();
  });
  MutexLock lock(store.mutex);
  while (store.extent().head <= after) {
    const std::chrono::nanoseconds left = deadline.remaining();
    if (left.count() == 0) return false;
    store.appended.wait_for(lock.native(), left);
  }
  return true;
}

void MemoryLog::read_base(const VisitPart& visit) {
  const auto parts = [&]() -> std::shared_ptr<const BaseParts> {
    Store& store = this->store();
    const MutexLock lock(store.mutex);
    return store.base_parts;
  }();
  for (const std::string& part : *parts) {
    if (!visit(part)) return;
  }
}

bool MemoryLog::rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) {
  const Extent previous = extent();
  if (base <= previous.base) return false;
  if (base > previous.head) throw rewrite_beyond_head_error(base, previous.head);

  auto parts = std::make_shared<BaseParts>();
  while (const auto part = next_part()) parts->emplace_back(*part);

  Store& store = this->store();
  const MutexLock lock(store.mutex);
  if (base <= store.base) return false;
  check_base_chain(name(), base, store.updates.at(base), base_chain);
  store.base = base;
  store.base_chain = base_chain;
  store.base_parts = std::move(parts);
  store.updates.erase(store.updates.begin(), store.updates.upper_bound(base));
  return true;
}

}  // namespace whycache
