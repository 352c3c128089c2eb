// A session: the state of this machine, the log and the options, joined for one process. The
// protocols (follow, append, rebuild, rewrite, transact) work on a session.
//
// A forked child creates its own session (cache.cc), with its own connections, mutexes and writer
// id.
#pragma once

#include <whycache/cache.h>
#include <whycache/log.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <type_traits>
#include <utility>

#include "base/backoff.h"
#include "base/call_limit.h"
#include "base/mutex.h"
#include "base/outage.h"
#include "state/state.h"
#include "update/update.h"

namespace whycache {

struct StateLocation;

// The log failed, or what it returned is damaged; as opposed to errors of the state.
class LogError : public Error {
 public:
  explicit LogError(ErrorKind kind, const std::string& message, int system_error = 0,
                    bool gave_up = false)
      : Error(kind, message, system_error), gave_up_(gave_up) {}

  // Whether the call was retried until the backoff ran out.
  bool gave_up() const { return gave_up_; }
  // Whether another attempt may succeed.
  bool is_retryable() const {
    return !gave_up_ && (kind() == ErrorKind::unavailable || kind() == ErrorKind::uncertain);
  }

 private:
  bool gave_up_;
};

// Returns the error of a call that failed and cannot be repeated before the deadline; nullopt if
// there is time.
std::optional<LogError> out_of_time_error(const Log& log, const Backoff& backoff,
                                          const Error& failure);
// The message of Event::Kind::retried. `lasted`: how long the log has been failing.
std::string retry_message(const Log& log, const Backoff& backoff, const Error& failure,
                          std::chrono::nanoseconds lasted);

// Counters that any thread can increase.
class AtomicCounters {
 public:
  void add(std::uint64_t Counters::*counter, std::uint64_t count = 1) {
    std::atomic_ref(counters_.*counter).fetch_add(count, std::memory_order_relaxed);
  }
  Counters read();
  // Returns what was added since the last call, for the counters of the machine. The caller holds
  // the writer lock of the state, which orders the calls; relaxed.
  Counters take_unreported();
  // In a forked child: what the parent has counted, the parent reports.
  void skip_unreported() { take_unreported(); }

 private:
  Counters counters_;
  Counters reported_;
};

class Session;

// Exists while this thread runs code of the application for a session: a callback, or its own log.
class CallbackScope {
 public:
  // `callback`: what the code is, for Session::refuse_in_callback(). Must outlive the scope.
  CallbackScope(const Session& session, const char* callback) noexcept;
  ~CallbackScope();
  CallbackScope(const CallbackScope&) = delete;
  CallbackScope& operator=(const CallbackScope&) = delete;

 private:
  friend class Session;
  const Session* const session_;
  const char* const callback_;
  const CallbackScope* const outer_;
};

class Session {
 public:
  // `owned_log`: the log, if the session is to own it; null if the caller keeps it alive.
  Session(State& joined_state, const StateLocation& state_location, Log& joined_log,
          std::unique_ptr<Log> owned_log, const Options& cache_options,
          AtomicCounters& cache_counters);

  State& state;
  const StateLocation& location;
  Log& log;
  const Options& options;
  AtomicCounters& counters;

  // Returns the authorship of the next update: the time, the writer, and its next sequence number.
  Authorship authorship(std::string note);
  const std::string& writer_name() const { return writer_name_; }

  // Calls Options::on_event, never twice at once. Drops what the callback throws, and events of
  // this session that the callback itself causes. While this session reports an event, drops those
  // that the callback of another cache causes.
  void report(Event::Kind kind, const std::string& message) noexcept;
  // Throws Error(invalid) if this thread runs a callback of this session (CallbackScope): the call
  // would wait for a lock or a thread that waits for the callback.
  void refuse_in_callback() const;

  // Returns a backoff for a call with these options.
  template <typename CallOptions>
  Backoff backoff_for(const CallOptions& call_options) const {
    return Backoff(call_options.deadline.value_or(options.deadline), call_options.stop);
  }

  // Calls the log once, until the deadline at most. Throws every failure as LogError.
  template <typename Question>
  auto call_log(const Deadline& deadline, const Question& question) {
    const CallLimit limit(deadline);
    try {
      const CallbackScope scope(*this, "log");
      using Answer = decltype(question(log));
      if constexpr (std::is_void_v<Answer>) {
        question(log);
        note_log_success();
      } else {
        Answer answer = question(log);
        note_log_success();
        return answer;
      }
    } catch (const LogError& error) {
      note_log_failure(error);
      throw;
    } catch (const Error& error) {
      note_log_failure(error);
      throw LogError(error.kind(), error.what(), error.system_error());
    } catch (const std::exception& error) {
      note_log_failure(error);
      throw LogError(ErrorKind::uncertain, std::string("log failed: ") + error.what());
    } catch (...) {  // from a log of the application
      const LogError error(ErrorKind::uncertain, "log failed: it threw no std::exception");
      note_log_failure(error);
      throw LogError(error);
    }
  }

  // Calls the log until it answers. Throws LogError if a retry cannot help or the backoff runs out.
  template <typename Question>
  auto call_log_with_retries(Backoff& backoff, const Question& question) {
    for (;;) {
      try {
        return call_log(backoff.deadline(), question);
      } catch (const LogError& error) {
        back_off_after(error, backoff);
      }
    }
  }

  // Takes a lock that others hold while they wait for the log. Throws LogError(unavailable), which
  // names the log, if the deadline passes. A log that another process has been reading for so long
  // counts as one that does not answer.
  HeldLock lock_for_log(StateLock which, const Backoff& backoff);

  // Throws LogError(unavailable) if a stop was requested, for loops that do not wait.
  void throw_if_stopped(const Backoff& backoff) const;

  // Returns how the message of a call begins that no longer waits: the cache was closed, a stop was
  // requested, or the deadline has passed.
  std::string why_gave_up(const Backoff& backoff) const;

  // Counts a failure of the log, reports it if that is due (Outage), and pauses before the next
  // attempt. If a retry cannot
  // help, rethrows the error. If the backoff has run out or the cache is being closed, throws
  // LogError(unavailable) with gave_up() set.
  void back_off_after(const LogError& error, Backoff& backoff);

  // Reports that the log does not answer, if that is due (Outage). For a caller that asks again by
  // itself.
  void note_outage(const LogError& error) noexcept;

  // Log::wait(), until the deadline at most. Returns nullopt if the log has thrown an error. If the
  // log then says that it cannot wake this process any more, reports once that it is polled. Any
  // other error of wait() is one that the next call meets, too.
  std::optional<bool> wait_for_log(const Deadline& deadline, UpdateId after,
                                   std::chrono::nanoseconds at_most) noexcept;

  // Records why the log could not be asked, for a cache that was opened with the state as it is.
  void note_opening_failure(const LogError& error);
  std::optional<LogError> opening_failure() const;

  // Records that this process has read its log and found this uuid. Until then, it does not rely on
  // what other processes recorded about theirs. Later it can tell a log that was replaced from a
  // state that never belonged to this log. From now on, reads use states of this log only.
  void note_seen_log(const Uuid& uuid);
  bool has_seen_log(const Uuid& uuid) const;
  // Records that this process has had a state to read, so that a missing one was removed.
  void note_usable_state() { has_had_state_.store(true, std::memory_order_relaxed); }
  bool has_had_state() const { return has_had_state_.load(std::memory_order_relaxed); }
  bool has_seen_any_log() const { return has_seen_any_log_.load(std::memory_order_acquire); }
  // Records that this process has also compared the chains: the state is a prefix of that log.
  void note_followed() { has_followed_.store(true, std::memory_order_release); }
  bool has_followed() const { return has_followed_.load(std::memory_order_acquire); }

  // Since the cache is being closed, calls give up instead of asking an unresponsive log again. A
  // call that the log has not answered yet ends at its deadline, or when WriteQueue::stop() ends
  // it.
  void close();
  void reopen();
  // Returns the token of which a stop is requested when the cache is closed: it ends waits for
  // other processes.
  std::stop_token closing_token() const;

  // Sets the members of `stats` that tell of the log.
  void describe_log_health(Stats& stats) const;

  // Records that a read found the current state file damaged. The next follow() rebuilds it.
  void note_damage() noexcept;
  bool is_damaged(const StateInfo& info) const {
    return info.state_id == damaged_state_id_.load(std::memory_order_acquire);
  }
  bool has_damage() const { return damaged_state_id_.load(std::memory_order_acquire) != 0; }
  void clear_damage() { damaged_state_id_.store(0, std::memory_order_release); }

 private:
  // Whether this thread runs the event callback of this session, perhaps within those of others.
  bool is_reporting() const noexcept;
  // Whether this thread runs an event callback of any session.
  static bool is_in_event_callback() noexcept;
  void note_log_success() noexcept;
  void note_log_failure(const std::exception& error) noexcept;
  void note_failed_wait(const char* reason) noexcept;
  // Whether the last call failed, and no process of this machine got an answer since.
  bool log_seems_down() const WHYCACHE_REQUIRES(mutex_);

  std::unique_ptr<Log> owned_log_;
  const Uuid writer_id_;
  const std::string writer_name_;
  std::atomic<std::uint64_t> writer_sequence_{0};
  mutable Mutex mutex_;
  std::optional<Uuid> seen_log_uuid_ WHYCACHE_GUARDED_BY(mutex_);
  std::optional<LogError> opening_failure_ WHYCACHE_GUARDED_BY(mutex_);
  std::string log_error_ WHYCACHE_GUARDED_BY(mutex_);
  std::chrono::system_clock::time_point log_down_since_ WHYCACHE_GUARDED_BY(mutex_);
  std::int64_t log_failed_ns_ WHYCACHE_GUARDED_BY(mutex_) = 0;  // CLOCK_BOOTTIME
  Outage outage_ WHYCACHE_GUARDED_BY(mutex_);                   // of the calls that are retried
  // Changed under the mutex; a success loads it without.
  std::atomic<bool> log_is_down_{false};
  std::atomic<bool> has_reported_polling_{false};
  std::atomic<bool> has_seen_any_log_{false};
  std::atomic<bool> has_had_state_{false};
  std::atomic<bool> has_followed_{false};
  std::atomic<std::uint64_t> damaged_state_id_{0};
  std::atomic<bool> closing_{false};
  std::stop_source closing_stop_ WHYCACHE_GUARDED_BY(mutex_);
  Mutex events_mutex_;  // held while the application's callback runs
};

}  // namespace whycache
