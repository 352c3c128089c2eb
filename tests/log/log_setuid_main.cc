// Opens a log, waits for updates, and prints how that went. Tests give a copy of this program a
// setuid bit. Usage: log_setuid_main URL
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <memory>

#include "log/open_log.h"

int main(int count, char** words) {
  if (count != 2) return 2;
  try {
    const std::unique_ptr<whycache::Log> log =
        whycache::open_log(words[1], std::chrono::seconds(20));
    for (int i = 0; i < 3; ++i) log->wait(0, std::chrono::seconds(1));
    std::puts("opened");
  } catch (const std::exception& error) {
    std::puts(error.what());
  }
  std::fflush(stdout);
  ::_exit(0);  // a leak checker, which cannot trace a setuid program, would fail at exit()
}
