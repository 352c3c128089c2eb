// What a process needs to join its machine's state and the log: both ends, the options, and a place
// to say what happened. The protocols (follow, rebuild, commit, rewrite) are functions over a link.
//
// A link belongs to one process: a forked child makes a link of its own, with connections, mutexes
// and a writer's identity that its parent does not share (cache.cc).
#pragma once

#include <whycache/cache.h>
#include <whycache/log.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/backoff.h"
#include "base/mutex.h"
#include "state/state.h"
#include "update/update.h"

namespace whycache {

// The log failed, or holds what cannot be believed; as opposed to errors of the state.
class LogError : public Error {
 public:
  explicit LogError(ErrorKind kind, const std::string& message, int system_error = 0,
                    bool gave_up = false)
      : Error(kind, message, system_error), gave_up_(gave_up) {}

  // Whether it was asked again until the patience was at its end.
  bool gave_up() const { return gave_up_; }
  bool is_retryable() const {
    return !gave_up_ && (kind() == ErrorKind::unavailable || kind() == ErrorKind::uncertain);
  }

 private:
  bool gave_up_;
};

// Counters that any thread may raise.
class AtomicCounters {
 public:
  void add(std::uint64_t Counters::*counter, std::uint64_t count = 1) {
    std::atomic_ref(counters_.*counter).fetch_add(count, std::memory_order_relaxed);
  }
  Counters read();

 private:
  Counters counters_;
};

class Session {
 public:
  // `owned_log`: null if somebody else keeps the log alive.
  Session(State& joined_state, Log& joined_log, std::unique_ptr<Log> owned_log,
          const Options& cache_options, AtomicCounters& cache_counters);

  State& state;
  Log& log;
  const Options& options;
  AtomicCounters& counters;

  // Of the next update.
  Authorship authorship(std::string note);

  // Tells the application, whose callback is never run twice at once.
  void report(Event::Kind kind, const std::string& message) noexcept;

  // Puts a question to the log. Throws LogError, whatever the log threw.
  template <typename Question>
  auto call_log(const Question& question) {
    try {
      return question(log);
    } catch (const LogError&) {
      throw;
    } catch (const Error& error) {
      throw LogError(error.kind(), error.what(), error.system_error());
    } catch (const std::exception& error) {
      throw LogError(ErrorKind::uncertain, std::string("log failed: ") + error.what());
    }
  }

  // Asks again while the log does not answer, until the patience is at its end.
  template <typename Question>
  auto call_log_with_retries(Backoff& backoff, const Question& question) {
    for (;;) {
      try {
        return call_log(question);
      } catch (const LogError& error) {
        back_off_after(error, backoff);
      }
    }
  }

  // Counts and reports that the log failed, and waits. Throws the error instead if waiting cannot
  // help, or, as unavailable, if the patience is at its end.
  void back_off_after(const LogError& error, Backoff& backoff);

  // This process has seen that its log is the one with this uuid. Until then it does not rely on
  // what other processes found out about theirs; and a log that is replaced later can be told from
  // a state that was never this log's.
  void note_seen_log(const Uuid& uuid);
  bool has_seen_log(const Uuid& uuid) const;
  bool has_seen_any_log() const { return has_seen_any_log_.load(std::memory_order_acquire); }
  // It has also seen that the state is a beginning of that log: the chains were compared.
  void note_followed() { has_followed_.store(true, std::memory_order_release); }
  bool has_followed() const { return has_followed_.load(std::memory_order_acquire); }

  // The cache is being closed: who waits for a log that does not answer gives up.
  void close() { closing_.store(true, std::memory_order_release); }

  // A read found the state file damaged: the next follow() builds a new one.
  void note_damage() noexcept;
  bool is_damaged(const StateInfo& info) const {
    return info.state_id == damaged_state_id_.load(std::memory_order_acquire);
  }
  bool has_damage() const { return damaged_state_id_.load(std::memory_order_acquire) != 0; }
  void clear_damage() { damaged_state_id_.store(0, std::memory_order_release); }

 private:
  std::unique_ptr<Log> owned_log_;
  const Uuid writer_id_;
  const std::string writer_name_;
  std::atomic<std::uint64_t> writer_sequence_{0};
  mutable Mutex mutex_;
  std::optional<Uuid> seen_log_uuid_ WHYCACHE_GUARDED_BY(mutex_);
  std::atomic<bool> has_seen_any_log_{false};
  std::atomic<bool> has_followed_{false};
  std::atomic<std::uint64_t> damaged_state_id_{0};
  std::atomic<bool> closing_{false};
  Mutex events_mutex_;  // held while the application's callback runs
};

}  // namespace whycache
