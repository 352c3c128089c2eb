// From the URL to the log.
#include <gtest/gtest.h>
#include <whycache/log.h>

#include <string>

#include "log/stores.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::expect_error;

TEST(OpenLog, url_creates_log_and_opens_it_again) {
  StoreDirectory directory;
  for (const std::string& url :
       {std::string("memory:open_log_test"), "file://" + directory.file("files"),
        "sqlite://" + directory.file("log.db")}) {
    SCOPED_TRACE(url);
    const auto log = open_log(url);
    EXPECT_EQ(log->name(), url + "?instance=default");
    ASSERT_EQ(log->append(1, "x"), Log::Appended::yes);
    EXPECT_EQ(open_log(url)->extent().head, 1U);
    EXPECT_EQ(open_log(url + "?instance=default")->extent().uuid, log->extent().uuid);
    EXPECT_EQ(open_log(url + "?instance=other")->extent().head, 0U);
  }
}

TEST(OpenLog, deadline_option_is_not_part_of_name) {
  StoreDirectory directory;
  const std::string url = "sqlite://" + directory.file("log.db");
  EXPECT_EQ(open_log(url + "?deadline_ms=5")->name(), open_log(url)->name());
}

TEST(OpenLog, spellings_of_one_path_open_one_log_with_one_name) {
  StoreDirectory directory;
  std::filesystem::create_directory(directory.file("real"));
  std::filesystem::create_directory_symlink("real", directory.file("link"));
  for (const std::string scheme : {"file://", "sqlite://"}) {
    const auto log = open_log(scheme + directory.file("real/log"));
    for (const char* spelling : {"link/log", "real/./log", "real//log", "link/../real/log"}) {
      const auto same = open_log(scheme + directory.file(spelling));
      EXPECT_EQ(same->name(), log->name()) << spelling;
      EXPECT_EQ(same->extent().uuid, log->extent().uuid) << spelling;
    }
    std::filesystem::remove_all(directory.file("real/log"));
  }
}

TEST(OpenLog, unnamed_memory_logs_are_private) {
  EXPECT_NE(open_log("memory:")->extent().uuid, open_log("memory:")->extent().uuid);
}

TEST(OpenLog, unknown_scheme_error_lists_known_schemes) {
  expect_error(
      ErrorKind::invalid, [] { open_log("mongodb://host/db"); }, "scheme=mongodb", "memory:name",
      "file:///dir", "sqlite:///file.db");
  expect_error(
      ErrorKind::invalid, [] { open_log("/var/lib/flags.db"); }, "scheme");
}

TEST(OpenLog, unknown_option_is_refused_before_log_is_created) {
  StoreDirectory directory;
  for (const std::string& url : {std::string("memory:x"), "file://" + directory.file("log"),
                                 "sqlite://" + directory.file("log")}) {
    expect_error(
        ErrorKind::invalid, [&] { open_log(url + "?durable=yes"); }, "durable");
  }
  expect_error(
      ErrorKind::invalid, [] { open_log("memory:x?deadline_ms=5"); }, "deadline_ms");
  EXPECT_FALSE(std::filesystem::exists(directory.file("log")));
}

TEST(OpenLog, invalid_option_value_is_refused) {
  StoreDirectory directory;
  for (const char* value : {"", "0", "-1", "ten", "5s", "99999999999999999999"}) {
    expect_error(
        ErrorKind::invalid,
        [&] { open_log("sqlite://" + directory.file("log") + "?deadline_ms=" + value); },
        "deadline_ms");
  }
  for (const char* instance :
       {"", "a-b", "a/b", "a.b", "%00", "0123456789012345678901234567890123456789012345678"}) {
    expect_error(ErrorKind::invalid,
                 [&] { open_log("file://" + directory.file("log") + "?instance=" + instance); });
  }
  EXPECT_FALSE(std::filesystem::exists(directory.file("log")));
}

TEST(OpenLog, relative_path_or_missing_parent_directory_is_refused) {
  StoreDirectory directory;
  expect_error(
      ErrorKind::invalid, [] { open_log("sqlite:flags.db"); }, "sqlite:///path");
  expect_error(
      ErrorKind::invalid, [] { open_log("sqlite://flags.db"); }, "sqlite:///path");
  expect_error(
      ErrorKind::invalid, [] { open_log("file:dir"); }, "file:///path");
  expect_error(
      ErrorKind::invalid, [&] { open_log("sqlite://" + directory.file("none/log.db")); },
      "does not exist");
  expect_error(
      ErrorKind::invalid, [&] { open_log("file://" + directory.file("none/log")); },
      "does not exist");
  expect_error(
      ErrorKind::invalid, [] { open_log("memory://name"); }, "memory:name");
}

}  // namespace
}  // namespace whycache
