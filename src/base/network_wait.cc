#include "base/network_wait.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdio>
#include <iterator>
#include <system_error>

namespace whycache {
namespace {

constexpr long waiting_calls[] = {
#ifdef SYS_poll  // some processors have only the newer calls
    SYS_poll,    SYS_select,
#endif
    SYS_ppoll,   SYS_pselect6, SYS_connect, SYS_recvfrom,
    SYS_recvmsg, SYS_sendto,   SYS_sendmsg, SYS_epoll_pwait};

// These wait for the network if their descriptor is a socket. TLS libraries use them.
constexpr long waiting_calls_on_sockets[] = {SYS_read, SYS_readv, SYS_write, SYS_writev};

template <std::size_t n>
bool contains(const long (&calls)[n], long call) {
  return std::find(std::begin(calls), std::end(calls), call) != std::end(calls);
}

bool is_socket(int descriptor) {
  struct stat status;
  return ::fstat(descriptor, &status) == 0 && S_ISSOCK(status.st_mode);
}

}  // namespace

bool waits_for_network(pid_t thread) noexcept {
  // The file begins with the number of the system call in which the thread sleeps, and its
  // arguments in hexadecimal: "0 0x3 ...". Or it says "running".
  std::array<char, 64> path;
  std::snprintf(path.data(), path.size(), "/proc/self/task/%d/syscall", static_cast<int>(thread));
  const int file = ::open(path.data(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  std::array<char, 256> text;
  const ssize_t bytes = ::read(file, text.data(), text.size());
  ::close(file);
  if (bytes <= 0) return false;
  const char* const end = text.data() + bytes;
  long call = 0;
  const auto [call_end, failure] = std::from_chars(text.data(), end, call);
  if (failure != std::errc()) return false;
  if (contains(waiting_calls, call)) return true;
  constexpr std::ptrdiff_t separator_bytes = 3;  // " 0x"
  if (!contains(waiting_calls_on_sockets, call) || end - call_end <= separator_bytes) return false;
  unsigned long descriptor = 0;
  return std::from_chars(call_end + separator_bytes, end, descriptor, 16).ec == std::errc() &&
         is_socket(static_cast<int>(descriptor));
}

}  // namespace whycache
