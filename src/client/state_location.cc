#include "client/state_location.h"

#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <optional>
#include <string_view>
#include <system_error>

#include "base/backoff.h"
#include "base/call_limit.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/outage.h"
#include "base/url.h"
#include "client/session.h"
#include "client/state_links.h"
#include "state/file/state_file.h"

namespace whycache {
namespace {

constexpr std::size_t state_name_bytes_max = 100;
constexpr mode_t private_directory_mode = 0700;

// The environment of a setuid program is that of its caller, who must not choose where the
// program's user creates files.
std::string environment_variable(const char* name) {
  const char* const value = ::secure_getenv(name);
  return value != nullptr ? value : "";
}

bool is_name_character(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-' || c == '.';
}

void check_name(std::string_view name) {
  bool safe = !name.empty() && name.size() <= state_name_bytes_max && name.front() != '.';
  for (const char c : name) safe = safe && is_name_character(c);
  if (!safe) {
    throw Error(ErrorKind::invalid,
                "name cannot be a file name: name=\"" + std::string(name) +
                    "\" (1 to 100 of A-Z a-z 0-9 _ - . and no dot at the start)");
  }
}

// The instance of the log, for people, and a hash of its full name, so that no two logs share a
// state.
std::string default_name(const std::string& log_name) {
  std::string instance = "state";
  if (const std::size_t at = log_name.rfind("instance="); at != std::string::npos) {
    const std::string value = log_name.substr(at + 9, log_name.find('&', at) - at - 9);
    if (is_instance_name(value)) instance = value;
  }
  std::array<char, 17> hash;
  std::snprintf(hash.data(), hash.size(), "%016llx",
                static_cast<unsigned long long>(hash64(log_name)));
  return instance + "-" + hash.data();
}

// The location of the state that has the name in the directory, or is linked to it.
StateLocation location_in(const std::string& directory, const std::string& name) {
  StateLocation location;
  location.name_path = directory + (directory.ends_with('/') ? "" : "/") + name + ".state";
  const LinkedState found =
      find_linked_state(location.name_path).value_or(LinkedState{location.name_path});
  location.path = found.path;
  location.is_name_confirmed = found.is_name_confirmed;
  return location;
}

// A path that ends with '/' is a directory.
StateLocation location_at(const std::string& path, const std::string& name, bool is_in_memory) {
  if (path.back() != '/') return {path, {}, {}};
  if (is_in_memory) return {path + name + ".state", {}, {}};
  return location_in(path, name);
}

std::string home_directory() {
  std::string home = environment_variable("HOME");
  if (home.empty()) {
    std::array<char, 4096> buffer;
    passwd entry;
    passwd* found = nullptr;
    if (::getpwuid_r(::geteuid(), &entry, buffer.data(), buffer.size(), &found) == 0 &&
        found != nullptr)
      home = found->pw_dir;
  }
  if (home.empty() || home.front() != '/') {
    throw Error(
        ErrorKind::invalid,
        "no home directory to keep the state in (set state_path, or the environment variable "
        "WHYCACHE_STATE)");
  }
  return home;
}

bool is_below(std::string_view path, std::string_view directory) {
  return path.starts_with(directory) &&
         (path.size() == directory.size() || path[directory.size()] == '/');
}

// Creates a directory and its missing parents.
void create_private_directory(const std::string& directory) {
  if (::mkdir(directory.c_str(), private_directory_mode) == 0 || errno == EEXIST) return;
  if (errno == ENOENT && directory != "/" && directory != ".") {
    create_private_directory(parent_directory(directory));
    if (::mkdir(directory.c_str(), private_directory_mode) == 0 || errno == EEXIST) return;
  }
  throw system_error("cannot create directory for the state", directory, errno);
}

std::string default_directory() {
  // systemd separates the state directories of a service by colons.
  if (const std::string given = environment_variable("STATE_DIRECTORY"); !given.empty())
    return given.substr(0, given.find(':'));
  if (::geteuid() == 0) return "/var/lib/whycache";
  // The XDG base directory specification says to ignore a relative path.
  std::string directory = environment_variable("XDG_STATE_HOME");
  if (directory.empty() || directory.front() != '/') directory = home_directory() + "/.local/state";
  const std::string normal = std::filesystem::path(directory).lexically_normal().native();
  if (is_below(normal, "/tmp") || is_below(normal, "/var/tmp")) {
    throw Error(
        ErrorKind::invalid,
        "the state's default directory would be one that all users share and that is cleaned "
        "up: path=" +
            normal + " (set state_path, or the environment variable WHYCACHE_STATE)");
  }
  return directory + "/whycache";
}

StateLocation create_temporary_location(const std::string& name) {
  const auto state_in = [&](const std::string& directory) {
    return directory + "/" + name + ".state";
  };
  for (const char* const parent : {"/dev/shm", "/var/lib", "/run"}) {
    std::string directory = std::string(parent) + "/whycache-XXXXXX";
    if (::mkdtemp(directory.data()) != nullptr) return {state_in(directory), directory, {}};
  }
  std::string directory = default_directory();
  create_private_directory(directory);
  directory += "/memory-XXXXXX";
  if (::mkdtemp(directory.data()) == nullptr)
    throw system_error("cannot create directory for the state", directory, errno);
  return {state_in(directory), directory, {}};
}

// How long to wait for a log without which the cache can be opened, too.
constexpr std::chrono::milliseconds log_time_if_not_needed{100};

// Asks the log once. Throws Error.
Uuid ask_once(Log& log, const Deadline& deadline) {
  const CallLimit limit(deadline);
  try {
    return log.extent().uuid;
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw Error(ErrorKind::unavailable, std::string("log failed: ") + error.what());
  } catch (...) {  // from a log of the application
    throw Error(ErrorKind::unavailable, "log failed: it threw no std::exception");
  }
}

void report_retry(const Options& options, const std::string& message) noexcept {
  if (!options.on_event) return;
  try {
    options.on_event({Event::Kind::retried, message});
  } catch (...) {  // as Options::on_event promises
  }
}

// Asks the log until it answers. Throws Error.
Uuid ask_for_uuid(Log& log, const Options& options, const Deadline& deadline) {
  Backoff backoff(deadline, Backoff::log_pauses);
  Outage outage;
  for (;;) {
    std::optional<Error> failure;
    try {
      return ask_once(log, backoff.deadline());
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::unavailable && error.kind() != ErrorKind::uncertain) throw;
      failure = error;
    }
    if (const std::optional<LogError> out_of_time = out_of_time_error(log, backoff, *failure))
      throw LogError(*out_of_time);
    backoff.note_failure(failure->what(), failure->system_error());
    if (const std::optional<std::chrono::nanoseconds> lasted = outage.note_failure())
      report_retry(options, retry_message(log, backoff, *failure, *lasted));
    backoff.pause();
  }
}

StateLocation find_location(const Options& options, const std::string& log_name,
                            MissingDirectory missing) {
  if (!options.name.empty()) check_name(options.name);
  // Whatever a program names its cache, all programs on a log find one state. Logs in memory are
  // different logs even if they have one name.
  const bool is_in_memory = log_name.starts_with("memory:");
  const std::string name =
      is_in_memory && !options.name.empty() ? options.name : default_name(log_name);
  if (is_in_memory && options.state_path.empty()) return create_temporary_location(name);
  if (const std::string given = given_state_path(options); !given.empty())
    return location_at(given, name, is_in_memory);

  const std::string directory = absolute_path(default_directory());
  if (missing == MissingDirectory::create) create_private_directory(directory);
  return location_in(directory, name);
}

// An empty file is no state: one is created in its place.
bool exists(const std::string& path) {
  struct stat status;
  return ::lstat(path.c_str(), &status) == 0 && !(S_ISREG(status.st_mode) && status.st_size == 0);
}

}  // namespace

std::string given_state_path(const Options& options) {
  const std::string given =
      options.state_path.empty() ? environment_variable("WHYCACHE_STATE") : options.state_path;
  return given.empty() ? given : absolute_path(given);
}

StateLocation find_state_location(const Options& options, const std::string& log_name,
                                  MissingDirectory missing) {
  StateLocation location = find_location(options, log_name, missing);
  std::string path = path_for_format(location.path);
  // Another version of the library keeps its state there, and what leads to it.
  if (path != location.path) location = {std::move(path), {}, {}};
  return location;
}

std::optional<std::string> find_present_state(const Options& options, const std::string& log_name) {
  // Each cache on a log in memory has a directory of its own.
  if (log_name.starts_with("memory:")) return std::nullopt;
  std::string path = find_location(options, log_name, MissingDirectory::leave).path;
  if (exists(path)) return path;  // also one of another format
  path = path_for_format(path);
  return exists(path) ? std::optional(std::move(path)) : std::nullopt;
}

StateLocation locate_state(const Options& options, Log& log, const Deadline& deadline) {
  StateLocation location = find_state_location(options, log.name());
  if (!location.is_named_after_log()) return location;
  const std::optional<LogIdentity> present = find_log_of_state(location.path);
  if (present) record_state(location.path, present->uuid);
  const bool is_there = ::access(location.path.c_str(), F_OK) == 0;
  if (is_there && (!present || present->name == log.name() || location.is_name_confirmed))
    return location;

  StateOptions state;
  state.path = location.path;
  state.mode = options.state_mode.value_or(0600);
  state.any_file_system = options.any_file_system;
  check_state_location(state);  // the log must not be created first
  const bool is_needed = !is_there && options.open == OpenMode::wait;
  try {
    const Uuid uuid = is_needed ? ask_for_uuid(log, options, deadline)
                                : ask_once(log, deadline.at_most(log_time_if_not_needed));
    location.path = reserve_state(location.name_path, uuid);
    const std::optional<LogIdentity> reserved = find_log_of_state(location.path);
    location.is_name_confirmed = reserved && reserved->uuid == uuid;
  } catch (const Error&) {
    if (is_needed) throw;
  }
  return location;
}

void remove_temporary_directory(const StateLocation& location) noexcept {
  if (location.temporary_directory.empty()) return;
  std::error_code ignored;
  std::filesystem::remove_all(location.temporary_directory, ignored);
}

}  // namespace whycache
