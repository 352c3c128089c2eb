#include "cli/input.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
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
    if (at >= 0) {
      is_seekable_ = true;
      position_ = static_cast<std::uint64_t>(at);
      if (at < status.st_size) bytes_total_ = static_cast<std::uint64_t>(status.st_size - at);
    }
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
  position_ += static_cast<std::uint64_t>(read_bytes);
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

std::string_view Input::peek(std::size_t bytes_max) {
  while (buffer_.size() - begin_ < bytes_max && fill_buffer()) {
  }
  return std::string_view(buffer_).substr(begin_, bytes_max);
}

void Input::hold() {
  if (is_seekable_) return;
  const char* const directory = std::getenv("TMPDIR");
  const std::string path = directory != nullptr && *directory != '\0' ? directory : "/tmp";
  const auto refuse = [&](int error) {
    const bool is_full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    throw Failure(is_full ? ExitCode::limit : ExitCode::usage,
                  fmt::format("cannot hold the input in a temporary file, to read it twice: "
                              "directory={} reason=\"{}\"",
                              path, std::system_category().message(error)),
                  "name another directory in TMPDIR, or give the input as a file");
  };
  std::string name = path + "/whycache-input-XXXXXX";
  const int file = ::mkostemp(name.data(), O_CLOEXEC);
  if (file < 0) refuse(errno);
  ::unlink(name.c_str());
  try {
    std::uint64_t size = 0;
    do {
      for (std::string_view rest = std::string_view(buffer_).substr(begin_); !rest.empty();) {
        const ssize_t written = ::write(file, rest.data(), rest.size());
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) refuse(errno);
        rest.remove_prefix(static_cast<std::size_t>(written));
        size += static_cast<std::uint64_t>(written);
      }
      begin_ = buffer_.size();
    } while (fill_buffer());
    bytes_total_ = bytes_read_ + size;
  } catch (...) {
    ::close(file);
    throw;
  }
  if (descriptor_ > STDIN_FILENO) ::close(descriptor_);
  descriptor_ = file;
  is_seekable_ = true;
  const std::uint64_t bytes_read = bytes_read_;
  seek(0);
  bytes_read_ = bytes_read;
}

void Input::seek(std::uint64_t position) {
  if (::lseek(descriptor_, static_cast<off_t>(position), SEEK_SET) < 0)
    refuse_input("cannot read input", name_, errno);
  bytes_read_ += position - this->position();  // modulo 2^64, if it goes back
  buffer_.clear();
  begin_ = 0;
  at_end_ = false;
  position_ = position;
}

bool Input::contains(std::string_view bytes) {
  const std::uint64_t start = position();
  const std::uint64_t bytes_read = bytes_read_;
  std::string window;
  bool found = false;
  do {
    window += std::string_view(buffer_).substr(begin_);
    begin_ = buffer_.size();
    found = window.find(bytes) != std::string::npos;
    // The bytes may begin in one piece and end in the next.
    window.erase(0, window.size() - std::min(window.size(), bytes.size() - 1));
  } while (!found && fill_buffer());
  seek(start);
  bytes_read_ = bytes_read;
  return found;
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
