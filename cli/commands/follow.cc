// whycache follow
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "base/call_limit.h"
#include "base/outage.h"
#include "base/random.h"
#include "cli/command.h"
#include "cli/format.h"
#include "cli/service_manager.h"
#include "cli/target.h"
#include "client/cache_internal.h"

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

// The problems that keep the follower from following. Each is printed when it begins. While one
// lasts, it is printed again at growing intervals, with its duration.
class Problems {
 public:
  void note(ErrorKind kind, const std::string& message) {
    const std::optional<std::chrono::nanoseconds> lasted = outage_.note_failure();
    if (!lasted && (!outage_.is_reported() || seen_.contains(kind))) return;
    seen_.insert(kind);
    print_message(lasted && lasted->count() > 0 ? fmt::format("still not following after {}: {}",
                                                              format_duration(*lasted), message)
                                                : message,
                  "none needed if it passes: reads continue, and so do attempts to follow");
    notify_service_manager("STATUS=not following: " + message);
  }
  // Returns whether there was a problem.
  bool note_success(UpdateId applied_id) {
    const bool was_under_way = outage_.is_under_way();
    const std::optional<std::chrono::nanoseconds> lasted = outage_.note_success();
    if (lasted) {
      seen_.clear();
      print_message(fmt::format("following again after {}: applied_id={}", format_duration(*lasted),
                                applied_id));
    }
    return was_under_way;
  }
  bool are_under_way() const { return outage_.is_under_way(); }

 private:
  Outage outage_;
  std::set<ErrorKind> seen_;  // of this outage
};

class Follower {
 public:
  Follower(const FollowArguments& arguments, Output& output)
      : arguments_(arguments),
        output_(output),
        interval_(arguments.interval.value_or(std::chrono::seconds(1))) {}

  void run() {
    while (!stop_requested) {
      signals_.wait(try_to_follow() ? interval_ : next_pause());
    }
    notify_service_manager("STOPPING=1");
  }

 private:
  // Between attempts while there is a problem. Long enough for a server that all machines ask.
  static constexpr std::chrono::seconds longest_pause{15};
  // How often to look whether the state has become mostly free.
  static constexpr std::chrono::minutes shrink_interval{1};

  // Whatever ends an attempt, the next one may succeed: the server, its certificate, its grants,
  // the disk and the files may all come back.
  bool try_to_follow() {
    try {
      if (!cache_) open();
      // One question, before update() asks again and again.
      if (problems_.are_under_way()) ask_log();
      cache_->update();
      report_progress();
      if (problems_.note_success(last_printed_id_)) report_status();
      failed_attempts_ = 0;
      shrink_if_mostly_free();
      return true;
    } catch (const Error& error) {
      note_problem(error.kind(), error.what());
    } catch (const std::bad_alloc&) {
      note_problem(ErrorKind::limit, "out of memory");
    }
    return false;
  }

  void note_problem(ErrorKind kind, const std::string& message) {
    problems_.note(kind, message);
    ++failed_attempts_;
    // A log that is away is asked again. Anything else may have to do with what is open.
    if (kind != ErrorKind::unavailable) cache_.reset();
    try {
      // Other processes of this machine may apply what this one cannot.
      if (cache_ && is_started_ && cache_->ready()) report_progress();
    } catch (const Error&) {  // the problem that is reported already, or a part of it
    }
  }

  std::chrono::nanoseconds next_pause() const {
    const int doublings = std::min(failed_attempts_, 20);
    const auto pause = std::min<std::chrono::nanoseconds>(
        std::max<std::chrono::nanoseconds>(interval_, std::chrono::milliseconds(20)) *
            (std::int64_t{1} << doublings),
        std::max<std::chrono::nanoseconds>(interval_, longest_pause));
    // Machines that failed together do not come back together.
    return pause - pause / 2 * static_cast<std::int64_t>(random_u64() % 1000) / 1000;
  }

  void open() {
    cache_ = open_cache(arguments_.target, [this](const Event& event) { report(event); });
    const StateInfo info = CacheInternal::state(*cache_).info();
    if (is_started_) return;
    is_started_ = true;
    seen_state_id_ = info.state_id;
    last_printed_id_ = info.applied_id;
    print_message(fmt::format("following: log={} state={} applied_id={} interval={}",
                              CacheInternal::log(*cache_).name(), cache_->state_path(),
                              info.applied_id, format_duration(interval_)));
    notify_service_manager("READY=1");
    report_status();
  }

  void ask_log() {
    const Deadline deadline(arguments_.target.deadline());
    const CallLimit limit(deadline);
    CacheInternal::log(*cache_).extent();
  }

  // Runs on this thread.
  void report(const Event& event) {
    switch (event.kind) {
      case Event::Kind::retried: return problems_.note(ErrorKind::unavailable, event.message);
      case Event::Kind::reconnected: return;  // Problems says it once the state is up to date
      case Event::Kind::rebuilt: rebuild_reason_ = event.message; return report_event(event);
      default: return report_event(event);
    }
  }

  // Prints what changed, whichever process of this machine applied it. Values may have changed
  // without a new id, or gone back, if the state was built again.
  void report_progress() {
    const StateInfo info = CacheInternal::state(*cache_).info();
    if (info.state_id != seen_state_id_ || info.applied_id < last_printed_id_) {
      print_rebuilt(info);
    } else {
      print_up_to(info.applied_id);
    }
    output_.flush();
  }

  void print_rebuilt(const StateInfo& info) {
    if (arguments_.json) {
      Json rebuilt{{"applied_id", info.applied_id}, {"previous_applied_id", last_printed_id_}};
      if (!rebuild_reason_.empty()) put_bytes(rebuilt, "reason", rebuild_reason_);
      output_.write_json(Json{{"rebuilt", std::move(rebuilt)}});
    } else {
      output_.write_line(std::to_string(info.applied_id));
    }
    if (rebuild_reason_.empty()) {
      print_message(fmt::format("another process rebuilt the state: applied_id={} previous={}",
                                info.applied_id, last_printed_id_));
    }
    rebuild_reason_.clear();
    seen_state_id_ = info.state_id;
    last_printed_id_ = info.applied_id;
    report_status();
  }

  void print_up_to(UpdateId id) {
    if (last_printed_id_ < id) is_status_due_ = true;
    while (last_printed_id_ < id) {
      ++last_printed_id_;
      if (arguments_.json) {
        output_.write_json(Json{{"update_id", last_printed_id_}});
      } else {
        output_.write_line(std::to_string(last_printed_id_));
      }
    }
    if (is_status_due_) report_status();
  }

  // At most once a second.
  void report_status() {
    const auto now = std::chrono::steady_clock::now();
    is_status_due_ = now < next_status_at_;
    if (is_status_due_) return;
    next_status_at_ = now + std::chrono::seconds(1);
    notify_service_manager(fmt::format("STATUS=following: applied_id={}", last_printed_id_));
  }

  void shrink_if_mostly_free() {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_shrink_at_) return;
    next_shrink_at_ = now + shrink_interval;
    if (CacheInternal::shrink(*cache_)) report_progress();
  }

  const FollowArguments& arguments_;
  Output& output_;
  const std::chrono::nanoseconds interval_;
  const StopSignals signals_;  // installed before the cache is opened, which can take long
  Problems problems_;
  int failed_attempts_ = 0;
  bool is_started_ = false;
  std::uint64_t seen_state_id_ = 0;
  UpdateId last_printed_id_ = 0;
  std::string rebuild_reason_;  // of a rebuild that is not printed yet
  bool is_status_due_ = false;
  std::chrono::steady_clock::time_point next_status_at_{};
  // Machines whose states became mostly free together do not all read the log at once.
  std::chrono::steady_clock::time_point next_shrink_at_ =
      std::chrono::steady_clock::now() + shrink_interval * (1 + random_u64() % 10);
  std::unique_ptr<Cache> cache_;
};

ExitCode follow(const FollowArguments& arguments, Output& output) {
  check_target(arguments.target);
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
and SIGTERM end it cleanly.

Nothing else ends it but a wrong command line. Whatever keeps it from following (the log does not
answer, a certificate has expired, a grant is missing, the disk is full) is reported once, then at
growing intervals while it lasts, and when it is over. If the state was built again, values may have
gone back: then prints the applied id, which may be no greater than the previous one; with --json
{"rebuilt":{"applied_id":..., "previous_applied_id":...}}.

Tells a service manager when the state can be read (sd_notify: Type=notify).)",
    R"(Examples:
  whycache follow
  whycache follow --interval 100ms --json
  whycache follow | while read id; do reload; done

Exit codes: 0 ended by a signal, 2 the command line is wrong, 9 standard output cannot be written)",
    prepare_follow};

}  // namespace whycache::cli
