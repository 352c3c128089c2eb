// The messages of failed writes: whether the log has anything of the write.
#pragma once

#include <string>
#include <string_view>

#include <whycache/error.h>

#include "client/session.h"

namespace whycache {

inline constexpr std::string_view nothing_written_text = "nothing was written";

// Whether callers may doubt, after an error of this kind, that nothing was written.
inline bool leaves_doubt(ErrorKind kind) {
  return kind == ErrorKind::limit || kind == ErrorKind::unavailable;
}

// Makes the message of an error that leaves doubt say that the log has nothing of the write. For
// errors from before the write was sent to the log.
template <typename AnyError>
AnyError with_nothing_written(const AnyError& error) {
  const std::string message = error.what();
  if (!leaves_doubt(error.kind()) || message.find(nothing_written_text) != std::string::npos)
    return error;
  const std::string text = std::string(nothing_written_text) + ": " + message;
  if constexpr (requires { error.gave_up(); }) {
    return AnyError(error.kind(), text, error.system_error(), error.gave_up());
  } else {
    return AnyError(error.kind(), text, error.system_error());
  }
}

// Calls what comes before a write. Errors that leave no doubt pass through unchanged.
template <typename Call>
auto before_write(const Call& call) {
  try {
    return call();
  } catch (const LogError& error) {
    throw LogError(with_nothing_written(error));
  } catch (const Error& error) {
    if (!leaves_doubt(error.kind())) throw;
    throw Error(with_nothing_written(error));
  }
}

// Returns the message of an error of one update, for a write of which earlier updates are in the
// log.
inline std::string message_of_later_update(const Error& error) {
  constexpr std::string_view of_this_update = "nothing of this update was written";
  std::string message = error.what();
  for (std::size_t at = 0; (at = message.find(nothing_written_text, at)) != std::string::npos;
       at += of_this_update.size())
    message.replace(at, nothing_written_text.size(), of_this_update);
  return message;
}

}  // namespace whycache
