// A log that is opened when it is first needed. While it cannot be opened, each call tries again
// and throws the error of that attempt. There are two uses:
//
// - A machine with a state can serve reads while its log is down, so opening a cache does not wait
//   for the log.
// - A forked child opens a log of its own, which it does not share with its parent.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/log.h>

#include "base/background_call.h"
#include "base/timed_mutex.h"
#include "log/open_log.h"

namespace whycache {

// Returns a LazyLog for the log that a URL names; or that log, if it is in memory. Throws
// Error(invalid) for a wrong URL. `deadline` is the default of the URL's option deadline_ms.
// `open`: how to open it, given what the URL says; by default it is created if it is missing.
std::unique_ptr<Log> open_log_lazily(
    std::string_view url, std::chrono::milliseconds deadline,
    const std::function<std::unique_ptr<Log>(const LogOpener&)>& open = {});
// For a forked child: returns a LazyLog that reopens `parent_log`, which must outlive it.
std::unique_ptr<Log> reopen_lazily(Log& parent_log);

class LazyLog final : public Log {
 public:
  // Opens the log. Returns nullptr if `fallback` may be used in its place.
  using Open = std::function<std::unique_ptr<Log>()>;
  LazyLog(std::string name, Open open, Log* fallback = nullptr);

  std::string name() const override { return name_; }
  Extent extent() override { return log().extent(); }
  Appended append(UpdateId id, std::string_view bytes) override { return log().append(id, bytes); }
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    return log().read(first, last, visit);
  }
  PollResult poll(UpdateId first, std::optional<std::chrono::nanoseconds> staleness_max,
                  const VisitUpdate& visit) override {
    return log().poll(first, staleness_max, visit);
  }
  bool wait(UpdateId after, std::chrono::nanoseconds at_most) override {
    return log().wait(after, at_most);
  }
  // A log that is not open yet does not say so: wait() opens it.
  bool notifies() const noexcept override {
    const Log* const log = log_.load(std::memory_order_acquire);
    return log != nullptr && log->notifies();
  }
  void read_base(const VisitPart& visit) override { log().read_base(visit); }
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    return log().rewrite(base, base_chain, next_part);
  }
  void check_may_rewrite() override { log().check_may_rewrite(); }
  std::uint64_t store_id() const noexcept override {
    const Log* const log = log_.load(std::memory_order_acquire);
    return log != nullptr ? log->store_id() : 0;
  }
  void release_idle_connections() noexcept override {
    if (Log* const log = log_.load(std::memory_order_acquire)) log->release_idle_connections();
  }
  std::unique_ptr<Log> reopen() override;

 private:
  Log& log();
  std::unique_ptr<Log> open_until(const Deadline& deadline) WHYCACHE_REQUIRES(mutex_);

  const std::string name_;
  const Open open_;
  Log* const fallback_;
  TimedMutex mutex_;
  // Opening continues when a call gives up, so that a later call finds the log open.
  std::optional<BackgroundCall<std::unique_ptr<Log>>> opening_ WHYCACHE_GUARDED_BY(mutex_);
  std::unique_ptr<Log> opened_ WHYCACHE_GUARDED_BY(mutex_);
  // The log that calls are forwarded to; null while none is open. log() stores it once, under the
  // mutex, with a release that each load outside the mutex acquires.
  std::atomic<Log*> log_{nullptr};
};

}  // namespace whycache
