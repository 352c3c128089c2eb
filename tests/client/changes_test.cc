// The change feed: every change beyond an id, once, in order, or a reset.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <whycache/changes.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "support/child_process.h"
#include "support/seed.h"
#include "support/thrown_error.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using Kind = FeedChange::Kind;

// Returns the text of a change: "3 set key=value", and a dot if its update has no further one.
std::string text_of(const FeedChange& change) {
  std::string text = std::to_string(change.id);
  switch (change.kind) {
    case Kind::set:
      text += " set " + std::string(change.key) + "=" + std::string(change.value);
      break;
    case Kind::erase: text += " erase " + std::string(change.key); break;
    case Kind::erase_all: text += " erase_all"; break;
    case Kind::reset: text += " reset"; break;
  }
  return text + (change.ends_update ? "." : "");
}

// Returns what the feed has now.
std::vector<std::string> now_in(Changes& changes) {
  std::vector<std::string> texts;
  while (const std::optional<FeedChange> change = changes.next(milliseconds(0)))
    texts.push_back(text_of(*change));
  return texts;
}
std::vector<std::string> changes_since(const Cache& cache, UpdateId from, KeyRange range = {}) {
  Changes changes = cache.changes(from, std::move(range), {.deadline = milliseconds(0)});
  return now_in(changes);
}
using Texts = std::vector<std::string>;

// A log that can be taken away.
struct LogSwitch {
  std::shared_ptr<Script> script = std::make_shared<Script>();
  std::atomic<bool> is_away{false};

  LogSwitch() {
    const auto fail_if_away = [this](auto...) {
      if (is_away) throw unavailable_error();
    };
    script->before_append = fail_if_away;
    script->before_read = fail_if_away;
    script->before_extent = fail_if_away;
  }
};

std::string ring_of(const Cache& cache) { return cache.state_path() + ".changes"; }

TEST(Changes, returns_each_change_of_each_update_in_order) {
  Fleet fleet;
  Cache cache = fleet.open("berlin", Options{.writer_name = "tester"});
  cache.set("a", "1", {.note = "why"});
  cache.write({Change::set("b", "1"), Change::erase("a"), Change::set("c", ""),
               Change::set("b", "2"), Change::erase("absent")});
  cache.set_multi({{"log.1", "x"}, {"log.2", "y"}});
  cache.erase_prefix("log.");

  EXPECT_EQ(changes_since(cache, 0),
            (Texts{"1 set a=1.", "2 erase a", "2 set c=", "2 set b=2", "2 erase absent.",
                   "3 set log.1=x", "3 set log.2=y.", "4 erase log.1", "4 erase log.2."}));
  EXPECT_EQ(changes_since(cache, 3), (Texts{"4 erase log.1", "4 erase log.2."}));
  EXPECT_EQ(changes_since(cache, 4), Texts{});
  EXPECT_EQ(changes_since(cache, 0, KeyRange::between("b", "d")),
            (Texts{"2 set c=", "2 set b=2."}));

  Changes feed = cache.changes(0);
  const std::optional<FeedChange> first = feed.next();
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->writer, "tester");
  EXPECT_EQ(first->note, "why");
  EXPECT_LT(std::chrono::system_clock::now() - first->time, std::chrono::minutes(1));
}

TEST(Changes, position_follows_only_when_an_update_was_returned_as_a_whole) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set_multi({{"a", "1"}, {"b", "1"}});
  cache.set("other", "1");
  Changes feed = cache.changes(0, KeyRange::between("a", "c"));
  EXPECT_EQ(feed.position(), 0U);
  EXPECT_FALSE(feed.next()->ends_update);
  EXPECT_EQ(feed.position(), 0U);
  EXPECT_TRUE(feed.next()->ends_update);
  EXPECT_EQ(feed.position(), 1U);
  EXPECT_EQ(feed.next(milliseconds(0)), std::nullopt);
  EXPECT_EQ(feed.position(), 2U);  // nothing of update 2 is in the range
}

TEST(Changes, everything_erased_is_one_change_whatever_the_range) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set_log_guards({.erased_keys_max = 1000});
  cache.set("a", "1");
  Changes feed = cache.changes(cache.applied_id(), KeyRange::prefix("z"));
  cache.delete_all_history();
  EXPECT_EQ(now_in(feed), (Texts{"3 erase_all."}));
}

TEST(Changes, waits_for_the_next_change_of_any_process) {
  Fleet fleet("sqlite");
  Cache cache = fleet.open("berlin");
  Changes feed = cache.changes(0);
  ChildProcess writer([&]() -> std::string {
    std::this_thread::sleep_for(milliseconds(50));
    Cache other = fleet.open("berlin");
    other.set("key", "1");
    return "";
  });
  const std::optional<FeedChange> change = feed.next(milliseconds(20'000));
  ASSERT_TRUE(change.has_value());
  EXPECT_EQ(text_of(*change), "1 set key=1.");
  EXPECT_EQ(writer.wait(), "");
}

TEST(Changes, loop_ends_at_its_deadline_and_at_a_stop) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("key", "1");
  int count = 0;
  for (const FeedChange& change : cache.changes(0, {}, {.deadline = milliseconds(30)})) {
    EXPECT_EQ(change.key, "key");
    ++count;
  }
  EXPECT_EQ(count, 1);
  std::stop_source stop;
  Changes feed = cache.changes(1, {}, {.stop = stop.get_token()});
  std::jthread stopper([&] {
    std::this_thread::sleep_for(milliseconds(30));
    stop.request_stop();
  });
  EXPECT_EQ(feed.next(), std::nullopt);
}

TEST(Changes, wait_ends_when_the_cache_is_closed) {
  const Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  Changes changes = cache.changes(1);
  std::atomic<bool> waits{false};
  std::thread watcher([&] {
    waits = true;
    expect_error(
        ErrorKind::unavailable, [&] { static_cast<void>(changes.next()); }, "closed");
  });
  while (!waits) std::this_thread::yield();
  std::this_thread::sleep_for(milliseconds(50));
  cache.close_shared_state();
  watcher.join();
}

TEST(Changes, log_is_not_asked_for_what_the_ring_has) {
  Fleet fleet;
  LogSwitch log;
  Cache cache = fleet.open("berlin", log.script);
  cache.set("a", "1");
  cache.set("b", "1");
  log.is_away = true;
  EXPECT_EQ(changes_since(cache, 0), (Texts{"1 set a=1.", "2 set b=1."}));
}

TEST(Changes, log_has_what_the_ring_no_longer_has) {
  Fleet fleet;
  Cache cache = fleet.open("berlin", Options{.changes_bytes = 64U << 10});
  Texts expected;
  const std::string value(1000, 'v');
  for (int i = 1; i <= 200; ++i) {
    cache.set("key" + std::to_string(i % 7), value + std::to_string(i));
    expected.push_back(std::to_string(i) + " set key" + std::to_string(i % 7) + "=" + value +
                       std::to_string(i) + ".");
  }
  EXPECT_EQ(changes_since(cache, 0), expected);
  std::filesystem::remove(ring_of(cache));
  EXPECT_EQ(changes_since(cache, 0), expected);
  cache.set("last", "");  // makes a ring that has only this
  expected.emplace_back("201 set last=.");
  EXPECT_EQ(changes_since(cache, 0), expected);
}

TEST(Changes, are_there_without_a_ring) {
  Fleet fleet;
  Cache cache = fleet.open("berlin", Options{.changes_bytes = 0});
  cache.set("a", "1");
  EXPECT_FALSE(std::filesystem::exists(ring_of(cache)));
  EXPECT_EQ(changes_since(cache, 0), Texts{"1 set a=1."});
}

TEST(Changes, damaged_ring_costs_nothing_but_time) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  for (int i = 1; i <= 20; ++i) cache.set("key", std::to_string(i));
  const Texts expected = changes_since(cache, 0);
  ASSERT_EQ(expected.size(), 20U);
  for (std::streamoff place = 0; place < 6000; place += 37) {
    std::fstream ring(ring_of(cache), std::ios::in | std::ios::out | std::ios::binary);
    ring.seekg(place);
    const int before = ring.get();
    ring.seekp(place);
    ring.put(static_cast<char>(before ^ 0x40));
    ring.close();
    EXPECT_EQ(changes_since(cache, 0), expected) << place;
  }
}

TEST(Changes, position_behind_the_base_yields_a_reset) {
  Fleet fleet;
  Cache cache = fleet.open("berlin", Options{.changes_bytes = 0});
  for (int i = 1; i <= 5; ++i) cache.set("key", std::to_string(i));
  cache.rewrite_history({.limit = 3});

  EXPECT_EQ(changes_since(cache, 1), Texts{"5 reset."});
  EXPECT_EQ(changes_since(cache, 0), Texts{"5 reset."});
  EXPECT_EQ(changes_since(cache, 3), (Texts{"4 set key=4.", "5 set key=5."}));
  EXPECT_EQ(changes_since(cache, 4), Texts{"5 set key=5."});
  Changes feed = cache.changes(1);
  const std::optional<FeedChange> reset = feed.next();
  EXPECT_NE(reset->note.find("rewritten"), std::string_view::npos);
  EXPECT_EQ(feed.position(), 5U);
  cache.set("key", "6");
  EXPECT_EQ(now_in(feed), Texts{"6 set key=6."});
}

// The ring outlives a rewrite: a watcher that keeps up never has to scan again.
TEST(Changes, rewritten_history_is_still_in_the_ring) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  for (int i = 1; i <= 5; ++i) cache.set("key", std::to_string(i));
  cache.rewrite_history();
  EXPECT_EQ(changes_since(cache, 1).size(), 4U);
}

TEST(Changes, machine_rebuilt_from_a_base_yields_a_reset) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  berlin.set("key", "1");
  tokyo.update();
  Changes feed = tokyo.changes(tokyo.applied_id());
  for (int i = 2; i <= 5; ++i) berlin.set("key", std::to_string(i));
  berlin.rewrite_history();
  tokyo.update();
  EXPECT_EQ(now_in(feed), Texts{"5 reset."});
  berlin.set("key", "6");
  tokyo.update();
  EXPECT_EQ(now_in(feed), Texts{"6 set key=6."});
}

TEST(Changes, id_of_another_machine_that_has_applied_more_is_caught_up_with) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  berlin.set("key", "1");
  const UpdateId id = berlin.set("key", "2");
  Changes feed = tokyo.changes(id);
  EXPECT_EQ(now_in(feed), Texts{});
  berlin.set("key", "3");
  tokyo.update();
  EXPECT_EQ(now_in(feed), Texts{"3 set key=3."});
}

TEST(Changes, id_beyond_the_head_yields_a_reset) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("key", "1");
  Changes feed = cache.changes(100);
  const std::optional<FeedChange> reset = feed.next(milliseconds(0));
  ASSERT_TRUE(reset.has_value());
  EXPECT_EQ(text_of(*reset), "1 reset.");
  EXPECT_NE(reset->note.find("from=100"), std::string_view::npos);
}

// A log on disk, which is put back to what it was.
class RestoredLog {
 public:
  explicit RestoredLog(const Fleet& fleet)
      : log_(fleet.directory().file("log.db")), backup_(fleet.directory().file("backup.db")) {
    for (const char* const suffix : {"", "-wal"}) {
      if (std::filesystem::exists(log_ + suffix))
        std::filesystem::copy_file(log_ + suffix, backup_ + suffix);
    }
  }
  void restore() const {
    for (const char* const suffix : {"", "-wal", "-shm"}) {
      std::filesystem::remove(log_ + suffix);
      if (std::filesystem::exists(backup_ + suffix))
        std::filesystem::copy_file(backup_ + suffix, log_ + suffix);
    }
  }

 private:
  const std::string log_;
  const std::string backup_;
};

TEST(Changes, restored_log_yields_a_reset_whether_it_has_grown_again_or_not) {
  for (const int growth : {0, 1, 2, 3}) {
    const Fleet fleet("sqlite");
    fleet.open("berlin").set("key", "1");
    const RestoredLog backup(fleet);
    {
      Cache cache = fleet.open("berlin");
      cache.set("key", "2");
      cache.set("key", "3");
    }
    std::optional<Cache> cache(fleet.open("berlin"));
    Changes feed = cache->changes(0);
    EXPECT_EQ(now_in(feed).size(), 3U);
    backup.restore();
    {
      Cache tokyo = fleet.open("tokyo");
      for (int i = 0; i < growth; ++i) tokyo.set("key", "other" + std::to_string(i));
    }
    cache->update();
    Texts expected{std::to_string(1 + growth) + " reset."};
    EXPECT_EQ(now_in(feed), expected) << growth;
    cache->set("key", "after");
    EXPECT_EQ(now_in(feed), Texts{std::to_string(2 + growth) + " set key=after."}) << growth;
  }
}

TEST(Changes, replaced_log_yields_a_reset) {
  Fleet fleet("sqlite");
  Cache cache = fleet.open("berlin", Options{.accept_replaced_log = true});
  cache.set("key", "1");
  Changes feed = cache.changes(1);
  for (const char* const suffix : {"", "-wal", "-shm"})
    std::filesystem::remove(fleet.directory().file("log.db") + suffix);
  Cache tokyo = fleet.open("tokyo");
  tokyo.set("key", "1");
  tokyo.set("key", "2");
  Cache again = fleet.open("berlin", Options{.accept_replaced_log = true});
  again.update();
  EXPECT_EQ(now_in(feed), Texts{"2 reset."});
}

TEST(Changes, feed_continues_after_error_of_unreachable_log) {
  Fleet fleet;
  LogSwitch log;
  Cache cache =
      fleet.open("berlin", log.script, Options{.changes_bytes = 0, .deadline = milliseconds(50)});
  cache.set("a", "1");
  Changes feed = cache.changes(0);
  log.is_away = true;
  expect_error(
      ErrorKind::unavailable, [&] { static_cast<void>(feed.next()); }, "the test's log");
  log.is_away = false;
  EXPECT_EQ(text_of(*feed.next()), "1 set a=1.");
}

TEST(Changes, attached_cache_reads_the_ring_alone) {
  Fleet fleet("sqlite");
  Cache cache = fleet.open("berlin", Options{.changes_bytes = 64U << 10});
  cache.set("a", "1");
  const Cache attached = Cache::attach(cache.state_path());
  Changes feed = attached.changes(0);
  EXPECT_EQ(now_in(feed), Texts{"1 set a=1."});
  std::mt19937_64 random(1);
  for (int i = 0; i < 100; ++i) {
    std::string value(2000, '\0');  // does not compress
    for (char& byte : value) byte = static_cast<char>(random());
    cache.set("a", value);
  }
  EXPECT_EQ(now_in(feed), Texts{"101 reset."});
  cache.set("a", "2");
  EXPECT_EQ(now_in(feed), Texts{"102 set a=2."});
  EXPECT_EQ(changes_since(attached, 1000), Texts{"102 reset."});
}

TEST(Changes, child_goes_on_where_its_parent_was) {
  Fleet fleet("sqlite");
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  cache.set("a", "2");
  Changes feed = cache.changes(0);
  EXPECT_EQ(text_of(*feed.next()), "1 set a=1.");
  ChildProcess child([&]() -> std::string {
    const std::string next = text_of(*feed.next());
    cache.set("a", "3");
    return next + " " + text_of(*feed.next()) == "2 set a=2. 3 set a=3." ? "" : next;
  });
  EXPECT_EQ(child.wait(), "");
  EXPECT_EQ(now_in(feed), (Texts{"2 set a=2.", "3 set a=3."}));
}

TEST(Changes, ring_that_cannot_be_written_is_reported_once_and_stops_no_write) {
  Fleet fleet;
  Events events;
  Cache cache = fleet.open("berlin", Options{.on_event = events.listener()});
  std::filesystem::create_directory(ring_of(cache));
  for (int i = 1; i <= 3; ++i) EXPECT_EQ(cache.set("a", std::to_string(i)), UpdateId(i));
  EXPECT_EQ(events.count(Event::Kind::changes_not_kept), 1);
  EXPECT_EQ(changes_since(cache, 1).size(), 2U);
  std::filesystem::remove(ring_of(cache));
  cache.set("a", "4");
  EXPECT_TRUE(std::filesystem::is_regular_file(ring_of(cache)));
  EXPECT_EQ(events.count(Event::Kind::changes_not_kept), 1);
}

TEST(Changes, size_of_the_ring_is_checked) {
  Fleet fleet;
  for (const std::uint64_t bytes :
       {std::uint64_t{1}, (std::uint64_t{64} << 10) - 1, (std::uint64_t{4} << 30) + 1}) {
    expect_error(
        ErrorKind::invalid, [&] { fleet.open("berlin", Options{.changes_bytes = bytes}); },
        "changes_bytes=" + std::to_string(bytes));
  }
}

TEST(Changes, file_in_place_of_the_ring_that_is_none_is_left_alone) {
  const Fleet fleet;
  Options options;
  options.changes_bytes = 0;
  Cache cache = fleet.open("berlin", options);
  std::ofstream(ring_of(cache)) << "of the application";
  cache.set("a", "1");
  cache.delete_shared_state();
  std::string text;
  std::getline(std::ifstream(ring_of(cache)), text);
  EXPECT_EQ(text, "of the application");
}

TEST(Changes, deleted_state_takes_its_ring_along) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  const std::string ring = ring_of(cache);
  EXPECT_TRUE(std::filesystem::exists(ring));
  cache.delete_shared_state();
  EXPECT_FALSE(std::filesystem::exists(ring));
}

// A process that resumes from the id that the last one stored, and is killed at any time.
struct WatchedSoFar {
  UpdateId id = 0;
  std::uint64_t resets = 0;
  std::uint64_t updates = 0;
};

// Writers, a rewriter, and a watcher that is killed and resumed again and again. Each update sets
// its number, so the watcher can tell a gap and a repetition. The memory that says how far it is
// outlives it.
void watch_with_kills(int kills) {
  std::printf("%s\n", seed_note().c_str());
  std::mt19937_64 random(test_seed());
  const Fleet fleet("sqlite");
  const Options small{.changes_bytes = 64U << 10};
  fleet.open("berlin", small).set("begin", "");
  const SharedWithChildren<WatchedSoFar> watched;
  watched->id = 1;
  const auto write = [&](const char* machine) {
    return [&fleet, machine, small]() -> std::string {
      Cache cache = fleet.open(machine, small);
      for (int i = 0;; ++i) {
        cache.set("key" + std::to_string(i % 10),
                  std::string(static_cast<std::size_t>(i % 500), 'v'));
        if (i % 50 == 0) std::this_thread::sleep_for(milliseconds(1));
      }
    };
  };
  ChildProcess here(write("berlin"), 3000);
  ChildProcess elsewhere(write("tokyo"), 3000);
  ChildProcess follower(
      [&]() -> std::string {
        Cache cache = fleet.open("berlin", small);
        for (;;) {
          cache.update();
          std::this_thread::sleep_for(milliseconds(1));
        }
      },
      3000);
  ChildProcess rewriter(
      [&]() -> std::string {
        Cache cache = fleet.open("berlin", small);
        for (;;) {
          std::this_thread::sleep_for(milliseconds(70));
          cache.rewrite_history();
        }
      },
      3000);
  for (int i = 0; i < kills; ++i) {
    ChildProcess watcher(
        [&]() -> std::string {
          Cache cache = fleet.open("berlin", small);
          UpdateId last = watched->id;
          for (const FeedChange& change : cache.changes(last)) {
            if (change.kind == Kind::reset) {
              if (change.id < last) return "reset goes back";
              ++watched->resets;
            } else if (change.id != last + 1) {
              return "after " + std::to_string(last) + " came " + std::to_string(change.id);
            } else {
              ++watched->updates;
            }
            last = change.id;
            watched->id = last;  // one store: handled
          }
          return "feed ended";
        },
        100);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 30'000));
    watcher.kill(SIGKILL);
    const std::string end = watcher.wait();
    ASSERT_NE(end.find("signal"), std::string::npos) << end;
  }
  std::printf("kills=%d updates=%lu resets=%lu last=%lu\n", kills,
              static_cast<unsigned long>(watched->updates),
              static_cast<unsigned long>(watched->resets), static_cast<unsigned long>(watched->id));
  EXPECT_GT(watched->updates, 0U);
}

TEST(ChangesLong, watcher_that_is_killed_sees_each_update_once_or_a_reset) {
  watch_with_kills(static_cast<int>(number_from_environment("WHYCACHE_WATCHER_KILLS", 60)));
}

}  // namespace
}  // namespace whycache::testing
