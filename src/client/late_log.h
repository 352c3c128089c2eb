// A log that is away when the cache is opened, and is opened when it is back: until then each call tries, and fails
// with what kept it from being opened. So a machine that has a state serves reads although its log is down.
#pragma once

#include <whycache/log.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

namespace whycache {

// The log a URL names, or a late one if it is unavailable. Throws Error of other kinds.
std::unique_ptr<Log> open_log_or_late(std::string_view url);

class LateLog final : public Log {
 public:
  explicit LateLog(std::string url);

  std::string name() const override { return name_; }
  Extent extent() override { return log().extent(); }
  Appended append(UpdateId id, std::string_view bytes) override { return log().append(id, bytes); }
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    return log().read(first, last, visit);
  }
  Looked look(UpdateId first, std::optional<std::chrono::nanoseconds> age_max, const VisitUpdate& visit) override {
    return log().look(first, age_max, visit);
  }
  void read_base(const VisitPart& visit) override { log().read_base(visit); }
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    return log().rewrite(base, base_chain, next_part);
  }
  void rest() noexcept override {
    if (Log* const log = log_.load(std::memory_order_acquire)) log->rest();
  }
  std::unique_ptr<Log> reopen() override;

 private:
  Log& log();

  const std::string url_;
  const std::string name_;
  std::mutex mutex_;
  std::unique_ptr<Log> opened_;     // under the mutex
  std::atomic<Log*> log_{nullptr};  // `opened_`, for who need not wait; release, acquired by all
};

}  // namespace whycache
