// A fleet: one log, and machines that follow it, each with a state file of its own.
//
// The log and the states are in memory; Fleet("sqlite") and Fleet("file") are on disk, and
// processes can share them.
//
//   Fleet fleet;
//   Cache berlin = fleet.open("berlin");
//   Cache tokyo = fleet.open("tokyo");
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <whycache/cache.h>
#include <whycache/log.h>

#include <atomic>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "client/scripted_log.h"
#include "support/temporary_directory.h"
#include "support/thrown_error.h"

namespace whycache::testing {

// Collects the events that a cache reports.
class Events {
 public:
  std::function<void(const Event&)> listener() {
    return [this](const Event& event) {
      const std::lock_guard guard(mutex_);
      events_.push_back(event);
    };
  }
  int count(Event::Kind kind) const {
    const std::lock_guard guard(mutex_);
    int count = 0;
    for (const Event& event : events_) count += event.kind == kind;
    return count;
  }
  // Returns the messages of a kind, one per line.
  std::string messages(Event::Kind kind) const {
    const std::lock_guard guard(mutex_);
    std::string text;
    for (const Event& event : events_) {
      if (event.kind == kind) text += event.message + "\n";
    }
    return text;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Event> events_;
};

class Fleet {
 public:
  // `parent` is where the log of kind `file` or `sqlite` and the states are.
  explicit Fleet(const std::string& kind = "memory",
                 const std::filesystem::path& parent = std::filesystem::temp_directory_path())
      : directory_(parent) {
    static std::atomic<int> next{0};
    if (kind == "memory" && ::access("/dev/shm", W_OK) == 0) memory_directory_.emplace("/dev/shm");
    if (kind == "memory")
      url_ = "memory:fleet_" + std::to_string(::getpid()) + "_" + std::to_string(next++);
    if (kind == "sqlite") url_ = "sqlite://" + directory_.file("log.db");
    if (kind == "file") {
      std::filesystem::create_directory(directory_.file("log"));
      url_ = "file://" + directory_.file("log");
    }
  }

  const std::string& url() const { return url_; }
  const TemporaryDirectory& directory() const { return directory_; }
  std::string state_directory() const {
    return memory_directory_ ? memory_directory_->path() : directory_.path();
  }
  std::string state_path(const std::string& machine) const {
    return state_directory() + "/" + machine + ".state";
  }

  Options options(const std::string& machine) const {
    Options options;
    options.state_path = state_path(machine);
    return options;
  }
  Cache open(const std::string& machine, Options options = {}) const {
    options.state_path = state_path(machine);
    return Cache(url_, std::move(options));
  }
  Cache open(const std::string& machine, std::shared_ptr<Script> script,
             Options options = {}) const {
    options.state_path = state_path(machine);
    return Cache(std::make_unique<ScriptedLog>(open_log(url_), std::move(script)),
                 std::move(options));
  }
  std::unique_ptr<Log> log() const { return open_log(url_); }

 private:
  TemporaryDirectory directory_;
  std::optional<TemporaryDirectory> memory_directory_;
  std::string url_;
};

using Contents = std::map<std::string, std::string>;

inline Contents contents(const View& view) {
  Contents all;
  for (const auto [key, value] : view) all.emplace_hint(all.end(), key, value);
  return all;
}
inline Contents contents(const Cache& cache) { return contents(cache.view()); }

// Returns random bytes, which no compression makes smaller.
inline std::string incompressible_bytes(std::size_t bytes, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text(bytes, '\0');
  for (char& byte : text) byte = static_cast<char>(random());
  return text;
}

// A forked process that runs `body` and exits. Its exit status is 0 if `body` returned and no
// expectation failed.
class TestProcess {
 public:
  explicit TestProcess(const std::function<void()>& body) {
    std::fflush(nullptr);
    pid_ = ::fork();
    if (pid_ < 0) throw std::runtime_error("cannot fork");
    if (pid_ > 0) return;
    int status = 0;
    try {
      body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
      status = 2;
    }
    if (::testing::Test::HasFailure()) status = 3;
    std::fflush(nullptr);
    ::_exit(status);
  }
  TestProcess(const TestProcess&) = delete;
  TestProcess& operator=(const TestProcess&) = delete;
  ~TestProcess() {
    if (pid_ > 0) kill_and_wait();
  }

  pid_t pid() const { return pid_; }
  // Waits for the process to exit and returns its exit status.
  int wait() {
    int status = 0;
    ::waitpid(std::exchange(pid_, 0), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  void kill_and_wait() {
    if (pid_ <= 0) return;  // kill(2) addresses several processes by these
    ::kill(pid_, SIGKILL);
    wait();
  }

 private:
  pid_t pid_ = 0;
};

// Runs `body` in a forked process and expects it to succeed.
inline void expect_success_in_child(const std::function<void()>& body) {
  EXPECT_EQ(TestProcess(body).wait(), 0);
}

}  // namespace whycache::testing
