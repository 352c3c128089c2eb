// The file grows while somebody reads it. Each process asks the kernel by itself how long the file is, with fstat(2):
// what happens right after it was told is what it does not know.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <functional>
#include <utility>

#include "state/test_state.h"

namespace {
thread_local std::function<void()> after_next_fstat;
}

// Ours instead of the C library's.
extern "C" int fstat(int descriptor, struct stat* status) noexcept {
  const auto result = static_cast<int>(::syscall(SYS_fstat, descriptor, status));
  if (after_next_fstat) std::exchange(after_next_fstat, nullptr)();
  return result;
}

namespace whycache {
namespace {

using testing::TemporaryFolder;
using testing::TestState;

class GrowthTest : public ::testing::Test {
 protected:
  ~GrowthTest() override { after_next_fstat = nullptr; }

  // The next update takes the file to its new end: nothing is used again while a view is held.
  void write_beyond_the_end() { writing_.apply({{"key", std::string(200'000, 'b')}}); }
  // So often, each time right after a reader was told how long the file is.
  void write_after_each_fstat(int times) {
    if (times == 0) return;
    after_next_fstat = [this, times] {
      write_beyond_the_end();
      ++written_;
      write_after_each_fstat(times - 1);
    };
  }

  TemporaryFolder folder_{"/dev/shm"};
  TestState writing_{folder_.file("grown.state")};
  TestState reading_{folder_.file("grown.state")};
  int written_ = 0;
};

TEST_F(GrowthTest, view_finds_its_version_however_often_the_file_grows_while_it_looks) {
  writing_.apply({{"key", "first"}, {"other", "here"}});
  const View view = reading_.view();
  for (int i = 0; i < 3; ++i) write_beyond_the_end();
  write_after_each_fstat(5);
  EXPECT_EQ(view.get("key"), "first");
  EXPECT_EQ(written_, 5);

  for (int i = 0; i < 3; ++i) write_beyond_the_end();
  write_after_each_fstat(5);
  std::vector<std::optional<std::string>> found(2);
  const std::string_view keys[] = {"key", "other"};
  reading_->get_multi(keys, [&](std::size_t i, std::string_view value) { found[i] = value; });
  EXPECT_EQ(found[0], std::string(200'000, 'b'));
  EXPECT_EQ(found[1], "here");
  EXPECT_GT(written_, 5);
}

TEST_F(GrowthTest, plain_get_finds_a_value_however_often_the_file_grows_while_it_looks) {
  writing_.apply({{"key", "first"}});
  const View held = reading_.view();
  for (int i = 0; i < 3; ++i) write_beyond_the_end();
  write_after_each_fstat(40);
  EXPECT_EQ(reading_.get("key"), std::string(200'000, 'b'));
  EXPECT_GT(written_, 1);
}

}  // namespace
}  // namespace whycache
