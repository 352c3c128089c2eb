// Memory of a thread that is released when the thread ends.
//
// Not a thread_local object with a destructor: glibc ends the process if it has no memory to
// register that. Setting a value of a pthread key can fail instead.
#pragma once

#include <pthread.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <exception>
#include <new>
#include <string>

#include <whycache/error.h>

namespace whycache {

// Initialized at compile time, because a global object of the application may use the library
// before that has run its own initializers. Any number of threads may use it at once.
class ThreadEndKey {
 public:
  using Release = void(void* memory);

  // `release` runs in the ending thread. It does not run for the thread that ends the process.
  constexpr explicit ThreadEndKey(Release* release) : release_(release) {}

  // Has `memory` released when this thread ends, instead of what was set before. Throws
  // std::bad_alloc, or Error(limit) if the process has too many keys.
  void set(void* memory) {
    const std::uint64_t key = create();
    if (key == deleted) return;
    if (::pthread_setspecific(static_cast<pthread_key_t>(key), memory) != 0) throw std::bad_alloc();
  }

  // Creates the key while keys are left, and deletes it before the code of `release` is unloaded:
  // afterwards nothing is released.
  class Lifetime {
   public:
    explicit Lifetime(ThreadEndKey& key) : key_(key) {
      try {
        key_.create();
      } catch (const std::exception&) {  // set() tries again
      }
    }
    ~Lifetime() { key_.remove(); }
    Lifetime(const Lifetime&) = delete;
    Lifetime& operator=(const Lifetime&) = delete;

   private:
    ThreadEndKey& key_;
  };

 private:
  static constexpr std::uint64_t none = UINT64_MAX;
  static constexpr std::uint64_t deleted = UINT64_MAX - 1;
  static_assert(sizeof(pthread_key_t) < sizeof(std::uint64_t));

  // Returns the key, or `deleted`.
  std::uint64_t create() {
    std::uint64_t known = key_.load(std::memory_order_acquire);
    if (known != none) return known;
    pthread_key_t created;
    if (const int error = ::pthread_key_create(&created, release_); error != 0) {
      throw Error(
          ErrorKind::limit,
          "no thread-specific data key is left: keys_max=" + std::to_string(PTHREAD_KEYS_MAX),
          error);
    }
    if (key_.compare_exchange_strong(known, created, std::memory_order_acq_rel)) return created;
    ::pthread_key_delete(created);
    return known;
  }

  void remove() {
    const std::uint64_t key = key_.exchange(deleted, std::memory_order_acq_rel);
    if (key < deleted) ::pthread_key_delete(static_cast<pthread_key_t>(key));
  }

  // Stored once, and again at the end (acq_rel); threads that set a value acquire it.
  std::atomic<std::uint64_t> key_{none};
  Release* release_;
};

}  // namespace whycache
