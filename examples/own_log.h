// A log in a store of your own. A map that several OwnLog objects share takes the place of your
// database. It passes all of tests/log/log_contract.h (see tests/log/log_contract_test.cc).
//
// A store needs one operation: an atomic write that depends on a condition. Here a mutex provides
// it; in a database it is a transaction, or one conditional statement.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/log.h>

// The store.
struct SharedStore {
  std::mutex mutex;
  whycache::Extent extent;
  std::map<whycache::UpdateId, std::string> updates;
  std::shared_ptr<const std::vector<std::string>> base_parts =
      std::make_shared<std::vector<std::string>>();

  SharedStore() {
    std::random_device random;  // no two logs have the same uuid
    for (auto& byte : extent.uuid) byte = static_cast<std::uint8_t>(random());
  }
};

class OwnLog final : public whycache::Log {
 public:
  explicit OwnLog(std::shared_ptr<SharedStore> store) : store_(std::move(store)) {}

  std::string name() const override { return "shared store"; }

  whycache::Extent extent() override {
    const std::lock_guard guard(store_->mutex);
    return store_->extent;
  }

  // Accepts only the id after the head, because ids are dense.
  Appended append(whycache::UpdateId id, std::string_view bytes) override {
    const std::lock_guard guard(store_->mutex);
    if (id <= store_->extent.base) return Appended::below_base;
    if (id != store_->extent.head + 1) return Appended::taken;
    store_->updates.emplace(id, bytes);
    store_->extent.head = id;
    return Appended::yes;
  }

  // Visits each update without holding the mutex, because `visit` may take long or use the log.
  whycache::Extent read(whycache::UpdateId first, whycache::UpdateId last,
                        const VisitUpdate& visit) override {
    std::optional<whycache::UpdateId> expected;
    for (auto update = first_update_from(first); update && update->first <= last;
         update = first_update_from(update->first + 1)) {
      if (expected && update->first != *expected) break;  // a rewrite deleted updates
      if (!visit(update->first, update->second)) break;
      expected = update->first + 1;
    }
    return extent();  // read last: updates up to its base may be incomplete
  }

  void read_base(const VisitPart& visit) override {
    std::unique_lock lock(store_->mutex);
    const auto parts = store_->base_parts;
    lock.unlock();
    for (const std::string& part : *parts) {
      if (!visit(part)) return;
    }
  }

  // First stores the parts outside the log, which may take long. Then switches to them in one step,
  // unless another rewrite has already reached `base`.
  bool rewrite(whycache::UpdateId base, std::uint64_t base_chain,
               const NextPart& next_part) override {
    const whycache::Extent before = extent();
    if (base <= before.base) return false;
    if (base > before.head)
      throw whycache::Error(whycache::ErrorKind::invalid, "rewrite beyond the head of the log");
    auto parts = std::make_shared<std::vector<std::string>>();
    while (const auto part = next_part()) parts->emplace_back(*part);

    const std::lock_guard guard(store_->mutex);
    if (base <= store_->extent.base) return false;
    store_->extent.base = base;
    store_->extent.base_chain = base_chain;
    store_->base_parts = std::move(parts);
    store_->updates.erase(store_->updates.begin(), store_->updates.upper_bound(base));
    return true;
  }

 private:
  std::optional<std::pair<whycache::UpdateId, std::string>> first_update_from(
      whycache::UpdateId id) {
    const std::lock_guard guard(store_->mutex);
    const auto found = store_->updates.lower_bound(id);
    return found == store_->updates.end() ? std::nullopt
                                          : std::optional(std::pair(found->first, found->second));
  }

  std::shared_ptr<SharedStore> store_;
};
