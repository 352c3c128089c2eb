// Python.h, and what makes its reference counts and its lock safe to use from C++.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cxxabi.h>

#include <utility>

namespace whycache::python {

// Owns one reference. Use it only with the GIL held.
class Ref {
 public:
  Ref() = default;
  // Takes over the caller's reference; null, with an exception set, if a call of Python failed.
  explicit Ref(PyObject* owned) : object_(owned) {}
  static Ref borrow(PyObject* object) {
    Py_XINCREF(object);
    return Ref(object);
  }
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  Ref(const Ref&) = delete;
  Ref& operator=(const Ref&) = delete;
  ~Ref() { Py_XDECREF(object_); }

  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_ = nullptr;
};

// Take the GIL. When the interpreter ends, Python ends other threads that ask for it, by unwinding
// their stack: that would run destructors which need the GIL, and end the process. Such a thread
// stays here instead, until the process has exited.
void take_gil(PyThreadState* state);
PyGILState_STATE take_gil_of_any_thread();
[[noreturn]] void stay_until_exit();

// Calls a function of Python that may release the GIL, on a thread of the library. See above.
template <typename Call>
auto call_until_exit(const Call& call) {
  try {
    return call();
  } catch (const abi::__forced_unwind&) {
    stay_until_exit();
  }
}

// Releases the GIL until the end of the scope.
class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ~ReleasedGil() { take_gil(state_); }
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

// The functions of a heap type's slots have many types; the slot takes a void*.
template <typename Function>
void* slot(Function* function) {
  return reinterpret_cast<void*>(function);
}
template <typename Function>
PyCFunction method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace whycache::python
