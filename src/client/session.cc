#include "client/session.h"

#include <cerrno>

#include "base/clock.h"
#include "base/process_name.h"
#include "base/random.h"
#include "state/file/machine_counters.h"

namespace whycache {
namespace {

// With less time left than this, another call of the log is not worth a try: its error, that the
// time is up, would hide the cause.
constexpr std::chrono::milliseconds shortest_log_call{5};

}  // namespace

std::optional<LogError> out_of_time_error(const Log& log, const Backoff& backoff,
                                          const Error& failure) {
  if (backoff.deadline().remaining() >= shortest_log_call) return std::nullopt;
  // If the deadline cut the last attempt short, the one before it shows the cause.
  const bool was_cut = backoff.deadline().passed() && !backoff.last_failure().empty();
  return LogError(ErrorKind::unavailable,
                  std::string("log did not answer in time: log=") + log.name() +
                      " deadline_ms=" + std::to_string(backoff.timeout().count()) +
                      " attempts=" + std::to_string(backoff.pause_count() + 1) + ": " +
                      (was_cut ? backoff.last_failure() : std::string(failure.what())),
                  was_cut ? backoff.last_system_error() : failure.system_error(),
                  /*gave_up=*/true);
}

std::string retry_message(const Log& log, const Backoff& backoff, const Error& failure,
                          std::chrono::nanoseconds lasted) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(lasted).count();
  return std::string("log did not answer, retrying: log=") + log.name() +
         (seconds > 0 ? " for_seconds=" + std::to_string(seconds) : "") +
         " attempt=" + std::to_string(backoff.pause_count() + 2) + ": " + failure.what();
}

Counters AtomicCounters::read() {
  Counters copy;
  for (const CounterMember& counter : all_counters) {
    copy.*counter.value = std::atomic_ref(counters_.*counter.value).load(std::memory_order_relaxed);
  }
  return copy;
}

Counters AtomicCounters::take_unreported() {
  const Counters now = read();
  Counters added;
  for (const CounterMember& counter : all_counters) {
    const std::uint64_t count = now.*counter.value;
    std::atomic_ref reported(reported_.*counter.value);
    added.*counter.value = count - reported.exchange(count, std::memory_order_relaxed);
  }
  return added;
}

Session::Session(State& joined_state, const StateLocation& state_location, Log& joined_log,
                 std::unique_ptr<Log> owned_log, const Options& cache_options,
                 AtomicCounters& cache_counters)
    : state(joined_state),
      location(state_location),
      log(joined_log),
      options(cache_options),
      counters(cache_counters),
      owned_log_(std::move(owned_log)),
      writer_id_(random_uuid()),
      writer_name_(options.writer_name.empty() ? describe_this_process(program_name())
                                               : options.writer_name) {}

Authorship Session::authorship(std::string note) {
  return {.time_us = wall_time_us(),
          .writer_id = writer_id_,
          .writer_sequence = writer_sequence_.fetch_add(1, std::memory_order_relaxed) + 1,
          .writer_name = writer_name_,
          .note = std::move(note)};
}

namespace {

constexpr char event_callback[] = "event callback";

thread_local const CallbackScope* innermost_callback = nullptr;

}  // namespace

CallbackScope::CallbackScope(const Session& session, const char* callback) noexcept
    : session_(&session), callback_(callback), outer_(innermost_callback) {
  innermost_callback = this;
}

CallbackScope::~CallbackScope() { innermost_callback = outer_; }

void Session::refuse_in_callback() const {
  for (const CallbackScope* scope = innermost_callback; scope != nullptr; scope = scope->outer_) {
    if (scope->session_ != this) continue;
    throw Error(ErrorKind::invalid, std::string("cache was called by its own ") + scope->callback_ +
                                        ": log=" + log.name() +
                                        " (let another thread call it, which is not awaited)");
  }
}

bool Session::is_reporting() const noexcept {
  for (const CallbackScope* scope = innermost_callback; scope != nullptr; scope = scope->outer_)
    if (scope->session_ == this && scope->callback_ == event_callback) return true;
  return false;
}

bool Session::is_in_event_callback() noexcept {
  for (const CallbackScope* scope = innermost_callback; scope != nullptr; scope = scope->outer_)
    if (scope->callback_ == event_callback) return true;
  return false;
}

void Session::report(Event::Kind kind, const std::string& message) noexcept {
  if (!options.on_event || is_reporting()) return;
  const auto call = [&]() noexcept {
    try {
      const CallbackScope scope(*this, event_callback);
      options.on_event({kind, message});
    } catch (...) {  // as Options::on_event promises
    }
  };
  if (!is_in_event_callback()) {
    const MutexLock lock(events_mutex_);
    call();
  } else if (events_mutex_.try_lock()) {
    // Waiting could be for a thread that waits for the other cache's mutex.
    call();
    events_mutex_.unlock();
  }
}

HeldLock Session::lock_for_log(StateLock which, const Backoff& backoff) {
  try {
    return state.lock(which, backoff.deadline());
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::unavailable) throw;
    // Not a lock that others hold, but one that could not be asked for.
    if (error.system_error() != 0 && error.system_error() != EBUSY) throw;
    const bool is_append = which == StateLock::append;
    const bool was_ended =
        closing_.load(std::memory_order_acquire) || backoff.deadline().stop().stop_requested();
    const std::string what = is_append && !was_ended
                                 ? "others of this machine were writing until the deadline"
                                 : why_gave_up(backoff);
    const LogError failure(
        ErrorKind::unavailable,
        what + ": log=" + log.name() + " deadline_ms=" + std::to_string(backoff.timeout().count()) +
            ": " +
            // The holder of the follow lock waits for the log, too: the lock is no cause.
            (is_append ? "nothing was written: state=" + state.path() + ": " + error.what()
                       : "another process or thread of this machine was reading it: state=" +
                             state.path()),
        error.system_error(), /*gave_up=*/true);
    // Those that wait for the append lock may only be many.
    if (which == StateLock::follow && !backoff.deadline().stop().stop_requested())
      note_log_failure(failure);
    throw LogError(failure);
  }
}

void Session::throw_if_stopped(const Backoff& backoff) const {
  if (!backoff.deadline().stop().stop_requested()) return;
  throw LogError(ErrorKind::unavailable, why_gave_up(backoff) + ": log=" + log.name(), 0,
                 /*gave_up=*/true);
}

std::string Session::why_gave_up(const Backoff& backoff) const {
  if (closing_.load(std::memory_order_acquire)) return "cache was closed";
  return backoff.deadline().stop().stop_requested() ? "call was stopped"
                                                    : "log did not answer in time";
}

void Session::back_off_after(const LogError& error, Backoff& backoff) {
  if (!error.is_retryable()) throw error;
  if (closing_.load(std::memory_order_acquire) || backoff.deadline().stop().stop_requested()) {
    throw LogError(ErrorKind::unavailable,
                   why_gave_up(backoff) + " while the log did not answer: log=" + log.name() +
                       ": " + error.what(),
                   error.system_error(), /*gave_up=*/true);
  }
  if (const std::optional<LogError> out_of_time = out_of_time_error(log, backoff, error))
    throw LogError(*out_of_time);
  backoff.note_failure(error.what(), error.system_error());
  counters.add(&Counters::log_retries);
  std::optional<std::chrono::nanoseconds> lasted;
  {
    const MutexLock lock(mutex_);
    // Another thread's success, or an error of no call, may have left it false. The next success
    // ends the outage.
    log_is_down_.store(true, std::memory_order_relaxed);
    lasted = outage_.note_failure();
  }
  if (lasted) report(Event::Kind::retried, retry_message(log, backoff, error, *lasted));
  backoff.pause();
}

void Session::note_outage(const LogError& error) noexcept {
  std::optional<std::chrono::nanoseconds> lasted;
  {
    const MutexLock lock(mutex_);
    log_is_down_.store(true, std::memory_order_relaxed);
    lasted = outage_.note_failure();
  }
  if (!lasted) return;
  try {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(*lasted).count();
    report(Event::Kind::retried, "log does not answer, trying again: log=" + log.name() +
                                     " for_seconds=" + std::to_string(seconds) + ": " +
                                     error.what());
  } catch (const std::bad_alloc&) {  // the next report is due later
  }
}

void Session::note_opening_failure(const LogError& error) {
  const MutexLock lock(mutex_);
  opening_failure_.emplace(error);
}

std::optional<LogError> Session::opening_failure() const {
  const MutexLock lock(mutex_);
  return opening_failure_;
}

std::optional<bool> Session::wait_for_log(const Deadline& deadline, UpdateId after,
                                          std::chrono::nanoseconds at_most) noexcept {
  const CallLimit limit(deadline);
  try {
    const CallbackScope scope(*this, "log");
    return log.wait(after, at_most);
  } catch (const std::exception& error) {
    note_failed_wait(error.what());
  } catch (...) {  // from a log of the application
    note_failed_wait("it threw no std::exception");
  }
  return std::nullopt;
}

void Session::note_failed_wait(const char* reason) noexcept {
  if (log.notifies() || has_reported_polling_.exchange(true, std::memory_order_relaxed)) return;
  try {
    report(Event::Kind::polling,
           "log is polled, since it cannot wake this process: log=" + log.name() + ": " + reason);
  } catch (const std::bad_alloc&) {  // a later error is reported
    has_reported_polling_.store(false, std::memory_order_relaxed);
  }
}

void Session::close() {
  closing_.store(true, std::memory_order_release);
  std::stop_source stop(std::nostopstate);  // allocates nothing
  {
    const MutexLock lock(mutex_);
    stop = closing_stop_;
  }
  stop.request_stop();  // wakes those that wait
}

void Session::reopen() {
  std::stop_source stop;
  closing_.store(false, std::memory_order_release);
  const MutexLock lock(mutex_);
  closing_stop_ = std::move(stop);
}

std::stop_token Session::closing_token() const {
  const MutexLock lock(mutex_);
  return closing_stop_.get_token();
}

void Session::note_seen_log(const Uuid& uuid) {
  const MutexLock lock(mutex_);
  if (seen_log_uuid_ == uuid) return;
  seen_log_uuid_ = uuid;
  state.expect_log(uuid);
  has_seen_any_log_.store(true, std::memory_order_release);
}

bool Session::has_seen_log(const Uuid& uuid) const {
  const MutexLock lock(mutex_);
  return seen_log_uuid_ == uuid;
}

void Session::note_log_success() noexcept {
  if (!log_is_down_.load(std::memory_order_relaxed)) return;
  std::optional<std::chrono::nanoseconds> lasted;
  {
    const MutexLock lock(mutex_);
    log_is_down_.store(false, std::memory_order_relaxed);
    lasted = outage_.note_success();
  }
  if (!lasted) return;
  try {
    report(Event::Kind::reconnected,
           "log answers again: log=" + log.name() + " after_seconds=" +
               std::to_string(std::chrono::duration_cast<std::chrono::seconds>(*lasted).count()));
  } catch (const std::bad_alloc&) {  // the call that the log has answered continues
  }
}

void Session::note_log_failure(const std::exception& error) noexcept {
  try {
    const MutexLock lock(mutex_);
    if (!log_seems_down()) log_down_since_ = std::chrono::system_clock::now();
    log_is_down_.store(true, std::memory_order_relaxed);
    log_failed_ns_ = boot_time_ns();
    log_error_ = error.what();
  } catch (const std::bad_alloc&) {  // the caller gets the error itself
  }
}

bool Session::log_seems_down() const {
  if (!log_is_down_.load(std::memory_order_relaxed)) return false;
  // Within a bound on staleness, update() relies on what another process asked. This one may
  // therefore not call the log again.
  const std::optional<std::int64_t> asked_ns = state.last_poll_time_ns();
  return !asked_ns || *asked_ns <= log_failed_ns_;
}

void Session::describe_log_health(Stats& stats) const {
  const MutexLock lock(mutex_);
  stats.log_is_up = !log_seems_down();
  if (stats.log_is_up) return;
  stats.log_error = log_error_;
  stats.log_down_since = log_down_since_;
}

void Session::note_damage() noexcept {
  try {
    damaged_state_id_.store(state.info().state_id, std::memory_order_release);
  } catch (const std::exception&) {  // follow() then finds the damage itself
  }
}

}  // namespace whycache
