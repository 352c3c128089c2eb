// What the types of the extension module share: its state, its exceptions, and keys.
#pragma once

#include "python.h"

#include <whycache/error.h>
#include <whycache/types.h>

#include <exception>
#include <memory>
#include <string>
#include <string_view>

#include "runtime.h"
#include "values.h"

namespace whycache::python {

struct ViewObject;

// One per module object. Types find it by their module, objects keep a pointer: they keep their
// type alive, and so the module.
struct ModuleState {
  PyObject* cache_type = nullptr;
  PyObject* view_type = nullptr;
  PyObject* range_type = nullptr;
  PyObject* range_iterator_type = nullptr;
  PyObject* value_memory_type = nullptr;
  PyObject* pending_type = nullptr;
  PyObject* completions_type = nullptr;
  PyObject* changes_type = nullptr;

  PyObject* error = nullptr;
  PyObject* invalid_error = nullptr;
  PyObject* limit_error = nullptr;
  PyObject* unavailable_error = nullptr;
  PyObject* uncertain_error = nullptr;
  PyObject* conflict_error = nullptr;
  PyObject* refused_error = nullptr;
  PyObject* corrupt_error = nullptr;
  PyObject* decode_error = nullptr;

  ValuesPointer values;
  std::shared_ptr<Runtime> runtime;
  // The views that have not ended, so that a forked child can end them.
  ViewObject* first_view = nullptr;
};

ModuleState& state_of_module(PyObject* module);
// The same, for a type of this module or a subclass of one.
ModuleState* state_of_type(PyTypeObject* type);

// Sets the Python exception for a C++ one. Returns null, so that a call can end with it.
PyObject* set_error(ModuleState& module, const std::exception_ptr& failure);
inline PyObject* set_current_error(ModuleState& module) {
  return set_error(module, std::current_exception());
}

// Returns a message for the Python exception that is set and cannot pass through C++. Clears it.
std::string take_python_error();

// Sets TypeError, ValueError or LimitError for an object that is not a key.
[[gnu::cold, gnu::noinline]] void refuse_key(ModuleState& module, PyObject* object);

// Returns whether the object is a key, else sets an exception. The bytes are those of the object.
inline bool read_key(ModuleState& module, PyObject* object, std::string_view& key) {
  if (PyBytes_Check(object)) [[likely]] {
    const auto bytes = static_cast<std::size_t>(PyBytes_GET_SIZE(object));
    if (bytes - 1 < key_bytes_max) [[likely]] {
      key = {PyBytes_AS_STRING(object), bytes};
      return true;
    }
  }
  refuse_key(module, object);
  return false;
}

inline PyObject* bytes_of(std::string_view bytes) {
  return PyBytes_FromStringAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size()));
}

// Each adds its type to the module. Returns false with an exception set.
bool add_cache_type(PyObject* module, ModuleState& state);
bool add_view_types(PyObject* module, ModuleState& state);
bool add_range_types(PyObject* module, ModuleState& state);
bool add_pending_types(PyObject* module, ModuleState& state);
bool add_changes_type(PyObject* module, ModuleState& state);

// Ends the views of a process that was forked: its pins are those of the parent.
void end_all_views(ModuleState& state);

}  // namespace whycache::python
