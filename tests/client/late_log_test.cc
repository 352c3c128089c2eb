// A log that is away when it is to be opened.
#include "client/late_log.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "client/fleet.h"

namespace whycache::testing {
namespace {

TEST(LateLog, is_opened_when_it_is_there) {
  TemporaryFolder folder;
  const std::string url = "file://" + folder.file("mounted_later/log");
  LateLog log(url);
  expect_error(ErrorKind::invalid, [&] { log.extent(); });
  EXPECT_NE(log.reopen(), nullptr);

  std::filesystem::create_directory(folder.file("mounted_later"));

  EXPECT_EQ(log.extent().head, 0U);
  EXPECT_EQ(log.append(1, "update"), Log::Appended::yes);
  EXPECT_EQ(log.name(), open_log(url)->name()) << "its name is the same before and after";
  EXPECT_EQ(open_log_or_late(url)->extent().head, 1U);
}

TEST(LateLog, is_only_for_logs_that_are_away) {
  expect_error(ErrorKind::invalid, [] { open_log_or_late("gopher://host/"); });
}

}  // namespace
}  // namespace whycache::testing
