// What every log inherits.
#include <whycache/log.h>

#include "base/call_limit.h"

namespace whycache {

bool Log::wait(UpdateId, std::chrono::nanoseconds at_most) {
  CallLimit::sleep(at_most);
  return false;
}

std::chrono::nanoseconds call_time_left() noexcept { return CallLimit::remaining(); }

}  // namespace whycache
