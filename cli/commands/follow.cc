// whycache follow
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <CLI/CLI.hpp>

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/escape.h"
#include "cli/target.h"

namespace whycache::cli {
namespace {

struct Arguments {
  Target target;
  std::optional<std::chrono::nanoseconds> interval;
  bool json = false;
};

std::atomic<bool> asked_to_end{false};
static_assert(std::atomic<bool>::is_always_lock_free);

// SIGINT and SIGTERM end the loop; a second one ends the process, which is harmless to state and log. They are let in
// while the log is asked, so that the second one need not wait for it, and in the midst of waiting, which they end.
class EndSignals {
 public:
  EndSignals() {
    struct sigaction action = {};
    action.sa_handler = [](int) { asked_to_end = true; };
    action.sa_flags = SA_RESETHAND | SA_RESTART;
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
    ::sigemptyset(&both_);
    ::sigaddset(&both_, SIGINT);
    ::sigaddset(&both_, SIGTERM);
    ::sigprocmask(SIG_SETMASK, nullptr, &open_);
  }

  // Until the time is over or a signal has come; one that comes between the question and the wait is not missed.
  void wait(std::chrono::nanoseconds duration) const {
    const struct timespec time = {static_cast<std::time_t>(duration.count() / 1'000'000'000),
                                  static_cast<long>(duration.count() % 1'000'000'000)};
    ::sigprocmask(SIG_BLOCK, &both_, nullptr);
    if (!asked_to_end) ::ppoll(nullptr, 0, &time, &open_);
    ::sigprocmask(SIG_SETMASK, &open_, nullptr);
  }

 private:
  sigset_t both_;
  sigset_t open_;
};

class Follow {
 public:
  Follow(const Arguments& arguments, Output& output)
      : arguments_(arguments), output_(output), cache_(open_cache(arguments.target)), printed_(cache_->applied_id()) {}

  void run() {
    const auto interval = arguments_.interval.value_or(std::chrono::seconds(1));
    while (!asked_to_end) {
      ask();
      signals_.wait(interval);
    }
  }

 private:
  void ask() {
    try {
      print_up_to(cache_->update());
      if (unreachable_) say("the log answers again");
      unreachable_ = false;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::unavailable) throw;
      print_up_to(cache_->applied_id());
      if (!unreachable_) say(error.what(), "nothing: reads go on, and so do we; Ctrl-C ends this");
      unreachable_ = true;
    }
  }

  // Updates that other processes of this machine applied are among them. The id goes back when the log was
  // replaced or restored and the state was rebuilt.
  void print_up_to(UpdateId id) {
    if (id < printed_) {
      say(fmt::format("the state was rebuilt: applied id went from {} to {}", printed_, id));
      printed_ = id;
      return;
    }
    while (printed_ < id) {
      ++printed_;
      if (arguments_.json) {
        output_.json(Json{{"update_id", printed_}});
      } else {
        output_.line(std::to_string(printed_));
      }
    }
    output_.flush();
  }

  const Arguments& arguments_;
  Output& output_;
  const EndSignals signals_;  // before the cache is opened, which can take long
  std::unique_ptr<Cache> cache_;
  UpdateId printed_;
  bool unreachable_ = false;
};

ExitCode follow(const Arguments& arguments, Output& output) {
  Follow(arguments, output).run();
  return ExitCode::done;
}

Run prepare(CLI::App& parser) {
  const auto arguments = std::make_shared<Arguments>();
  add_duration_option(parser, "--interval", arguments->interval, "how often to ask the log (1s)");
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return follow(*arguments, output); };
}

}  // namespace

const Command follow_command{
    "follow", "keep this machine's state up to date",
    R"(Asks the log again and again, applies what is new, and prints the id of each update that was applied since it
began. With it running, no other process of this machine needs to call update(). Ends cleanly on SIGINT and SIGTERM.
When the log does not answer it says so once, and goes on asking.)",
    R"(Examples:
  whycache follow
  whycache follow --interval 100ms --json
  whycache follow | while read id; do whycache log --from $id --to $id; done

Exit codes: 0 ended by a signal, 3 there is no state yet and the log did not answer, 5 the log is damaged,
  7 permission, 9 the disk is full)",
    prepare};

}  // namespace whycache::cli
