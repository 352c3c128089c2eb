// A log that is unavailable when it is opened.
#include "log/lazy_log.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "base/file.h"
#include "base/process_lock.h"
#include "base/url.h"
#include "client/fleet.h"
#include "log/log_name.h"
#include "log/open_log.h"

namespace whycache::testing {
namespace {

TEST(LazyLog, log_opens_after_its_directory_appears) {
  TemporaryDirectory directory;
  const std::string url = "file://" + directory.file("mounted_later/log");
  LazyLog log(log_name(Url(url)), [&] { return open_log(url); });
  expect_error(ErrorKind::invalid, [&] { log.extent(); });
  EXPECT_NE(log.reopen(), nullptr);

  std::filesystem::create_directory(directory.file("mounted_later"));

  EXPECT_EQ(log.extent().head, 0U);
  EXPECT_EQ(log.append(1, "update"), Log::Appended::yes);
  EXPECT_EQ(log.name(), open_log(url)->name()) << "its name is the same before and after";
  EXPECT_EQ(open_log_lazily(url, default_log_deadline)->extent().head, 1U);
}

TEST(LazyLog, invalid_url_is_refused_and_not_deferred) {
  expect_error(ErrorKind::invalid, [] { open_log_lazily("gopher://host/", default_log_deadline); });
}

// A forked child opens its own connection on first use, and waits for it.
TEST(LazyLog, forked_child_writes_after_unavailable_log_returns) {
  Fleet fleet("sqlite");
  Cache cache = fleet.open("berlin");
  cache.set("key", "value");
  const std::string database = fleet.directory().file("log.db");
  std::filesystem::rename(database, database + ".away");
  expect_success_in_child([&] {
    EXPECT_EQ(cache.counters().updates_written, 1U);
    EXPECT_EQ(cache.get("key"), "value");
    std::thread brings_it_back([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      std::filesystem::rename(database + ".away", database);
    });
    EXPECT_EQ(cache.set("key", "2"), 2U);
    brings_it_back.join();
    expect_success_in_child([&] { EXPECT_EQ(cache.set("key", "3"), 3U); });
  });
  EXPECT_EQ(cache.update(), 3U);
}

// The log inherits the deadline of the cache, because the log itself waits for locks of other
// processes.
TEST(LazyLog, lock_wait_is_limited_by_deadline_of_cache) {
  Fleet fleet("file");
  Options options;
  options.deadline = std::chrono::milliseconds(100);
  Cache cache = fleet.open("berlin", options);
  cache.set("key", "1");
  // Hold every lock byte of the log.
  const FileDescriptor lock = open_file(fleet.directory().file("log") + "/default/lock", O_RDWR);
  for (std::uint64_t byte = 0; byte < 16; ++byte) ASSERT_TRUE(try_lock_byte(lock.number(), byte));
  const auto began = std::chrono::steady_clock::now();
  expect_error(
      ErrorKind::unavailable, [&] { cache.set("key", "2"); }, "deadline_ms=100");
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(5));
  // A deadline in the URL takes precedence.
  options.state_path = fleet.state_path("rome");
  Cache patient(fleet.url() + "?deadline_ms=300", options);
  expect_error(
      ErrorKind::unavailable, [&] { patient.set("key", "2"); }, "waited_ms=300");
}

}  // namespace
}  // namespace whycache::testing
