// A log that forwards to another one and injects failures, delays and lost answers, as a network
// does. A seed determines the faults.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>

#include <whycache/log.h>

#include "forwarding_log.h"

namespace whycache {

// Percentage of calls with each fault.
struct FaultRates {
  unsigned lost_append = 10;   // not executed: Error(unavailable)
  unsigned lost_answer = 10;   // executed: Error(uncertain)
  unsigned lost_read = 5;      // Error(unavailable), maybe after some rows
  unsigned lost_rewrite = 30;  // not, partly or fully executed: Error(unavailable or uncertain)
  std::chrono::microseconds delay_max{300};
};

class FlakyLog final : public testing::ForwardingLog {
 public:
  FlakyLog(std::unique_ptr<Log> log, std::uint64_t seed, FaultRates faults = {})
      : ForwardingLog(std::move(log)), faults_(faults), random_(seed) {}

  std::string name() const override { return "flaky " + target().name(); }

  Extent extent() override {
    delay();
    fail_if(faults_.lost_read);
    return target().extent();
  }

  Appended append(UpdateId id, std::string_view bytes) override {
    delay();
    fail_if(faults_.lost_append);
    const Appended appended = target().append(id, bytes);
    delay();
    forget_if(faults_.lost_answer);
    return appended;
  }

  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    delay();
    const bool fails = chance(faults_.lost_read);
    std::uint64_t rows_left = random_up_to(20);
    const Extent extent = target().read(first, last, [&](UpdateId id, std::string_view bytes) {
      if (fails && rows_left-- == 0) throw injected_error();
      return visit(id, bytes);
    });
    if (fails) throw injected_error();
    return extent;
  }

  void read_base(const VisitPart& visit) override {
    delay();
    const bool fails = chance(faults_.lost_read);
    std::uint64_t parts_left = random_up_to(3);
    target().read_base([&](std::string_view part) {
      if (fails && parts_left-- == 0) throw injected_error();
      return visit(part);
    });
    if (fails) throw injected_error();
  }

  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    delay();
    const bool breaks = chance(faults_.lost_rewrite);
    std::uint64_t parts_left = random_up_to(10);
    const bool switched =
        target().rewrite(base, base_chain, [&]() -> std::optional<std::string_view> {
          if (breaks && parts_left-- == 0) throw injected_error();
          return next_part();
        });
    forget_if(faults_.lost_answer);
    return switched;
  }

  std::unique_ptr<Log> reopen() override {
    std::unique_ptr<Log> log = target().reopen();
    if (!log) return nullptr;
    return std::make_unique<FlakyLog>(std::move(log), random_up_to(UINT64_MAX - 1), faults_);
  }

 private:
  static Error injected_error() {
    return Error(ErrorKind::unavailable, "flaky log: nothing was executed");
  }

  void fail_if(unsigned percent) {
    if (chance(percent)) throw injected_error();
  }
  void forget_if(unsigned percent) {
    if (chance(percent)) throw Error(ErrorKind::uncertain, "flaky log: the answer was lost");
  }
  void delay() {
    if (chance(50))
      std::this_thread::sleep_for(std::chrono::microseconds(
          random_up_to(static_cast<std::uint64_t>(faults_.delay_max.count()))));
  }
  bool chance(unsigned percent) { return random_up_to(99) < percent; }
  std::uint64_t random_up_to(std::uint64_t greatest) {
    const std::lock_guard guard(mutex_);
    return std::uniform_int_distribution<std::uint64_t>(0, greatest)(random_);
  }

  FaultRates faults_;
  std::mutex mutex_;
  std::mt19937_64 random_;
};

}  // namespace whycache
