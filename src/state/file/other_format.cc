#include "state/file/other_format.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "state/file/header.h"
#include "state/file/layout.h"

namespace whycache {

// The header of a state is one of every format: magic, format, byte order and checksum have their
// places for good.
std::optional<std::uint16_t> find_other_format(const std::string& path) {
  const FileDescriptor file(open_at_path(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW));
  struct stat status;
  HeaderFixed fixed;
  const bool is_other = file && ::fstat(file.number(), &status) == 0 && S_ISREG(status.st_mode) &&
                        bears_state_magic(file.number()) &&
                        ::pread(file.number(), &fixed, sizeof fixed, 0) == ssize_t{sizeof fixed} &&
                        fixed.checksum == fixed.expected_checksum() &&
                        fixed.byte_order == byte_order_mark &&
                        fixed.format_major != state_format_major;
  if (!is_other) return std::nullopt;
  return fixed.format_major;
}

std::string format_suffix() { return ".f" + std::to_string(state_format_major); }

std::optional<std::string> find_state_of_other_format(const std::string& path) {
  const std::string suffix = format_suffix();
  if (!path.ends_with(suffix)) return std::nullopt;
  const std::string other = path.substr(0, path.size() - suffix.size());
  const std::optional<std::uint16_t> format = find_other_format(other);
  if (!format) return std::nullopt;
  return "the state has another format, and is left to the version that made it: path=" + other +
         " found=" + std::to_string(*format) + " known=" + std::to_string(state_format_major) +
         " own_path=" + path;
}

}  // namespace whycache
