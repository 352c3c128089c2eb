// The progress of long work, on standard error: a bar that is redrawn if that is a terminal, else a
// plain line every ten seconds.
//
//   importing [=========>          ] 45%  28.1 MiB of 62.0 MiB  61,002 items/s  0:03 left
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace whycache::cli {

class Progress {
 public:
  enum class Unit { bytes, count };

  // A `total` of 0 means unknown. If `quiet`, nothing is shown.
  Progress(std::string work, std::uint64_t total, Unit unit, bool quiet);
  // Removes the bar.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Cheap enough to call for every item. The rate counts `items`, by default `done`.
  void update(std::uint64_t done, std::uint64_t items);
  void update(std::uint64_t done) { update(done, done); }
  void set_total(std::uint64_t total) { total_ = total; }
  // Removes the bar before other output to standard error; the next update() redraws it.
  void hide();

 private:
  using Clock = std::chrono::steady_clock;

  void show(Clock::time_point now);
  std::string format_line(Clock::time_point now, std::size_t columns) const;

  std::string work_;
  std::uint64_t total_;
  Unit unit_;
  bool quiet_;
  bool terminal_;
  bool shown_ = false;
  std::uint64_t done_ = 0;
  std::uint64_t items_ = 0;
  std::uint32_t calls_until_clock_read_ = 0;
  Clock::time_point begin_time_ = Clock::now();
  Clock::time_point next_show_time_ = begin_time_;
};

}  // namespace whycache::cli
