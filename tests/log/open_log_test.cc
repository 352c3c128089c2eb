// From the URL to the log.
#include <gtest/gtest.h>
#include <whycache/log.h>

#include <string>

#include "log/stores.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::expect_error;
using Appended = Log::Appended;

TEST(OpenLog, makes_each_log_and_finds_it_again) {
  StoreDirectory folder;
  for (const std::string& url :
       {std::string("memory:open_log_test"), "file://" + folder.file("files"),
        "sqlite://" + folder.file("log.db")}) {
    SCOPED_TRACE(url);
    const auto log = open_log(url);
    EXPECT_EQ(log->name(), url + "?instance=default");
    ASSERT_EQ(log->append(1, "x"), Appended::yes);
    EXPECT_EQ(open_log(url)->extent().head, 1U);
    EXPECT_EQ(open_log(url + "?instance=default")->extent().uuid, log->extent().uuid);
    EXPECT_EQ(open_log(url + "?instance=other")->extent().head, 0U);
  }
}

TEST(OpenLog, a_name_does_not_depend_on_how_the_log_is_talked_to) {
  StoreDirectory folder;
  const std::string url = "sqlite://" + folder.file("log.db");
  EXPECT_EQ(open_log(url + "?deadline_ms=5")->name(), open_log(url)->name());
}

TEST(OpenLog, memory_without_a_name_is_private) {
  EXPECT_NE(open_log("memory:")->extent().uuid, open_log("memory:")->extent().uuid);
}

TEST(OpenLog, an_unknown_scheme_names_the_known_ones) {
  expect_error(
      ErrorKind::invalid, [] { open_log("mongodb://host/db"); }, "scheme=mongodb", "memory:name",
      "file:///dir", "sqlite:///file.db");
  expect_error(
      ErrorKind::invalid, [] { open_log("/var/lib/flags.db"); }, "scheme");
}

TEST(OpenLog, unknown_options_are_refused_before_anything_is_made) {
  StoreDirectory folder;
  for (const std::string& url : {std::string("memory:x"), "file://" + folder.file("log"),
                                 "sqlite://" + folder.file("log")}) {
    expect_error(
        ErrorKind::invalid, [&] { open_log(url + "?durable=yes"); }, "durable");
  }
  expect_error(
      ErrorKind::invalid, [] { open_log("memory:x?deadline_ms=5"); }, "deadline_ms");
  EXPECT_FALSE(std::filesystem::exists(folder.file("log")));
}

TEST(OpenLog, what_an_option_cannot_be_is_refused) {
  StoreDirectory folder;
  for (const char* value : {"", "0", "-1", "ten", "5s", "99999999999999999999"}) {
    expect_error(
        ErrorKind::invalid,
        [&] { open_log("sqlite://" + folder.file("log") + "?deadline_ms=" + value); },
        "deadline_ms");
  }
  for (const char* instance :
       {"", "a-b", "a/b", "a.b", "%00", "0123456789012345678901234567890123456789012345678"}) {
    expect_error(ErrorKind::invalid,
                 [&] { open_log("file://" + folder.file("log") + "?instance=" + instance); });
  }
  EXPECT_FALSE(std::filesystem::exists(folder.file("log")));
}

TEST(OpenLog, a_path_must_be_absolute_and_its_folder_there) {
  StoreDirectory folder;
  expect_error(
      ErrorKind::invalid, [] { open_log("sqlite:flags.db"); }, "sqlite:///path");
  expect_error(
      ErrorKind::invalid, [] { open_log("sqlite://flags.db"); }, "sqlite:///path");
  expect_error(
      ErrorKind::invalid, [] { open_log("file:dir"); }, "file:///path");
  expect_error(
      ErrorKind::invalid, [&] { open_log("sqlite://" + folder.file("none/log.db")); },
      "does not exist");
  expect_error(
      ErrorKind::invalid, [&] { open_log("file://" + folder.file("none/log")); }, "does not exist");
  expect_error(
      ErrorKind::invalid, [] { open_log("memory://name"); }, "memory:name");
}

}  // namespace
}  // namespace whycache
