#include "runtime.h"

#include <cxxabi.h>
#include <unistd.h>

#include <chrono>
#include <new>
#include <system_error>
#include <thread>

#include "base/signals.h"

namespace whycache::python {
namespace {

constexpr std::chrono::seconds idle_time_max{5};
// How long the end of the interpreter waits for calls of Python that are under way.
constexpr std::chrono::seconds last_calls_time_max{2};

}  // namespace

void stay_until_exit() {
  for (;;) ::pause();
}

void take_gil(PyThreadState* state) {
  try {
    PyEval_RestoreThread(state);
  } catch (const abi::__forced_unwind&) {
    stay_until_exit();
  }
}

PyGILState_STATE take_gil_of_any_thread() {
  try {
    return PyGILState_Ensure();
  } catch (const abi::__forced_unwind&) {
    stay_until_exit();
  }
}

void Workers::run(std::function<void()> call, std::size_t threads_max_of_call) {
  const MutexLock lock(mutex_);
  const bool is_urgent = threads_max_of_call > threads_max;
  calls_.insert(is_urgent ? calls_.begin() : calls_.end(), std::move(call));
  if (idle_count_ < calls_.size() && thread_count_ < threads_max_of_call) {
    try {
      const BlockedSignals blocked;
      std::thread([self = shared_from_this()] { self->work(); }).detach();
      ++thread_count_;
    } catch (const std::system_error& error) {
      if (thread_count_ == 0) {
        calls_.clear();  // there is no other: without threads, none is waiting
        throw Error(ErrorKind::limit,
                    std::string("cannot start a thread, nothing was done: reason=\"") +
                        error.code().message() +
                        "\" (raise the limits on threads and memory, see ulimit -u and -v)",
                    error.code().value());
      }
    }
  }
  ready_.notify_one();
}

void Workers::work() {
  MutexLock lock(mutex_);
  for (;;) {
    ++idle_count_;
    // The mutex is held while it runs.
    const auto has_calls = [&]() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { return !calls_.empty(); };
    const bool has_call = ready_.wait_for(lock.native(), idle_time_max, has_calls);
    --idle_count_;
    if (!has_call) break;
    {
      const std::function<void()> call = std::move(calls_.front());
      calls_.pop_front();
      lock.unlock();
      call();
    }
    lock.lock();
  }
  --thread_count_;
}

void Runtime::start_again_in_child() {
  exiting_ = false;
  new (&mutex_) Mutex;
  new (&no_calls_) std::condition_variable;
  calls_ = 0;
  new std::shared_ptr<Workers>(std::move(workers_));  // leaked: its mutex may be locked
  workers_ = std::make_shared<Workers>();
}

bool Runtime::begin_python_call() {
  const MutexLock lock(mutex_);
  if (ended_) return false;
  ++calls_;
  return true;
}

void Runtime::end_python_call() {
  const MutexLock lock(mutex_);
  // 0 in a child that was forked inside a call.
  if (calls_ > 0 && --calls_ == 0) no_calls_.notify_all();
}

void Runtime::end_python() {
  MutexLock lock(mutex_);
  ended_ = true;
  // The mutex is held while it runs.
  const auto is_idle = [&]() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { return calls_ == 0; };
  no_calls_.wait_for(lock.native(), last_calls_time_max, is_idle);
}

}  // namespace whycache::python
