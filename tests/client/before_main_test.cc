// A cache that a static initializer creates, possibly before the static objects of this library.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

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
  constexpr int passed = 77;  // not what a run without any test returns
  if (std::getenv(variable) != nullptr) ::_exit(read_before_main == "value" ? passed : 1);
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  const ::testing::TestInfo& test = *::testing::UnitTest::GetInstance()->current_test_info();
  const std::string command = "env -u GTEST_TOTAL_SHARDS -u GTEST_SHARD_INDEX " +
                              std::string(variable) + "=1 '" + program +
                              "' --gtest_filter=" + test.test_suite_name() + '.' + test.name();
  std::fflush(nullptr);
  const int status = std::system(command.c_str());
  ASSERT_TRUE(WIFEXITED(status)) << command;
  EXPECT_EQ(WEXITSTATUS(status), passed) << command;
}

}  // namespace
}  // namespace whycache::testing
