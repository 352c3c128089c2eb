// From the URL to the log.
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <whycache/log.h>

#include <filesystem>
#include <fstream>
#include <iterator>
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

TEST(OpenLog, missing_log_is_not_created_if_url_forbids_it) {
  StoreDirectory directory;
  for (const char* const scheme : {"file", "sqlite"}) {
    const std::string url = std::string(scheme) + "://" + directory.file(scheme);
    expect_error(
        ErrorKind::invalid, [&] { open_log(url + "?create=off"); }, "log does not exist",
        "no such");
    EXPECT_FALSE(std::filesystem::exists(directory.file(scheme)));
    const Uuid uuid = open_log(url + "?create=on")->extent().uuid;
    EXPECT_EQ(open_log(url + "?create=off")->extent().uuid, uuid);
    open_log(url + "?instance=blue");
    expect_error(
        ErrorKind::invalid, [&] { open_log(url + "?create=off&instance=bleu"); },
        "log does not exist", "instances: 'blue', 'default'");
    expect_error(
        ErrorKind::invalid, [&] { open_log(url + "?create=no"); }, "create is neither");
  }
  EXPECT_EQ(open_log("memory:?create=off")->extent().head, 0U);
}

// An empty file is what a slip of the shell leaves; a database without a log is another program's.
TEST(OpenLog, file_without_a_log_is_unchanged_unless_creating) {
  StoreDirectory directory;
  const std::string path = directory.file("flags.db");
  const auto content = [&] {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  std::ofstream(path, std::ios::binary).close();
  expect_error(
      ErrorKind::invalid, [&] { open_log("sqlite://" + path + "?create=off"); }, "an empty file");
  EXPECT_EQ(content(), "");
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &database), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(database, "PRAGMA journal_mode = WAL; CREATE TABLE notes (text);", nullptr,
                         nullptr, nullptr),
            SQLITE_OK);
  sqlite3_close(database);
  const std::string before = content();
  expect_error(
      ErrorKind::invalid, [&] { open_log("sqlite://" + path + "?create=off"); }, "no log");
  EXPECT_EQ(content(), before) << "nor is its journal mode changed";
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
