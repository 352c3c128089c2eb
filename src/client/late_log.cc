#include "client/late_log.h"

#include "base/url.h"
#include "log/log_name.h"

namespace whycache {

std::unique_ptr<Log> open_log_or_late(std::string_view url) {
  try {
    return open_log(url);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::unavailable) throw;
    return std::make_unique<LateLog>(std::string(url));
  }
}

LateLog::LateLog(std::string url) : url_(std::move(url)), name_(log_name(Url(url_))) {}

Log& LateLog::log() {
  if (Log* const log = log_.load(std::memory_order_acquire)) return *log;
  const std::lock_guard guard(mutex_);
  if (!opened_) opened_ = open_log(url_);
  log_.store(opened_.get(), std::memory_order_release);
  return *opened_;
}

// The mutex may be locked by a thread of the parent, so it is left alone.
std::unique_ptr<Log> LateLog::reopen() {
  Log* const log = log_.load(std::memory_order_acquire);
  if (log == nullptr) return std::make_unique<LateLog>(url_);
  return log->reopen();
}

}  // namespace whycache
