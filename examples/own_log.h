// A log in a store of your own: here a map that several programs' worth of objects share, in place of the
// database you have. It lives through the whole of tests/log/log_contract.h (tests/log/log_contract_test.cc).
//
// What a store has to offer is one thing: to do something only if something else still holds. Here that is a
// mutex; in a database it is a transaction, or one statement with a condition.
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
struct Shelf {
  std::mutex mutex;
  whycache::Extent extent;
  std::map<whycache::UpdateId, std::string> updates;
  std::shared_ptr<const std::vector<std::string>> base_parts = std::make_shared<std::vector<std::string>>();

  Shelf() {
    std::random_device random;  // no two logs have the same uuid
    for (auto& byte : extent.uuid) byte = static_cast<std::uint8_t>(random());
  }
};

class OwnLog final : public whycache::Log {
 public:
  explicit OwnLog(std::shared_ptr<Shelf> shelf) : shelf_(std::move(shelf)) {}

  std::string name() const override { return "shelf"; }

  whycache::Extent extent() override {
    const std::lock_guard guard(shelf_->mutex);
    return shelf_->extent;
  }

  // The place after the head, and no other: ids are dense.
  Appended append(whycache::UpdateId id, std::string_view bytes) override {
    const std::lock_guard guard(shelf_->mutex);
    if (id <= shelf_->extent.base) return Appended::below_base;
    if (id != shelf_->extent.head + 1) return Appended::taken;
    shelf_->updates.emplace(id, bytes);
    shelf_->extent.head = id;
    return Appended::yes;
  }

  // One update at a time, and none of them visited under the mutex: `visit` may take long, and use the log.
  whycache::Extent read(whycache::UpdateId first, whycache::UpdateId last, const VisitUpdate& visit) override {
    std::optional<whycache::UpdateId> expected;
    for (auto update = first_from(first); update && update->first <= last; update = first_from(update->first + 1)) {
      if (expected && update->first != *expected) break;  // history was rewritten meanwhile
      if (!visit(update->first, update->second)) break;
      expected = update->first + 1;
    }
    return extent();  // after the updates: its base says which of them may be believed
  }

  void read_base(const VisitPart& visit) override {
    std::unique_lock lock(shelf_->mutex);
    const auto parts = shelf_->base_parts;
    lock.unlock();
    for (const std::string& part : *parts) {
      if (!visit(part)) return;
    }
  }

  // First the parts, beside the log, however long that takes; then one step that switches if that still makes sense.
  bool rewrite(whycache::UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    const whycache::Extent before = extent();
    if (base <= before.base) return false;
    if (base > before.head) throw whycache::Error(whycache::ErrorKind::invalid, "rewrite beyond the head of the shelf");
    auto parts = std::make_shared<std::vector<std::string>>();
    while (const auto part = next_part()) parts->emplace_back(*part);

    const std::lock_guard guard(shelf_->mutex);
    if (base <= shelf_->extent.base) return false;
    shelf_->extent.base = base;
    shelf_->extent.base_chain = base_chain;
    shelf_->base_parts = std::move(parts);
    shelf_->updates.erase(shelf_->updates.begin(), shelf_->updates.upper_bound(base));
    return true;
  }

 private:
  std::optional<std::pair<whycache::UpdateId, std::string>> first_from(whycache::UpdateId id) {
    const std::lock_guard guard(shelf_->mutex);
    const auto found = shelf_->updates.lower_bound(id);
    return found == shelf_->updates.end() ? std::nullopt : std::optional(std::pair(found->first, found->second));
  }

  std::shared_ptr<Shelf> shelf_;
};
