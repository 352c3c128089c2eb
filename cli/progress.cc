#include "cli/progress.h"
#include "cli/format.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace whycache::cli {
namespace {

constexpr std::chrono::milliseconds redraw_interval{100};
constexpr std::chrono::seconds line_interval{10};
constexpr std::size_t bar_columns = 24;

void write_to_stderr(const std::string& text) {
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

bool can_redraw() {
  const char* terminal = std::getenv("TERM");
  return ::isatty(STDERR_FILENO) != 0 && terminal != nullptr && std::strcmp(terminal, "dumb") != 0;
}

std::size_t terminal_columns() {
  struct winsize size = {};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

}  // namespace

Progress::Progress(std::string work, std::uint64_t total, Unit unit, bool quiet)
    : work_(std::move(work)), total_(total), unit_(unit), quiet_(quiet), terminal_(can_redraw()) {
  if (!terminal_) next_show_time_ = begin_time_ + line_interval;
}

Progress::~Progress() { hide(); }

void Progress::hide() {
  if (shown_) write_to_stderr("\r\x1b[K");
  shown_ = false;
}

void Progress::update(std::uint64_t done, std::uint64_t items) {
  done_ = done;
  items_ = items;
  if (quiet_ || calls_until_clock_read_-- > 0) return;
  calls_until_clock_read_ = 15;
  const Clock::time_point now = Clock::now();
  if (now >= next_show_time_) show(now);
}

void Progress::show(Clock::time_point now) {
  if (terminal_) {
    write_to_stderr("\r" + format_line(now, terminal_columns() - 1) + "\x1b[K");
    shown_ = true;
    next_show_time_ = now + redraw_interval;
  } else {
    write_to_stderr("whycache: " + format_line(now, std::string::npos) + "\n");
    next_show_time_ = now + line_interval;
  }
}

std::string Progress::format_line(Clock::time_point now, std::size_t columns) const {
  const auto amount = [&](std::uint64_t number) {
    return unit_ == Unit::bytes ? format_bytes(number) : format_with_commas(number);
  };
  const double seconds = std::max(std::chrono::duration<double>(now - begin_time_).count(), 1e-3);
  const double rate = static_cast<double>(items_) / seconds;

  std::string text = work_;
  if (total_ > 0) {
    const double share = std::min(static_cast<double>(done_) / static_cast<double>(total_), 1.0);
    if (terminal_) {
      const auto filled = static_cast<std::size_t>(share * bar_columns);
      std::string bar(filled, '=');
      if (filled < bar_columns) bar += '>';
      bar.resize(bar_columns, ' ');
      text += " [" + bar + "]";
    }
    text += fmt::format(" {:.0f}%  {} of {}", share * 100, amount(done_), amount(total_));
    text += fmt::format("  {}/s", format_with_commas(static_cast<std::uint64_t>(rate)));
    if (share > 0.01) {
      const auto left = static_cast<std::uint64_t>(std::llround(seconds / share * (1 - share)));
      text += fmt::format("  {}:{:02} left", left / 60, left % 60);
    }
  } else {
    text += fmt::format(" {}  {}/s", amount(done_),
                        format_with_commas(static_cast<std::uint64_t>(rate)));
  }
  return text.substr(0, columns);
}

}  // namespace whycache::cli
