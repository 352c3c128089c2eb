#include "log/lazy_log.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/call_limit.h"
#include "base/url.h"
#include "log/log_checks.h"
#include "log/log_name.h"

namespace whycache {

namespace {

// Every log gives up earlier by itself.
constexpr std::chrono::milliseconds opening_time_max{3'600'000};
// The opening usually has the deadline of its caller. It gets a little longer to report what it has
// waited for, such as the process that holds a lock.
constexpr std::chrono::milliseconds grace_max{100};

}  // namespace

std::unique_ptr<Log> open_log_lazily(
    std::string_view url, std::chrono::milliseconds deadline,
    const std::function<std::unique_ptr<Log>(const LogOpener&)>& open) {
  LogOpener opener = parse_log_url(url, deadline);
  const Url parsed(url);
  if (parsed.scheme() == "memory") return opener(IfMissing::create);
  return std::make_unique<LazyLog>(log_name(parsed), [opener = std::move(opener), open] {
    return open ? open(opener) : opener(IfMissing::create);
  });
}

std::unique_ptr<Log> reopen_lazily(Log& parent_log) {
  return std::make_unique<LazyLog>(
      parent_log.name(), [&parent_log] { return parent_log.reopen(); }, &parent_log);
}

LazyLog::LazyLog(std::string name, Open open, Log* fallback)
    : name_(std::move(name)), open_(std::move(open)), fallback_(fallback) {}

Log& LazyLog::log() {
  if (Log* const log = log_.load(std::memory_order_acquire)) return *log;
  const Deadline deadline = CallLimit::deadline(opening_time_max);
  const LogCallLock lock(mutex_, deadline, name_);
  if (Log* const log = log_.load(std::memory_order_relaxed)) return *log;
  opened_ = open_until(deadline);
  Log* const log = opened_ ? opened_.get() : fallback_;
  if (log == nullptr) throw Error(ErrorKind::unavailable, "log cannot be opened: log=" + name_);
  log_.store(log, std::memory_order_release);
  return *log;
}

std::unique_ptr<Log> LazyLog::open_until(const Deadline& deadline) {
  if (!opening_) opening_.emplace(open_);
  const std::chrono::nanoseconds grace =
      std::min<std::chrono::nanoseconds>(deadline.remaining() / 20, grace_max);
  std::optional<std::unique_ptr<Log>> opened;
  try {
    opened = opening_->wait(deadline);
    if (!opened) {
      opened = opening_->wait(
          Deadline(std::chrono::ceil<std::chrono::milliseconds>(grace), deadline.stop()));
    }
  } catch (...) {
    opening_.reset();
    throw;
  }
  if (!opened) {
    throw Error(ErrorKind::unavailable,
                "log could not be opened before the deadline: log=" + name_);
  }
  opening_.reset();
  return std::move(*opened);
}

// Does not lock the mutex: in a child, a thread of the parent may hold it.
std::unique_ptr<Log> LazyLog::reopen() {
  Log* const log = log_.load(std::memory_order_acquire);
  if (log == nullptr) return std::make_unique<LazyLog>(name_, open_, fallback_);
  return log->reopen();
}

}  // namespace whycache
