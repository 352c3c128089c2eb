#include "base/network_wait.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <iterator>

namespace whycache {
namespace {

constexpr long waiting_calls[] = {
#ifdef SYS_poll  // some processors have only the newer calls
    SYS_poll,    SYS_select,
#endif
    SYS_ppoll,   SYS_pselect6, SYS_connect, SYS_recvfrom,
    SYS_recvmsg, SYS_sendto,   SYS_sendmsg, SYS_epoll_pwait};

}  // namespace

bool waits_for_network(pid_t thread) noexcept {
  // The file begins with the number of the system call in which the thread sleeps, or "running".
  std::array<char, 64> path;
  std::snprintf(path.data(), path.size(), "/proc/self/task/%d/syscall", static_cast<int>(thread));
  const int file = ::open(path.data(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  std::array<char, 256> text;
  const ssize_t bytes = ::read(file, text.data(), text.size());
  ::close(file);
  long call = 0;
  if (bytes <= 0 || std::from_chars(text.data(), text.data() + bytes, call).ec != std::errc())
    return false;
  return std::find(std::begin(waiting_calls), std::end(waiting_calls), call) !=
         std::end(waiting_calls);
}

}  // namespace whycache
