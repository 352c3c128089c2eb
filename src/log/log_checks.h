// Checks and errors that the logs of this library share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <whycache/error.h>
#include <whycache/types.h>

#include "base/timed_mutex.h"
#include "update/update.h"

namespace whycache {

// Holds the mutex of a log during a call. Throws Error(unavailable) if calls of other threads hold
// it until the deadline.
class WHYCACHE_THREAD_ANNOTATION(scoped_lockable) LogCallLock {
 public:
  LogCallLock(TimedMutex& mutex, const Deadline& deadline, const std::string& log)
      WHYCACHE_ACQUIRE(mutex)
      : mutex_(mutex) {
    if (mutex.try_lock_until(deadline)) return;
    throw Error(ErrorKind::unavailable,
                "log did not answer a call of another thread before the deadline of this one: "
                "log=" +
                    log);
  }
  // Takes over a mutex that this thread has locked.
  explicit LogCallLock(TimedMutex& mutex) WHYCACHE_REQUIRES(mutex) : mutex_(mutex) {}
  LogCallLock(const LogCallLock&) = delete;
  LogCallLock& operator=(const LogCallLock&) = delete;
  ~LogCallLock() WHYCACHE_RELEASE() { mutex_.unlock(); }

 private:
  TimedMutex& mutex_;
};

// Whether to create a log that does not exist, or to fail. Only open_log() knows the third: to
// create it even if the option `create` of its URL is off.
enum class IfMissing { create, fail, create_against_url };

// The greatest id in any log: databases have signed integers.
inline constexpr UpdateId update_id_max = (UpdateId{1} << 63) - 1;

// Throws Error(invalid) unless `id` and `bytes` can be those of an update.
inline void check_update(UpdateId id, std::string_view bytes) {
  if (id == 0 || id > update_id_max) {
    throw Error(ErrorKind::invalid,
                "update id is not between 1 and 2^63 - 1: id=" + std::to_string(id));
  }
  if (bytes.empty()) throw Error(ErrorKind::invalid, "update is empty: id=" + std::to_string(id));
}

inline Error rewrite_beyond_head_error(UpdateId base, UpdateId head) {
  return Error(ErrorKind::invalid, "cannot rewrite history beyond the head of the log: base=" +
                                       std::to_string(base) + " head=" + std::to_string(head));
}

inline Error base_replaced_error(const std::string& log) {
  return Error(ErrorKind::unavailable,
               "base was replaced while it was read (read it again): log=" + log);
}

// Bytes of an update that are enough for check_base_chain().
inline constexpr std::size_t header_peek_bytes = 512;

// Checks the store just before a log switches to a new base. `bytes`: the update at `base`, or its
// first header_peek_bytes. If it is a cache's update, its chain must be `base_chain`. Otherwise the
// store was restored, or is another one since a failover, and the switch would delete updates that
// others have written there. Throws Error(unavailable).
inline void check_base_chain(const std::string& log, UpdateId base, std::string_view bytes,
                             std::uint64_t base_chain) {
  const std::optional<UpdateHeader> header = peek_header(bytes);
  if (!header || header->id != base || header->chain == base_chain) return;
  throw Error(ErrorKind::unavailable,
              "log has another update than the one that the new base ends with, history was not "
              "rewritten (update, then retry): log=" +
                  log + " base=" + std::to_string(base) + " chain=" +
                  std::to_string(header->chain) + " base_chain=" + std::to_string(base_chain));
}

// The store answers, but no longer has the log that was opened.
inline Error log_deleted_error(const std::string& log) {
  return Error(ErrorKind::unavailable, "log was deleted: log=" + log + " (restore it)");
}

// A log that is not to be created does not exist.
class LogMissing : public Error {
 public:
  // `found`: what is in its place.
  LogMissing(const std::string& log, const std::string& found)
      : LogMissing("log does not exist: log=" + log + " found=\"" + found + '"') {}

  // Returns the error for a machine that has a state at `state_path`. It is not `invalid`: with its
  // state, the machine waits for the log to come back.
  Error with_state(const std::string& state_path) const {
    return Error(ErrorKind::unavailable,
                 description_ + " state=" + state_path +
                     " (correct the url; or mount or restore the log, since this machine has a "
                     "state; or, to begin another log, run `whycache init URL` and choose another "
                     "state_path)");
  }

 private:
  explicit LogMissing(std::string description)
      : Error(ErrorKind::invalid,
              description + " (correct the url; `whycache init URL` creates it)"),
        description_(std::move(description)) {}

  std::string description_;
};

inline constexpr std::size_t described_instances_max = 10;
// Describes the place of a log that has only logs of other instances.
inline std::string describe_instances(const std::vector<std::string>& instances) {
  if (instances.empty()) return "no log";
  std::string text = "logs of other instances: ";
  for (std::size_t i = 0; i < std::min(instances.size(), described_instances_max); ++i)
    text += (i == 0 ? "'" : ", '") + instances[i] + '\'';
  return text + (instances.size() > described_instances_max ? ", and others" : "");
}

// The next step of an operator whose log in a database is damaged.
inline constexpr char restore_log_hint[] = " (restore the log from a backup)";

// What an operator does about a log that a newer version has written to.
inline constexpr char upgrade_hint[] =
    " (a newer whycache wrote it: upgrade this machine; in a fleet first all that follow, then all "
    "that write, docs/operations.md)";

// The row of whycache_logs has another format than this version's, or is damaged.
inline Error unknown_log_row_error(const std::string& log, std::uint64_t format,
                                   std::uint64_t known) {
  return Error(ErrorKind::corrupt,
               "row of whycache_logs is not one this version can read: log=" + log +
                   " format=" + std::to_string(format) + " format_known=" + std::to_string(known) +
                   (format > known ? upgrade_hint : ""));
}

inline Error missing_update_error(const std::string& log, UpdateId id, UpdateId head) {
  return Error(ErrorKind::corrupt, "update is missing in the log: log=" + log +
                                       " id=" + std::to_string(id) +
                                       " head=" + std::to_string(head) + restore_log_hint);
}

}  // namespace whycache
