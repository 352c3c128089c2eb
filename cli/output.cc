#include "cli/output.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <system_error>

#include "cli/escape.h"
#include "cli/exit_code.h"

namespace whycache::cli {
namespace {

constexpr std::size_t flush_threshold_bytes = 64 << 10;

[[noreturn]] void refuse_output(int error) {
  if (error == EPIPE) {
    ::signal(SIGPIPE, SIG_DFL);
    ::raise(SIGPIPE);
  }
  throw Failure(
      ExitCode::limit,
      "cannot write output: reason=\"" + std::system_category().message(error) + '"',
      "the output is incomplete; repeat the command with output to a file system with free space");
}

}  // namespace

void Output::write(std::string_view bytes) {
  buffer_.append(bytes);
  if (buffer_.size() >= flush_threshold_bytes) flush();
}

void Output::write_line(std::string_view text) {
  buffer_.append(text);
  write("\n");
}

void Output::write_json(const Json& object) { write_line(object.dump()); }

void Output::flush() {
  std::string_view rest = buffer_;
  while (!rest.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, rest.data(), rest.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      const int error = errno;
      buffer_.clear();
      refuse_output(error);
    }
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
  buffer_.clear();
}

void Output::close() {
  flush();
  if (::close(STDOUT_FILENO) != 0 && errno != EBADF) refuse_output(errno);
}

bool Output::is_terminal() { return ::isatty(STDOUT_FILENO) != 0; }

void put_bytes(Json& object, const std::string& field, std::string_view bytes) {
  if (is_utf8(bytes)) {
    object[field] = bytes;
  } else {
    object[field + "_base64"] = encode_base64(bytes);
  }
}

void print_message(std::string_view message, std::string_view next_step) {
  std::string text = "whycache: ";
  text.append(message).append("\n");
  if (!next_step.empty()) text.append("  next: ").append(next_step).append("\n");
  // There is no way left to report a failure of this write.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

}  // namespace whycache::cli
