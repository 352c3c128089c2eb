// What outlives single calls: the cache that Python objects and helper threads share, threads for
// calls that wait, and the end of the interpreter.
#pragma once

#include <whycache/cache.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "base/mutex.h"
#include "client/cache_internal.h"
#include "python.h"

namespace whycache::python {

// Runs calls that wait for a log, so that the thread of Python that needs their outcome stays
// responsive: to signals, or as an event loop. Threads start on demand, and end when they were idle
// for a while. They block the signals of the application. Nothing joins them: a call may hang as
// long as its deadline allows.
class Workers : public std::enable_shared_from_this<Workers> {
 public:
  // More calls than this at a time wait for each other.
  static constexpr std::size_t threads_max = 64;

  // Throws Error(limit) if no thread can be started, and none is running.
  void run(std::function<void()> call) { run(std::move(call), threads_max); }
  // The same, at once, for what ends the calls that others wait for.
  void run_at_once(std::function<void()> call) { run(std::move(call), 2 * threads_max); }

 private:
  void run(std::function<void()> call, std::size_t threads_max_of_call);
  void work();

  Mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> calls_ WHYCACHE_GUARDED_BY(mutex_);
  std::size_t idle_count_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  std::size_t thread_count_ WHYCACHE_GUARDED_BY(mutex_) = 0;
};

// One per interpreter.
class Runtime {
 public:
  const std::shared_ptr<Workers>& workers() const { return workers_; }
  // A forked child has none of its parent's threads, and mutexes as they were when it was forked.
  void start_again_in_child() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS;  // it has one thread

  // From now on, only the calling thread uses caches: the process is about to exit. Other threads
  // that call one stay in that call, as Python lets its daemon threads do.
  void begin_exit() {
    exiting_thread_ = std::this_thread::get_id();
    exiting_.store(true, std::memory_order_release);
  }
  bool must_stay() const {
    return exiting_.load(std::memory_order_acquire) &&
           exiting_thread_ != std::this_thread::get_id();
  }

  // Threads of the library call Python only between these two. Returns false once the interpreter
  // is about to end: a thread that then asked for the GIL would be stopped, and with it the
  // process.
  bool begin_python_call();
  void end_python_call();
  // Makes begin_python_call() return false, and waits for the calls under way, but not for one that
  // hangs. Call it without the GIL.
  void end_python();

 private:
  Mutex mutex_;
  std::condition_variable no_calls_;
  std::shared_ptr<Workers> workers_ = std::make_shared<Workers>();
  std::size_t calls_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  bool ended_ WHYCACHE_GUARDED_BY(mutex_) = false;
  std::atomic<bool> exiting_{false};
  std::thread::id exiting_thread_;
};

// Takes the GIL in a thread of the library. `allowed` is false if Python has ended.
class PythonCall {
 public:
  explicit PythonCall(Runtime& runtime) : runtime_(runtime), allowed_(runtime.begin_python_call()) {
    if (!allowed_) return;
    gil_ = take_gil_of_any_thread();
    ++depth_;
  }
  ~PythonCall() {
    if (!allowed_) return;
    --depth_;
    PyGILState_Release(gil_);
    runtime_.end_python_call();
  }
  PythonCall(const PythonCall&) = delete;
  PythonCall& operator=(const PythonCall&) = delete;

  bool allowed() const { return allowed_; }
  // Whether the library has called Python on this thread: a callback, or a log in Python.
  static bool is_inside() { return depth_ > 0; }

 private:
  static inline thread_local int depth_ = 0;
  Runtime& runtime_;
  const bool allowed_;
  PyGILState_STATE gil_{};
};

// A Python object that C++ keeps, and may drop on any thread.
class SharedObject {
 public:
  // Needs the GIL.
  SharedObject(std::shared_ptr<Runtime> runtime, PyObject* object)
      : runtime_(std::move(runtime)), object_(object) {
    Py_INCREF(object_);
  }
  ~SharedObject() {
    const PythonCall call(*runtime_);
    if (call.allowed()) Py_DECREF(object_);
  }
  SharedObject(const SharedObject&) = delete;
  SharedObject& operator=(const SharedObject&) = delete;

  PyObject* get() const { return object_; }
  Runtime& runtime() const { return *runtime_; }

 private:
  const std::shared_ptr<Runtime> runtime_;
  PyObject* const object_;
};

// The cache of one Python object. Calls on other threads keep it alive.
struct Handle {
  template <typename... Arguments>
  explicit Handle(Arguments&&... arguments) : cache(std::forward<Arguments>(arguments)...) {}

  // Closes the cache for good. Call it without the GIL.
  void close() {
    closed = true;
    if (cache.valid()) CacheInternal::close_for_good(cache);
  }

  Cache cache;
  // Of calls that have none of their own.
  std::chrono::milliseconds deadline = Options().deadline;
  // Set by close(): calls then fail instead of opening the state again.
  std::atomic<bool> closed{false};
  // The calls that have been started and have not finished. Shared with them: a call may finish
  // after the cache. Needs the GIL, to use the pointer.
  std::shared_ptr<std::atomic<std::size_t>> calls_under_way =
      std::make_shared<std::atomic<std::size_t>>(0);
};

// Says that this thread runs a callback of a cache, which must not wait for that cache.
class CallbackScope {
 public:
  CallbackScope() { ++depth_; }
  ~CallbackScope() { --depth_; }
  CallbackScope(const CallbackScope&) = delete;
  CallbackScope& operator=(const CallbackScope&) = delete;

  static bool is_inside() { return depth_ > 0; }

 private:
  static inline thread_local int depth_ = 0;
};

}  // namespace whycache::python
