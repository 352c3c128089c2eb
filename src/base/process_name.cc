#include "base/process_name.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace whycache {
namespace {

constexpr std::size_t user_bytes_max = 64;
constexpr std::size_t program_bytes_max = 80;
constexpr std::size_t host_bytes_max = 64;       // HOST_NAME_MAX of Linux
constexpr std::size_t file_bytes_max = 1 << 20;  // a larger one is read up to here

// Returns the start of the file, or as much as can be read.
std::string read_users() {
  std::string text;
  const int descriptor = ::open("/etc/passwd", O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) return text;
  std::array<char, 4096> chunk;
  while (text.size() < file_bytes_max) {
    const ssize_t got = ::read(descriptor, chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(chunk.data(), static_cast<std::size_t>(got));
  }
  ::close(descriptor);
  return text;
}

}  // namespace

std::string user_name() {
  std::string number = std::to_string(::geteuid());
  const std::string users = read_users();
  // A line is NAME:PASSWORD:NUMBER:...
  for (std::size_t begin = 0; begin < users.size();) {
    const std::size_t end = std::min(users.find('\n', begin), users.size());
    const std::string_view line = std::string_view(users).substr(begin, end - begin);
    begin = end + 1;
    const std::size_t name_end = line.find(':');
    if (name_end == std::string_view::npos || name_end == 0) continue;
    const std::size_t password_end = line.find(':', name_end + 1);
    if (password_end == std::string_view::npos) continue;
    const std::string_view rest = line.substr(password_end + 1);
    if (rest.substr(0, rest.find(':')) == number)
      return std::string(line.substr(0, std::min(name_end, user_bytes_max)));
  }
  return number;
}

std::string program_name() {
  return program_invocation_short_name != nullptr ? program_invocation_short_name : "";
}

std::string describe_this_process(std::string_view program) {
  std::array<char, host_bytes_max + 1> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '\0';
  std::string text = user_name() + '@' + host.data() + ':' + std::to_string(::getpid());
  if (!program.empty()) text.append(" (").append(program.substr(0, program_bytes_max)).append(")");
  return text;
}

}  // namespace whycache
