// A cache that a static initializer creates, possibly before the static objects of this library.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
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

// Only the process that the test starts has the variable: the others need no cache, and would wait
// for the disk.
constexpr const char* variable = "WHYCACHE_TEST_BEFORE_MAIN";
const std::string read_before_main =
    std::getenv(variable) != nullptr ? written_before_main() : std::string();

TEST(BeforeMain, static_initializer_can_use_cache) {
  if (std::getenv(variable) != nullptr) {
    EXPECT_EQ(read_before_main, "value");
    return;
  }
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  const std::string command = std::string(variable) + "=1 '" + program +
                              "' --gtest_filter=BeforeMain.static_initializer_can_use_cache";
  std::fflush(nullptr);
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
}

}  // namespace
}  // namespace whycache::testing
