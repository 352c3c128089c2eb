// Rebuilding: machines behind the base, logs that were restored, forked, replaced or that lost
// their tail, copies of state files, and damaged bases. No case may pass unreported.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "base/file.h"
#include "client/cache_internal.h"
#include "client/fleet.h"
#include "support/child_process.h"
#include "update/update.h"

namespace whycache::testing {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

void copy_file(const std::string& from, const std::string& to) {
  fs::copy_file(from, to, fs::copy_options::overwrite_existing);
  fs::permissions(to, fs::perms::owner_read | fs::perms::owner_write);
}

// --- Behind the base ---

TEST(Rebuild, machine_behind_base_rebuilds_from_base) {
  Fleet fleet;
  Events events;
  Options options;
  options.on_event = events.listener();
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo", options);
  berlin.set_multi({{"a", "1"}, {"erased", "1"}, {"b", "1"}});
  tokyo.update();
  berlin.erase("erased");
  berlin.set("a", "2");
  berlin.rewrite_history();
  berlin.set("c", "3");

  EXPECT_EQ(tokyo.update(), 4U);

  EXPECT_EQ(contents(tokyo), (Contents{{"a", "2"}, {"b", "1"}, {"c", "3"}}));
  EXPECT_EQ(tokyo.digest(), berlin.digest());
  EXPECT_EQ(tokyo.counters().rebuilds_behind_base, 1U);
  EXPECT_THAT(events.messages(Event::Kind::rebuilt),
              AllOf(HasSubstr("behind"), HasSubstr("applied_id=1"), HasSubstr("base=3")));
}

TEST(Rebuild, machine_exactly_at_base_needs_no_rebuild) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  berlin.set("a", "1");
  berlin.set("a", "2");
  tokyo.update();
  berlin.rewrite_history();
  EXPECT_EQ(tokyo.update(), 2U);
  berlin.set("a", "3");

  EXPECT_EQ(tokyo.update(), 3U);

  EXPECT_EQ(tokyo.get("a"), "3");
  EXPECT_EQ(tokyo.counters().rebuilds_behind_base, 0U);
}

// Otherwise the new state could lack updates that the writer applied to the old one meanwhile.
TEST(Rebuild, state_advanced_past_base_during_log_read_is_kept) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  Cache writer = fleet.open("berlin");
  auto script = std::make_shared<Script>();
  std::atomic<bool> once{false};
  script->before_read = [&] {
    if (!once.exchange(false)) return;
    writer.set("a", "2");
    writer.set("a", "3");
    tokyo.rewrite_history();
  };
  Cache follower = fleet.open("berlin", script);
  writer.set("a", "1");
  writer.update();  // it has just read the log, and need not read it before the append
  once = true;

  EXPECT_EQ(follower.update(), 3U);

  EXPECT_FALSE(once);
  EXPECT_EQ(CacheInternal::log(writer).extent().base, 3U);
  EXPECT_EQ(follower.counters().rebuilds_behind_base, 0U);
  EXPECT_EQ(follower.get("a"), "3");
}

// The history is rewritten up to an update that its writer has appended but not applied yet. The
// machine is behind the base only until the writer applies it.
TEST(Rebuild, state_advanced_past_rebuilt_state_is_kept) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  auto writers = std::make_shared<Script>();
  auto followers = std::make_shared<Script>();
  std::atomic<bool> once{false};
  std::atomic<bool> building{false};
  std::atomic<bool> written{false};
  const auto wait_for = [](const std::atomic<bool>& flag) {
    while (!flag) std::this_thread::sleep_for(milliseconds(1));
  };
  writers->after_append = [&](UpdateId) {
    if (!once.exchange(false)) return;
    tokyo.rewrite_history();
    building = false;
    wait_for(building);
  };
  std::atomic<bool> in_build{false};
  followers->before_read_base = [&] { in_build = true; };
  followers->after_read =
      [&] {  // the updates of the log are read: the new state is nearly complete
        if (!in_build.exchange(false)) return;
        building = true;
        wait_for(written);
      };
  Cache writer = fleet.open("berlin", writers);
  Cache follower = fleet.open("berlin", followers);
  writer.set("a", "1");
  follower.update();
  once = true;
  std::thread writing([&] {
    writer.set("a", "2");
    writer.set("a", "3");
    written = true;
  });
  while (CacheInternal::log(tokyo).extent().base != 2) std::this_thread::sleep_for(milliseconds(1));

  EXPECT_GE(follower.update(), 2U);
  const UpdateId seen = follower.applied_id();
  writing.join();

  EXPECT_EQ(seen, 3U);
  EXPECT_EQ(writer.applied_id(), 3U);
  EXPECT_EQ(follower.counters().rebuilds_behind_base, 0U);
  EXPECT_EQ(contents(follower), (Contents{{"a", "3"}}));
}

TEST(Rebuild, writer_behind_base_rebuilds_then_writes) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  for (int i = 0; i < 5; ++i) berlin.set("a", std::to_string(i));
  berlin.rewrite_history();

  EXPECT_EQ(tokyo.set("b", "1"), 6U);

  EXPECT_EQ(contents(tokyo), (Contents{{"a", "4"}, {"b", "1"}}));
  EXPECT_EQ(berlin.update(), 6U);
  EXPECT_EQ(berlin.digest(), tokyo.digest());
}

TEST(Rebuild, reads_use_old_state_during_rebuild) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  auto script = std::make_shared<Script>();
  Cache tokyo = fleet.open("tokyo", script);
  Cache other = fleet.open("tokyo");
  berlin.set("a", "1");
  tokyo.update();
  const View view = other.view();
  berlin.set("a", "2");
  berlin.rewrite_history();
  std::atomic<bool> hold{true};
  std::atomic<bool> rebuilding{false};
  script->before_read_base = [&] {
    rebuilding = true;
    while (hold) std::this_thread::sleep_for(milliseconds(1));
  };
  std::thread updater([&] { tokyo.update(); });
  while (!rebuilding) std::this_thread::yield();

  EXPECT_EQ(tokyo.get("a"), "1");
  EXPECT_EQ(other.get("a"), "1");
  hold = false;
  updater.join();

  EXPECT_EQ(tokyo.get("a"), "2");
  EXPECT_EQ(other.get("a"), "2") << "another object on the same state switches by itself";
  EXPECT_EQ(view.get("a"), "1") << "an earlier view stays unchanged";
}

TEST(Rebuild, base_of_many_parts_is_loaded_completely) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  for (int i = 0; i < 30; ++i) {
    std::map<std::string, std::string> batch;
    for (int j = 0; j < 100; ++j)
      batch["key" + std::to_string(i * 100 + j)] =
          incompressible_bytes(1000 + static_cast<std::size_t>(j), static_cast<std::uint64_t>(i));
    berlin.set_multi(batch);
  }
  berlin.rewrite_history();
  int parts = 0;
  CacheInternal::log(berlin).read_base([&](std::string_view) { return ++parts > 0; });
  EXPECT_GE(parts, 3);

  const Cache tokyo = fleet.open("tokyo");

  EXPECT_EQ(tokyo.digest(), berlin.digest());
  EXPECT_EQ(contents(tokyo), contents(berlin));
}

TEST(Rebuild, rebuild_restarts_if_base_is_replaced_midway) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  for (int i = 0; i < 4; ++i)
    berlin.set("key" + std::to_string(i),
               incompressible_bytes(700'000, static_cast<std::uint64_t>(i)));
  berlin.rewrite_history();
  auto script = std::make_shared<Script>();
  std::atomic<int> rewrites{3};
  script->before_read_base = [&] {
    if (rewrites-- <= 0) return;
    berlin.erase("key" + std::to_string(rewrites.load()));
    berlin.rewrite_history();
  };

  const Cache tokyo = fleet.open("tokyo", script);

  EXPECT_EQ(tokyo.digest(), berlin.digest());
}

TEST(Rebuild, rebuild_restarts_if_log_is_rewritten_midway) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  for (int i = 0; i < 30; ++i)
    berlin.set("key" + std::to_string(i),
               incompressible_bytes(1'000'000, static_cast<std::uint64_t>(i)));
  auto script = std::make_shared<Script>();
  std::atomic<int> reads{0};
  script->before_read = [&] {
    if (++reads == 2) berlin.rewrite_history();
  };

  const Cache tokyo = fleet.open("tokyo", script);

  EXPECT_EQ(tokyo.digest(), berlin.digest());
}

TEST(Rebuild, rebuild_retries_intermittent_log_failures) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  for (int i = 0; i < 30; ++i)
    berlin.set("key" + std::to_string(i),
               incompressible_bytes(1'000'000, static_cast<std::uint64_t>(i)));
  berlin.rewrite_history({.limit = 10, .keep = {}});
  auto script = std::make_shared<Script>();
  std::atomic<unsigned> calls{0};
  script->before_read = script->before_extent = script->before_read_base = [&] {
    if ((++calls * 2654435761U) >> 31 == 1) throw unavailable_error();
  };

  const Cache tokyo = fleet.open("tokyo", script);

  EXPECT_EQ(tokyo.digest(), berlin.digest());
  EXPECT_GE(tokyo.counters().log_retries, 3U);
}

// --- Damaged bases ---

class DamagedBase : public ::testing::Test {
 protected:
  DamagedBase() {
    for (int i = 0; i < 4; ++i)
      berlin.set("key" + std::to_string(i),
                 incompressible_bytes(700'000, static_cast<std::uint64_t>(i)));
    berlin.rewrite_history();
    CacheInternal::log(berlin).read_base([&](std::string_view part) {
      parts.emplace_back(part);
      return true;
    });
  }

  void expect_refused(std::function<std::string(std::uint64_t, std::string_view)> show,
                      const std::string& word) {
    auto script = std::make_shared<Script>();
    script->transform_part = std::move(show);
    expect_error(
        ErrorKind::corrupt, [&] { fleet.open("tokyo", script); }, "base is damaged", word);
    EXPECT_FALSE(fs::exists(fleet.state_path("tokyo")));
    for (const fs::directory_entry& entry : fs::directory_iterator(fleet.state_directory())) {
      EXPECT_EQ(entry.path().native().find("building"), std::string::npos) << entry.path();
    }
    EXPECT_EQ(fleet.open("tokyo").digest(), berlin.digest()) << "repaired";
  }

  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  std::vector<std::string> parts;
};

TEST_F(DamagedBase, changed_byte_throws_corrupt) {
  expect_refused(
      [](std::uint64_t part, std::string_view bytes) {
        std::string changed(bytes);
        if (part == 1)
          changed[changed.size() / 2] = static_cast<char>(changed[changed.size() / 2] + 1);
        return changed;
      },
      "part=1");
}

TEST_F(DamagedBase, truncated_part_throws_corrupt) {
  expect_refused(
      [](std::uint64_t, std::string_view bytes) { return std::string(bytes.substr(0, 100)); },
      "part=0");
}

TEST_F(DamagedBase, repeated_part_throws_corrupt) {
  expect_refused([&](std::uint64_t, std::string_view) { return parts[0]; }, "part=0 expected=1");
}

TEST_F(DamagedBase, missing_part_throws_corrupt) {
  expect_refused(
      [&](std::uint64_t part, std::string_view) {
        return parts[std::min<std::size_t>(part == 0 ? 0 : part + 1, parts.size() - 1)];
      },
      "expected=1");
}

TEST_F(DamagedBase, wrong_item_count_in_last_part_throws_corrupt) {
  berlin.erase_multi({"key0", "key1", "key2", "key3"});
  berlin.set("key", "value");
  berlin.rewrite_history();
  BasePartEncoder encoder(6);
  ASSERT_TRUE(encoder.add({"key", "value"}, 1000));
  const std::string forged(
      encoder.finish(BaseInfo{.base = 6, .chain = 1, .item_count = 2, .digest = {}}));
  expect_refused([&](std::uint64_t, std::string_view) { return forged; }, "items=1 expected=2");
}

TEST_F(DamagedBase, wrong_base_chain_throws_corrupt) {
  std::vector<Item> items;
  BasePartEncoder encoder(4);
  const View view = berlin.view();
  std::string forged;
  Digest digest = view.digest();
  std::size_t count = 0;
  std::vector<std::string> forged_parts;
  for (const Item item : view) {
    if (!encoder.add(item, 1 << 20)) {
      forged_parts.emplace_back(encoder.finish(std::nullopt));
      ASSERT_TRUE(encoder.add(item, 1 << 20));
    }
    ++count;
  }
  forged_parts.emplace_back(
      encoder.finish(BaseInfo{.base = 4, .chain = 12345, .item_count = count, .digest = digest}));
  ASSERT_EQ(forged_parts.size(), parts.size());
  expect_refused([&](std::uint64_t part, std::string_view) { return forged_parts[part]; }, "chain");
}

// --- Diverged and replaced logs ---

class OtherLog : public ::testing::Test {
 protected:
  void save_log(const std::string& name) { copy_file(log_path(), fleet.directory().file(name)); }
  void restore_log(const std::string& name) {
    for (const char* const suffix : {"-journal", "-wal", "-shm"}) fs::remove(log_path() + suffix);
    copy_file(fleet.directory().file(name), log_path());
  }
  std::string log_path() const { return fleet.directory().file("log.db"); }
  Options with_events() {
    Options options;
    options.on_event = events.listener();
    return options;
  }

  Fleet fleet{"sqlite"};
  Events events;
};

TEST_F(OtherLog, log_with_lost_tail_causes_rebuild_at_update) {
  { fleet.open("berlin").set("a", "1"); }
  save_log("backup");
  {
    Cache berlin = fleet.open("berlin");
    berlin.set("a", "2");
    berlin.set("b", "2");
  }
  restore_log("backup");
  Cache berlin = fleet.open("berlin", with_events());
  EXPECT_EQ(berlin.applied_id(), 3U);

  EXPECT_EQ(berlin.update(), 1U);

  EXPECT_EQ(contents(berlin), (Contents{{"a", "1"}}));
  EXPECT_EQ(berlin.counters().rebuilds_diverged, 1U);
  EXPECT_THAT(events.messages(Event::Kind::rebuilt), HasSubstr("lost its tail"));
  EXPECT_EQ(berlin.set("c", "3"), 2U);
}

TEST_F(OtherLog, restored_log_with_other_updates_causes_rebuild) {
  { fleet.open("berlin").set("a", "1"); }
  save_log("backup");
  {
    Cache berlin = fleet.open("berlin");
    berlin.set("a", "lost");
    berlin.set("b", "lost");
  }
  restore_log("backup");
  {
    Cache tokyo = fleet.open("tokyo");
    tokyo.set("a", "2");
    tokyo.set("c", "2");
    tokyo.set("d", "2");
  }
  Cache berlin = fleet.open("berlin", with_events());

  EXPECT_EQ(berlin.update(), 4U);

  EXPECT_EQ(contents(berlin), (Contents{{"a", "2"}, {"c", "2"}, {"d", "2"}}));
  EXPECT_EQ(berlin.counters().rebuilds_diverged, 1U);
}

TEST_F(OtherLog, writer_rebuilds_before_appending_to_diverged_log) {
  { fleet.open("berlin").set("a", "1"); }
  save_log("backup");
  {
    Cache berlin = fleet.open("berlin");
    berlin.set("a", "lost");
  }
  restore_log("backup");
  { fleet.open("tokyo").set("b", "2"); }  // as many updates as berlin has, but different ones
  Cache berlin = fleet.open("berlin");

  EXPECT_EQ(berlin.set("c", "3"), 3U);

  EXPECT_EQ(contents(berlin), (Contents{{"a", "1"}, {"b", "2"}, {"c", "3"}}));
  Cache rome = fleet.open("rome");
  EXPECT_EQ(rome.digest(), berlin.digest()) << "the chain of the log is intact";
}

// The writer was opened and wrote before the log was replaced by another one.
TEST_F(OtherLog, open_writer_rebuilds_before_appending_to_diverged_log) {
  { fleet.open("berlin").set("a", "1"); }
  save_log("backup.db");
  const std::string backup = "sqlite://" + fleet.directory().file("backup.db");
  auto made = std::make_unique<SwitchedLog>(fleet.log());
  SwitchedLog& log = *made;
  Cache berlin(std::move(made), fleet.options("berlin"));
  berlin.set("a", "lost");
  { Cache(backup, fleet.options("tokyo")).set("b", "2"); }
  log.switch_to(open_log(backup));
  std::this_thread::sleep_for(milliseconds(150));

  EXPECT_EQ(berlin.set("c", "3"), 3U);

  EXPECT_EQ(contents(berlin), (Contents{{"a", "1"}, {"b", "2"}, {"c", "3"}}));
  EXPECT_EQ(Cache(backup, fleet.options("rome")).digest(), berlin.digest());
}

TEST_F(OtherLog, writer_never_appends_past_lost_tail) {
  { fleet.open("berlin").set("a", "1"); }
  save_log("backup.db");
  const std::string backup = "sqlite://" + fleet.directory().file("backup.db");
  auto made = std::make_unique<SwitchedLog>(fleet.log());
  SwitchedLog& log = *made;
  Cache berlin(std::move(made), fleet.options("berlin"));
  for (int i = 0; i < 3; ++i) berlin.set("a", "lost");
  log.switch_to(open_log(backup));

  EXPECT_EQ(berlin.set("b", "2"), 2U) << "immediately: the writer has not read the log before";

  EXPECT_EQ(contents(berlin), (Contents{{"a", "1"}, {"b", "2"}}));
  EXPECT_EQ(berlin.counters().rebuilds_diverged, 1U);
  EXPECT_EQ(Cache(backup, fleet.options("rome")).digest(), berlin.digest());
}

TEST_F(OtherLog, log_replaced_while_closed_causes_rebuild_at_first_update) {
  {
    Cache berlin = fleet.open("berlin");
    berlin.set("a", "1");
    berlin.set("b", "1");
  }
  fs::remove(log_path());
  fs::remove(log_path() + "-journal");
  { fleet.open("tokyo").set("new", "1"); }

  Cache berlin = fleet.open("berlin", with_events());
  EXPECT_EQ(berlin.get("a"), "1") << "opening does not ask the log";
  berlin.update();

  EXPECT_EQ(contents(berlin), (Contents{{"new", "1"}}));
  EXPECT_EQ(berlin.counters().rebuilds_replaced, 1U);
  EXPECT_THAT(events.messages(Event::Kind::rebuilt), HasSubstr("replaced"));
}

TEST(Rebuild, log_replaced_while_open_causes_rebuild_at_update) {
  Fleet before;
  Fleet after;
  after.open("elsewhere").set("new", "1");
  auto made = std::make_unique<SwitchedLog>(before.log());
  SwitchedLog& log = *made;
  Cache cache(std::move(made), before.options("berlin"));
  cache.set("a", "1");
  log.switch_to(after.log());

  EXPECT_EQ(cache.update(), 1U);

  EXPECT_EQ(contents(cache), (Contents{{"new", "1"}}));
  EXPECT_EQ(cache.counters().rebuilds_replaced, 1U);
}

TEST(Rebuild, state_of_other_log_is_rejected_and_kept) {
  Fleet ours;
  Fleet theirs;
  ours.open("berlin").set("a", "1");
  Options options = ours.options("berlin");

  expect_error(
      ErrorKind::corrupt, [&] { Cache(theirs.url(), options); }, "state belongs to another log",
      ours.url(), theirs.url(), "delete");

  EXPECT_EQ(ours.open("berlin").get("a"), "1");
}

// --- Two logs of one name, and one state path ---

// As in two containers that share a directory, each with a database of its own at one path. Each
// cache is in the place of a process.
class TwoLogsOfOneName : public ::testing::Test {
 protected:
  TwoLogsOfOneName() {
    ours.open("elsewhere").set("whose", "ours");
    theirs.open("elsewhere").set("whose", "theirs");
  }

  // A log with the name of ours and the updates of `fleet`. The test may switch it later.
  static std::unique_ptr<SwitchedLog> named_like(const Fleet& named, const Fleet& fleet) {
    auto log = std::make_unique<SwitchedLog>(named.log());
    log->switch_to(fleet.log());
    return log;
  }
  Cache open(std::unique_ptr<SwitchedLog> log) {
    Options options = ours.options("berlin");
    options.deadline = milliseconds(2000);
    return Cache(std::move(log), std::move(options));
  }
  Cache open_ours() { return open(named_like(ours, ours)); }
  Cache open_theirs() { return open(named_like(ours, theirs)); }
  template <typename Call>
  void expect_conflict(const Call& call) {
    expect_error(ErrorKind::corrupt, call, "state belongs to another log",
                 ours.state_path("berlin"), to_string(ours.log()->extent().uuid),
                 to_string(theirs.log()->extent().uuid), "state_path of its own");
  }

  Fleet ours;
  Fleet theirs;
};

TEST_F(TwoLogsOfOneName, process_never_reads_state_of_the_other_log) {
  Cache mine = open_ours();
  mine.update();
  const View before = mine.view();
  open_theirs().update();

  for (int i = 0; i < 3; ++i) {
    expect_error(
        ErrorKind::unavailable, [&] { static_cast<void>(mine.get("whose")); }, "another log");
    expect_error(
        ErrorKind::unavailable, [&] { static_cast<void>(mine.view()); }, "another log");
  }
  for (int i = 0; i < 2; ++i) {
    expect_conflict([&] { mine.update(); });
    expect_conflict([&] { mine.set("whose", "mine"); });
    expect_conflict([&] { mine.transact([](Transaction& t) { t.set("whose", "mine"); }); });
    expect_conflict([&] {
      mine.update({.staleness_max = std::chrono::hours(1), .at_least = 0, .deadline = {}});
    });
    expect_error(
        ErrorKind::unavailable, [&] { static_cast<void>(mine.get("whose")); }, "another log");
  }
  EXPECT_EQ(before.get("whose"), "ours");
  EXPECT_EQ(ours.log()->extent().head, 1U);
  EXPECT_EQ(open_theirs().update(), 1U) << "their state was not replaced in turn";
}

TEST_F(TwoLogsOfOneName, process_that_has_only_read_the_state_does_not_read_the_other) {
  { open_ours(); }
  const Cache mine = open_ours();
  EXPECT_EQ(mine.get("whose"), "ours");
  open_theirs().update();
  expect_error(
      ErrorKind::unavailable, [&] { static_cast<void>(mine.get("whose")); }, "another log");
}

TEST_F(TwoLogsOfOneName, closed_cache_does_not_open_state_of_the_other_log) {
  Cache mine = open_ours();
  mine.update();
  mine.close_shared_state();
  open_theirs().update();
  expect_conflict([&] { static_cast<void>(mine.get("whose")); });
  expect_conflict([&] { static_cast<void>(mine.view()); });
}

TEST_F(TwoLogsOfOneName, forked_child_does_not_read_state_of_the_other_log) {
  const Cache mine = open_ours();
  open_theirs().update();
  expect_success_in_child([&] {
    expect_error(
        ErrorKind::unavailable, [&] { static_cast<void>(mine.get("whose")); }, "another log");
  });
}

// Two containers with the same URL: each process sees a database of its own there.
TEST(TwoLogsOfOneUrl, process_never_reads_state_of_the_other_log) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: only root can mount";
  for (const char* const scheme : {"sqlite", "file"}) {
    const TemporaryDirectory directory;
    for (const char* const name : {"ours", "theirs", "data"})
      fs::create_directory(directory.file(name));
    const std::string url = std::string(scheme) + "://" + directory.file("data") + "/log";
    Options options;
    options.state_path = directory.file("shared.state");
    const auto enter = [&](const std::string& container) {
      return ::unshare(CLONE_NEWNS) == 0 &&
             ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
             ::mount(directory.file(container).c_str(), directory.file("data").c_str(), nullptr,
                     MS_BIND, nullptr) == 0;
    };
    const SharedWithChildren<std::atomic<int>> step;
    ChildProcess ours([&]() -> std::string {
      if (!enter("ours")) return "cannot mount";
      Cache cache(url, options);
      cache.set("whose", "ours");
      *step = 1;
      testing::wait_for_step(step, 2);
      const auto check = [&](const char* what, const auto& call) -> std::string {
        try {
          return call() == "ours" ? "" : std::string(what) + " returns another log's value";
        } catch (const Error& error) {
          const std::string message = error.what();
          return message.find("another log") != std::string::npos ? "" : message;
        }
      };
      for (int i = 0; i < 3; ++i) {
        std::string fault = check("get", [&] { return cache.get("whose"); });
        if (fault.empty())
          fault = check("get after update", [&] {
            cache.update();
            return cache.get("whose");
          });
        if (!fault.empty()) return fault;
      }
      return "";
    });
    for (int i = 0; i < 20'000 && *step != 1; ++i) std::this_thread::sleep_for(milliseconds(1));
    ChildProcess theirs([&]() -> std::string {
      if (!enter("theirs")) return "cannot mount";
      // No cache creates a log beside a state.
      static_cast<void>(open_log(url));
      // The state may be refused. If it is not, it has to be of this log.
      try {
        Cache cache(url, options);
        cache.set("whose", "theirs");
        return cache.get("whose") == "theirs" ? "" : "reads another value";
      } catch (const Error& error) {
        return error.kind() == ErrorKind::corrupt ? "" : error.what();
      }
    });
    const std::string result = theirs.wait();
    *step = 2;
    if (result == "cannot mount") GTEST_SKIP() << "NOT TESTED: " << result;
    EXPECT_EQ(result, "") << scheme;
    EXPECT_EQ(ours.wait(), "") << scheme;
  }
}

TEST_F(TwoLogsOfOneName, process_whose_log_was_replaced_switches_after_it_asked) {
  std::unique_ptr<SwitchedLog> made = named_like(ours, ours);
  SwitchedLog& log = *made;
  Cache mine = open(std::move(made));
  mine.update();
  open_theirs().update();
  expect_error(
      ErrorKind::unavailable, [&] { static_cast<void>(mine.get("whose")); }, "another log");
  log.switch_to(theirs.log());
  expect_error(
      ErrorKind::unavailable, [&] { static_cast<void>(mine.get("whose")); }, "another log");

  EXPECT_EQ(mine.update(), 1U);

  EXPECT_EQ(mine.get("whose"), "theirs");
  EXPECT_EQ(mine.counters().rebuilds_replaced, 0U) << "the other process has built the state";
}

TEST_F(TwoLogsOfOneName, write_to_a_log_that_was_replaced_asks_it) {
  std::unique_ptr<SwitchedLog> made = named_like(ours, ours);
  SwitchedLog& log = *made;
  Cache mine = open(std::move(made));
  mine.set("a", "1");
  open_theirs().update();
  log.switch_to(theirs.log());
  EXPECT_EQ(mine.set("a", "2"), 2U);
  EXPECT_EQ(contents(mine), (Contents{{"a", "2"}, {"whose", "theirs"}}));
}

TEST_F(TwoLogsOfOneName, unanswered_question_leaves_reads_refused) {
  auto script = std::make_shared<Script>();
  std::atomic<bool> away{false};
  script->before_read = script->before_extent = [&] {
    if (away) throw unavailable_error();
  };
  Options options = ours.options("berlin");
  options.deadline = milliseconds(100);
  Cache mine(std::make_unique<ScriptedLog>(named_like(ours, ours), script), options);
  mine.update();
  open_theirs().update();
  away = true;
  expect_error(
      ErrorKind::unavailable, [&] { mine.update(); }, "the test's log is away");
  expect_error(
      ErrorKind::unavailable, [&] { static_cast<void>(mine.get("whose")); }, "another log");
}

TEST_F(TwoLogsOfOneName, state_of_a_log_that_was_replaced_twice_is_rebuilt) {
  Fleet third;
  third.open("elsewhere").set("whose", "third");
  std::unique_ptr<SwitchedLog> made = named_like(ours, ours);
  SwitchedLog& log = *made;
  Cache mine = open(std::move(made));
  mine.update();
  open_theirs().update();
  log.switch_to(third.log());

  EXPECT_EQ(mine.update(), 1U);

  EXPECT_EQ(mine.get("whose"), "third");
  EXPECT_EQ(mine.counters().rebuilds_replaced, 1U);
}

// --- Bootstrapping from a copy of a state ---

class Bootstrap : public ::testing::Test {
 protected:
  // Copies the state of a closed machine to another machine.
  void copy_state(const std::string& from, const std::string& to) {
    copy_file(fleet.state_path(from), fleet.state_path(to));
  }

  Fleet fleet;
};

TEST_F(Bootstrap, copied_state_is_reused_and_reads_only_newer_updates) {
  Cache berlin = fleet.open("berlin");
  for (int i = 0; i < 50; ++i) berlin.set("key" + std::to_string(i), "value");
  berlin.close_shared_state();
  copy_state("berlin", "tokyo");
  Cache writer = fleet.open("berlin");
  writer.set("newer", "yes");
  auto script = std::make_shared<Script>();
  std::atomic<int> rows{0};
  script->transform_row = [&](UpdateId, std::string_view row) {
    ++rows;
    return std::optional<std::string>(row);
  };

  Cache tokyo = fleet.open("tokyo", script);

  EXPECT_EQ(tokyo.update(), 51U);
  EXPECT_EQ(tokyo.digest(), writer.digest());
  EXPECT_LE(rows, 4) << "the overlap and the newer updates";
  EXPECT_EQ(tokyo.counters().rebuilds_damaged + tokyo.counters().rebuilds_behind_base, 0U);
}

// As by cp, which keeps the inode.
TEST_F(Bootstrap, torn_copy_put_back_in_place_is_rebuilt) {
  const std::string path = fleet.state_path("berlin");
  fleet.open("berlin").set_multi({{"a", "before"}, {"b", "before"}});
  std::string bytes = read_whole_file(path, 100 << 20);
  bytes.replace(bytes.find("before"), 6, "after!");
  std::this_thread::sleep_for(milliseconds(20));  // the clock of ctime goes in steps
  ASSERT_EQ(::pwrite(open_file(path, O_WRONLY).number(), bytes.data(), bytes.size(), 0),
            static_cast<ssize_t>(bytes.size()));

  Cache opened = fleet.open("berlin");

  EXPECT_EQ(contents(opened), (Contents{{"a", "before"}, {"b", "before"}}));
  EXPECT_EQ(opened.counters().rebuilds_damaged, 1U);
}

TEST_F(Bootstrap, copy_older_than_base_is_rebuilt) {
  Cache berlin = fleet.open("berlin");
  berlin.set_multi({{"a", "1"}, {"erased", "1"}});
  berlin.close_shared_state();
  copy_state("berlin", "tokyo");
  Cache writer = fleet.open("berlin");
  writer.erase("erased");
  writer.set("b", "2");
  writer.rewrite_history();

  Cache tokyo = fleet.open("tokyo");

  EXPECT_EQ(contents(tokyo), (Contents{{"a", "1"}, {"b", "2"}}));
  EXPECT_EQ(tokyo.counters().rebuilds_behind_base, 1U);
}

TEST_F(Bootstrap, copy_of_other_log_state_is_rebuilt) {
  Fleet other;
  Cache foreign = other.open("foreign");
  foreign.set("foreign", "yes");
  foreign.close_shared_state();
  fleet.open("berlin").set("a", "1");
  copy_file(other.state_path("foreign"), fleet.state_path("tokyo"));

  Cache tokyo = fleet.open("tokyo");

  EXPECT_EQ(contents(tokyo), (Contents{{"a", "1"}}));
  EXPECT_EQ(tokyo.counters().rebuilds_replaced, 1U);
}

TEST_F(Bootstrap, copy_of_other_log_state_is_rejected_without_log) {
  Fleet other;
  Cache foreign = other.open("foreign");
  foreign.set("foreign", "yes");
  foreign.close_shared_state();
  copy_file(other.state_path("foreign"), fleet.state_path("tokyo"));
  auto script = std::make_shared<Script>();
  script->before_extent = [] { throw unavailable_error(); };

  expect_error(
      ErrorKind::unavailable, [&] { fleet.open("tokyo", script); }, "brought here from elsewhere");
}

TEST_F(Bootstrap, copy_taken_during_writes_opens_consistent_or_rebuilt) {
  Cache berlin = fleet.open("berlin");
  std::atomic<bool> end{false};
  // Bounds the writer. Where reading the log is as slow as writing it, each machine would otherwise
  // double the history for the next.
  std::atomic<int> allowed{0};
  std::thread writer([&] {
    for (int i = 0; !end; ++i) {
      while (i >= allowed && !end) std::this_thread::sleep_for(std::chrono::microseconds(50));
      std::map<std::string, std::string> batch;
      for (int j = 0; j < 50; ++j)
        batch["key" + std::to_string((i * 37 + j * 11) % 500)] =
            incompressible_bytes(200, static_cast<std::uint64_t>(i));
      berlin.set_multi(batch);
    }
  });
  int rebuilt = 0;
  for (int i = 0; i < 20; ++i) {
    const std::string machine = "copy" + std::to_string(i);
    allowed += 50;
    std::this_thread::sleep_for(milliseconds(5));
    allowed += 50;  // during the copy and after it
    copy_state("berlin", machine);
    Cache copy = fleet.open(machine);
    const UpdateId id = copy.update();
    const Cache fresh = fleet.open("fresh" + std::to_string(i));
    rebuilt += copy.counters().rebuilds_damaged != 0;
    Cache again = fleet.open(machine);
    // Compare at the same id: the cache that is behind follows.
    for (int tries = 0; tries < 50; ++tries) {
      const View a = again.view();
      const View b = fresh.view();
      if (a.id() == b.id()) {
        ASSERT_EQ(contents(a), contents(b)) << "copy " << i << " at " << id;
        ASSERT_EQ(a.digest(), b.digest());
        break;
      }
      if (a.id() < b.id()) again.update({.staleness_max = {}, .at_least = b.id(), .deadline = {}});
      if (b.id() < a.id())
        const_cast<Cache&>(fresh).update({.staleness_max = {}, .at_least = a.id(), .deadline = {}});
    }
    copy.delete_shared_state();
  }
  end = true;
  writer.join();
  std::printf("copies=20 rebuilt=%d\n", rebuilt);
}

TEST_F(Bootstrap, truncated_or_changed_copy_is_rebuilt_or_rejected) {
  Cache berlin = fleet.open("berlin");
  for (int i = 0; i < 200; ++i)
    berlin.set("key" + std::to_string(i), incompressible_bytes(100, static_cast<std::uint64_t>(i)));
  const Contents expected = contents(berlin);
  berlin.close_shared_state();
  std::ifstream file(fleet.state_path("berlin"), std::ios::binary);
  const std::string original((std::istreambuf_iterator<char>(file)), {});
  std::mt19937 random(7);
  int refused = 0;
  int rebuilt = 0;
  for (int i = 0; i < 60; ++i) {
    std::string torn = original;
    if (i % 3 == 0) {
      torn.resize(random() % torn.size());
    } else if (i % 3 == 1) {
      for (int j = 0; j < 20; ++j) torn[random() % torn.size()] = static_cast<char>(random());
    } else {
      const std::size_t from = random() % torn.size() / 4096 * 4096;
      std::fill(torn.begin() + static_cast<std::ptrdiff_t>(from),
                torn.begin() + static_cast<std::ptrdiff_t>(std::min(from + 65536, torn.size())),
                '\0');
    }
    const std::string path = fleet.state_path("tokyo");
    {
      std::ofstream out(path, std::ios::binary | std::ios::trunc);
      out.write(torn.data(), static_cast<std::streamsize>(torn.size()));
    }
    ::chmod(path.c_str(), 0600);
    try {
      Cache tokyo = fleet.open("tokyo");
      tokyo.update();
      ASSERT_EQ(contents(tokyo), expected) << "variant " << i;
      rebuilt += tokyo.counters().rebuilds_damaged != 0;
      tokyo.delete_shared_state();
    } catch (const Error& error) {  // not recognized as a state of this library: never overwritten
      EXPECT_TRUE(error.kind() == ErrorKind::corrupt || error.kind() == ErrorKind::invalid)
          << error.what();
      ++refused;
      fs::remove(path);
    }
  }
  std::printf("variants=60 rebuilt=%d refused=%d\n", rebuilt, refused);
  EXPECT_GT(rebuilt, 0);
}

// --- Damaged states ---

TEST(Rebuild, unusable_state_is_rebuilt_and_reported) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  for (int i = 0; i < 100; ++i) berlin.set("key" + std::to_string(i), "value");
  berlin.close_shared_state();
  {
    // Replace the state by a copy that has lost every second page.
    const std::string copy = fleet.state_path("copy");
    copy_file(fleet.state_path("berlin"), copy);
    std::fstream file(copy, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(0, std::ios::end);
    const auto size = file.tellp();
    const std::string zeros(4096, '\0');
    for (std::streamoff at = 262144; at < size; at += 8192) {
      file.seekp(at);
      file.write(zeros.data(), 4096);
    }
    file.close();
    fs::rename(copy, fleet.state_path("berlin"));
  }
  Events events;
  Options options;
  options.on_event = events.listener();

  const Cache cache = fleet.open("berlin", options);

  EXPECT_EQ(cache.size(), 100U);
  EXPECT_EQ(cache.counters().rebuilds_damaged, 1U);
  EXPECT_EQ(events.count(Event::Kind::stray_state), 1);
  EXPECT_THAT(events.messages(Event::Kind::rebuilt), HasSubstr("could not be used"));
}

TEST(Rebuild, state_found_damaged_by_read_is_rebuilt_by_update) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  for (int i = 0; i < 2000; ++i) cache.set("key" + std::to_string(i), std::string(100, 'v'));
  {
    // Overwrite pages, as a broken disk would.
    const int file = ::open(fleet.state_path("berlin").c_str(), O_RDWR);
    struct stat status;
    ASSERT_EQ(::fstat(file, &status), 0);
    const std::string garbage(4096, '\xff');
    for (off_t at = 262144; at < status.st_size; at += 4096) {
      ASSERT_EQ(::pwrite(file, garbage.data(), garbage.size(), at), 4096);
    }
    ::close(file);
  }
  expect_error(ErrorKind::corrupt, [&] { static_cast<void>(cache.get("key7")); });

  EXPECT_EQ(cache.update(), 2000U);

  EXPECT_EQ(cache.get("key7"), std::string(100, 'v'));
  EXPECT_EQ(cache.size(), 2000U);
  EXPECT_EQ(cache.counters().rebuilds_damaged, 1U);
}

// One thread builds a new state while another writes to the old one, whose damage does not affect
// the write. The write must still be there once the new state has replaced the old one.
TEST(Rebuild, write_during_rebuild_is_in_new_state) {
  Fleet fleet;
  const auto builds = std::make_shared<Script>();
  const auto writes = std::make_shared<Script>();
  Cache rebuilding = fleet.open("berlin", builds);
  Cache writing = fleet.open("berlin", writes);
  const std::string bad_value(100, '!');
  rebuilding.set("damaged", bad_value);
  rebuilding.set("key", "old");
  writing.update();
  {
    // Damage the size of one entry and nothing else.
    const int file = ::open(fleet.state_path("berlin").c_str(), O_RDWR);
    std::string all(static_cast<std::size_t>(::lseek(file, 0, SEEK_END)), '\0');
    ASSERT_EQ(::pread(file, all.data(), all.size(), 0), static_cast<ssize_t>(all.size()));
    const std::size_t at = all.find("damaged" + bad_value);
    ASSERT_NE(at, std::string::npos);
    ASSERT_EQ(::pwrite(file, "\xff", 1, static_cast<off_t>(at) - 8), 1);
    ::close(file);
  }
  expect_error(ErrorKind::corrupt, [&] { static_cast<void>(rebuilding.get("damaged")); });

  // The writer is about to append when the log is read for the new state. The write returns before
  // the new state is installed.
  std::atomic<int> step{0};
  const auto wait_for = [&](int wanted) {
    for (int i = 0; i < 10'000 && step < wanted; ++i) std::this_thread::sleep_for(milliseconds(1));
    EXPECT_GE(step, wanted);
  };
  writes->before_append = [&](UpdateId) {
    step = 1;
    wait_for(2);
  };
  builds->after_read = [&] {
    if (step != 1) return;
    step = 2;
    wait_for(3);
  };
  std::thread writer([&] {
    EXPECT_EQ(writing.set("key", "new"), 3U);
    EXPECT_EQ(writing.get("key"), "new");
    step = 3;
  });
  wait_for(1);
  EXPECT_EQ(rebuilding.update(), 3U);
  EXPECT_EQ(writing.get("key"), "new");
  EXPECT_EQ(rebuilding.get("key"), "new");
  EXPECT_EQ(rebuilding.get("damaged"), bad_value);
  EXPECT_EQ(rebuilding.counters().rebuilds_damaged + writing.counters().rebuilds_damaged, 1U);
  writer.join();
}

// Each time the machine has read the base, another one has replaced it. The rebuild must not retry
// forever.
TEST(Rebuild, rebuild_fails_at_deadline_if_log_is_rewritten_faster) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  const auto rewrite = [&] {
    berlin.set("key", "value");
    berlin.rewrite_history();
  };
  rewrite();
  const auto script = std::make_shared<Script>();
  script->before_read = rewrite;
  Options options;
  options.deadline = milliseconds(300);
  expect_error(
      ErrorKind::unavailable, [&] { fleet.open("tokyo", script, options); },
      "rewritten or replaced");
  script->before_read = nullptr;
  EXPECT_EQ(fleet.open("tokyo", script, options).digest(), berlin.digest());
}

// The log has lost updates that the old state has, so there is nothing to catch up with.
TEST(Rebuild, rebuild_after_lost_tail_reads_log_twice_only) {
  Fleet fleet("file");
  const auto script = std::make_shared<Script>();
  Cache cache = fleet.open("berlin", script);
  for (int i = 1; i <= 3; ++i) cache.set("key", std::to_string(i));
  fs::remove(fleet.directory().file("log") + "/default/updates/" + std::string(19, '0') + "3");
  if (fleet.log()->extent().head == 3) GTEST_FAIL() << "the update is still there";
  const int before = script->read_count;
  EXPECT_EQ(cache.update(), 2U);
  EXPECT_EQ(cache.get("key"), "2");
  EXPECT_EQ(script->read_count - before, 2) << "one read detects the loss, one rebuilds";
}

// `whycache follow` does this now and then.
TEST(Rebuild, large_state_that_is_mostly_free_is_shrunk) {
  const Fleet fleet;
  Events events;
  Options options;
  options.on_event = events.listener();
  Cache cache = fleet.open("berlin", options);
  const auto bytes = [&] { return fs::file_size(cache.state_path()); };
  const std::string value(100'000, 'v');
  const auto fill = [&](int items) {
    int next = 0;
    cache.fill([&, key = std::string()]() mutable -> std::optional<Item> {
      if (next == items) return std::nullopt;
      key = "key" + std::to_string(next++);
      return Item{key, value};
    });
  };
  fill(100);
  cache.erase_prefix("key");
  EXPECT_FALSE(CacheInternal::shrink(cache)) << "a small state is left alone";

  fill(700);
  EXPECT_FALSE(CacheInternal::shrink(cache)) << "it is full";
  const std::uint64_t full = bytes();
  Cache reader = fleet.open("berlin");
  cache.erase(KeyRange{"key1", {}});
  EXPECT_TRUE(CacheInternal::shrink(cache));
  EXPECT_LT(bytes(), full / 4);
  EXPECT_EQ(cache.counters().rebuilds_to_shrink, 1U);
  EXPECT_THAT(events.messages(Event::Kind::rebuilt), HasSubstr("most of it was free"));
  EXPECT_FALSE(CacheInternal::shrink(cache)) << "it is small now";
  EXPECT_EQ(reader.get("key0"), value);
  EXPECT_EQ(reader.size(), 1U);
  EXPECT_EQ(reader.digest(), cache.digest());
}

}  // namespace
}  // namespace whycache::testing
