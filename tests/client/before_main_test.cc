// A cache that is an object of the program's, made before main() runs, and before this library's
// own objects, perhaps.
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
