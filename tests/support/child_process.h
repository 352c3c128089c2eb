// Tests with several processes.
#pragma once

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace whycache::testing {

// Reads a number from the environment, for runs longer than those of `make test`.
inline std::uint64_t number_from_environment(const char* name, std::uint64_t otherwise) {
  const char* const given = std::getenv(name);
  return given != nullptr ? std::strtoull(given, nullptr, 10) : otherwise;
}

// Memory that a process shares with its forked children.
template <typename T>
class SharedWithChildren {
 public:
  SharedWithChildren() {
    void* const memory =
        ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("cannot share memory with children");
    shared_ = new (memory) T();
  }
  ~SharedWithChildren() { ::munmap(shared_, sizeof(T)); }
  SharedWithChildren(const SharedWithChildren&) = delete;
  SharedWithChildren& operator=(const SharedWithChildren&) = delete;

  T* operator->() const { return shared_; }
  T& operator*() const { return *shared_; }

 private:
  T* shared_;
};

// Waits until `step` has the value that another process stores. Throws if that takes too long, as
// when that process has ended.
inline void wait_for_step(const SharedWithChildren<std::atomic<int>>& step, int value) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (*step != value) {
    if (std::chrono::steady_clock::now() > end)
      throw std::runtime_error("no other process came to step " + std::to_string(value));
    ::usleep(1000);
  }
}

// A forked child that runs `body`. `body` returns what failed, or "" if nothing did. The destructor
// kills the child.
class ChildProcess {
 public:
  template <typename Body>
  explicit ChildProcess(Body&& body, unsigned seconds_max = 100) : id_(::fork()) {
    if (id_ < 0) throw std::runtime_error("cannot fork");
    if (id_ > 0) return;
    ::alarm(seconds_max);
    std::string message;
    try {
      message = body();
    } catch (const std::exception& error) {
      message = std::string("threw: ") + error.what();
    }
    std::strncpy(report_->text, message.c_str(), sizeof report_->text - 1);
    ::_exit(message.empty() ? 0 : 1);
  }
  ~ChildProcess() {
    if (!ended_) {
      kill(SIGKILL);
      wait();
    }
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t id() const { return id_; }
  void kill(int signal) const { ::kill(id_, signal); }

  // Waits until the child exits. Returns the result of `body`, or how the child died before it
  // returned.
  std::string wait() {
    if (!ended_) {
      while (::waitpid(id_, &status_, 0) < 0 && errno == EINTR) {
      }
      ended_ = true;
    }
    if (WIFSIGNALED(status_)) return "died of signal " + std::to_string(WTERMSIG(status_));
    if (WIFEXITED(status_) && WEXITSTATUS(status_) != 0 && report_->text[0] == '\0') {
      return "exited with " + std::to_string(WEXITSTATUS(status_));
    }
    return report_->text;
  }

 private:
  struct Report {
    char text[1000] = {};
  };
  SharedWithChildren<Report> report_;  // declared before id_, so that it exists before the fork
  pid_t id_;
  int status_ = 0;
  bool ended_ = false;
};

template <typename Body>
std::string run_in_child(Body&& body, unsigned seconds_max = 100) {
  return ChildProcess(std::forward<Body>(body), seconds_max).wait();
}

}  // namespace whycache::testing
