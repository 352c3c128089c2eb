// Decides when a failure that lasts is reported: once when it begins, then at intervals that double
// from a minute to an hour. A short recovery does not begin all over: a failure that comes and goes
// many times a second is reported every few seconds at most.
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>

namespace whycache {

// Not thread-safe.
class Outage {
 public:
  using Clock = std::chrono::steady_clock;

  static constexpr std::chrono::seconds first_interval{60};
  static constexpr std::chrono::hours longest_interval{1};
  // The shortest time between the reports of two outages.
  static constexpr std::chrono::seconds shortest_interval{10};

  // Records a failure. Returns how long the outage has lasted, if it is to be reported now: 0 for
  // the first failure.
  std::optional<std::chrono::nanoseconds> note_failure(Clock::time_point now = Clock::now()) {
    if (!began_at_) began_at_ = now;
    if (now < next_report_at_) return std::nullopt;
    if (is_reported_) {
      interval_ = std::min<std::chrono::seconds>(interval_ * 2, longest_interval);
    } else {
      is_reported_ = true;
      interval_ = first_interval;
    }
    next_report_at_ = now + interval_;
    not_before_ = now + shortest_interval;
    return now - *began_at_;
  }

  // Records a success. Returns how long the outage had lasted, if one was reported and has ended.
  std::optional<std::chrono::nanoseconds> note_success(Clock::time_point now = Clock::now()) {
    if (!began_at_) return std::nullopt;
    const std::chrono::nanoseconds lasted = now - *began_at_;
    const bool was_reported = is_reported_;
    began_at_.reset();
    is_reported_ = false;
    next_report_at_ = not_before_;
    return was_reported ? std::optional(lasted) : std::nullopt;
  }

  bool is_under_way() const { return began_at_.has_value(); }
  bool is_reported() const { return is_reported_; }

 private:
  std::optional<Clock::time_point> began_at_;
  bool is_reported_ = false;
  std::chrono::seconds interval_ = first_interval;
  Clock::time_point next_report_at_ = Clock::time_point::min();
  Clock::time_point not_before_ = Clock::time_point::min();
};

}  // namespace whycache
