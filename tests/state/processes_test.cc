// Several processes: who holds views, fork, other PID namespaces, stopped processes.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>

#include "base/fork_handlers.h"
#include "state/file/lock_file.h"
#include "state/test_state.h"
#include "support/child_process.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::ChildProcess;
using testing::expect_error;
using testing::run_in_child;
using testing::SharedWithChildren;
using testing::TemporaryDirectory;
using testing::TestState;
using testing::thrown_error;
using Contents = std::map<std::string, std::string>;

StateOptions small() {
  StateOptions options;
  options.bytes_max = std::uint64_t{64} << 20;
  return options;
}

// The processes that hold views of the state.
std::vector<ProcessInfo> holders(const TestState& state) {
  std::vector<ProcessInfo> found = state->inspect().processes;
  std::erase_if(found, [](const ProcessInfo& process) { return !process.oldest_pinned_id; });
  return found;
}

struct Signals {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
};

template <typename Condition>
bool wait_until(const Condition& condition) {
  for (int i = 0; i < 20'000; ++i) {
    if (condition()) return true;
    ::usleep(1000);
  }
  return false;
}

class ProcessesTest : public ::testing::Test {
 protected:
  std::string path() const { return directory_.file("a.state"); }

  // Applies enough updates to reuse all space that may be reused.
  static void churn(TestState& state, int rounds = 60) {
    for (int round = 0; round < rounds; ++round) {
      const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
      for (int update = 0; update < 4; ++update) {
        std::vector<testing::TestChange> changes;
        for (int i = 0; i < 40; ++i)
          changes.push_back({"churn" + std::to_string((round * 7 + i) % 200),
                             std::string(2000, static_cast<char>('a' + round % 26))});
        changes.push_back({"temporary" + std::to_string(round),
                           update % 2 == 0 ? std::optional<std::string>("present") : std::nullopt});
        TestState::apply(*writer, changes);
      }
    }
  }

  TemporaryDirectory directory_{"/dev/shm"};
};

TEST_F(ProcessesTest, killed_process_holds_no_update) {
  TestState state(path(), small());
  state.apply({{"a", "1"}});
  ASSERT_EQ(run_in_child([&]() -> std::string {
              const TestState child_state(path(), small());
              const View held = child_state.view();
              ::raise(SIGKILL);
              return "";
            }),
            "died of signal 9");
  EXPECT_EQ(holders(state), std::vector<ProcessInfo>{});
}

TEST_F(ProcessesTest, inspection_names_the_process_that_holds_a_view) {
  TestState state(path(), small());
  state.apply({{"a", "1"}});
  const SharedWithChildren<Signals> signals;
  ChildProcess holder([&]() -> std::string {
    const TestState child_state(path(), small());
    const View held = child_state.view();
    ++signals->ready;
    while (!signals->go) ::usleep(1000);
    return held.get("a") == "1" ? "" : "view moved";
  });
  ASSERT_TRUE(wait_until([&] { return signals->ready == 1; }));
  state.apply({{"a", "2"}});

  const std::vector<ProcessInfo> found = holders(state);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].process_id, static_cast<std::uint64_t>(holder.id()));
  EXPECT_EQ(found[0].oldest_pinned_id, 1U);
  EXPECT_NE(found[0].process_name, "");
  EXPECT_EQ(state->inspect().processes.size(), 2U);

  signals->go = true;
  EXPECT_EQ(holder.wait(), "");
  EXPECT_EQ(holders(state), std::vector<ProcessInfo>{});
}

TEST_F(ProcessesTest, ten_thousand_views_need_no_limit) {
  TestState state(path(), small());
  std::vector<View> views;
  for (int i = 0; i < 10'000; ++i) {
    if (i % 100 == 0) state.apply({{"a", std::to_string(i)}});
    views.push_back(state.view());
  }
  for (int i = 0; i < 10'000; i += 37) {
    EXPECT_EQ(views[static_cast<std::size_t>(i)].get("a"), std::to_string(i / 100 * 100));
  }
}

// Views end in any order: what the oldest of them holds must stay, and nothing more.
TEST_F(ProcessesTest, oldest_remaining_view_is_what_is_pinned) {
  TestState state(path(), small());
  std::vector<std::optional<View>> views;
  for (int i = 1; i <= 20; ++i) {
    state.apply({{"a", std::to_string(i)}});
    views.push_back(state.view());
  }
  std::mt19937 random(7);  // NOLINT(bugprone-random-generator-seed): to be repeatable
  std::vector<std::size_t> order(views.size());
  std::iota(order.begin(), order.end(), 0U);
  std::shuffle(order.begin(), order.end(), random);
  for (const std::size_t gone : order) {
    views[gone].reset();
    const auto oldest =
        std::find_if(views.begin(), views.end(), [](const auto& view) { return view.has_value(); });
    const bool settled = wait_until([&] {
      const std::vector<ProcessInfo> found = holders(state);
      if (oldest == views.end()) return found.empty();
      return found.size() == 1 && found[0].oldest_pinned_id == (*oldest)->id();
    });
    ASSERT_TRUE(settled);
    churn(state, 2);
    for (const std::optional<View>& view : views) {
      if (view) {
        ASSERT_EQ(view->get("a"), std::to_string(view->id()));
      }
    }
  }
}

TEST_F(ProcessesTest, view_pinned_before_fork_is_invalid_in_the_child) {
  TestState state(path(), small());
  state.apply({{"a", "1"}});
  const View before = state.view();
  const auto items = before.items();
  auto item = items.begin();
  EXPECT_EQ(run_in_child([&]() -> std::string {
              const std::optional<Error> step_error = thrown_error([&] { ++item; });
              if (!step_error || step_error->kind() != ErrorKind::invalid) return "step";
              for (int i = 0; i < 2; ++i) {
                const std::optional<Error> error =
                    thrown_error([&] { static_cast<void>(before.get("a")); });
                if (!error || error->kind() != ErrorKind::invalid) return "no error";
              }
              const std::optional<Error> scan_error =
                  thrown_error([&] { TestState::contents(before); });
              if (!scan_error || scan_error->kind() != ErrorKind::invalid) return "no error";
              if (state.get("a") != "1") return "plain read";
              const View child_view = state.view();
              if (child_view.get("a") != "1") return "fresh view";
              state.apply({{"a", "2"}});
              return child_view.get("a") == "1" && state.get("a") == "2" ? "" : "after writing";
            }),
            "");
  EXPECT_EQ(before.get("a"), "1");
  EXPECT_EQ(state.get("a"), "2");
  EXPECT_EQ(holders(state).size(), 1U);
}

// A process holds a view, forks, and dies. The surviving child must not keep the parent's view
// alive, whether or not the state object existed at the fork.
TEST_F(ProcessesTest, child_does_not_keep_views_of_its_dead_parent) {
  TestState state(path(), small());
  state.apply({{"a", "1"}});
  const SharedWithChildren<Signals> signals;
  const SharedWithChildren<std::atomic<pid_t>> child_id;
  for (const bool destroys_state : {false, true}) {
    signals->ready = 0;
    ChildProcess parent([&]() -> std::string {
      auto child_state = std::make_unique<TestState>(path(), small());
      const View held = child_state->view();
      if (destroys_state) child_state.reset();
      const pid_t child = ::fork();
      if (child == 0) {
        *child_id = ::getpid();
        ++signals->ready;
        ::sleep(60);
        ::_exit(0);
      }
      while (signals->ready == 0) ::usleep(1000);
      ::raise(SIGKILL);
      return "";
    });
    ASSERT_EQ(parent.wait(), "died of signal 9");
    EXPECT_EQ(holders(state), std::vector<ProcessInfo>{}) << "destroys_state=" << destroys_state;
    ::kill(*child_id, SIGKILL);
  }
}

TEST_F(ProcessesTest, child_forked_during_a_write_writes_after_its_parent) {
  TestState state(path(), small());
  state.apply({{"a", "1"}});
  std::mutex mutex;
  std::condition_variable changed;
  bool holds = false;
  bool done = false;
  std::thread writing([&] {
    const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
    std::unique_lock guard(mutex);
    holds = true;
    changed.notify_all();
    changed.wait(guard, [&] { return done; });
    guard.unlock();
    TestState::apply(*writer, {{"a", "2"}});
  });
  {
    std::unique_lock guard(mutex);
    changed.wait(guard, [&] { return holds; });
  }
  const SharedWithChildren<Signals> signals;
  ChildProcess child([&]() -> std::string {
    const std::optional<Error> error =
        thrown_error([&] { state->begin_write(Deadline(std::chrono::milliseconds(50))); });
    if (!error || error->kind() != ErrorKind::unavailable) return "two writers at once";
    ++signals->ready;
    state.apply({{"b", "3"}});  // waits
    return state.get("a") == "2" ? "" : "written before its turn";
  });
  ASSERT_TRUE(wait_until([&] { return signals->ready == 1; }));
  {
    const std::lock_guard guard(mutex);
    done = true;
    changed.notify_all();
  }
  writing.join();
  EXPECT_EQ(child.wait(), "");
  EXPECT_EQ(state.contents(), (Contents{{"a", "2"}, {"b", "3"}}));
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

TEST_F(ProcessesTest, child_does_not_hold_locks_of_its_dead_parent) {
  TestState state(path(), small());
  state.apply({{"a", "1"}});
  const SharedWithChildren<Signals> signals;
  const SharedWithChildren<std::atomic<pid_t>> child_id;
  ChildProcess parent([&]() -> std::string {
    TestState child_state(path(), small());
    const std::unique_ptr<StateWriter> writer = child_state->begin_write(TestState::deadline());
    const HeldLock follow = child_state->lock(StateLock::follow, TestState::deadline());
    if (::fork() == 0) {
      *child_id = ::getpid();
      ++signals->ready;
      ::sleep(60);
      ::_exit(0);
    }
    while (signals->ready == 0) ::usleep(1000);
    TestState::apply(*writer, {{"a", "2"}});
    ::raise(SIGKILL);
    return "";
  });
  ASSERT_EQ(parent.wait(), "died of signal 9");

  const HeldLock follow = state->lock(StateLock::follow, Deadline(std::chrono::milliseconds(1000)));
  {
    const std::unique_ptr<StateWriter> writer =
        state->begin_write(Deadline(std::chrono::milliseconds(1000)));
    EXPECT_TRUE(writer->recovered());
    EXPECT_EQ(writer->info().applied_id, 2U);
  }
  ::kill(*child_id, SIGKILL);
}

// The thread that writes or builds forks.
TEST_F(ProcessesTest, inherited_writer_and_builder_are_invalid_in_the_child) {
  TestState state(path(), small());
  state.apply({{"a", "1"}});
  std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
  std::unique_ptr<StateBuilder> builder = state->begin_build(testing::test_uuid, "test:");
  EXPECT_EQ(run_in_child([&]() -> std::string {
              const std::optional<Error> apply_error = thrown_error([&] {
                Update update;
                update.id = 2;
                writer->apply(update);
              });
              if (!apply_error || apply_error->kind() != ErrorKind::invalid)
                return "apply in the child";
              const std::optional<Error> info_error = thrown_error([&] { builder->info(); });
              if (!info_error || info_error->kind() != ErrorKind::invalid)
                return "builder in the child";
              // Other mappings take the addresses of the parent's mapping.
              std::vector<void*> others;
              for (int i = 0; i < 8; ++i) {
                void* const other = ::mmap(nullptr, std::size_t{8} << 30, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
                if (other != MAP_FAILED) others.push_back(other);
              }
              writer.reset();
              builder.reset();
              for (void* const other : others) *static_cast<char*>(other) = 1;
              return "";
            }),
            "");
  int building = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory_.path()))
    building += entry.path().string().find(".building-") != std::string::npos;
  EXPECT_EQ(building, 1);
  EXPECT_EQ(TestState::apply(*writer, {{"a", "2"}}), 2U);
  writer.reset();
  EXPECT_EQ(state.get("a"), "2");
  state->install(*builder);
  EXPECT_EQ(state.get("a"), std::nullopt);
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

TEST_F(ProcessesTest, view_in_another_pid_namespace_keeps_its_version) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: needs root";
  TestState state(path(), small());
  state.apply({{"a", "1"}, {"churn1", "old"}});
  const SharedWithChildren<Signals> signals;
  ChildProcess outer([&]() -> std::string {
    if (::unshare(CLONE_NEWPID) != 0) return "cannot unshare";
    return run_in_child([&]() -> std::string {
      const TestState child_state(path(), small());
      const View held = child_state.view();
      const Contents before = TestState::contents(held);
      ++signals->ready;
      while (!signals->go) ::usleep(1000);
      return TestState::contents(held) == before && ::getpid() == 1 ? "" : "view moved";
    });
  });
  ASSERT_TRUE(wait_until([&] { return signals->ready == 1; }));
  churn(state);
  ASSERT_EQ(holders(state).size(), 1U);
  signals->go = true;
  EXPECT_EQ(outer.wait(), "");
}

TEST_F(ProcessesTest, stopped_reader_keeps_its_view_and_blocks_no_writer) {
  TestState state(path(), small());
  churn(state, 5);
  state.apply({{"a", "1"}});
  const SharedWithChildren<Signals> signals;
  ChildProcess reader([&]() -> std::string {
    const TestState child_state(path(), small());
    const View held = child_state.view();
    const Contents before = TestState::contents(held);
    while (!signals->go) {
      if (TestState::contents(held) != before) return "view moved";
      ++signals->ready;
    }
    return TestState::contents(held) == before ? "" : "view moved";
  });
  ASSERT_TRUE(wait_until([&] { return signals->ready > 0; }));
  reader.kill(SIGSTOP);
  churn(state);
  const std::uint64_t held_bytes = state->inspect().file_bytes;
  reader.kill(SIGCONT);
  churn(state, 5);
  signals->go = true;
  EXPECT_EQ(reader.wait(), "");
  churn(state);
  EXPECT_LE(state->inspect().file_bytes, held_bytes * 5 / 4)
      << "the space that the view kept is reused";
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

// A plain read that is stopped midway continues on memory that was reused meanwhile, and has to
// detect that.
TEST_F(ProcessesTest, plain_reader_stopped_midway_reads_no_torn_value) {
  TestState state(path(), small());
  churn(state, 5);
  const SharedWithChildren<Signals> signals;
  ChildProcess reader([&]() -> std::string {
    const TestState child_state(path(), small());
    std::string value;
    while (!signals->go) {
      for (int i = 0; i < 200; ++i) {
        const std::string key = "churn" + std::to_string(i);
        if (!child_state->get(key, value)) continue;
        if (value.size() != 2000 || value.find_first_not_of(value[0]) != std::string::npos)
          return "torn value";
      }
      ++signals->ready;
    }
    return "";
  });
  ASSERT_TRUE(wait_until([&] { return signals->ready > 0; }));
  for (int i = 0; i < 100; ++i) {
    reader.kill(SIGSTOP);
    churn(state, 3);
    reader.kill(SIGCONT);
    ::usleep(static_cast<useconds_t>(i * 13));
  }
  signals->go = true;
  EXPECT_EQ(reader.wait(), "");
}

TEST_F(ProcessesTest, many_threads_share_one_state) {
  const TestState state(path(), small());
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (int number = 0; number < 12; ++number) {
    threads.emplace_back([&, number] {
      try {
        for (int i = 0; i < 40; ++i) {
          const std::string key = "key" + std::to_string(number);
          {
            const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
            TestState::apply(*writer, {{key, std::to_string(i)}, {"all", key}});
          }
          if (state.get(key) != std::to_string(i)) ++failures;
          const View view = state.view();
          const View other = view;
          if (other.get(key) != std::to_string(i) || !view.contains("all")) ++failures;
        }
      } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
        ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(state->applied_id(), 480U);
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

TEST_F(ProcessesTest, child_forked_beside_busy_threads_reads_and_writes) {
  TestState state(path(), small());
  state.apply({{"a", "1"}});
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int number = 0; number < 2; ++number) {
    threads.emplace_back([&, number] {
      for (int i = 0; !stop; ++i) {
        if (number == 0) {
          state.apply({{"a", std::to_string(i)}, {"b", std::to_string(i)}});
        } else {
          const View view = state.view();
          static_cast<void>(view.get("a"));
        }
      }
    });
  }
  for (int i = 0; i < 40; ++i) {
    EXPECT_EQ(run_in_child(
                  [&]() -> std::string {
                    const View view = state.view();
                    if (view.id() > 1 && view.get("a") != view.get("b")) return "half an update";
                    state.apply({{"a", "c" + std::to_string(i)}, {"b", "c" + std::to_string(i)}});
                    return state.get("a") ? "" : "lost";
                  },
                  30),
              "");
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

TEST_F(ProcessesTest, lock_timeout_error_names_the_lock) {
  const TestState state(path(), small());
  const TestState other(path(), small());
  const std::pair<StateLock, const char*> locks[] = {{StateLock::writer, "writer lock"},
                                                     {StateLock::follow, "follow lock"},
                                                     {StateLock::append, "append lock"},
                                                     {StateLock::install, "install lock"}};
  for (const auto& [lock, name] : locks) {
    const StateLock which = lock;  // a lambda cannot capture a structured binding in clang 14
    const HeldLock held = state->lock(which, TestState::deadline());
    expect_error(
        ErrorKind::unavailable,
        [&] { other->lock(which, Deadline(std::chrono::milliseconds(20))); }, name);
    expect_error(
        ErrorKind::unavailable,
        [&, which = which] {
          std::optional<Error> error;
          std::thread([&] {
            error =
                thrown_error([&] { state->lock(which, Deadline(std::chrono::milliseconds(20))); });
          }).join();
          if (error) throw Error(*error);
        },
        name);
  }
}

// One thread does the process's first read while another one forks.
TEST_F(ProcessesTest, child_forked_during_first_read_can_read) {
  const std::string fault = run_in_child([this]() -> std::string {
    const TestState state(path(), small());
    { TestState::apply(*state->begin_write(TestState::deadline()), {{"key", "value"}}); }
    // Reads in another thread while the fork is being prepared. Whatever that thread waits for at
    // the time of the fork stays in that condition in the child.
    class ReadDuringFork final : public ForkHandler {
     public:
      explicit ReadDuringFork(const TestState& state) : state_(state) {
        register_fork_handler(this);
      }
      ~ReadDuringFork() {
        unregister_fork_handler(this);
        wait_until([this] { return done_.load(); });
      }
      void before_fork() noexcept override {
        std::thread([this] {
          static_cast<void>(state_->contains("key"));
          done_ = true;
        }).detach();
        ::usleep(100'000);
      }
      void after_fork_in_child() noexcept override { done_ = true; }

     private:
      const TestState& state_;
      std::atomic<bool> done_{false};
    } read_during_fork(state);
    ChildProcess child(
        [&]() -> std::string { return state.get("key") == "value" ? "" : "wrong value"; }, 10);
    return child.wait();
  });
  EXPECT_EQ(fault, "");
}

}  // namespace
}  // namespace whycache
