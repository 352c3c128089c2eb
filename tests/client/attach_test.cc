// Caches without a log: Cache::attach().
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>

#include <whycache/cache.h>

#include "client/fleet.h"
#include "support/child_process.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using std::chrono::milliseconds;
using testing::ChildProcess;
using testing::expect_error;
using testing::Fleet;
using ::testing::HasSubstr;
using testing::run_in_child;
using testing::SharedWithChildren;

TEST(Attach, attached_cache_reads_what_others_write) {
  const Fleet fleet;
  Cache writer = fleet.open("berlin");
  writer.set("a", "1");
  const Cache attached = Cache::attach(writer.state_path());
  EXPECT_EQ(attached.get("a"), "1");
  const View view = attached.view();
  writer.set("a", "2");
  for (int i = 0; i < 200; ++i) writer.set("b" + std::to_string(i % 7), std::string(10'000, 'b'));
  EXPECT_EQ(attached.get("a"), "2");
  EXPECT_EQ(view.get("a"), "1");
  EXPECT_EQ(attached.get_multi({"a", "none"}).front(), "2");
  EXPECT_EQ(attached.size(), 8U);
  EXPECT_EQ(attached.applied_id(), writer.applied_id());
  EXPECT_EQ(attached.digest(), writer.digest());
  EXPECT_TRUE(attached.ready());
  EXPECT_LT(attached.staleness(), std::chrono::minutes(1));
  EXPECT_EQ(attached.stats().oldest_pinned_id, view.id());
}

TEST(Attach, attached_cache_follows_a_replacement_of_the_state) {
  const Fleet fleet;
  std::optional<Cache> writer(fleet.open("berlin"));
  writer->set("a", "1");
  const Cache attached = Cache::attach(writer->state_path());
  EXPECT_EQ(attached.get("a"), "1");
  writer->delete_shared_state();
  writer.emplace(fleet.open("berlin"));
  writer->set("a", "2");
  EXPECT_EQ(attached.get("a"), "2");
}

TEST(Attach, whatever_needs_the_log_is_an_error_that_says_so) {
  const Fleet fleet;
  Cache writer = fleet.open("berlin");
  writer.set("a", "1");
  Cache attached = Cache::attach(writer.state_path());
  const auto refused = [&](const auto& call) {
    expect_error(ErrorKind::invalid, call, "has no log", writer.state_path());
  };
  refused([&] { attached.set("a", "2"); });
  refused([&] { attached.erase("a"); });
  refused([&] { static_cast<void>(attached.set_async("a", "2")); });
  refused([&] { attached.transact([](Transaction& transaction) { transaction.set("a", "2"); }); });
  refused([&] { static_cast<void>(attached.set_if("a", "1", "2")); });
  refused([&] { static_cast<void>(attached.acquire("lease", milliseconds(1000))); });
  refused([&] { attached.rewrite_history(); });
  refused([&] { attached.delete_all_history(); });
  refused([&] { attached.update(); });
  refused([&] { attached.update({.staleness_max = milliseconds(0)}); });
  refused([&] { attached.delete_shared_state(); });
  EXPECT_EQ(attached.get("a"), "1");
  EXPECT_EQ(writer.get("a"), "1");
  attached.close_shared_state();
  EXPECT_EQ(attached.get("a"), "1");
}

TEST(Attach, update_waits_for_what_other_processes_apply) {
  const Fleet fleet;
  Cache writer = fleet.open("berlin");
  writer.set("a", "1");
  Cache attached = Cache::attach(writer.state_path());
  std::thread later([&] {
    std::this_thread::sleep_for(milliseconds(50));
    writer.set("a", "2");
  });
  EXPECT_EQ(attached.update({.at_least = 2}), 2U);
  EXPECT_EQ(attached.get("a"), "2");
  later.join();
  writer.update();
  EXPECT_EQ(attached.update({.staleness_max = std::chrono::minutes(1)}), 2U);
  std::this_thread::sleep_for(milliseconds(20));
  expect_error(
      ErrorKind::unavailable,
      [&] { attached.update({.staleness_max = milliseconds(1), .deadline = milliseconds(30)}); },
      "up to date in time", "follow");
  const FreshValue stale = attached.get_fresh(
      "a", {.staleness_max = milliseconds(1), .serve_stale = true, .deadline = milliseconds(30)});
  EXPECT_TRUE(stale.stale);
  EXPECT_EQ(stale.value, "2");
}

TEST(Attach, missing_state_is_an_error_or_is_waited_for) {
  const Fleet fleet;
  const std::string path = fleet.options("berlin").state_path;
  expect_error(
      ErrorKind::unavailable, [&] { static_cast<void>(Cache::attach(path)); },
      "no usable state to attach to", path);
  Cache attached = Cache::attach(path, {.open = OpenMode::now});
  EXPECT_FALSE(attached.ready());
  expect_error(ErrorKind::unavailable, [&] { static_cast<void>(attached.get("a")); });
  expect_error(ErrorKind::unavailable, [&] {
    attached.update({.staleness_max = milliseconds(1000), .deadline = milliseconds(20)});
  });
  Cache writer = fleet.open("berlin");
  writer.set("a", "1");
  EXPECT_EQ(attached.get("a"), "1");
  EXPECT_TRUE(attached.ready());
  EXPECT_EQ(attached.update({.staleness_max = std::chrono::minutes(1)}), 1U);
}

TEST(Attach, forked_child_reads_and_waits) {
  const Fleet fleet;
  Cache writer = fleet.open("berlin");
  writer.set("a", "1");
  Cache attached = Cache::attach(writer.state_path());
  EXPECT_EQ(run_in_child([&]() -> std::string {
              const View view = attached.view();
              if (view.get("a") != "1") return "view";
              if (attached.update({.staleness_max = std::chrono::minutes(1)}) != 1) return "update";
              return attached.get("a") == "1" ? "" : "get";
            }),
            "");
}

// As after a reboot: a copy is a file from elsewhere, too.
TEST(Attach, state_that_a_reader_attached_to_first_is_adopted_and_not_rebuilt) {
  const Fleet fleet("sqlite");
  fleet.open("berlin").set("a", "1");
  std::filesystem::copy_file(fleet.state_path("berlin"), fleet.state_path("rebooted"));
  const SharedWithChildren<std::atomic<int>> step;
  ChildProcess reader([&]() -> std::string {
    Cache attached = Cache::attach(fleet.state_path("rebooted"));
    const View view = attached.view();
    if (view.get("a") != "1") return "before it was adopted";
    *step = 1;
    if (attached.update({.at_least = 100, .deadline = std::chrono::seconds(20)}) < 100)
      return "what others apply is not seen";
    attached.update({.staleness_max = std::chrono::minutes(1)});
    return view.get("a") == "1" && attached.get("a") == "100" ? "" : "values";
  });
  testing::wait_for_step(step, 1);
  testing::Events events;
  Options options;
  options.on_event = events.listener();
  Cache follower = fleet.open("rebooted", options);
  for (int i = 2; i <= 100; ++i) follower.set("a", std::to_string(i));
  follower.update();
  EXPECT_EQ(reader.wait(), "");
  EXPECT_EQ(events.count(Event::Kind::stray_state) + events.count(Event::Kind::rebuilt), 0);
  EXPECT_EQ(follower.counters().rebuilds_damaged, 0U);
}

class AttachReadOnly : public ::testing::Test {
 protected:
  // Waits until a child has come to a step, or has most likely failed.
  static void wait_for(const std::atomic<int>& step, int wanted) {
    for (int i = 0; i < 10'000 && step != wanted; ++i) ::usleep(1000);
  }
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: needs root";
  }
};

// A user who may read the state and nothing else, beside a writer. The lock file cannot be opened.
TEST_F(AttachReadOnly, other_user_reads_with_read_access_to_the_state_alone) {
  const Fleet fleet;
  Options options = fleet.options("berlin");
  options.state_mode = 0644;
  std::filesystem::permissions(fleet.state_directory(), std::filesystem::perms(0755));
  Cache writer = fleet.open("berlin", options);
  writer.set("a", "1");
  const std::string path = writer.state_path();
  const SharedWithChildren<std::atomic<int>> step;
  ChildProcess reader([&]() -> std::string {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) return "cannot become another user";
    if (::access((path + ".lock").c_str(), R_OK) == 0) return "the lock file can be opened";
    const Cache attached = Cache::attach(path);
    const View view = attached.view();
    *step = 1;
    wait_for(*step, 2);
    if (view.get("a") != "1" || view.size() != 1) return "view moved";
    return attached.get("a") == "2" ? "" : "get";
  });
  wait_for(*step, 1);
  for (int i = 0; i < 300; ++i) writer.set("b" + std::to_string(i % 7), std::string(10'000, 'b'));
  EXPECT_EQ(writer.stats().oldest_pinned_process_id, static_cast<std::uint64_t>(reader.id()));
  writer.set("a", "2");
  *step = 2;
  EXPECT_EQ(reader.wait(), "");
}

// The same user, who may read the log, too.
TEST_F(AttachReadOnly, reader_with_a_log_updates_until_there_is_something_to_apply) {
  const Fleet fleet("sqlite");
  Options options;
  options.state_mode = 0644;
  std::filesystem::permissions(fleet.state_directory(), std::filesystem::perms(0755));
  Cache writer = fleet.open("berlin", options);
  writer.set("a", "1");
  const std::string database = fleet.directory().file("log.db");
  for (const char* const suffix : {"", "-journal"})
    std::filesystem::permissions(database + suffix, std::filesystem::perms(0644));
  const SharedWithChildren<std::atomic<int>> step;
  ChildProcess reader([&]() -> std::string {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) return "cannot become another user";
    Cache cache = fleet.open("berlin", options);
    if (cache.update() != 1 || cache.get("a") != "1") return "nothing to apply";
    *step = 1;
    wait_for(*step, 2);
    const auto error = testing::thrown_error([&] { cache.update(); });
    if (!error || error->kind() != ErrorKind::invalid) return "an update was applied";
    const View view = cache.view();
    return view.get("a") == "1" ? "" : "view";
  });
  wait_for(*step, 1);
  Cache far = fleet.open("paris");
  far.set("a", "2");
  *step = 2;
  EXPECT_EQ(reader.wait(), "");
  EXPECT_EQ(writer.update(), 2U);
}

TEST_F(AttachReadOnly, copy_on_a_read_only_mount_is_verified_and_read) {
  const Fleet fleet;
  {
    Cache writer = fleet.open("berlin");
    writer.set("a", "1");
  }
  const std::string original = fleet.options("berlin").state_path;
  const std::string place = fleet.state_directory() + "/mounted";
  std::filesystem::create_directory(place);
  EXPECT_EQ(run_in_child([&]() -> std::string {
              if (::unshare(CLONE_NEWNS) != 0) return "cannot unshare";
              ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
              if (::mount("none", place.c_str(), "tmpfs", 0, "size=64m") != 0)
                return "cannot mount";
              const std::string copy = place + "/copy.state";
              std::filesystem::copy_file(original, copy);
              std::filesystem::copy_file(original, place + "/torn.state");
              if (::truncate((place + "/torn.state").c_str(), 1 << 20) != 0) return "truncate";
              if (::mount(nullptr, place.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) != 0)
                return "cannot remount";
              const Cache attached = Cache::attach(copy);
              const View view = attached.view();
              if (attached.get("a") != "1" || view.get("a") != "1") return "value";
              const auto error = testing::thrown_error(
                  [&] { static_cast<void>(Cache::attach(place + "/torn.state")); });
              return error ? "" : "a torn copy was accepted";
            }),
            "");
}

}  // namespace
}  // namespace whycache
