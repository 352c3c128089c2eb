// A cache that a static initializer creates, possibly before the static objects of this library.
#include <gtest/gtest.h>

#include <string>

#include "client/fleet.h"

namespace whycache::testing {
namespace {

std::string written_before_main() {
  const Fleet fleet("sqlite");
  Cache cache = fleet.open("berlin");
  cache.set("key", "value");
  return cache.get("key").value_or("nothing");
}

const std::string read_before_main = written_before_main();

TEST(BeforeMain, static_initializer_can_use_cache) { EXPECT_EQ(read_before_main, "value"); }

}  // namespace
}  // namespace whycache::testing
