#include "log/lazy_log.h"

#include <utility>

#include "base/url.h"
#include "log/log_name.h"
#include "log/open_log.h"

namespace whycache {

std::unique_ptr<Log> open_log_or_late(std::string_view url, std::chrono::milliseconds deadline) {
  try {
    return open_log(url, deadline);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::unavailable) throw;
    return std::make_unique<LateLog>(log_name(Url(url)),
                                     [url = std::string(url), deadline] { return open_log(url, deadline); });
  }
}

std::unique_ptr<Log> reopen_late(Log& of_parent) {
  return std::make_unique<LateLog>(
      of_parent.name(), [&of_parent] { return of_parent.reopen(); }, &of_parent);
}

LateLog::LateLog(std::string name, Open open, Log* otherwise)
    : name_(std::move(name)), open_(std::move(open)), otherwise_(otherwise) {}

Log& LateLog::log() {
  if (Log* const log = log_.load(std::memory_order_acquire)) return *log;
  const std::lock_guard guard(mutex_);
  if (Log* const log = log_.load(std::memory_order_relaxed)) return *log;
  opened_ = open_();
  Log* const log = opened_ ? opened_.get() : otherwise_;
  if (log == nullptr) throw Error(ErrorKind::unavailable, "log cannot be opened: log=" + name_);
  log_.store(log, std::memory_order_release);
  return *log;
}

// The mutex may be locked by a thread of the parent, so it is left alone.
std::unique_ptr<Log> LateLog::reopen() {
  Log* const log = log_.load(std::memory_order_acquire);
  if (log == nullptr) return std::make_unique<LateLog>(name_, open_, otherwise_);
  return log->reopen();
}

}  // namespace whycache
