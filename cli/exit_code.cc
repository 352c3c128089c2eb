#include "cli/exit_code.h"

#include <cerrno>
#include <string_view>

namespace whycache::cli {

ExitCode exit_code_of(const Error& error) noexcept {
  switch (error.system_error()) {
    case EACCES:
    case EPERM:
    case EROFS: return ExitCode::permission;
    // Applies even if the write is in the log and only this machine has no space for it.
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
    case ENOMEM: return ExitCode::limit;
    // Another process holds a lock. If the write may be in the log, that matters more.
    case EBUSY:
      if (error.kind() == ErrorKind::uncertain) break;
      return ExitCode::conflict;
    default: break;
  }
  switch (error.kind()) {
    case ErrorKind::invalid: return ExitCode::usage;
    case ErrorKind::limit: return ExitCode::limit;
    case ErrorKind::unavailable:
    case ErrorKind::uncertain: return ExitCode::unreachable;
    case ErrorKind::conflict: return ExitCode::conflict;
    case ErrorKind::refused: return ExitCode::refused;
    case ErrorKind::corrupt: return ExitCode::corrupt;
  }
  return ExitCode::bug;
}

std::string next_step(const Error& error) {
  const std::string_view message(error.what());
  if (message.find("update_bytes_max") != std::string_view::npos)
    return "--update-bytes-max sets that limit";
  // A message that ends in parentheses has a next step of its own: the cause is known where it was
  // found.
  if (message.ends_with(')')) return {};
  switch (error.system_error()) {
    case EACCES:
    case EPERM: return "correct the permissions of that path, or run as a user that has them";
    case EROFS: return "mount that file system for writing, or choose another path";
    case ENOENT:
    case ENOTDIR: return "correct the path, or create what is missing";
    case ELOOP: return "give the path that the symbolic link leads to, or another path";
    case ENOSPC:
    case EDQUOT: return "free space on that file system, or choose another path";
    case EMFILE:
    case ENFILE: return "raise the number of open files (ulimit -n)";
    case EFBIG: return "raise the file size limit (ulimit -f)";
    case ENOMEM: return "raise the address space limit (ulimit -v), or see `whycache doctor`";
    case EBUSY: return "wait longer with --deadline, or end the process that holds the lock";
    default: break;
  }
  switch (error.kind()) {
    case ErrorKind::unavailable:
      return "try again later, or wait longer with --deadline; `whycache doctor` tries the log";
    case ErrorKind::uncertain:
      return "it may be in the log or not: check with `whycache get KEY --update`, then repeat it "
             "if "
             "necessary";
    case ErrorKind::corrupt: return "run `whycache check` to see what is damaged";
    case ErrorKind::conflict: return "repeat the command";
    case ErrorKind::refused:
    case ErrorKind::limit:
    case ErrorKind::invalid: break;
  }
  return {};
}

}  // namespace whycache::cli
