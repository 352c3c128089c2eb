// A state of 20 million items and more than 5 GiB.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <cstdio>
#include <cstring>
#include <random>

#include "base/hash.h"
#include "state/test_state.h"

namespace whycache {
namespace {

using testing::TemporaryDirectory;
using testing::TestState;

constexpr std::uint64_t large_item_count = 20'000'000;
constexpr std::uint64_t large_items_per_update = 200'000;
constexpr std::uint64_t large_bytes_min = std::uint64_t{5} << 30;

// Item i. Sizes vary: keys of 3 to 13 bytes, values of 100 to 355.
std::string large_key(std::uint64_t i) {
  return std::to_string(i * 7919 % 9973) + ":" + std::to_string(i);
}
std::string large_value(std::uint64_t i) {
  std::string value(100 + i % 256, static_cast<char>('a' + i % 26));
  std::memcpy(value.data(), &i, sizeof i);
  return value;
}

TEST(LargeLong, twenty_million_items_are_reopened_read_and_verified) {
  struct statvfs space;
  ASSERT_EQ(::statvfs("/dev/shm", &space), 0);
  if (space.f_bavail * space.f_frsize < large_bytes_min * 13 / 10)
    GTEST_SKIP() << "NOT TESTED: /dev/shm has less than 6.5 GiB left";
  const TemporaryDirectory directory("/dev/shm");
  const std::string path = directory.file("large.state");
  StateOptions options;
  options.bytes_max = std::uint64_t{16} << 30;
  Digest digest;
  {
    const TestState state(path, options);
    const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
    std::vector<std::string> texts;
    for (std::uint64_t first = 0; first < large_item_count; first += large_items_per_update) {
      texts.clear();
      for (std::uint64_t i = first; i < first + large_items_per_update; ++i) {
        texts.push_back(large_key(i));
        texts.push_back(large_value(i));
        add(digest, item_digest(texts[texts.size() - 2], texts.back()));
      }
      Update update;
      update.id = writer->info().applied_id + 1;
      update.chain = update.id;
      for (std::size_t i = 0; i < texts.size(); i += 2)
        update.changes.push_back(Change::set(texts[i], texts[i + 1]));
      writer->apply(update);
    }
  }
  struct stat status;
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_GE(static_cast<std::uint64_t>(status.st_blocks) * 512, large_bytes_min);

  const TestState state(path, options);
  EXPECT_EQ(state->info().item_count, large_item_count);
  EXPECT_EQ(state->info().digest, digest);
  std::mt19937_64 random(1);
  std::string value;
  for (int read = 0; read < 500'000; ++read) {
    const std::uint64_t i = random() % (large_item_count + large_item_count / 10);
    const bool found = state->get(large_key(i), value);
    ASSERT_EQ(found, i < large_item_count) << i;
    if (found) {
      ASSERT_EQ(value, large_value(i)) << i;
    }
  }
  std::uint64_t scanned = 0;
  std::string last;
  for (const std::string_view key : state.view().keys()) {
    ASSERT_LT(last, key);
    last = key;
    ++scanned;
  }
  EXPECT_EQ(scanned, large_item_count);
  EXPECT_EQ(state.check(), std::vector<std::string>{});
  std::printf("items=%llu bytes=%llu\n", static_cast<unsigned long long>(large_item_count),
              static_cast<unsigned long long>(status.st_blocks) * 512);
}

}  // namespace
}  // namespace whycache
