#include "base/random.h"

#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <set>

namespace whycache {
namespace {

TEST(Random, each_uuid_is_different) {
  std::set<Uuid> seen;
  for (int i = 0; i < 1000; ++i) {
    const Uuid uuid = random_uuid();
    EXPECT_TRUE(seen.insert(uuid).second);
    EXPECT_EQ(uuid[6] >> 4, 4) << "version";
    EXPECT_EQ(uuid[8] >> 6, 2) << "variant";
  }
}

TEST(Random, each_bit_of_a_number_varies) {
  std::uint64_t ever_set = 0;
  std::uint64_t always_set = ~std::uint64_t{0};
  for (int i = 0; i < 1000; ++i) {
    const std::uint64_t number = random_u64();
    ever_set |= number;
    always_set &= number;
  }
  EXPECT_EQ(ever_set, ~std::uint64_t{0});
  EXPECT_EQ(always_set, 0U);
}

TEST(Random, forked_child_draws_different_numbers) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const std::uint64_t number = random_u64();
    ::_exit(::write(ends[1], &number, sizeof number) == sizeof number ? 0 : 1);
  }
  std::uint64_t child_number = 0;
  ASSERT_EQ(::read(ends[0], &child_number, sizeof child_number),
            static_cast<ssize_t>(sizeof child_number));
  ::waitpid(child, nullptr, 0);
  ::close(ends[0]);
  ::close(ends[1]);

  EXPECT_NE(random_u64(), child_number);
}

}  // namespace
}  // namespace whycache
