// Allocations that fail: what is told of a write has to be true all the same, and nobody is left waiting.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <future>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/fleet.h"
#include "support/failing_allocation.h"

namespace whycache::testing {
namespace {

constexpr long allocations_tried = 150;  // more than there are

enum class Told { written, nothing_written, in_doubt };

template <typename Write>
Told with_failing_allocation(long number, const Write& write) {
  Told told = Told::written;
  failing_allocation = number;
  try {
    write();
  } catch (const Error& error) {
    told = error.kind() == ErrorKind::uncertain ? Told::in_doubt : Told::nothing_written;
  } catch (const std::bad_alloc&) {
    told = Told::nothing_written;
  }
  failing_allocation = 0;
  return told;
}

TEST(NoMemory, what_is_told_of_a_write_is_true) {
  Fleet fleet("file");
  Cache cache = fleet.open("berlin");
  cache.set("first", "1");
  int failed = 0;
  int in_doubt = 0;
  for (long number = 1; number <= allocations_tried; ++number) {
    const std::string key = "a key that is longer than a small string " + std::to_string(number);
    const Told told = with_failing_allocation(number, [&] { cache.set(key, "value"); });
    cache.update();
    const bool is_there = cache.contains(key);
    EXPECT_TRUE(told == Told::in_doubt || is_there == (told == Told::written)) << number;
    failed += told != Told::written;
    in_doubt += told == Told::in_doubt;
  }
  EXPECT_GE(failed, 5);
  EXPECT_EQ(cache.digest(), fleet.open("rome").digest());
  std::printf("failed=%d in_doubt=%d\n", failed, in_doubt);
}

TEST(NoMemory, a_write_that_is_not_taken_for_later_is_not_written_and_closing_does_not_wait_for_it) {
  // Many updates, for which the queue has to grow.
  std::vector<std::pair<std::string, std::string>> texts;
  for (int i = 0; i < 200; ++i) texts.emplace_back("key" + std::to_string(i), noise(3000, static_cast<unsigned>(i)));
  std::vector<Item> items;
  for (const auto& [key, value] : texts) items.push_back({key, value});
  const auto try_one = [&](long number) {
    Fleet fleet;
    Options options;
    options.update_bytes_max = 4096;
    Cache cache = fleet.open("berlin", options);
    std::optional<std::future<UpdateId>> future;
    const long before = allocations;
    const Told told = with_failing_allocation(number, [&] { future = cache.set_multi_async(items); });
    const long needed = allocations - before;
    if (future) {
      EXPECT_EQ(future->get(), items.size()) << number;
    } else {
      EXPECT_EQ(told, Told::nothing_written) << number;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // for the thread to write what it was given
    }
    cache.close_shared_state();
    EXPECT_EQ(fleet.log()->extent().head > 0, told == Told::written) << number;
    return needed;
  };
  const long needed = try_one(0);
  std::printf("allocations=%ld\n", needed);
  for (long number = 1; number < needed; number += 97) try_one(number);
  for (long number = std::max(needed - 30, 1L); number <= needed; ++number) try_one(number);
}

}  // namespace
}  // namespace whycache::testing
