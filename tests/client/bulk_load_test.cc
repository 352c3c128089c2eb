// fill() loads a cache from a source that need not fit into memory.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "client/fleet.h"

namespace whycache::testing {
namespace {

// Generates `count` items, one at a time, in the same buffers.
class Source {
 public:
  Source(std::uint64_t count, std::uint64_t keys, std::size_t value_bytes)
      : count_(count), keys_(keys), value_(value_bytes, '.') {}

  std::optional<Item> operator()() {
    if (generated_ == count_) return std::nullopt;
    key_ = "key" + std::to_string(generated_ % keys_);
    value_.replace(0, 8, number(generated_++));
    return Item{key_, value_};
  }
  static std::string number(std::uint64_t i) { return std::to_string(10'000'000 + i); }

 private:
  std::uint64_t count_;
  std::uint64_t keys_;
  std::uint64_t generated_ = 0;
  std::string key_;
  std::string value_;
};

// Returns the bytes of anonymous memory of this process.
std::uint64_t private_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    std::uint64_t kib = 0;
    if (std::sscanf(line.c_str(), "RssAnon: %lu kB", &kib) == 1) return kib << 10;
  }
  ADD_FAILURE() << "no RssAnon";
  return 0;
}

TEST(Fill, fill_splits_items_into_several_updates) {
  Fleet fleet;
  Options options;
  options.update_bytes_max = 4096;
  Cache cache = fleet.open("berlin", options);
  Source source(1000, 700, 100);

  const UpdateId last = cache.fill([&] { return source(); });

  EXPECT_EQ(cache.applied_id(), last);
  EXPECT_GE(last, 1000 * 100 / 4096U);
  EXPECT_EQ(cache.size(), 700U);
  EXPECT_EQ(cache.get("key299")->substr(0, 8), Source::number(999)) << "later items win";
  EXPECT_EQ(cache.get("key300")->substr(0, 8), Source::number(300));
  EXPECT_EQ(fleet.open("tokyo").get("key299"), cache.get("key299"));
}

TEST(Fill, fill_without_items_appends_nothing) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  EXPECT_EQ(cache.fill([]() -> std::optional<Item> { return std::nullopt; }), 1U);
  EXPECT_EQ(cache.applied_id(), 1U);
}

TEST(Fill, fill_stopped_by_error_keeps_and_reports_written_items) {
  Fleet fleet;
  Options options;
  options.update_bytes_max = 4096;
  Cache cache = fleet.open("berlin", options);
  const std::string small(1500, 's');
  const std::string large(10'000, 'l');
  const std::vector<Item> items{
      {"a", small}, {"b", small}, {"c", small}, {"d", large}, {"e", small}};
  std::size_t next = 0;

  expect_error(
      ErrorKind::limit,
      [&] {
        cache.fill(
            [&] { return next == items.size() ? std::nullopt : std::optional(items[next++]); });
      },
      "items_written=3", "last_id=2", "update_bytes_max");

  EXPECT_EQ(cache.size(), 3U);
  EXPECT_EQ(cache.applied_id(), 2U);
}

TEST(Fill, fill_memory_is_independent_of_source_size) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer keeps freed memory";
#endif
  Fleet fleet("file");
  Cache cache = fleet.open("berlin");
  Source small_source(2000, 1000, 10'000);
  cache.fill([&] { return small_source(); });
  const std::uint64_t before = private_bytes();
  Source large_source(20'000, 1000, 10'000);
  std::uint64_t peak = 0;

  cache.fill([&] {
    peak = std::max(peak, private_bytes());
    return large_source();
  });

  EXPECT_EQ(cache.get("key999")->substr(0, 8), Source::number(19'999));
  EXPECT_LT(peak, before + (16U << 20)) << "the source has 200 MB";
}

}  // namespace
}  // namespace whycache::testing
