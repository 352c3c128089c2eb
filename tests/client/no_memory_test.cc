// Failing allocations: the reported outcome of a write is still true, and no caller waits forever.
#include <gtest/gtest.h>

#include <whycache/memo.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <future>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/fleet.h"
#include "log/tiered_store.h"
#include "support/failing_allocation.h"

namespace whycache::testing {
namespace {

constexpr long allocation_count_max = 150;  // more than a write makes

enum class WriteOutcome { written, nothing_written, uncertain };

template <typename Write>
WriteOutcome with_failing_allocation(long number, const Write& write) {
  WriteOutcome outcome = WriteOutcome::written;
  allocations_until_failure = number;
  try {
    write();
  } catch (const Error& error) {
    outcome = error.kind() == ErrorKind::uncertain ? WriteOutcome::uncertain
                                                   : WriteOutcome::nothing_written;
  } catch (const std::bad_alloc&) {
    outcome = WriteOutcome::nothing_written;
  }
  allocations_until_failure = 0;
  return outcome;
}

TEST(NoMemory, failed_allocation_in_set_reports_true_outcome) {
  Fleet fleet("file");
  Cache cache = fleet.open("berlin");
  cache.set("first", "1");
  int failed = 0;
  int in_doubt = 0;
  for (long number = 1; number <= allocation_count_max; ++number) {
    const std::string key = "a key that is longer than a small string " + std::to_string(number);
    const WriteOutcome outcome = with_failing_allocation(number, [&] { cache.set(key, "value"); });
    cache.update();
    const bool in_cache = cache.contains(key);
    EXPECT_TRUE(outcome == WriteOutcome::uncertain ||
                in_cache == (outcome == WriteOutcome::written))
        << number;
    failed += outcome != WriteOutcome::written;
    in_doubt += outcome == WriteOutcome::uncertain;
  }
  EXPECT_GE(failed, 5);
  EXPECT_EQ(cache.digest(), fleet.open("rome").digest());
  std::printf("failed=%d in_doubt=%d\n", failed, in_doubt);
}

TEST(NoMemory, lasting_lack_of_memory_in_set_reports_true_outcome) {
  Fleet fleet("file");
  Options options;
  options.update_bytes_max = 4096;
  Cache cache = fleet.open("berlin", options);
  cache.set("first", "1");
  int in_doubt = 0;
  const std::string value = incompressible_bytes(3000, 1);
  allocations_keep_failing = true;
  for (long number = 1; number <= allocation_count_max; ++number) {
    // Two updates, so that memory may run out between them.
    const std::string first = "a key that is longer than a small string " + std::to_string(number);
    const std::string second = first + " and another";
    const Item items[] = {{first, value}, {second, value}};
    const WriteOutcome outcome = with_failing_allocation(number, [&] { cache.set_multi(items); });
    cache.update();
    if (outcome == WriteOutcome::uncertain) {
      ++in_doubt;
      continue;
    }
    EXPECT_EQ(cache.contains(first), outcome == WriteOutcome::written) << number;
    EXPECT_EQ(cache.contains(second), outcome == WriteOutcome::written) << number;
  }
  allocations_keep_failing = false;
  EXPECT_GE(in_doubt, 1);
  EXPECT_EQ(cache.digest(), fleet.open("rome").digest());
}

TEST(NoMemory, failed_allocation_in_a_memo_leaves_later_calls_unaffected) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  Memo<std::string> memo(cache, [](std::string_view value) { return std::string(value); });
  int failed = 0;
  for (long number = 1; number <= allocation_count_max; ++number) {
    const std::string key = "a key that is longer than a small string " + std::to_string(number);
    cache.set(key, key);
    allocations_until_failure = number % 10 + 1;
    try {
      static_cast<void>(memo.get(key));
    } catch (const std::bad_alloc&) {
      ++failed;
    }
    allocations_until_failure = 0;
    EXPECT_EQ(*memo.get(key), key) << number;
  }
  EXPECT_GE(failed, 5);
  EXPECT_EQ(memo.counters().entries, static_cast<std::uint64_t>(allocation_count_max));
}

TEST(NoMemory, failed_allocation_in_async_write_queues_nothing) {
  // Many updates, so that the queue has to grow.
  std::vector<std::pair<std::string, std::string>> texts;
  for (int i = 0; i < 200; ++i)
    texts.emplace_back("key" + std::to_string(i),
                       incompressible_bytes(3000, static_cast<unsigned>(i)));
  std::vector<Item> items;
  for (const auto& [key, value] : texts) items.push_back({key, value});
  const auto write_with_failure = [&](long number) {
    Fleet fleet;
    Options options;
    options.update_bytes_max = 4096;
    Cache cache = fleet.open("berlin", options);
    std::optional<std::future<UpdateId>> future;
    const long before = allocation_count;
    const WriteOutcome outcome =
        with_failing_allocation(number, [&] { future = cache.set_multi_async(items); });
    const long needed = allocation_count - before;
    if (future) {
      EXPECT_EQ(future->get(), items.size()) << number;
    } else {
      EXPECT_EQ(outcome, WriteOutcome::nothing_written) << number;
      std::this_thread::sleep_for(
          std::chrono::milliseconds(20));  // for the writer thread to append
    }
    cache.close_shared_state();
    EXPECT_EQ(fleet.log()->extent().head > 0, outcome == WriteOutcome::written) << number;
    return needed;
  };
  const long needed = write_with_failure(0);
  std::printf("allocations=%ld\n", needed);
  for (long number = 1; number < needed; number += 97) write_with_failure(number);
  for (long number = std::max(needed - 30, 1L); number <= needed; ++number)
    write_with_failure(number);
}

// The log itself has the memory that it needs.
class UnaffectedLog final : public ForwardingLog {
 public:
  using ForwardingLog::ForwardingLog;
  Appended append(UpdateId id, std::string_view bytes) override {
    const long until_failure = std::exchange(allocations_until_failure, 0);
    const Appended appended = target().append(id, bytes);
    allocations_until_failure = until_failure;
    return appended;
  }
};

TEST(NoMemory, failed_allocation_in_a_tier_leaves_an_append_successful) {
  for (const TierKind kind : tier_kinds()) {
    SCOPED_TRACE(name_of(kind));
    const auto server = TierServer::start_new(kind);
    FileStore store;
    const auto log = store.open();
    TieredLog tier(std::make_shared<UnaffectedLog>(store.open()),
                   make_tier(kind, server->address(), std::chrono::seconds(10)), TierOptions());
    const auto pass = [](UpdateId, std::string_view) { return true; };
    tier.poll(1, std::nullopt, pass);
    int failed = 0;
    int unpublished = 0;
    for (long number = 1; number <= 1'000; ++number) {
      const UpdateId id = log->extent().head + 1;
      bool has_thrown = false;
      allocations_until_failure = number;
      try {
        EXPECT_EQ(tier.append(id, std::string_view("an update")), Log::Appended::yes);
      } catch (const std::bad_alloc&) {
        has_thrown = true;
      }
      const bool was_reached = allocations_until_failure == 0;
      allocations_until_failure = 0;
      EXPECT_EQ(log->extent().head, has_thrown ? id - 1 : id) << number;
      if (!was_reached) break;
      failed += has_thrown;
      unpublished += !has_thrown;
      EXPECT_EQ(tier.poll(1, std::nullopt, pass).extent.head, log->extent().head) << number;
    }
    EXPECT_GE(failed, 1);
    EXPECT_GE(unpublished, 5);
  }
}

}  // namespace
}  // namespace whycache::testing
