// Appends updates to the log, and then makes them visible on this machine by applying them.
//
//   take StateLock::append        so that processes of one machine do not race to the log
//     follow the log if this machine has not read it within the last 100 ms
//     seal the draft for id n+1   n: the applied id; the chain ties the update to all before it
//     log: insert n+1 if absent
//       appended   apply it (unless a follower already did), and return n+1
//       taken      follow the log, and try the next id
//       no answer  read n+1 back: our bytes: appended. Other bytes: taken. Nothing: insert again
//
// A failed append may still be under way. While one is in doubt, the appender repeats the same
// bytes at the same id and tries nothing else. A late arrival then finds its id taken, and the
// update is in the log once. (docs/decisions/idempotent-append.md)
#pragma once

#include <cerrno>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/error.h>

#include "base/backoff.h"
#include "client/log_page.h"
#include "client/session.h"

namespace whycache {

// Has no state of its own; safe from any number of threads.
class Appender {
 public:
  explicit Appender(Session& session) : session_(session) {}

  // Takes StateLock::append. Then follows the log, unless some process of this machine read it just
  // now. Throws Error(unavailable) if the deadline passes first. Otherwise throws as follow().
  HeldLock lock_and_follow(Backoff& backoff);

  // Throws Error if the draft may not follow the state that the view shows.
  using Check = std::function<void(const View& view)>;
  // Appends the draft at the first free id and applies it. Returns the id. The caller holds the
  // lock of lock_and_follow(). If there is a check and the log has guards, runs it before each
  // attempt.
  //
  // Throws Error(unavailable): nothing was written. Throws Error(uncertain): the update may or may
  // not be in the log, or is there but could not be applied; the message says which. Throws
  // Error(limit) or Error(invalid) if the log refuses the update, Error(corrupt) if the log or its
  // history is damaged; then nothing was written.
  UpdateId append(Draft& draft, Backoff& backoff, const Check& check = {});

  // Makes a draft from the state that the pin shows; returns nullopt if nothing is to be written.
  using Prepare =
      std::function<std::optional<Draft>(const std::shared_ptr<const detail::Pin>& pin)>;
  // Appends the draft that `prepare` makes as the very next update after the state it read. If
  // another writer takes that id first, calls `prepare` again on the new state. Takes the lock
  // itself. Returns the position of the update, or nullopt if `prepare` had nothing to write.
  // Calls `before_read` each time before it pins the state. Errors as append().
  std::optional<LogPosition> append_prepared(const Prepare& prepare, Backoff& backoff,
                                             const std::function<void()>& before_read = {});

  // The outcome of a write that runs out of memory once it may be in the log. It is made in
  // advance, because throwing a copy takes no memory.
  const Error& memory_ran_out() const { return memory_ran_out_; }

 private:
  enum class ReadBackResult { absent, ours, other_update, other_log };

  bool try_append(const LogPosition& position, Draft& draft, Backoff& backoff);
  bool append_and_resolve(const LogPosition& position, std::string_view bytes, Backoff& backoff);
  ReadBackResult read_back(const LogPosition& position, std::string_view bytes,
                           const Deadline& deadline, std::string& why);
  void apply_appended(const LogPosition& position, const Update& update, const Deadline& deadline);
  bool apply_if_next(const LogPosition& position, const Update& update, const Deadline& deadline);

  Session& session_;
  const Error memory_ran_out_{ErrorKind::uncertain,
                              "memory ran out during a write, which may or may not be in the log, "
                              "in full or in part (update(), then look)",
                              ENOMEM};
};

}  // namespace whycache
