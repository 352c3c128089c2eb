// Writes that depend on the version of a value: the update that wrote it.
#include <gtest/gtest.h>

#include <filesystem>
#include <optional>
#include <string>

#include "client/cache_internal.h"
#include "client/fleet.h"

namespace whycache::testing {
namespace {

TEST(Version, set_if_version_writes_only_over_the_version_that_was_read) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  berlin.set("other", "");
  EXPECT_EQ(berlin.get_versioned("key"), std::nullopt);
  EXPECT_EQ(berlin.set_if_version("key", 0, "1"), 2U);
  EXPECT_EQ(tokyo.set_if_version("key", 0, "tokyo"), std::nullopt);
  const std::optional<VersionedValue> read = tokyo.get_versioned("key");
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->value, "1");
  EXPECT_EQ(read->version, 2U);

  berlin.set("key", "1");  // the same value, by another update

  EXPECT_EQ(tokyo.set_if_version("key", read->version, "tokyo"), std::nullopt);
  EXPECT_EQ(tokyo.get_versioned("key")->version, 3U);
  EXPECT_EQ(tokyo.set_if_version("key", 3, "tokyo"), 4U);
  EXPECT_EQ(berlin.erase_if_version("key", 3), std::nullopt);
  EXPECT_EQ(berlin.erase_if_version("key", 4), 5U);
  EXPECT_EQ(berlin.get("key"), std::nullopt);
  EXPECT_EQ(berlin.erase_if_version("key", 4), std::nullopt);
  EXPECT_EQ(berlin.set_if_version("key", 0, "2"), 6U);
}

TEST(Version, rewrite_keeps_versions_on_machines_that_keep_their_state) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  berlin.set("key", "1");
  berlin.set("other", "1");
  berlin.rewrite_history();

  EXPECT_EQ(berlin.get_versioned("key")->version, 1U);
  EXPECT_EQ(berlin.set_if_version("key", 1, "2"), 3U);
}

// A new machine knows only the base. It must neither take an older version for the present one, nor
// give one out that matches after the value has changed.
TEST(Version, version_never_matches_another_value_after_rewrites) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  berlin.set("other", "1");
  berlin.set("key", "1");
  const UpdateId of_first = berlin.get_versioned("key")->version;
  for (int i = 0; i < 3; ++i) berlin.set("other", std::to_string(i));
  const UpdateId first_base = berlin.rewrite_history();

  UpdateId of_tokyo = 0;
  {
    Cache tokyo = fleet.open("tokyo");
    of_tokyo = tokyo.get_versioned("key")->version;
    EXPECT_EQ(of_tokyo, first_base);
    EXPECT_EQ(tokyo.set_if_version("key", of_first, "lost"), std::nullopt);
    EXPECT_EQ(tokyo.erase_if_version("key", 0), std::nullopt);
    tokyo.delete_shared_state();
  }
  berlin.set("key", "2");
  const UpdateId second_base = berlin.rewrite_history();

  Cache tokyo = fleet.open("tokyo");
  EXPECT_EQ(tokyo.get_versioned("key")->version, second_base);
  EXPECT_EQ(tokyo.set_if_version("key", of_tokyo, "lost"), std::nullopt);
  EXPECT_EQ(tokyo.set_if_version("key", of_first, "lost"), std::nullopt);
  EXPECT_EQ(berlin.set_if_version("key", of_tokyo, "lost"), std::nullopt);
  EXPECT_EQ(tokyo.get("key"), "2");
  EXPECT_EQ(tokyo.set_if_version("key", second_base, "3"), second_base + 1);
}

// Two machines that give one version for a key have the same value there.
TEST(Version, machines_with_equal_versions_have_equal_values) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  std::map<std::pair<std::string, UpdateId>, std::string> value_of_version;
  const auto record = [&](const Cache& cache) {
    const View view = cache.view();
    for (const auto& [key, value] : view) {
      const auto [known, is_new] =
          value_of_version.try_emplace({std::string(key), *view.version(key)}, value);
      EXPECT_EQ(known->second, value) << key << " at version " << known->first.second;
    }
  };
  for (int round = 0; round < 20; ++round) {
    berlin.set("key" + std::to_string(round % 3), std::to_string(round));
    if (round % 4 == 1) berlin.rewrite_history();
    const std::string machine = "machine" + std::to_string(round);
    record(berlin);
    record(fleet.open(machine));
    if (round > 5) {
      Cache earlier = fleet.open("machine" + std::to_string(round - 5));
      earlier.update();
      record(earlier);
    }
  }
}

}  // namespace
}  // namespace whycache::testing
