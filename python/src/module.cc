#include "module.h"

#include <whycache/log.h>

#include <chrono>
#include <cstring>
#include <map>
#include <new>

#include "original/read_original.h"

namespace whycache::python {
namespace {

struct ErrorClass {
  PyObject* ModuleState::*member;
  const char* name;
  bool is_value_error;
  const char* documentation;
};

constexpr ErrorClass error_classes[] = {
    {&ModuleState::invalid_error, "InvalidError", true,
     "The call, an option or a permission is wrong. Retrying cannot help; nothing was written."},
    {&ModuleState::limit_error, "LimitError", false,
     "A limit was reached, of an option or of the system; nothing was written. The message names "
     "the limit and what raises it."},
    {&ModuleState::unavailable_error, "UnavailableError", false,
     "The log did not answer in time and nothing was written, or there is no state to read yet. "
     "Retry later."},
    {&ModuleState::uncertain_error, "UncertainError", false,
     "The log failed midway and stayed unreachable: the write may be in it, or a part of it."},
    {&ModuleState::conflict_error, "ConflictError", false,
     "Other writers changed what this write depended on until attempts or deadline ran out; "
     "nothing was written."},
    {&ModuleState::refused_error, "RefusedError", false,
     "A guard of this application forbids the write; nothing was written."},
    {&ModuleState::corrupt_error, "CorruptError", false,
     "Stored bytes, of the state or of the log, are not what was written. The message gives the "
     "next step."},
    {&ModuleState::decode_error, "DecodeError", true,
     "A stored value is not what the cache's codec writes. Other keys can still be read."},
};

bool add_errors(PyObject* module, ModuleState& state) {
  state.error = PyErr_NewExceptionWithDoc(
      "whycache.Error", "Base class of the errors that whycache raises. An absent key is KeyError.",
      nullptr, nullptr);
  if (state.error == nullptr || PyModule_AddObjectRef(module, "Error", state.error) < 0)
    return false;
  for (const ErrorClass& error : error_classes) {
    const Ref bases(error.is_value_error ? PyTuple_Pack(2, state.error, PyExc_ValueError)
                                         : PyTuple_Pack(1, state.error));
    if (!bases) return false;
    const std::string name = std::string("whycache.") + error.name;
    PyObject* const type =
        PyErr_NewExceptionWithDoc(name.c_str(), error.documentation, bases.get(), nullptr);
    state.*error.member = type;
    if (type == nullptr || PyModule_AddObjectRef(module, error.name, type) < 0) return false;
  }
  return true;
}

PyObject* class_of(const ModuleState& module, ErrorKind kind) {
  switch (kind) {
    case ErrorKind::invalid: return module.invalid_error;
    case ErrorKind::limit: return module.limit_error;
    case ErrorKind::unavailable: return module.unavailable_error;
    case ErrorKind::uncertain: return module.uncertain_error;
    case ErrorKind::conflict: return module.conflict_error;
    case ErrorKind::refused: return module.refused_error;
    case ErrorKind::corrupt: return module.corrupt_error;
  }
  return module.error;
}

// A message may hold any bytes, of a path for example.
void set_message(PyObject* type, const char* message) {
  const Ref text(PyUnicode_DecodeUTF8(message, static_cast<Py_ssize_t>(std::strlen(message)),
                                      "backslashreplace"));
  if (text) PyErr_SetObject(type, text.get());
}

struct ModuleObject {
  ModuleState* state;
};

PyObject* end_views(PyObject* module, PyObject* /*unused*/) {
  end_all_views(state_of_module(module));
  Py_RETURN_NONE;
}

PyObject* start_again_in_child(PyObject* module, PyObject* /*unused*/) {
  ModuleState& state = state_of_module(module);
  state.runtime->start_again_in_child();
  end_all_views(state);
  Py_RETURN_NONE;
}

PyObject* begin_exit(PyObject* module, PyObject* /*unused*/) {
  state_of_module(module).runtime->begin_exit();
  Py_RETURN_NONE;
}

PyObject* end_python(PyObject* module, PyObject* /*unused*/) {
  const std::shared_ptr<Runtime> runtime = state_of_module(module).runtime;
  {
    const ReleasedGil released;
    runtime->end_python();
  }
  Py_RETURN_NONE;
}

PyObject* do_nothing(PyObject* /*module*/, PyObject* const* /*arguments*/, Py_ssize_t /*count*/) {
  Py_RETURN_NONE;
}

// The interpreter calls a method without detours only if the object's class is the one that the
// method was made for, not a class that is derived from it.
PyObject* own_reads(PyObject* module, PyObject* type) {
  auto* const cache_type = reinterpret_cast<PyTypeObject*>(state_of_module(module).cache_type);
  // A method of another class would take its object for one of that class.
  if (!PyType_Check(type) || !PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(type), cache_type))
    return PyErr_Format(PyExc_TypeError, "own_reads() takes a class derived from BaseCache");
  for (const char* const name : {"get", "get_multi"}) {
    const Ref inherited(PyObject_GetAttrString(type, name));
    if (!inherited) return nullptr;
    if (!Py_IS_TYPE(inherited.get(), &PyMethodDescr_Type) ||
        !PyType_IsSubtype(PyDescr_TYPE(inherited.get()), cache_type))
      return PyErr_Format(PyExc_TypeError, "%s is not the inherited method", name);
    PyMethodDef* const definition =
        reinterpret_cast<PyMethodDescrObject*>(inherited.get())->d_method;
    const Ref own(PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(type), definition));
    if (!own || PyObject_SetAttrString(type, name, own.get()) < 0) return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject* time_left(PyObject* /*module*/, PyObject* /*unused*/) {
  const std::chrono::nanoseconds left = call_time_left();
  return PyFloat_FromDouble(left == std::chrono::nanoseconds::max()
                                ? Py_HUGE_VAL
                                : std::chrono::duration<double>(left).count());
}

// Takes a value or stored bytes, and the name of a codec.
bool read_codec(const char* name, PyObject* const* arguments, Py_ssize_t count, Codec& codec) {
  if (count == 1 || count == 2) return count == 1 || find_codec(arguments[1], codec);
  PyErr_Format(PyExc_TypeError, "%s() takes 1 or 2 arguments: %zd given", name, count);
  return false;
}

PyObject* encode_object(PyObject* module, PyObject* const* arguments, Py_ssize_t count) {
  Codec codec = Codec::typed;
  if (!read_codec("encode_value", arguments, count, codec)) return nullptr;
  std::string stored;
  if (!encode_value(*state_of_module(module).values, codec, arguments[0], stored)) return nullptr;
  return bytes_of(stored);
}

PyObject* decode_object(PyObject* module, PyObject* const* arguments, Py_ssize_t count) {
  Codec codec = Codec::typed;
  if (!read_codec("decode_value", arguments, count, codec)) return nullptr;
  if (!PyBytes_Check(arguments[0])) {
    return PyErr_Format(PyExc_TypeError, "stored value must be bytes, not %.100s",
                        Py_TYPE(arguments[0])->tp_name);
  }
  const std::string_view stored(PyBytes_AS_STRING(arguments[0]),
                                static_cast<std::size_t>(PyBytes_GET_SIZE(arguments[0])));
  return decode_value(*state_of_module(module).values, codec, stored, {});
}

// read_original(source, skips): the number of updates, pairs of keys and stored values, and pairs
// of skipped keys and reasons.
PyObject* read_original_log(PyObject* module, PyObject* arguments) {
  const char* source = nullptr;
  int skips = 0;
  if (PyArg_ParseTuple(arguments, "sp:read_original", &source, &skips) == 0) return nullptr;
  OriginalData data;
  try {
    const ReleasedGil released;
    data = read_original(source, skips != 0);
  } catch (...) {
    return set_current_error(state_of_module(module));
  }
  const Ref items(PyList_New(0));
  const Ref skipped(PyList_New(0));
  if (!items || !skipped) return nullptr;
  for (const auto& [key, value] : data.items) {
    const Ref pair(Py_BuildValue("y#y#", key.data(), static_cast<Py_ssize_t>(key.size()),
                                 value.data(), static_cast<Py_ssize_t>(value.size())));
    if (!pair || PyList_Append(items.get(), pair.get()) < 0) return nullptr;
  }
  for (const auto& [key, reason] : data.skipped) {
    const Ref text(PyUnicode_DecodeUTF8(reason.data(), static_cast<Py_ssize_t>(reason.size()),
                                        "backslashreplace"));
    const Ref pair(
        text ? Py_BuildValue("y#O", key.data(), static_cast<Py_ssize_t>(key.size()), text.get())
             : nullptr);
    if (!pair || PyList_Append(skipped.get(), pair.get()) < 0) return nullptr;
  }
  return Py_BuildValue("KOO", static_cast<unsigned long long>(data.updates_read), items.get(),
                       skipped.get());
}

PyMethodDef module_methods[] = {
    {"read_original", read_original_log, METH_VARARGS,
     "read_original(source, skips, /)\n--\n\n"
     "Reads the log of the original program (docs/formats/original.md). Returns the number of "
     "updates, pairs of keys and stored values, and pairs of skipped keys and reasons."},
    {"encode_value", method(encode_object), METH_FASTCALL,
     "encode_value(value, codec='typed', /)\n--\n\n"
     "Returns the bytes that a cache with this codec stores for a value. Raises TypeError if the "
     "codec does not store values of this type, ValueError if a value contains itself, is nested "
     "too deeply or cannot be written, and LimitError if it is too long."},
    {"decode_value", method(decode_object), METH_FASTCALL,
     "decode_value(stored, codec='typed', /)\n--\n\n"
     "Returns the value that a cache with this codec reads from stored bytes. Raises DecodeError "
     "if they are not those of a value."},
    {"call_time_left", time_left, METH_NOARGS,
     "Returns how many seconds the call of a log on this thread may still take."},
    {"end_views", end_views, METH_NOARGS, "Ends every view of this process."},
    {"start_again_in_child", start_again_in_child, METH_NOARGS,
     "Replaces what a forked child cannot share with its parent."},
    {"begin_exit", begin_exit, METH_NOARGS,
     "Keeps threads other than this one from using caches: the process is about to exit."},
    {"end_python", end_python, METH_NOARGS,
     "Keeps threads of the library from calling Python, once those calls have returned."},
    {"own_reads", own_reads, METH_O,
     "own_reads(cls, /)\n--\n\nMakes the inherited methods that read keys a class's own."},
    {"do_nothing", method(do_nothing), METH_FASTCALL,
     "Does nothing: what a call costs, for benchmarks."},
    {nullptr, nullptr, 0, nullptr}};

int execute(PyObject* module) {
  // Threads of the library call Python by functions that know the main interpreter only.
  if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
    PyErr_SetString(PyExc_ImportError, "whycache works in the main interpreter only");
    return -1;
  }
  auto* const object = static_cast<ModuleObject*>(PyModule_GetState(module));
  try {
    object->state = new ModuleState;
    ModuleState& state = *object->state;
    state.runtime = std::make_shared<Runtime>();
    if (!add_errors(module, state)) return -1;
    state.values = make_values(state.decode_error, state.limit_error);
    if (!state.values) return -1;
    return add_pending_types(module, state) && add_view_types(module, state) &&
                   add_range_types(module, state) && add_changes_type(module, state) &&
                   add_cache_type(module, state) &&
                   PyModule_AddStringConstant(module, "__version__", WHYCACHE_VERSION) == 0
               ? 0
               : -1;
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    return -1;
  }
}

template <typename Visit>
void for_each_object(ModuleState& state, const Visit& visit) {
  for (PyObject* ModuleState::*const member :
       {&ModuleState::cache_type, &ModuleState::view_type, &ModuleState::range_type,
        &ModuleState::changes_type, &ModuleState::range_iterator_type,
        &ModuleState::value_memory_type, &ModuleState::pending_type, &ModuleState::completions_type,
        &ModuleState::error, &ModuleState::invalid_error, &ModuleState::limit_error,
        &ModuleState::unavailable_error, &ModuleState::uncertain_error,
        &ModuleState::conflict_error, &ModuleState::refused_error, &ModuleState::corrupt_error,
        &ModuleState::decode_error})
    visit(state.*member);
}

int traverse(PyObject* module, visitproc visit, void* argument) {
  auto* const object = static_cast<ModuleObject*>(PyModule_GetState(module));
  if (object == nullptr || object->state == nullptr) return 0;
  int result = 0;
  for_each_object(*object->state, [&](PyObject* member) {
    if (result == 0 && member != nullptr) result = visit(member, argument);
  });
  return result;
}

// The state itself stays until the module is freed: objects of its types may still refer to it.
int clear(PyObject* module) {
  auto* const object = static_cast<ModuleObject*>(PyModule_GetState(module));
  if (object == nullptr || object->state == nullptr) return 0;
  for_each_object(*object->state, [](PyObject*& member) { Py_CLEAR(member); });
  return 0;
}

void free_module(void* module) {
  clear(static_cast<PyObject*>(module));
  auto* const object =
      static_cast<ModuleObject*>(PyModule_GetState(static_cast<PyObject*>(module)));
  if (object != nullptr) delete std::exchange(object->state, nullptr);
}

PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, slot(execute)},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, nullptr}};

PyModuleDef module_definition = {PyModuleDef_HEAD_INIT,
                                 "whycache._whycache",
                                 "The part of whycache that is written in C++.",
                                 sizeof(ModuleObject),
                                 module_methods,
                                 module_slots,
                                 traverse,
                                 clear,
                                 free_module};

}  // namespace

ModuleState& state_of_module(PyObject* module) {
  return *static_cast<ModuleObject*>(PyModule_GetState(module))->state;
}

ModuleState* state_of_type(PyTypeObject* type) {
  PyObject* const module = PyType_GetModuleByDef(type, &module_definition);
  return module != nullptr ? &state_of_module(module) : nullptr;
}

PyObject* set_error(ModuleState& module, const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    set_message(class_of(module, error.kind()), error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    set_message(module.error, error.what());
  }
  return nullptr;
}

std::string take_python_error() {
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  const Ref held_type(type), held_value(value), held_trace(trace);
  std::string message = type != nullptr ? reinterpret_cast<PyTypeObject*>(type)->tp_name : "error";
  const Ref text(value != nullptr ? PyObject_Str(value) : nullptr);
  const char* const utf8 = text ? PyUnicode_AsUTF8(text.get()) : nullptr;
  if (utf8 != nullptr && *utf8 != '\0') message += std::string(": ") + utf8;
  PyErr_Clear();
  return message;
}

void refuse_key(ModuleState& module, PyObject* object) {
  if (!PyBytes_Check(object)) {
    PyErr_Format(PyExc_TypeError, "key must be bytes, not %.100s", Py_TYPE(object)->tp_name);
  } else if (PyBytes_GET_SIZE(object) == 0) {
    PyErr_SetString(PyExc_ValueError, "key is empty");
  } else {
    PyErr_Format(module.limit_error, "key too long: bytes=%zd bytes_max=%u",
                 PyBytes_GET_SIZE(object), key_bytes_max);
  }
}

}  // namespace whycache::python

PyMODINIT_FUNC PyInit__whycache() { return PyModuleDef_Init(&whycache::python::module_definition); }
