// whycache follow
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <CLI/CLI.hpp>

#include <atomic>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/target.h"

namespace whycache::cli {
namespace {

struct FollowArguments {
  Target target;
  std::optional<std::chrono::nanoseconds> interval;
  bool json = false;
};

std::atomic<bool> stop_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free);

// SIGINT and SIGTERM end the loop; a second signal ends the process, which does no harm to state or
// log. Both are unblocked while the log is polled, so that the second need not wait for it, and
// during wait(), which they end.
class StopSignals {
 public:
  StopSignals() {
    struct sigaction action = {};
    action.sa_handler = [](int) { stop_requested = true; };
    action.sa_flags = SA_RESETHAND | SA_RESTART;
    ::sigaction(SIGINT, &action, nullptr);
    ::sigaction(SIGTERM, &action, nullptr);
    ::sigemptyset(&stop_signals_);
    ::sigaddset(&stop_signals_, SIGINT);
    ::sigaddset(&stop_signals_, SIGTERM);
    ::sigprocmask(SIG_SETMASK, nullptr, &original_mask_);
  }

  // Waits until the duration has passed or a signal arrives. ppoll() unblocks the signals
  // atomically, so a signal between the check and the wait is not missed.
  void wait(std::chrono::nanoseconds duration) const {
    const struct timespec time = {static_cast<std::time_t>(duration.count() / 1'000'000'000),
                                  static_cast<long>(duration.count() % 1'000'000'000)};
    ::sigprocmask(SIG_BLOCK, &stop_signals_, nullptr);
    if (!stop_requested) ::ppoll(nullptr, 0, &time, &original_mask_);
    ::sigprocmask(SIG_SETMASK, &original_mask_, nullptr);
  }

 private:
  sigset_t stop_signals_;
  sigset_t original_mask_;
};

class Follower {
 public:
  Follower(const FollowArguments& arguments, Output& output)
      : arguments_(arguments),
        output_(output),
        cache_(open_cache(arguments.target, [this](const Event& event) { report(event); })),
        last_printed_id_(cache_->applied_id()) {}

  void run() {
    const auto interval = arguments_.interval.value_or(std::chrono::seconds(1));
    is_polling_ = true;
    while (!stop_requested) {
      poll_log();
      signals_.wait(interval);
    }
  }

 private:
  void poll_log() {
    try {
      print_up_to(cache_->update());
      if (is_unreachable_) print_message("the log answers again");
      is_unreachable_ = false;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::unavailable) throw;
      print_up_to(cache_->applied_id());
      report_unreachable(error.what());
    }
  }

  // Runs on this thread, also while the constructor opens the cache.
  void report(const Event& event) {
    if (event.kind != Event::Kind::retried || !is_polling_) return report_event(event);
    report_unreachable(event.message);
  }

  // An outage has many failed attempts. The first one is reported.
  void report_unreachable(const std::string& message) {
    if (!is_unreachable_)
      print_message(message, "none needed: reads continue, and so does polling; Ctrl-C ends it");
    is_unreachable_ = true;
  }

  // Includes updates that other processes of this machine applied. The id decreases if the log was
  // replaced or restored and the state was rebuilt from it.
  void print_up_to(UpdateId id) {
    if (id < last_printed_id_) {
      print_message(fmt::format("the state was rebuilt: applied id changed from {} to {}",
                                last_printed_id_, id));
      last_printed_id_ = id;
      return;
    }
    while (last_printed_id_ < id) {
      ++last_printed_id_;
      if (arguments_.json) {
        output_.write_json(Json{{"update_id", last_printed_id_}});
      } else {
        output_.write_line(std::to_string(last_printed_id_));
      }
    }
    output_.flush();
  }

  const FollowArguments& arguments_;
  Output& output_;
  const StopSignals signals_;  // installed before the cache is opened, which can take long
  bool is_polling_ = false;    // before cache_, whose events read it
  bool is_unreachable_ = false;
  std::unique_ptr<Cache> cache_;
  UpdateId last_printed_id_;
};

ExitCode follow(const FollowArguments& arguments, Output& output) {
  Follower(arguments, output).run();
  return ExitCode::done;
}

CommandAction prepare_follow(CLI::App& parser) {
  const auto arguments = std::make_shared<FollowArguments>();
  add_duration_option(parser, "--interval", arguments->interval, "how often to poll the log (1s)");
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return follow(*arguments, output); };
}

}  // namespace

const Command follow_command{
    "follow", "keep this machine's state up to date",
    R"(Polls the log, applies new updates, and prints the id of each update that was applied since
the command began. While it runs, no other process of this machine needs to call update(). SIGINT
and SIGTERM end it cleanly. If the log does not answer, it reports that once and keeps polling.)",
    R"(Examples:
  whycache follow
  whycache follow --interval 100ms --json
  whycache follow | while read id; do whycache log --from $id --to $id; done

Exit codes: 0 ended by a signal, 3 there is no state yet and the log did not answer,
  5 the log is damaged, 7 permission, 9 the disk is full)",
    prepare_follow};

}  // namespace whycache::cli
