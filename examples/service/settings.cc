#include "settings.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <stdexcept>
#include <string_view>

namespace service {
namespace {

int parse_number(std::string_view option, std::string_view text, int min) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < min)
    throw std::invalid_argument(std::string(option) + " takes a number of at least " +
                                std::to_string(min) + ": " + std::string(text));
  return number;
}

}  // namespace

const char* const help_text =
    R"(usage: example_service [--OPTION VALUE]...

An HTTP service with feature flags and a catalogue, kept in a log that all machines share.

  --log URL                 the log; default: $WHYCACHE_LOG. memory:, file:///dir,
                            sqlite:///file.db, mysql://user@host/database
  --state PATH              the state of this machine; default: as the library says
  --host ADDRESS            the address to listen on (127.0.0.1)
  --port N                  the port; 0: any that is free (8080)
  --workers N               processes that answer requests (4)
  --threads N               threads of each worker (16)
  --writes-max N            threads of a worker that may write at once (8)
  --write-deadline-ms N     how long a write may take (1000)
  --update-interval-ms N    how often the log is asked (200)
  --stale-after-ms N        the age of the data at which /health says degraded (2000)

The service ends with code 1 if a setting is wrong or the log can never be opened. If the log is
only away, it starts, and answers 503 until it has been read once.
)";

bool asks_for_help(int argc, char** argv) {
  return std::any_of(argv + 1, argv + argc, [](const std::string_view argument) {
    return argument == "--help" || argument == "-h";
  });
}

Settings parse_settings(int argc, char** argv) {
  Settings settings;
  if (const char* const url = std::getenv("WHYCACHE_LOG")) settings.log_url = url;
  for (int i = 1; i < argc; i += 2) {
    const std::string_view option = argv[i];
    if (i + 1 == argc) throw std::invalid_argument(std::string(option) + " takes a value");
    const std::string_view text = argv[i + 1];
    const auto number = [&](int min) { return parse_number(option, text, min); };
    const auto time = [&] { return std::chrono::milliseconds(number(1)); };
    if (option == "--log") {
      settings.log_url = text;
    } else if (option == "--state") {
      settings.state_path = text;
    } else if (option == "--host") {
      settings.host = text;
    } else if (option == "--port") {
      settings.port = number(0);
    } else if (option == "--workers") {
      settings.workers = number(1);
    } else if (option == "--threads") {
      settings.threads = number(2);
    } else if (option == "--writes-max") {
      settings.writes_max = number(1);
    } else if (option == "--write-deadline-ms") {
      settings.write_deadline = time();
    } else if (option == "--update-interval-ms") {
      settings.update_interval = time();
    } else if (option == "--stale-after-ms") {
      settings.stale_after = time();
    } else {
      throw std::invalid_argument("unknown option: " + std::string(option) + " (--help)");
    }
  }
  if (settings.log_url.empty()) throw std::invalid_argument("no log given (--log, WHYCACHE_LOG)");
  if (settings.writes_max >= settings.threads)
    throw std::invalid_argument("--writes-max must be less than --threads: reads need some");
  return settings;
}

}  // namespace service
