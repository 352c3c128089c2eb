// A plugin that uses the shared library. A function of it returns while a thread of the library
// still connects to a server that does not answer.
#include <whycache/cache.h>

#include <chrono>
#include <cstring>

// Returns 0 if the log does not answer, as it should be.
extern "C" __attribute__((visibility("default"))) int run_plugin(const char* log_url,
                                                                 const char* state_path) {
  try {
    whycache::Cache cache(log_url, {.state_path = state_path, .open = whycache::OpenMode::now});
    cache.update({.deadline = std::chrono::milliseconds(50)});
    return 1;
  } catch (const whycache::Error& error) {
    return error.kind() == whycache::ErrorKind::unavailable ? 0 : 2;
  }
}
