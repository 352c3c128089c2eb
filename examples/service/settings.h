// The settings of the service, from its command line.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace service {

struct Settings {
  std::string log_url;     // default: $WHYCACHE_LOG
  std::string state_path;  // empty: where whycache puts it by default
  std::string host = "127.0.0.1";
  int port = 8080;  // 0: any that is free
  int workers = 4;
  // Threads that answer requests, per worker, and how many of them may write at once.
  int threads = 16;
  int writes_max = 8;
  std::chrono::milliseconds write_deadline{1000};
  std::chrono::milliseconds update_interval{200};
  // How old the data may be before /health calls the service degraded.
  std::chrono::milliseconds stale_after{2000};
};

extern const char* const help_text;
// Whether one of the arguments is --help or -h.
bool asks_for_help(int argc, char** argv);

// Throws std::invalid_argument, which names the argument.
Settings parse_settings(int argc, char** argv);

}  // namespace service
