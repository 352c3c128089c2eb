// A log that is opened when it is first needed: one that was away when the cache was opened, so
// that a machine that has a state serves reads although its log is down; and in a forked child the
// one it shares with nobody, for which it waits as for any log that is away. While it cannot be
// opened each call tries, and fails with what kept it from that.
#pragma once

#include <whycache/log.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/mutex.h"

namespace whycache {

// The log a URL names, or a late one if it is unavailable. Throws Error of other kinds. `deadline`:
// how long the log itself may wait, if the URL does not say.
std::unique_ptr<Log> open_log_or_defer(std::string_view url, std::chrono::milliseconds deadline);
// For a child: what `of_parent` reopens to, when it is needed. That has to stay.
std::unique_ptr<Log> reopen_lazily(Log& parent_log);

class LazyLog final : public Log {
 public:
  // Returns the log; nullptr: `otherwise` is as good.
  using Open = std::function<std::unique_ptr<Log>()>;
  LazyLog(std::string name, Open open, Log* fallback = nullptr);

  std::string name() const override { return name_; }
  Extent extent() override { return log().extent(); }
  Appended append(UpdateId id, std::string_view bytes) override { return log().append(id, bytes); }
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    return log().read(first, last, visit);
  }
  PollResult poll(UpdateId first, std::optional<std::chrono::nanoseconds> age_max,
                  const VisitUpdate& visit) override {
    return log().poll(first, age_max, visit);
  }
  void read_base(const VisitPart& visit) override { log().read_base(visit); }
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    return log().rewrite(base, base_chain, next_part);
  }
  void release_idle_connections() noexcept override {
    if (Log* const log = log_.load(std::memory_order_acquire)) log->release_idle_connections();
  }
  std::unique_ptr<Log> reopen() override;

 private:
  Log& log();

  const std::string name_;
  const Open open_;
  Log* const fallback_;
  Mutex mutex_;
  std::unique_ptr<Log> opened_ WHYCACHE_GUARDED_BY(mutex_);
  // The log that calls are forwarded to; null while none is open. log() stores it once, under the
  // mutex, with a release that each load outside the mutex acquires.
  std::atomic<Log*> log_{nullptr};
};

}  // namespace whycache
