// Stores with a tier in front of them, and a log in between that counts the calls that reach the
// store.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "log/forwarding_log.h"
#include "log/stores.h"
#include "log/tiered_log.h"
#include "support/tier_server.h"

namespace whycache {

// Counts the calls that reach the target.
class CountingLog final : public testing::ForwardingLog {
 public:
  CountingLog(std::unique_ptr<Log> log, std::atomic<std::uint64_t>& calls)
      : ForwardingLog(std::move(log)), calls_(calls) {}

  Extent extent() override { return count_call().extent(); }
  Appended append(UpdateId id, std::string_view bytes) override {
    return count_call().append(id, bytes);
  }
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    return count_call().read(first, last, visit);
  }
  void read_base(const VisitPart& visit) override { count_call().read_base(visit); }
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    return count_call().rewrite(base, base_chain, next_part);
  }
  std::unique_ptr<Log> reopen() override {
    return std::make_unique<CountingLog>(target().reopen(), calls_);
  }

 private:
  Log& count_call() {
    ++calls_;
    return target();
  }

  std::atomic<std::uint64_t>& calls_;
};

// Reads by poll(), as a follower does, so that the tier may answer.
class PollingLog final : public testing::ForwardingLog {
 public:
  using ForwardingLog::ForwardingLog;

  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    if (last != std::numeric_limits<UpdateId>::max()) return target().read(first, last, visit);
    return target().poll(first, std::nullopt, visit).extent;
  }
  std::unique_ptr<Log> reopen() override { return std::make_unique<PollingLog>(target().reopen()); }
};

inline TierOptions tier_options() {
  TierOptions options;
  options.timeout = std::chrono::seconds(2);  // long enough on a busy machine
  return options;
}

enum class ReadMethod { reading, polling };

// A store of the project behind the tier that all tests of a process share.
template <typename Store>
class TieredStore final : public LogStore {
 public:
  TieredStore(testing::TierKind kind, ReadMethod read_by)
      : server_(testing::TierServer::shared(kind)), read_method_(read_by) {}

  std::unique_ptr<Log> open() override { return with_tier(store_.open()); }
  std::unique_ptr<Log> open_other_instance() override {
    return with_tier(store_.open_other_instance());
  }
  bool is_shared_by_processes() const override { return store_.is_shared_by_processes(); }
  bool must_notify() const override { return server_.kind() == testing::TierKind::redis; }
  bool outlives_killed_clients() const override { return store_.outlives_killed_clients(); }
  bool delete_externally() override {
    // While the tier still has the head of a deleted log, it may confirm that log for a few more
    // seconds. client/tier_fault_test.cc covers that case.
    server_.flush_all();
    return store_.delete_externally();
  }
  bool put_stray(UpdateId id, std::string_view bytes) override {
    return store_.put_stray(id, bytes);
  }
  std::optional<std::uint64_t> stored_updates() override { return store_.stored_updates(); }

 private:
  std::unique_ptr<Log> with_tier(std::unique_ptr<Log> log) const {
    auto tier = std::make_unique<TieredLog>(
        std::move(log),
        testing::make_tier(server_.kind(), server_.address(), tier_options().timeout),
        tier_options());
    if (read_method_ == ReadMethod::reading) return tier;
    return std::make_unique<PollingLog>(std::move(tier));
  }

  testing::TierServer& server_;
  ReadMethod read_method_;
  Store store_;
};

}  // namespace whycache
