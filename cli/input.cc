#include "cli/input.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "cli/exit_code.h"

namespace whycache::cli {
namespace {

constexpr std::size_t read_chunk_bytes = 256 << 10;

[[noreturn]] void refuse_input(const char* problem, const std::string& name, int error) {
  const bool forbidden = error == EACCES || error == EPERM;
  throw Failure(forbidden ? ExitCode::permission : ExitCode::usage,
                fmt::format("{}: path={} reason=\"{}\"", problem, name,
                            std::system_category().message(error)),
                forbidden ? "correct the permissions of the file"
                          : "name a readable file, or - for standard input");
}

}  // namespace

Input::Input(const std::string& name) {
  if (name == "-") {
    name_ = "standard input";
    descriptor_ = STDIN_FILENO;
  } else {
    name_ = name;
    descriptor_ = ::open(name.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) refuse_input("cannot open input", name_, errno);
  }
  struct stat status;
  if (::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode)) {
    const off_t at = ::lseek(descriptor_, 0, SEEK_CUR);
    if (at >= 0 && at < status.st_size)
      bytes_total_ = static_cast<std::uint64_t>(status.st_size - at);
  }
}

Input::~Input() {
  if (descriptor_ > STDIN_FILENO) ::close(descriptor_);
}

bool Input::fill_buffer() {
  if (at_end_) return false;
  buffer_.erase(0, begin_);
  begin_ = 0;
  const std::size_t size = buffer_.size();
  buffer_.resize(size + read_chunk_bytes);
  ssize_t read_bytes;
  do {
    read_bytes = ::read(descriptor_, buffer_.data() + size, read_chunk_bytes);
  } while (read_bytes < 0 && errno == EINTR);
  const int error = errno;
  buffer_.resize(size + static_cast<std::size_t>(read_bytes > 0 ? read_bytes : 0));
  if (read_bytes < 0) refuse_input("cannot read input", name_, error);
  at_end_ = read_bytes == 0;
  return !at_end_;
}

bool Input::read_record(char separator, std::size_t bytes_max, std::string_view& record) {
  std::size_t searched = 0;
  for (;;) {
    const std::string_view unread = std::string_view(buffer_).substr(begin_);
    const std::size_t at = unread.find(separator, searched);
    const bool complete = at != std::string_view::npos;
    if ((complete ? at : unread.size()) > bytes_max) {
      throw Failure(ExitCode::usage,
                    fmt::format("bad input: path={} line={} reason=\"longer than {} bytes\"", name_,
                                records_read_ + 1, bytes_max),
                    separator == '\n' ? "correct it" : "correct it; each zero byte ends a line");
    }
    if (complete || (at_end_ && !unread.empty())) {
      record = unread.substr(0, at);
      const std::size_t taken = record.size() + (complete ? 1 : 0);
      begin_ += taken;
      bytes_read_ += taken;
      ++records_read_;
      return true;
    }
    if (at_end_) return false;
    searched = unread.size();
    fill_buffer();
  }
}

std::string Input::read_rest(std::size_t bytes_max) {
  while (buffer_.size() - begin_ <= bytes_max && fill_buffer()) {
  }
  if (buffer_.size() - begin_ > bytes_max) {
    throw Failure(
        ExitCode::limit,
        fmt::format("input is longer than a value can be: path={} bytes_max={}", name_, bytes_max),
        "split it into several values");
  }
  std::string bytes = buffer_.substr(begin_);
  bytes_read_ += bytes.size();
  begin_ = buffer_.size();
  return bytes;
}

}  // namespace whycache::cli
