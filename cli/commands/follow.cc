// whycache follow
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/outage.h"
#include "base/random.h"
#include "cli/command.h"
#include "cli/format.h"
#include "cli/service_manager.h"
#include "cli/stop_signals.h"
#include "cli/target.h"
#include "cli/watchdog.h"
#include "client/cache_internal.h"
#include "client/follow_loop.h"

namespace whycache::cli {
namespace {

struct FollowArguments {
  Target target;
  std::optional<std::chrono::nanoseconds> interval;
  std::optional<std::chrono::nanoseconds> interval_max;
  bool json = false;

  FollowPace pace() const {
    FollowPace pace;
    if (interval) pace.interval_min = *interval;
    if (const auto longest = interval_max ? interval_max : interval)
      pace.interval_max = pace.interval_max_notified = *longest;
    return pace;
  }
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
        pace_(arguments.pace()),
        // Between attempts as between the polls of a quiet log.
        pauses_(std::min<std::chrono::nanoseconds>(pace_.interval_max, std::chrono::seconds(1))) {}

  void run() {
    while (!stop_.stop_requested()) {
      if (try_to_follow()) continue;
      const std::chrono::nanoseconds pause = pauses_.next();
      watchdog_.note_wait(pause);
      Deadline(no_limit, stop_).sleep(pause);
    }
    notify_service_manager("STOPPING=1");
  }

 private:
  static constexpr std::chrono::milliseconds no_limit = std::chrono::milliseconds::max();
  // How often to look whether the state has become mostly free.
  static constexpr std::chrono::minutes shrink_interval{1};

  // Polls the log if that is due, and waits until it is again. Whatever ends an attempt, the next
  // one may succeed: the server, its certificate, its grants, the disk and the files may all come
  // back.
  bool try_to_follow() {
    try {
      watchdog_.note_work(arguments_.target.deadline());
      if (!cache_) open();
      loop_->poll_if_due(stop_);
      report_progress();
      if (problems_.note_success(last_printed_id_)) report_status();
      pauses_.reset();
      shrink_if_mostly_free();
      watchdog_.note_wait(longest_wait());
      loop_->wait(stop_);
      return true;
    } catch (const Error& error) {
      note_problem(error.kind(), error.what());
    } catch (const std::bad_alloc&) {
      note_problem(ErrorKind::limit, "out of memory");
    }
    return false;
  }

  // Returns for how long FollowLoop::wait() may wait.
  std::chrono::nanoseconds longest_wait() const {
    return std::max<std::chrono::nanoseconds>({pace_.interval_min, pace_.interval_max,
                                               pace_.interval_max_notified,
                                               std::chrono::seconds(1)});
  }

  void note_problem(ErrorKind kind, const std::string& message) {
    if (stop_.stop_requested()) return;
    problems_.note(kind, message);
    if (loop_) loop_->note_failure(kind);
    // A log that is away is asked again. Anything else may have to do with what is open.
    if (kind != ErrorKind::unavailable) {
      loop_.reset();
      cache_.reset();
    }
    try {
      // Other processes of this machine may apply what this one cannot.
      if (cache_ && is_started_ && cache_->ready()) report_progress();
    } catch (const Error&) {  // the problem that is reported already, or a part of it
    }
  }

  void open() {
    {
      const ProcessEndAtStop end(stop_);
      cache_ = open_cache(arguments_.target, [this](const Event& event) { report(event); });
    }
    loop_.emplace(CacheInternal::session(*cache_), pace_, FollowLoop::WakeFor::updates,
                  MappingPolicy::cache);
    const StateInfo info = CacheInternal::state(*cache_).info();
    if (is_started_) return;
    is_started_ = true;
    seen_state_id_ = info.state_id;
    last_printed_id_ = info.applied_id;
    print_message(fmt::format("following: log={} state={} applied_id={} interval={}..{}",
                              CacheInternal::log(*cache_).name(), cache_->state_path(),
                              info.applied_id, format_duration(pace_.interval_min),
                              format_duration(pace_.interval_max)));
    notify_service_manager("READY=1");
    report_status();
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
  // without a new id, or reverted, if the state was built again.
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
  const StopSignals signals_;  // installed before the cache is opened, which can take long
  const std::stop_token stop_ = signals_.token();
  Watchdog watchdog_;
  const FollowPace pace_;
  Problems problems_;
  FailurePauses pauses_;
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
  std::optional<FollowLoop> loop_;  // of the cache
};

ExitCode follow(const FollowArguments& arguments, Output& output) {
  check_target(arguments.target);
  Follower(arguments, output).run();
  return ExitCode::done;
}

CommandAction prepare_follow(CLI::App& parser) {
  const auto arguments = std::make_shared<FollowArguments>();
  add_duration_option(parser, "--interval", arguments->interval,
                      "how often to poll the log while updates arrive (5ms)");
  add_duration_option(parser, "--interval-max", arguments->interval_max,
                      "how often while none do (2s; 20s if PostgreSQL notifies; with --interval "
                      "alone, the same)");
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

Files, SQLite and some servers tell of a new update at once. Otherwise the log is polled, soon while
updates arrive and seldom while none do. If another process of this machine follows already, stands
by, and takes over within half a second of its end.

Nothing else ends it but a wrong command line. Whatever keeps it from following (the log does not
answer, a certificate has expired, a grant is missing, the disk is full) is reported once, then at
growing intervals while it lasts, and when it is over. If the state was built again, values may have
gone back: then prints the applied id, which may be no greater than the previous one; with --json
{"rebuilt":{"applied_id":..., "previous_applied_id":...}}.

Tells a service manager when the state can be read (sd_notify: Type=notify), and, if it has a
watchdog, that the command is at work (WatchdogSec=).)",
    R"(Examples:
  whycache follow
  whycache follow --interval 100ms --json
  whycache follow | while read id; do reload; done

Exit codes: 0 ended by a signal, 2 the command line is wrong, 9 standard output cannot be written)",
    prepare_follow};

}  // namespace whycache::cli
