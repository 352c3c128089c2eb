// Rewriting history shortens the log and changes no data that a machine sees.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "log/forwarding_log.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

std::vector<UpdateId> ids_in(Log& log) {
  std::vector<UpdateId> ids;
  log.read(1, ~UpdateId{0}, [&](UpdateId id, std::string_view) {
    ids.push_back(id);
    return true;
  });
  return ids;
}

RewriteOptions up_to(UpdateId limit) { return {.limit = limit, .keep = {}}; }

TEST(Rewrite, rewrite_replaces_updates_with_entries) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  for (int i = 0; i < 10; ++i) cache.set("key" + std::to_string(i % 3), std::to_string(i));
  cache.erase("key0");

  EXPECT_EQ(cache.rewrite_history(), 11U);

  EXPECT_TRUE(ids_in(CacheInternal::log(cache)).empty());
  const Extent extent = CacheInternal::log(cache).extent();
  EXPECT_EQ(extent.base, 11U);
  EXPECT_EQ(extent.head, 11U);
  const Contents expected{{"key1", "7"}, {"key2", "8"}};
  EXPECT_EQ(contents(cache), expected);
  EXPECT_EQ(contents(fleet.open("tokyo")), expected);
  EXPECT_EQ(cache.set("key3", "10"), 12U);
}

TEST(Rewrite, rewrite_up_to_earlier_id_keeps_later_updates) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  for (int i = 1; i <= 10; ++i) cache.set("key" + std::to_string(i % 4), std::to_string(i));

  EXPECT_EQ(cache.rewrite_history(up_to(6)), 6U);

  EXPECT_EQ(ids_in(CacheInternal::log(cache)), (std::vector<UpdateId>{7, 8, 9, 10}));
  EXPECT_EQ(fleet.open("tokyo").digest(), cache.digest());
  EXPECT_EQ(cache.rewrite_history(up_to(9)), 9U) << "from a base";
  EXPECT_EQ(fleet.open("rome").digest(), cache.digest());
}

TEST(Rewrite, rewrite_at_or_below_base_does_nothing) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  for (int i = 1; i <= 5; ++i) cache.set("a", std::to_string(i));
  cache.rewrite_history(up_to(4));

  EXPECT_EQ(cache.rewrite_history(up_to(2)), 4U);
  EXPECT_EQ(cache.rewrite_history(up_to(4)), 4U);
  EXPECT_EQ(cache.rewrite_history(), 5U);
  EXPECT_EQ(cache.rewrite_history(), 5U);
}

// A rewriter that is killed after switching leaves updates behind the base. The next rewrite
// deletes them, even without a new update.
TEST(Rewrite, rewrite_deletes_leftovers_of_interrupted_rewrite) {
  Fleet fleet("file");
  Cache cache = fleet.open("berlin");
  for (int i = 1; i <= 5; ++i) cache.set("a", std::to_string(i));
  const std::string updates = fleet.directory().file("log") + "/default/updates/";
  const std::string kept = fleet.directory().file("kept");
  std::filesystem::copy(updates, kept);
  EXPECT_EQ(cache.rewrite_history(), 5U);
  ASSERT_TRUE(std::filesystem::is_empty(updates));
  const auto leave_behind = [&] { std::filesystem::copy(kept, updates); };

  leave_behind();
  EXPECT_EQ(cache.rewrite_history(), 5U);
  EXPECT_TRUE(std::filesystem::is_empty(updates));
  leave_behind();
  EXPECT_EQ(cache.rewrite_history(up_to(3)), 5U);
  EXPECT_TRUE(std::filesystem::is_empty(updates));
  EXPECT_EQ(fleet.open("tokyo").digest(), cache.digest());
}

// The base that the rewriter saw in the old log is beyond the base of the new one, and must not
// become the base of the new log.
TEST(Rewrite, cleanup_leaves_concurrently_replaced_log_unchanged) {
  Fleet fleet("file");
  const auto script = std::make_shared<Script>();
  Cache cache = fleet.open("berlin", script);
  for (int i = 1; i <= 5; ++i) cache.set("a", std::to_string(i));
  cache.rewrite_history();
  std::atomic<bool> replaced{false};
  script->before_rewrite = [&] {
    if (replaced.exchange(true)) return;
    std::filesystem::remove_all(fleet.directory().file("log") + "/default");
    Cache other = fleet.open("tokyo");
    for (int i = 1; i <= 9; ++i) other.set("b", std::to_string(i));
  };
  try {
    cache.rewrite_history();
  } catch (const Error&) {  // it may report the new log, or follow it and succeed
  }
  EXPECT_TRUE(replaced);
  const Cache fresh = fleet.open("paris");
  EXPECT_EQ(fresh.get("b"), "9");
  EXPECT_EQ(fresh.get("a"), std::nullopt);
  EXPECT_EQ(CacheInternal::log(fresh).extent().base, 0U);
}

TEST(Rewrite, rewrite_of_empty_log_does_nothing) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  EXPECT_EQ(cache.rewrite_history(), 0U);
  EXPECT_EQ(CacheInternal::log(cache).extent().base, 0U);
}

TEST(Rewrite, rewrite_beyond_head_throws_invalid) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  expect_error(
      ErrorKind::invalid, [&] { cache.rewrite_history(up_to(2)); }, "limit=2", "head=1");
}

TEST(Rewrite, rewrite_follows_log_first) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  berlin.set("a", "1");
  EXPECT_EQ(tokyo.rewrite_history(), 1U);
  EXPECT_EQ(fleet.open("rome").get("a"), "1");
}

TEST(Rewrite, keys_rejected_by_keep_are_erased_on_every_machine) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  std::map<std::string, std::string> batch;
  for (int i = 0; i < 5000; ++i) batch["session." + std::to_string(i)] = "x";
  batch["flag"] = "yes";
  berlin.set_multi(batch);
  tokyo.update();

  const UpdateId base =
      berlin.rewrite_history({.limit = 0, .keep = [](std::string_view key, std::string_view) {
                                return !key.starts_with("session.");
                              }});

  EXPECT_GT(base, 1U);
  EXPECT_EQ(contents(berlin), (Contents{{"flag", "yes"}}));
  EXPECT_EQ(tokyo.update(), base);
  EXPECT_EQ(contents(tokyo), (Contents{{"flag", "yes"}}));
  EXPECT_EQ(tokyo.digest(), berlin.digest());
}

TEST(Rewrite, keys_rejected_by_keep_are_erased_in_several_updates) {
  Fleet fleet;
  Options options;
  options.update_bytes_max = 4096;
  Cache cache = fleet.open("berlin", options);
  for (int i = 0; i < 100; ++i) cache.set(std::string(900, 'k') + std::to_string(i), "x");
  cache.set("flag", "yes");

  cache.rewrite_history(
      {.limit = 0, .keep = [](std::string_view key, std::string_view) { return key == "flag"; }});

  EXPECT_EQ(contents(cache), (Contents{{"flag", "yes"}}));
  EXPECT_EQ(fleet.open("tokyo").digest(), cache.digest());
}

TEST(Rewrite, rewrite_keeping_everything_appends_no_update) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  EXPECT_EQ(cache.rewrite_history(
                {.limit = 0, .keep = [](std::string_view, std::string_view) { return true; }}),
            1U);
}

TEST(Rewrite, key_set_while_keep_runs_is_not_erased) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  auto script = std::make_shared<Script>();
  std::atomic<bool> once{true};
  script->before_append = [&](UpdateId) {
    if (once.exchange(false)) tokyo.set("a", "wanted again");
  };
  Cache berlin = fleet.open("berlin", script);
  tokyo.write({Change::set("a", "stale"), Change::set("b", "stale")});

  berlin.rewrite_history({.limit = 0, .keep = [](std::string_view, std::string_view value) {
                            return value != "stale";
                          }});

  EXPECT_EQ(contents(berlin), (Contents{{"a", "wanted again"}}));
  EXPECT_EQ(fleet.open("rome").digest(), berlin.digest());
}

TEST(Rewrite, exception_from_keep_aborts_rewrite_without_changes) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  EXPECT_THROW(cache.rewrite_history({.limit = 0,
                                      .keep = [](std::string_view, std::string_view) -> bool {
                                        throw std::runtime_error("no");
                                      }}),
               std::runtime_error);
  EXPECT_EQ(CacheInternal::log(cache).extent().base, 0U);
  EXPECT_EQ(cache.set("b", "1"), 2U);
}

TEST(Rewrite, rewrite_retries_log_failures) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<int> failures{2};
  script->before_rewrite = [&] {
    if (failures-- > 0) throw unavailable_error();
  };
  Cache cache = fleet.open("berlin", script);
  cache.set("a", "1");
  EXPECT_EQ(cache.rewrite_history(), 1U);
}

TEST(Rewrite, rewrite_with_lost_answer_succeeds) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<bool> once{true};
  script->after_rewrite = [&] {
    if (once.exchange(false)) throw uncertain_error();
  };
  Cache cache = fleet.open("berlin", script);
  cache.set("a", "1");
  EXPECT_EQ(cache.rewrite_history(), 1U);
  EXPECT_EQ(CacheInternal::log(cache).extent().base, 1U);
}

TEST(Rewrite, concurrent_rewrites_leave_machines_consistent) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  berlin.set("first", "1");
  Cache tokyo = fleet.open("tokyo");
  std::atomic<bool> end{false};
  std::thread writer([&] {
    Cache rome = fleet.open("rome");
    for (int i = 0; !end; ++i)
      rome.set("key" + std::to_string(i % 100),
               incompressible_bytes(1000, static_cast<std::uint64_t>(i)));
  });
  std::vector<std::thread> rewriters;
  for (Cache* cache : {&berlin, &tokyo}) {
    rewriters.emplace_back([cache] {
      UpdateId last = 0;
      for (int i = 0; i < 30; ++i) {
        const UpdateId base = cache->rewrite_history(
            i % 2 == 0 ? RewriteOptions{} : up_to(std::max<UpdateId>(cache->applied_id() / 2, 1)));
        EXPECT_GE(base, last);
        last = base;
      }
    });
  }
  for (std::thread& rewriter : rewriters) rewriter.join();
  end = true;
  writer.join();

  EXPECT_EQ(berlin.update(), tokyo.update());
  EXPECT_EQ(berlin.digest(), tokyo.digest());
  EXPECT_EQ(contents(fleet.open("paris")), contents(berlin));
}

TEST(Rewrite, rewrite_keeps_concurrent_write) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  std::map<std::string, std::string> batch;
  for (int i = 0; i < 2000; ++i)
    batch["key" + std::to_string(i)] = incompressible_bytes(1000, static_cast<std::uint64_t>(i));
  berlin.set_multi(batch);
  auto script = std::make_shared<Script>();
  std::atomic<bool> wrote{false};
  script->before_rewrite = [&] {
    berlin.set("key1", "during");
    wrote = true;
  };
  Cache tokyo = fleet.open("tokyo", script);
  const UpdateId before = tokyo.applied_id();

  EXPECT_EQ(tokyo.rewrite_history(), before);

  EXPECT_TRUE(wrote);
  EXPECT_EQ(tokyo.update(), before + 1);
  EXPECT_EQ(tokyo.get("key1"), "during");
  EXPECT_EQ(fleet.open("rome").digest(), berlin.digest());
}

TEST(Rewrite, rewrite_from_damaged_state_throws_corrupt) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  const std::string value(2000, 'v');
  for (int i = 0; i < 50; ++i) cache.set("key" + std::to_string(i), value);
  {
    // Change a byte of a value, which only the digest can detect.
    const int file = ::open(fleet.state_path("berlin").c_str(), O_RDWR);
    struct stat status;
    ASSERT_EQ(::fstat(file, &status), 0);
    std::string bytes(static_cast<std::size_t>(status.st_size), '\0');
    ASSERT_EQ(::pread(file, bytes.data(), bytes.size(), 0), status.st_size);
    const std::size_t at = bytes.find(value);
    ASSERT_NE(at, std::string::npos);
    ASSERT_EQ(::pwrite(file, "w", 1, static_cast<off_t>(at + 100)), 1);
    ::close(file);
  }

  expect_error(
      ErrorKind::corrupt, [&] { cache.rewrite_history(); }, "state is damaged", "digest=");

  EXPECT_EQ(CacheInternal::log(cache).extent().base, 0U);
  const Cache tokyo = fleet.open("tokyo");
  EXPECT_EQ(tokyo.get("key7"), value) << "the log is unharmed";
}

// --- Deleting everything ---

TEST(DeleteAllHistory, delete_empties_dataset_on_every_machine) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  for (int i = 0; i < 10; ++i) berlin.set("key" + std::to_string(i), "value");
  tokyo.update();

  EXPECT_EQ(berlin.delete_all_history(), 11U);

  EXPECT_EQ(berlin.size(), 0U);
  EXPECT_EQ(berlin.digest(), Digest{});
  EXPECT_EQ(tokyo.update(), 11U);
  EXPECT_EQ(tokyo.size(), 0U);
  EXPECT_EQ(tokyo.set("a", "1"), 12U) << "ids are never reused";
  EXPECT_EQ(contents(fleet.open("rome")), (Contents{{"a", "1"}}));
}

TEST(DeleteAllHistory, delete_of_empty_log_appends_update) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  EXPECT_EQ(cache.delete_all_history(), 1U);
  EXPECT_EQ(cache.delete_all_history(), 2U);
  EXPECT_EQ(cache.size(), 0U);
}

TEST(DeleteAllHistory, delete_keeps_concurrent_writes) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  auto script = std::make_shared<Script>();
  script->before_rewrite = [&] { tokyo.set("after", "1"); };
  Cache berlin = fleet.open("berlin", script);
  berlin.set("before", "1");

  EXPECT_EQ(berlin.delete_all_history(), 2U);

  berlin.update();
  EXPECT_EQ(contents(berlin), (Contents{{"after", "1"}}));
  EXPECT_EQ(contents(fleet.open("rome")), (Contents{{"after", "1"}}));
}

// --- A log that diverges or fails ---

RewriteOptions keeping(std::function<bool(std::string_view, std::string_view)> keep) {
  return {.limit = 0, .keep = std::move(keep)};
}

// A failover or a restore happens between following the log and rewriting it. Updates that other
// machines have appended to the new log must be kept.
TEST(Rewrite, rewrite_never_replaces_updates_of_failed_over_log) {
  Fleet fleet("file");
  auto opened = std::make_unique<SwitchedLog>(fleet.log());
  SwitchedLog& log = *opened;
  Cache berlin(std::move(opened), fleet.options("berlin"));
  berlin.set("a", "1");
  const std::string restored = fleet.directory().file("restored");
  std::filesystem::copy(fleet.directory().file("log"), restored,
                        std::filesystem::copy_options::recursive);
  berlin.set("a", "lost");
  Options options = fleet.options("rome");
  Cache rome("file://" + restored, options);
  rome.set("b", "2");
  rome.set("c", "3");

  bool switched = false;
  const RewriteOptions fails_over = keeping([&](std::string_view, std::string_view) {
    if (!std::exchange(switched, true)) log.switch_to(open_log("file://" + restored));
    return true;
  });
  expect_error(
      ErrorKind::unavailable, [&] { berlin.rewrite_history(fails_over); }, "another update");
  EXPECT_TRUE(switched);
  EXPECT_EQ(ids_in(CacheInternal::log(rome)), (std::vector<UpdateId>{1, 2, 3}));
  EXPECT_EQ(CacheInternal::log(rome).extent().base, 0U);

  EXPECT_EQ(berlin.update(), 3U);
  EXPECT_EQ(contents(berlin), (Contents{{"a", "1"}, {"b", "2"}, {"c", "3"}}));
  EXPECT_EQ(berlin.rewrite_history(), 3U);
  EXPECT_EQ(rome.update(), 3U);
  EXPECT_EQ(rome.digest(), berlin.digest());
}

TEST(Rewrite, rewrite_failing_after_erase_throws_uncertain) {
  Fleet fleet;
  const auto script = std::make_shared<Script>();
  Options options;
  options.deadline = milliseconds(100);
  Cache cache = fleet.open("berlin", script, options);
  cache.set_multi({{"a", "1"}, {"b", "2"}, {"c", "3"}});
  script->before_rewrite = [] { throw unavailable_error(); };

  expect_error(ErrorKind::unavailable, [&] { cache.rewrite_history(); });
  const RewriteOptions without_b =
      keeping([](std::string_view key, std::string_view) { return key != "b"; });
  expect_error(
      ErrorKind::uncertain, [&] { cache.rewrite_history(without_b); }, "erased", "last_id=2");
  EXPECT_EQ(contents(cache), (Contents{{"a", "1"}, {"c", "3"}}));
  expect_error(
      ErrorKind::unavailable, [&] { cache.rewrite_history(without_b); }, "away");
  expect_error(
      ErrorKind::uncertain, [&] { cache.delete_all_history(); }, "was not rewritten", "last_id=3");
  EXPECT_EQ(contents(cache), Contents{});
}

TEST(Rewrite, rewrite_without_answer_throws_uncertain) {
  Fleet fleet;
  const auto script = std::make_shared<Script>();
  Options options;
  options.deadline = milliseconds(100);
  Cache cache = fleet.open("berlin", script, options);
  cache.set("a", "1");
  script->after_rewrite = [] { throw uncertain_error(); };
  expect_error(
      ErrorKind::uncertain, [&] { cache.rewrite_history(); }, "may or may not", "base=1");
  EXPECT_EQ(fleet.log()->extent().base, 1U);
  expect_error(
      ErrorKind::uncertain, [&] { cache.delete_all_history(); }, "erased, and", "may or may not");
  EXPECT_EQ(fleet.log()->extent().base, 2U);
}

// A log that needs 100 ms for each part of a base.
class SlowBaseLog final : public ForwardingLog {
 public:
  using ForwardingLog::ForwardingLog;

  void read_base(const VisitPart& visit) override {
    target().read_base([&](std::string_view part) {
      delay(parts_read_);
      return visit(part);
    });
  }
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    bool first = true;
    return target().rewrite(base, base_chain, [&] {
      if (!std::exchange(first, false)) delay(parts_written_);
      return next_part();
    });
  }

 private:
  // The fifth call loses the connection.
  static void delay(int& times) {
    std::this_thread::sleep_for(milliseconds(100));
    if (++times == 5) throw unavailable_error();
  }

  int parts_read_ = 0;
  int parts_written_ = 0;
};

TEST(Rewrite, rewrite_making_progress_may_exceed_deadline) {
  Fleet fleet;
  Options options = fleet.options("berlin");
  options.deadline = milliseconds(300);
  Cache berlin(std::make_unique<SlowBaseLog>(fleet.log()), options);
  for (std::uint64_t i = 0; i < 7; ++i)
    berlin.set("key" + std::to_string(i), incompressible_bytes(900'000, i));
  EXPECT_EQ(berlin.rewrite_history(), 7U);
  // A new machine may take as long to load such a base.
  options.state_path = fleet.state_path("rome");
  const Cache rome(std::make_unique<SlowBaseLog>(fleet.log()), options);
  EXPECT_EQ(rome.digest(), berlin.digest());
}

}  // namespace
}  // namespace whycache::testing
