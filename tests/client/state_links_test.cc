// One log, one state: whatever its names, the log's uuid leads to its state in a directory.
#include "client/state_links.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/fleet.h"
#include "client/state_location.h"
#include "log/forwarding_log.h"
#include "support/child_process.h"

namespace whycache::testing {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

// A log under one of its names: as a database is by the name of its host, an address or a socket.
class NamedLog final : public ForwardingLog {
 public:
  NamedLog(std::string name, std::unique_ptr<Log> log)
      : ForwardingLog(std::move(log)), name_(std::move(name)) {}
  void switch_to(std::unique_ptr<Log> log) { set_target(std::move(log)); }

  std::string name() const override { return name_; }

 private:
  const std::string name_;
};

class StateLinks : public ::testing::Test {
 protected:
  static std::string name_of(const std::string& host) {
    return "test://" + host + "/flags?instance=default";
  }
  Options options() const {
    Options options;
    options.state_path = directory.path() + "/";
    options.deadline = milliseconds(2000);
    return options;
  }
  // Opens a cache on the log by the name of a host.
  Cache open(const std::string& host, const Fleet& log) const { return open(host, log, options()); }
  Cache open(const std::string& host, const Fleet& log, Options options) const {
    return Cache(std::make_unique<NamedLog>(name_of(host), log.log()), std::move(options));
  }
  // Opens a cache on a log that does not answer.
  Cache open_offline(const std::string& host, OpenMode mode = OpenMode::wait) const {
    auto script = std::make_shared<Script>();
    script->before_extent = script->before_read = [] { throw unavailable_error(); };
    Options offline = options();
    offline.deadline = milliseconds(50);
    offline.open = mode;
    offline.on_event = events.listener();
    return Cache(std::make_unique<NamedLog>(
                     name_of(host), std::make_unique<ScriptedLog>(flags.log(), std::move(script))),
                 std::move(offline));
  }
  // The path that a log has by its name, without regard to its uuid.
  std::string path_of_name(const std::string& host) const {
    Options elsewhere;
    const TemporaryDirectory empty;
    elsewhere.state_path = empty.path() + "/";
    const fs::path path = find_state_location(elsewhere, name_of(host)).path;
    return directory.file(path.filename());
  }
  std::string reservation_of(const Fleet& log) const {
    return directory.file("." + to_string(log.log()->extent().uuid) + ".log");
  }
  std::set<std::string> states() const {
    std::set<std::string> paths;
    for (const auto& entry : fs::directory_iterator(directory.path())) {
      if (entry.path().extension() == ".state" &&
          entry.symlink_status().type() == fs::file_type::regular)
        paths.insert(entry.path());
    }
    return paths;
  }

  Fleet flags;
  Fleet other;
  TemporaryDirectory directory;
  mutable Events events;
};

TEST_F(StateLinks, names_of_one_log_share_one_state) {
  Cache by_name = open("db.example.org", flags);
  Cache by_address = open("10.0.0.7", flags);
  Cache by_socket = open("localhost", flags);
  for (int i = 0; i < 3; ++i) {
    by_name.set("k", std::to_string(i));
    EXPECT_EQ(by_address.get("k"), std::to_string(i));
    EXPECT_EQ(by_socket.get("k"), std::to_string(i));
  }
  EXPECT_EQ(by_address.state_path(), by_name.state_path());
  EXPECT_EQ(states(), std::set{path_of_name("db.example.org")});
  EXPECT_EQ(fs::read_symlink(path_of_name("10.0.0.7")).native(),
            fs::path(by_name.state_path()).filename().native());
  std::vector<std::string> locks;
  for (const auto& entry : fs::directory_iterator(directory.path())) {
    if (entry.path().extension() == ".lock") locks.push_back(entry.path());
  }
  EXPECT_EQ(locks, std::vector{by_name.state_path() + ".lock"});
}

TEST_F(StateLinks, names_of_different_logs_have_different_states) {
  open("one", flags).set("k", "flags");
  open("two", other).set("k", "other");
  EXPECT_EQ(open("one", flags).get("k"), "flags");
  EXPECT_EQ(states().size(), 2U);
}

TEST_F(StateLinks, state_is_found_offline_by_each_name_that_was_used) {
  open("one", flags).set("k", "1");
  open("two", flags);
  for (const char* const host : {"one", "two"}) {
    EXPECT_EQ(open_offline(host).get("k"), "1");
    EXPECT_EQ(events.messages(Event::Kind::retried), "") << "the log was asked";
  }
  const auto began = std::chrono::steady_clock::now();
  expect_error(
      ErrorKind::unavailable, [&] { open_offline("three"); }, "log did not answer in time",
      name_of("three"), "the test's log is away");
  EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(1000));
  EXPECT_FALSE(fs::exists(path_of_name("three") + ".lock"));
}

TEST_F(StateLinks, log_is_asked_once_for_a_new_name) {
  open("one", flags).set("k", "1");
  auto script = std::make_shared<Script>();
  for (int i = 0; i < 2; ++i) {
    const Cache cache(std::make_unique<NamedLog>(
                          name_of("two"), std::make_unique<ScriptedLog>(flags.log(), script)),
                      options());
    EXPECT_EQ(cache.get("k"), "1");
    EXPECT_EQ(script->extent_count, 1);
    EXPECT_EQ(script->read_count, 0) << "nothing is built";
  }
}

// As earlier versions of the library left it.
TEST_F(StateLinks, state_without_reservation_is_found_and_not_rebuilt) {
  open("one", flags).set("k", "1");
  fs::remove(reservation_of(flags));
  EXPECT_EQ(open_offline("one").get("k"), "1");
  fs::remove(reservation_of(flags));

  const Cache by_new_name = open("two", flags);

  EXPECT_EQ(by_new_name.state_path(), path_of_name("one"));
  EXPECT_EQ(by_new_name.get("k"), "1");
  EXPECT_TRUE(fs::is_symlink(reservation_of(flags)));
}

TEST_F(StateLinks, reservation_is_made_when_an_old_state_is_opened) {
  open("one", flags).set("k", "1");
  fs::remove(reservation_of(flags));
  open("one", flags);
  EXPECT_EQ(fs::read_symlink(reservation_of(flags)), fs::path(path_of_name("one")).filename());
}

TEST_F(StateLinks, state_named_by_user_is_not_the_default_of_the_log) {
  Options named = options();
  named.state_path = directory.file("berlin.state");
  open("one", flags, named).set("k", "1");
  EXPECT_EQ(open("one", flags).state_path(), path_of_name("one"));
}

TEST_F(StateLinks, stale_reservation_is_replaced) {
  open("one", flags).set("k", "1");
  open("two", other).set("k", "2");
  fs::remove(reservation_of(other));
  fs::create_symlink(fs::path(path_of_name("one")).filename(), reservation_of(other));
  std::ofstream(directory.file("notes.state")) << std::string(4096, 'x');

  EXPECT_EQ(open("three", other).get("k"), "2");
  EXPECT_EQ(fs::read_symlink(reservation_of(other)), fs::path(path_of_name("two")).filename());

  fs::remove(reservation_of(other));
  fs::create_symlink("notes.state", reservation_of(other));
  EXPECT_EQ(open("four", other).get("k"), "2");
  EXPECT_EQ(fs::file_size(directory.file("notes.state")), 4096U);
}

TEST_F(StateLinks, deleted_state_is_built_again_for_all_names) {
  Cache one = open("one", flags);
  one.set("k", "1");
  open("two", flags);
  one.delete_shared_state();
  Cache two = open("two", flags);
  EXPECT_EQ(two.get("k"), "1");
  EXPECT_EQ(two.state_path(), path_of_name("one"));
  EXPECT_EQ(open("one", flags).state_path(), path_of_name("one"));
  EXPECT_EQ(states().size(), 1U);
}

TEST_F(StateLinks, threads_that_open_by_many_names_at_once_share_one_state) {
  open("elsewhere", flags, Fleet().options("elsewhere")).set("k", "1");
  for (int round = 0; round < 5; ++round) {
    for (const auto& entry : fs::directory_iterator(directory.path())) fs::remove(entry.path());
    std::vector<std::string> paths(8);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < paths.size(); ++i) {
      threads.emplace_back([&, i] {
        const Cache cache = open("host" + std::to_string(i), flags);
        EXPECT_EQ(cache.get("k"), "1");
        paths[i] = cache.state_path();
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(std::set(paths.begin(), paths.end()).size(), 1U);
    EXPECT_EQ(states().size(), 1U);
  }
}

TEST_F(StateLinks, processes_that_open_by_many_names_at_once_share_one_state) {
  const Fleet log("sqlite");
  log.open("elsewhere").set("k", "1");
  for (int round = 0; round < 5; ++round) {
    for (const auto& entry : fs::directory_iterator(directory.path())) fs::remove(entry.path());
    const SharedWithChildren<std::atomic<bool>> begin;
    std::vector<std::unique_ptr<ChildProcess>> processes;
    for (int i = 0; i < 6; ++i) {
      processes.push_back(std::make_unique<ChildProcess>([&, i]() -> std::string {
        while (!*begin) std::this_thread::yield();
        const std::string host = "host" + std::to_string(i);
        Cache cache = open(host, log);
        cache.add("opened", 1);
        return open(host, log).state_path() == cache.state_path() ? "" : "has moved";
      }));
    }
    *begin = true;
    for (const auto& process : processes) EXPECT_EQ(process->wait(), "");
    EXPECT_EQ(states().size(), 1U);
    EXPECT_EQ(open("host0", log).get("opened"), std::to_string((round + 1) * 6));
  }
}

TEST_F(StateLinks, log_that_answers_late_is_reported_and_waited_for) {
  auto script = std::make_shared<Script>();
  std::atomic<int> failures_left{3};
  script->before_extent = [&] {
    if (failures_left-- > 0) throw unavailable_error();
  };
  Options patient = options();
  patient.on_event = events.listener();
  const Cache cache(std::make_unique<NamedLog>(name_of("one"),
                                               std::make_unique<ScriptedLog>(flags.log(), script)),
                    patient);
  EXPECT_EQ(events.count(Event::Kind::retried), 1);
  EXPECT_TRUE(fs::is_symlink(reservation_of(flags)));
}

// --- Logs that are replaced, and names that lead to another log ---

TEST_F(StateLinks, state_of_a_replaced_log_is_found_by_the_new_uuid) {
  other.open("elsewhere").set("k", "new");
  auto made = std::make_unique<NamedLog>(name_of("one"), flags.log());
  NamedLog& log = *made;
  Cache one(std::move(made), options());
  one.set("k", "old");
  log.switch_to(other.log());
  one.update();

  const Cache two = open("two", other);

  EXPECT_EQ(two.get("k"), "new");
  EXPECT_EQ(two.state_path(), one.state_path());
  EXPECT_EQ(states().size(), 1U);
}

TEST_F(StateLinks, replaced_log_is_followed_by_all_of_its_names) {
  other.open("elsewhere").set("k", "new");
  std::vector<NamedLog*> logs;
  std::vector<Cache> caches;
  for (const char* const host : {"one", "two"}) {
    auto made = std::make_unique<NamedLog>(name_of(host), flags.log());
    logs.push_back(made.get());
    caches.emplace_back(std::move(made), options());
    caches.back().update();
  }
  for (NamedLog* const log : logs) log->switch_to(other.log());
  for (const std::size_t first : {1, 0}) {
    caches[first].update();
    EXPECT_EQ(caches[first].get("k"), "new");
  }
  EXPECT_EQ(states().size(), 1U);
}

TEST_F(StateLinks, alias_that_leads_to_another_log_is_removed_at_the_first_update) {
  open("one", flags).set("k", "flags");
  open("two", flags);
  other.open("elsewhere").set("k", "other");
  {
    Cache moved = open("two", other);
    for (int i = 0; i < 2; ++i) {
      expect_error(
          ErrorKind::corrupt, [&] { moved.update(); }, "state belongs to another log", "alias",
          path_of_name("two"), name_of("one"), name_of("two"), "open the cache again");
    }
  }
  EXPECT_FALSE(fs::is_symlink(path_of_name("two")));

  Cache again = open("two", other);

  EXPECT_EQ(again.get("k"), "other");
  EXPECT_EQ(again.state_path(), path_of_name("two"));
  EXPECT_EQ(open("one", flags).get("k"), "flags");
}

// The process of an alias, whose log was replaced, has built a state of the new log in place.
TEST_F(StateLinks, name_whose_place_was_taken_gets_another_place) {
  auto made = std::make_unique<NamedLog>(name_of("two"), flags.log());
  NamedLog& log = *made;
  open("one", flags).set("k", "flags");
  Cache two(std::move(made), options());
  two.update();
  other.open("elsewhere").set("k", "other");
  log.switch_to(other.log());
  two.update();
  ASSERT_EQ(two.state_path(), path_of_name("one"));

  for (int i = 0; i < 2; ++i) {
    Cache one = open("one", flags);
    EXPECT_NE(one.state_path(), two.state_path());
    EXPECT_EQ(one.get("k"), "flags");
    one.update();
    EXPECT_EQ(two.get("k"), "other");
  }
  EXPECT_EQ(states().size(), 2U);
}

// --- States that were built by the name of an alias ---

TEST_F(StateLinks, state_rebuilt_by_an_alias_keeps_its_name) {
  Cache one = open("one", flags);
  one.set("k", "1");
  Cache elsewhere = flags.open("elsewhere");
  elsewhere.set("k", "2");
  elsewhere.rewrite_history();

  Cache two = open("two", flags);
  two.update();
  ASSERT_EQ(two.counters().rebuilds_behind_base, 1U);

  EXPECT_EQ(open_offline("one").get("k"), "2");
  EXPECT_EQ(events.messages(Event::Kind::retried), "") << "the log was asked";
  EXPECT_EQ(find_log_of_state(path_of_name("one"))->name, name_of("one"));
}

TEST_F(StateLinks, name_of_a_state_built_by_an_alias_is_confirmed_once) {
  Cache one = open("one", flags);
  one.set("k", "1");
  open("two", flags);
  one.delete_shared_state();
  open("two", flags);
  ASSERT_EQ(find_log_of_state(path_of_name("one"))->name, name_of("two"));

  for (const int asked : {1, 0, 0}) {
    auto script = std::make_shared<Script>();
    const Cache again(std::make_unique<NamedLog>(
                          name_of("one"), std::make_unique<ScriptedLog>(flags.log(), script)),
                      options());
    EXPECT_EQ(script->extent_count, asked);
    EXPECT_EQ(again.state_path(), path_of_name("one"));
  }
  EXPECT_EQ(open_offline("one").get("k"), "1");
  EXPECT_EQ(events.messages(Event::Kind::retried), "") << "the log was asked";
}

TEST_F(StateLinks, name_whose_place_was_taken_is_found_offline) {
  open("one", flags).set("k", "flags");
  auto made = std::make_unique<NamedLog>(name_of("two"), flags.log());
  NamedLog& log = *made;
  Cache two(std::move(made), options());
  two.update();
  other.open("elsewhere").set("k", "other");
  log.switch_to(other.log());
  two.update();
  open("one", flags);

  EXPECT_EQ(open_offline("one").get("k"), "flags");
  EXPECT_EQ(events.messages(Event::Kind::retried), "") << "the log was asked";
}

TEST_F(StateLinks, confirmed_name_that_leads_to_another_log_later_is_forgotten) {
  Cache one = open("one", flags);
  one.set("k", "flags");
  open("two", flags);
  one.delete_shared_state();
  open("two", flags);
  open("one", flags);
  other.open("elsewhere").set("k", "other");
  {
    Cache moved = open("one", other);
    EXPECT_EQ(moved.get("k"), "flags") << "as of before its first update()";
    expect_error(
        ErrorKind::corrupt, [&] { moved.update(); }, "state belongs to another log",
        "open the cache again");
  }
  Cache again = open("one", other);
  EXPECT_EQ(again.get("k"), "other");
  EXPECT_EQ(again.update(), other.open("elsewhere").applied_id());
  EXPECT_EQ(open("two", flags).get("k"), "flags");
  EXPECT_EQ(open_offline("one").get("k"), "other");
}

// --- Copies ---

TEST_F(StateLinks, copy_built_without_log_is_left_at_next_open) {
  open("one", flags).set("k", "1");
  std::atomic<bool> away{true};
  auto script = std::make_shared<Script>();
  script->before_extent = script->before_read = [&] {
    if (away) throw unavailable_error();
  };
  Options at_once = options();
  at_once.open = OpenMode::now;
  {
    const auto began = std::chrono::steady_clock::now();
    Cache two(std::make_unique<NamedLog>(name_of("two"),
                                         std::make_unique<ScriptedLog>(flags.log(), script)),
              at_once);
    EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(1000));
    EXPECT_FALSE(two.ready());
    away = false;
    two.update();
    EXPECT_EQ(two.state_path(), path_of_name("two"));
    EXPECT_EQ(two.get("k"), "1");
  }
  EXPECT_EQ(states().size(), 2U);
  EXPECT_EQ(open("two", flags).state_path(), path_of_name("one"));
  EXPECT_EQ(open_offline("two").state_path(), path_of_name("one"));
}

TEST_F(StateLinks, reserved_state_that_is_behind_a_copy_is_not_used) {
  open("one", flags).set("k", "1");
  // The copy of an earlier version, which had no reservations.
  const std::string reservation = reservation_of(flags);
  fs::rename(reservation, directory.file("away"));
  fs::rename(path_of_name("one"), directory.file("one.away"));
  open("two", flags).set("k", "2");
  fs::remove(reservation);
  fs::rename(directory.file("away"), reservation);
  fs::rename(directory.file("one.away"), path_of_name("one"));

  const Cache two = open_offline("two");

  EXPECT_EQ(two.get("k"), "2");
  EXPECT_EQ(fs::read_symlink(reservation), fs::path(path_of_name("two")).filename());
  EXPECT_EQ(open_offline("one").get("k"), "2");
}

// --- Links that must not be followed ---

TEST_F(StateLinks, link_to_another_directory_is_refused) {
  const std::string precious = directory.file("precious");
  std::ofstream(precious) << "precious";
  fs::create_directory(directory.file("sub"));
  Options in_sub = options();
  in_sub.state_path = directory.file("sub/");
  const std::string link =
      directory.file("sub/" + fs::path(path_of_name("one")).filename().native());
  for (const std::string& target :
       {std::string("../precious"), precious, std::string("../x.state"), std::string(".x.state")}) {
    fs::create_symlink(target, link);
    expect_error(
        ErrorKind::invalid, [&] { open("one", flags, in_sub); }, "symbolic link");
    fs::remove(link);
  }
  EXPECT_EQ(fs::file_size(precious), 8U);
}

TEST_F(StateLinks, links_of_strangers_are_not_followed) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: only root can give files to other users";
  open("one", flags).set("k", "1");
  open("two", flags);
  ASSERT_EQ(::lchown(path_of_name("two").c_str(), 12345, 12345), 0);
  expect_error(
      ErrorKind::invalid, [&] { open("two", flags); }, "symbolic link");

  ASSERT_EQ(::lchown(reservation_of(flags).c_str(), 12345, 12345), 0);
  EXPECT_EQ(open("one", flags).state_path(), path_of_name("one"));
}

TEST_F(StateLinks, reader_of_a_directory_that_it_must_not_change_finds_the_state) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: only root can become another user";
  const Fleet log("sqlite");
  fs::permissions(log.directory().path(), fs::perms(0777));
  Options shared = options();
  shared.state_mode = 0644;
  open("one", log, shared).set("k", "1");
  for (const auto& file : fs::directory_iterator(log.directory().path()))
    fs::permissions(file.path(), fs::perms(0666));
  fs::permissions(directory.path(), fs::perms(0755));
  for (const bool is_reserved : {true, false}) {
    if (!is_reserved) fs::remove(reservation_of(log));
    expect_success_in_child([&] {
      ASSERT_EQ(::setgid(65534), 0);
      ASSERT_EQ(::setuid(65534), 0);
      const Cache cache = open("two", log, shared);
      EXPECT_EQ(cache.get("k"), "1");
      EXPECT_EQ(cache.state_path(), path_of_name("one"));
    });
    EXPECT_FALSE(fs::is_symlink(path_of_name("two")));
  }
}

}  // namespace
}  // namespace whycache::testing
