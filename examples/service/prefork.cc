#include "prefork.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <system_error>
#include <vector>

namespace service {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds restart_interval{1};
constexpr std::chrono::milliseconds tick{50};

struct Worker {
  pid_t pid = 0;  // 0: none is running
  Clock::time_point started{};
};

[[noreturn]] void run_child(pid_t master, int number, const std::function<void(int)>& work) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != master) ::_exit(EXIT_FAILURE);  // it had died before
  int code = EXIT_SUCCESS;
  try {
    work(number);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "service: worker %d: %s\n", number, error.what());
    code = EXIT_FAILURE;
  }
  ::_exit(code);  // what the master made is for the master to destroy
}

class Workers {
 public:
  Workers(int count, const std::function<void(int)>& work)
      : work_(work), workers_(static_cast<std::size_t>(count)) {}

  // Starts those that are missing, unless they were started just before.
  void start_missing() {
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      const bool is_due = Clock::now() - workers_[i].started >= restart_interval;
      if (workers_[i].pid == 0 && is_due) workers_[i] = start(static_cast<int>(i));
    }
  }

  void reap() {
    int status = 0;
    while (const pid_t pid = ::waitpid(-1, &status, WNOHANG)) {
      if (pid < 0) return;  // no child is left
      for (Worker& worker : workers_) {
        if (worker.pid != pid) continue;
        worker.pid = 0;
        if (!is_stopping_ || status != 0) report_end(number_of(worker), pid, status);
      }
    }
  }

  void kill() const {
    for (const Worker& worker : workers_)
      if (worker.pid != 0) ::kill(worker.pid, SIGKILL);
  }
  void expect_end() { is_stopping_ = true; }

  bool any_missing() const {
    return std::any_of(workers_.begin(), workers_.end(), [](auto& w) { return w.pid == 0; });
  }
  bool any_running() const {
    return std::any_of(workers_.begin(), workers_.end(), [](auto& w) { return w.pid != 0; });
  }

 private:
  Worker start(int number) const {
    const pid_t master = ::getpid();
    const pid_t pid = ::fork();
    if (pid == 0) run_child(master, number, work_);
    if (pid < 0) std::perror("service: cannot fork");  // tried again in a second
    return {.pid = std::max(pid, 0), .started = Clock::now()};
  }
  static void report_end(int number, pid_t pid, int status) {
    const bool killed = WIFSIGNALED(status);
    std::fprintf(stderr, "service: worker %d ended: pid=%d %s=%d\n", number, pid,
                 killed ? "signal" : "code", killed ? WTERMSIG(status) : WEXITSTATUS(status));
  }
  int number_of(const Worker& worker) const { return static_cast<int>(&worker - workers_.data()); }

  const std::function<void(int)>& work_;
  std::vector<Worker> workers_;
  bool is_stopping_ = false;
};

}  // namespace

void run_workers(int count, const std::function<void(int number)>& work,
                 const std::function<void()>& stop, std::chrono::milliseconds grace) {
  // Blocked here, and so in the workers, they stay pending until the master asks for them.
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGCHLD}) ::sigaddset(&signals, signal);
  if (::sigprocmask(SIG_BLOCK, &signals, nullptr) != 0)
    throw std::system_error(errno, std::generic_category(), "sigprocmask");

  Workers workers(count, work);
  const timespec timeout{.tv_sec = 0, .tv_nsec = std::chrono::nanoseconds(tick).count()};
  const auto next_signal = [&](bool with_timeout) {
    return with_timeout ? ::sigtimedwait(&signals, nullptr, &timeout)
                        : ::sigwaitinfo(&signals, nullptr);
  };
  for (int signal = 0; signal != SIGTERM && signal != SIGINT;) {
    workers.start_missing();
    signal = next_signal(workers.any_missing());
    workers.reap();
  }

  workers.expect_end();
  stop();
  const auto end = Clock::now() + grace;
  while (workers.any_running()) {
    if (Clock::now() >= end) workers.kill();
    next_signal(true);
    workers.reap();
  }
}

}  // namespace service
