// What the message of a failed write says about the log.
#pragma once

#include <string>
#include <string_view>

#include <whycache/error.h>

#include "client/session.h"

namespace whycache {

inline constexpr std::string_view nothing_written_text = "nothing was written";

// Makes the message of an error of these kinds say that the log has nothing of the write: callers
// may doubt it. For errors from before the write was sent to the log.
template <typename AnyError>
AnyError with_nothing_written(const AnyError& error) {
  const std::string message = error.what();
  if ((error.kind() != ErrorKind::limit && error.kind() != ErrorKind::unavailable) ||
      message.find(nothing_written_text) != std::string::npos)
    return error;
  const std::string text = std::string(nothing_written_text) + ": " + message;
  if constexpr (requires { error.gave_up(); }) {
    return AnyError(error.kind(), text, error.system_error(), error.gave_up());
  } else {
    return AnyError(error.kind(), text, error.system_error());
  }
}

// Calls what comes before a write.
template <typename Call>
auto before_write(const Call& call) {
  try {
    return call();
  } catch (const LogError& error) {
    throw LogError(with_nothing_written(error));
  } catch (const Error& error) {
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
