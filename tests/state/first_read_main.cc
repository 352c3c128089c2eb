// The first read of a thread while the process has no memory. Exit code 0: each such read returned
// its value or threw std::bad_alloc. Usage: first_read_main PATH-OF-STATE
//
// A program of its own, because it replaces the allocator of the C library.
#include <pthread.h>

#include <cerrno>
#include <cstddef>
#include <new>
#include <string>
#include <thread>

#include "state/test_state.h"

namespace {

thread_local bool no_memory = false;

// The library's key is then one whose first value in a thread takes memory.
[[gnu::constructor(101)]] void use_up_keys_without_memory() {
  constexpr int keys_within_thread_descriptor = 32;
  for (int i = 0; i < keys_within_thread_descriptor; ++i) {
    pthread_key_t key;
    ::pthread_key_create(&key, nullptr);
  }
}

}  // namespace

extern "C" void* __libc_malloc(std::size_t bytes);
extern "C" void* __libc_calloc(std::size_t count, std::size_t bytes);

extern "C" void* malloc(std::size_t bytes) noexcept {
  if (!no_memory) return __libc_malloc(bytes);
  errno = ENOMEM;
  return nullptr;
}

extern "C" void* calloc(std::size_t count, std::size_t bytes) noexcept {
  if (!no_memory) return __libc_calloc(count, bytes);
  errno = ENOMEM;
  return nullptr;
}

int main(int argument_count, char** arguments) {
  using whycache::testing::TestState;
  if (argument_count != 2) return 2;
  TestState state(arguments[1]);
  state.apply({{"key", "value"}});
  int failed = 0;
  int wrong = 0;
  for (int i = 0; i < 3; ++i) {
    std::thread([&] {
      std::string value;
      no_memory = true;
      const bool may_wait = state->may_wait_for_file();
      try {
        wrong += !state->get("key", value) || value != "value";
      } catch (const std::bad_alloc&) {
        ++failed;
        wrong += may_wait ? 0 : 1;
      }
      no_memory = false;
      wrong += !state->get("key", value) || value != "value";
    }).join();
  }
  return failed > 0 && wrong == 0 ? 0 : 1;
}
