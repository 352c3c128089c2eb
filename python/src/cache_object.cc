// The type that whycache.Cache and whycache.aio.Cache derive from. What these classes do is in
// whycache/_operations.py.
#include "objects.h"

#include <structmember.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "cache_methods.h"
#include "client/cache_internal.h"
#include "python_log.h"

namespace whycache::python {
namespace {

// --- Opening and closing ---

PyObject* cache_new(PyTypeObject* type, PyObject* /*arguments*/, PyObject* /*keywords*/) {
  ModuleState* const module = state_of_type(type);
  if (module == nullptr) return nullptr;
  PyObject* const object = type->tp_alloc(type, 0);
  if (object == nullptr) return nullptr;
  CacheObject& self = cache_of(object);
  self.module = module;
  self.codec = Codec::typed;
  new (&self.handle) std::shared_ptr<Handle>;
  return object;
}

const char* name_of(Event::Kind kind) {
  switch (kind) {
    case Event::Kind::rebuilt: return "rebuilt";
    case Event::Kind::recovered: return "recovered";
    case Event::Kind::retried: return "retried";
    case Event::Kind::reconnected: return "reconnected";
    case Event::Kind::not_following: return "not_following";
    case Event::Kind::following: return "following";
    case Event::Kind::polling: return "polling";
    case Event::Kind::stray_state: return "stray_state";
    case Event::Kind::changes_not_kept: return "changes_not_kept";
  }
  return "unknown";
}

std::function<void(const Event&)> event_callback(ModuleState& module, PyObject* function) {
  const auto shared = std::make_shared<SharedObject>(module.runtime, function);
  return [shared](const Event& event) {
    const PythonCall call(shared->runtime());
    if (!call.allowed()) return;
    const CallbackScope callback;
    const Ref message(PyUnicode_DecodeUTF8(
        event.message.data(), static_cast<Py_ssize_t>(event.message.size()), "backslashreplace"));
    const Ref result(message ? call_until_exit([&] {
      return PyObject_CallFunction(shared->get(), "sO", name_of(event.kind), message.get());
    })
                             : nullptr);
    if (!result) PyErr_WriteUnraisable(shared->get());
  };
}

using Validate = std::function<std::optional<std::string>(const Change&)>;

// The guard gets the key, and the stored value or None. It returns None, or the reason to refuse.
Validate validate_callback(ModuleState& module, Codec codec, PyObject* function) {
  const auto shared = std::make_shared<SharedObject>(module.runtime, function);
  return [shared, codec, &module](const Change& change) -> std::optional<std::string> {
    const PythonCall call(shared->runtime());
    if (!call.allowed()) return "the interpreter is about to end";
    const CallbackScope callback;
    const bool sets = change.kind == Change::Kind::set;
    const Ref key(bytes_of(change.key));
    const Ref value(sets ? decode_stored(module, codec, change.value, change.key)
                         : Ref::borrow(Py_None).release());
    const Ref kind(PyUnicode_FromString(sets ? "set" : "delete"));
    PyObject* const arguments[] = {kind.get(), key.get(), value.get()};
    const Ref result(key && value && kind ? call_until_exit([&] {
      return PyObject_Vectorcall(shared->get(), arguments, 3, nullptr);
    })
                                          : nullptr);
    if (!result) return "validate raised " + take_python_error();
    if (result.get() == Py_None) return std::nullopt;
    const char* const reason =
        PyUnicode_Check(result.get()) ? PyUnicode_AsUTF8(result.get()) : nullptr;
    if (reason == nullptr) {
      PyErr_Clear();
      return std::string("validate returned ") + Py_TYPE(result.get())->tp_name +
             ", not None or a reason";
    }
    return reason;
  };
}

// What __init__ takes, before it is converted.
struct InitArguments {
  PyObject* log = nullptr;
  PyObject* codec = nullptr;
  PyObject* state_path = Py_None;
  PyObject* state_mode = Py_None;
  PyObject* changes_bytes = Py_None;
  PyObject* erased_keys_max = Py_None;
  PyObject* erased_share_max = Py_None;
  PyObject* validate = Py_None;
  PyObject* on_event = Py_None;
  const char* name = "";
  const char* writer_name = "";
  int attach = 0;
  int wait = 1;
  int any_file_system = 0;
  int create_log = 1;
  int accept_replaced_log = 0;
  int split_updates = 1;
  int follow = 0;
  unsigned long long state_bytes_max = Options().state_bytes_max;
  unsigned long long queue_bytes_max = Options().queue_bytes_max;
  unsigned int update_bytes_max = Options().update_bytes_max;
  long long deadline_ms = Options().deadline.count();

  // Returns false with an exception set.
  bool parse(PyObject* arguments, PyObject* keywords) {
    static const char* names[] = {"log",
                                  "codec",
                                  "name",
                                  "state_path",
                                  "attach",
                                  "wait",
                                  "state_mode",
                                  "state_bytes_max",
                                  "any_file_system",
                                  "create_log",
                                  "accept_replaced_log",
                                  "update_bytes_max",
                                  "split_updates",
                                  "deadline_ms",
                                  "queue_bytes_max",
                                  "changes_bytes",
                                  "erased_keys_max",
                                  "erased_share_max",
                                  "validate",
                                  "writer_name",
                                  "on_event",
                                  "follow",
                                  nullptr};
    return PyArg_ParseTupleAndKeywords(
               arguments, keywords, "OO|$sOppOKpppIpLKOOOOsOp:Cache", const_cast<char**>(names),
               &log, &codec, &name, &state_path, &attach, &wait, &state_mode, &state_bytes_max,
               &any_file_system, &create_log, &accept_replaced_log, &update_bytes_max,
               &split_updates, &deadline_ms, &queue_bytes_max, &changes_bytes, &erased_keys_max,
               &erased_share_max, &validate, &writer_name, &on_event, &follow) != 0;
  }
};

bool read_path(PyObject* object, std::string& path) {
  PyObject* encoded = nullptr;
  if (PyUnicode_FSConverter(object, &encoded) == 0) return false;
  const Ref held(encoded);
  path.assign(PyBytes_AS_STRING(encoded), static_cast<std::size_t>(PyBytes_GET_SIZE(encoded)));
  return true;
}

// Converts what needs Python. Returns false with an exception set.
bool read_options(CacheObject& self, const InitArguments& given, Options& options) {
  options.name = given.name;
  options.writer_name = given.writer_name;
  if (given.state_path != Py_None && !read_path(given.state_path, options.state_path)) return false;
  options.open = given.wait != 0 ? OpenMode::wait : OpenMode::now;
  if (given.state_mode != Py_None) {
    const unsigned long mode = PyLong_AsUnsignedLong(given.state_mode);
    if (PyErr_Occurred() != nullptr) return false;
    options.state_mode = static_cast<std::uint32_t>(std::min<unsigned long>(mode, 0xffffffff));
  }
  options.state_bytes_max = given.state_bytes_max;
  options.any_file_system = given.any_file_system != 0;
  options.create_log = given.create_log != 0;
  options.accept_replaced_log = given.accept_replaced_log != 0;
  options.update_bytes_max = given.update_bytes_max;
  options.split_updates = given.split_updates != 0;
  options.follow = given.follow != 0;
  options.deadline = std::chrono::milliseconds(given.deadline_ms);
  options.queue_bytes_max = static_cast<std::size_t>(given.queue_bytes_max);
  if (given.changes_bytes != Py_None)
    options.changes_bytes = PyLong_AsUnsignedLongLong(given.changes_bytes);
  if (given.erased_keys_max != Py_None)
    options.guards.erased_keys_max = PyLong_AsUnsignedLongLong(given.erased_keys_max);
  if (given.erased_share_max != Py_None)
    options.guards.erased_share_max = PyFloat_AsDouble(given.erased_share_max);
  if (PyErr_Occurred() != nullptr) return false;
  if (given.validate != Py_None)
    options.guards.validate = validate_callback(*self.module, self.codec, given.validate);
  if (given.on_event != Py_None) options.on_event = event_callback(*self.module, given.on_event);
  return true;
}

// Returns the cache; null with an exception set.
std::shared_ptr<Handle> open_cache(CacheObject& self, const InitArguments& given) {
  Options options;
  if (!read_options(self, given, options)) return nullptr;
  std::unique_ptr<Log> own_log;
  std::string url_or_path;
  if (PyUnicode_Check(given.log)) {
    Py_ssize_t bytes = 0;
    const char* const utf8 = PyUnicode_AsUTF8AndSize(given.log, &bytes);
    if (utf8 == nullptr) return nullptr;
    url_or_path.assign(utf8, static_cast<std::size_t>(bytes));
  } else if (given.attach != 0) {
    if (!read_path(given.log, url_or_path)) return nullptr;
  } else {
    own_log = make_python_log(*self.module, given.log);
    if (!own_log) return nullptr;
  }
  const ReleasedGil released;
  if (given.attach != 0) {
    return std::make_shared<Handle>(
        Cache::attach(url_or_path, {.open = options.open,
                                    .state_bytes_max = options.state_bytes_max,
                                    .any_file_system = options.any_file_system,
                                    .on_event = options.on_event}));
  }
  if (own_log) return std::make_shared<Handle>(std::move(own_log), std::move(options));
  return std::make_shared<Handle>(url_or_path, std::move(options));
}

int cache_init(PyObject* object, PyObject* arguments, PyObject* keywords) {
  CacheObject& self = cache_of(object);
  if (self.handle) {
    PyErr_SetString(PyExc_RuntimeError, "the cache is open already");
    return -1;
  }
  InitArguments given;
  if (!given.parse(arguments, keywords) || !find_codec(given.codec, self.codec)) return -1;
  try {
    self.handle = open_cache(self, given);
    if (!self.handle) return -1;
    self.handle->deadline = std::chrono::milliseconds(given.deadline_ms);
    return 0;
  } catch (...) {
    set_current_error(*self.module);
    return -1;
  }
}

int cache_traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  return 0;
}

// Closes the cache if nothing else uses it.
void drop_handle(CacheObject& self) {
  std::shared_ptr<Handle> handle = std::move(self.handle);
  if (!PythonCall::is_inside()) {
    const ReleasedGil released;  // closing waits for writes under way
    handle.reset();
    return;
  }
  // A callback, or what it made the garbage collector free: this may be a thread of the cache,
  // which closing would wait for.
  try {
    auto* const dropped = new std::shared_ptr<Handle>(std::move(handle));
    self.module->runtime->workers()->run([dropped] { delete dropped; });
  } catch (const std::exception&) {
    // No thread or no memory: the cache stays open until the process ends.
  }
}

void cache_dealloc(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  CacheObject& self = cache_of(object);
  if (self.weak_references != nullptr) PyObject_ClearWeakRefs(object);
  Py_CLEAR(self.spare);
  if (self.handle) drop_handle(self);
  self.handle.~shared_ptr();
  type->tp_free(object);
  Py_DECREF(type);
}

// Sets an exception on a thread that a cache waits for when it is closed.
bool refuse_close_in_callback(const CacheObject& self) {
  if (!PythonCall::is_inside()) return false;
  PyErr_SetString(self.module->invalid_error,
                  "a callback, or a method of a log, must not close a cache");
  return true;
}

PyObject* cache_close(PyObject* object, PyObject* /*unused*/) {
  CacheObject& self = cache_of(object);
  const std::shared_ptr<Handle> handle = self.handle;
  if (!handle || handle->closed.load()) Py_RETURN_NONE;
  if (refuse_close_in_callback(self)) return nullptr;
  try {
    const ReleasedGil released;
    handle->close();
  } catch (...) {
    return set_current_error(*self.module);
  }
  Py_RETURN_NONE;
}

// Runs a call of the cache without the GIL.
template <typename Call>
PyObject* call_without_gil(PyObject* object, const Call& call) {
  CacheObject& self = cache_of(object);
  const std::shared_ptr<Handle> handle = open_handle(self);
  if (!handle) return nullptr;
  try {
    const ReleasedGil released;
    call(handle->cache);
  } catch (...) {
    return set_current_error(*self.module);
  }
  Py_RETURN_NONE;
}

PyObject* cache_close_shared_state(PyObject* object, PyObject* /*unused*/) {
  if (refuse_close_in_callback(cache_of(object))) return nullptr;
  return call_without_gil(object, [](Cache& cache) { cache.close_shared_state(); });
}

PyObject* cache_delete_shared_state(PyObject* object, PyObject* /*unused*/) {
  if (refuse_close_in_callback(cache_of(object))) return nullptr;
  return call_without_gil(object, [](Cache& cache) { cache.delete_shared_state(); });
}

PyMethodDef cache_methods[] = {
    {"get", method(cache_get), METH_FASTCALL,
     "get($self, key, default=..., /)\n--\n\n"
     "Returns the value of a key. If the key is absent, returns the default, or raises KeyError "
     "if\n"
     "none is given. No lock, no system call."},
    {"get_multi", method(cache_get_multi), METH_FASTCALL,
     "get_multi($self, keys, default=None, /)\n--\n\n"
     "Returns a list of the values in the order of the keys, all as of one update id; the default\n"
     "for absent keys."},
    {"get_versioned", cache_get_versioned, METH_O,
     "get_versioned($self, key, /)\n--\n\n"
     "Returns the value of a key and its version, for set_if_version(); None if the key is "
     "absent."},
    {"version_stamp", cache_version_stamp, METH_O,
     "version_stamp($self, key, /)\n--\n\n"
     "Returns bytes that stay the same while the key has the same value; None if it is absent."},
    {"start_changes", method(cache_start_changes), METH_FASTCALL, nullptr},
    {"view", cache_view, METH_NOARGS,
     "view($self)\n--\n\n"
     "Returns the dataset as of one update id, for a with statement. Values that are plain bytes\n"
     "come as memoryviews of the shared state, without a copy. They end with the view."},
    {"keys", method(cache_keys), METH_FASTCALL | METH_KEYWORDS,
     "keys($self, *, prefix=None, start=None, stop=None, reverse=False)\n--\n\n"
     "Returns the keys in order. Each iteration sees the dataset as of one update id."},
    {"values", method(cache_values), METH_FASTCALL | METH_KEYWORDS,
     "values($self, *, prefix=None, start=None, stop=None, reverse=False)\n--\n\n"
     "Returns the values in the order of their keys, as keys() does."},
    {"items", method(cache_items), METH_FASTCALL | METH_KEYWORDS,
     "items($self, *, prefix=None, start=None, stop=None, reverse=False)\n--\n\n"
     "Returns pairs of key and value in key order, as keys() does."},
    {"count", method(cache_count), METH_FASTCALL | METH_KEYWORDS,
     "count($self, *, prefix=None, start=None, stop=None)\n--\n\nReturns the number of keys in a "
     "range."},
    {"applied_id", cache_applied_id, METH_NOARGS,
     "applied_id($self)\n--\n\nReturns the id of the last update in the state."},
    {"notify_fd", cache_notify_fd, METH_NOARGS,
     "notify_fd($self)\n--\n\nReturns a descriptor for select and event loops. It is readable when "
     "an update was\napplied since its 8 bytes were last read. It belongs to the cache."},
    {"staleness", cache_staleness, METH_NOARGS,
     "staleness($self)\n--\n\n"
     "Returns how many seconds ago a process of this machine last asked the log; infinity if none\n"
     "has since the machine started."},
    {"digest", cache_digest, METH_NOARGS,
     "digest($self)\n--\n\n"
     "Returns the digest of the items: equal on machines that have applied the same update."},
    {"ready", cache_ready, METH_NOARGS,
     "ready($self)\n--\n\nReturns whether this machine has a state that can be read."},
    {"valid", cache_valid, METH_NOARGS,
     "valid($self)\n--\n\n"
     "Returns whether the cache can be used: False once it was closed, or its state deleted\n"
     "through it."},
    {"shared_state_filename", cache_state_path, METH_NOARGS,
     "shared_state_filename($self)\n--\n\nReturns the path of the state of this machine."},
    {"counters", cache_counters, METH_NOARGS,
     "counters($self)\n--\n\nReturns what this object has counted since it was opened."},
    {"stats", cache_stats, METH_NOARGS,
     "stats($self)\n--\n\nReturns the state of health, for checks and metrics. Does not ask the "
     "log."},
    {"get_shared_state", cache_inspect, METH_NOARGS,
     "get_shared_state($self)\n--\n\nReturns what the state file holds, for inspection."},
    {"close", cache_close, METH_NOARGS,
     "close($self)\n--\n\n"
     "Closes the cache for good. Writes that are still queued fail with UnavailableError."},
    {"close_shared_state", cache_close_shared_state, METH_NOARGS,
     "close_shared_state($self)\n--\n\n"
     "Writes the state to disk and closes it, so that the file can be copied to another machine.\n"
     "The next call opens it again."},
    {"delete_shared_state", cache_delete_shared_state, METH_NOARGS,
     "delete_shared_state($self)\n--\n\n"
     "Removes the state of this machine and closes this object for good. Other processes build a\n"
     "new state at their next update()."},
    {"start_set", method(cache_start_set), METH_FASTCALL, nullptr},
    {"start_delete", method(cache_start_delete), METH_FASTCALL, nullptr},
    {"start_write", method(cache_start_write), METH_FASTCALL, nullptr},
    {"start_commit", method(cache_start_commit), METH_FASTCALL, nullptr},
    {"start_set_if", method(cache_start_set_if), METH_FASTCALL, nullptr},
    {"start_set_if_version", method(cache_start_set_if_version), METH_FASTCALL, nullptr},
    {"start_add", method(cache_start_add), METH_FASTCALL, nullptr},
    {"start_acquire", method(cache_start_acquire), METH_FASTCALL, nullptr},
    {"start_renew", method(cache_start_renew), METH_FASTCALL, nullptr},
    {"start_release", method(cache_start_release), METH_FASTCALL, nullptr},
    {"start_set_log_guards", method(cache_start_set_log_guards), METH_FASTCALL, nullptr},
    {"read_log_guards", cache_read_log_guards, METH_NOARGS,
     "read_log_guards($self)\n--\n\n"
     "Returns the guards of the log, for log_guards()."},
    {"start_delete_range", method(cache_start_delete_range), METH_FASTCALL | METH_KEYWORDS,
     nullptr},
    {"start_wait", method(cache_start_wait), METH_FASTCALL, nullptr},
    {"start_update", method(cache_start_update), METH_FASTCALL, nullptr},
    {"update_if_fresh", method(cache_update_if_fresh), METH_FASTCALL,
     "update_if_fresh($self, staleness_ns, at_least, /)\n--\n\n"
     "Returns the applied id if update() need not ask the log, else None."},
    {"start_rewrite", method(cache_start_rewrite), METH_FASTCALL, nullptr},
    {"start_delete_all_history", cache_start_delete_all_history, METH_O, nullptr},
    {"forget_calls", cache_forget_calls, METH_NOARGS,
     "forget_calls($self)\n--\n\n"
     "Forgets, in a forked child, the calls that the parent has started."},
    {"start_close", cache_start_close, METH_NOARGS, nullptr},
    {"wait_until_idle", cache_wait_until_idle, METH_O,
     "wait_until_idle($self, milliseconds, /)\n--\n\n"
     "Waits for the calls under way. Returns how many have not finished in time."},
    {"check_value", cache_check_value, METH_O,
     "check_value($self, value, /)\n--\n\n"
     "Returns how many bytes a value is stored as. Raises what set() raises for it."},
    {nullptr, nullptr, 0, nullptr}};

PyMemberDef cache_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(CacheObject, weak_references), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyType_Slot cache_slots[] = {
    {Py_tp_doc, const_cast<char*>("What whycache.Cache and whycache.aio.Cache have in common.")},
    {Py_tp_new, slot(cache_new)},
    {Py_tp_init, slot(cache_init)},
    {Py_tp_dealloc, slot(cache_dealloc)},
    {Py_tp_traverse, slot(cache_traverse)},
    {Py_tp_methods, cache_methods},
    {Py_tp_members, cache_members},
    {Py_tp_iter, slot(cache_iterate)},
    {Py_mp_length, slot(cache_length)},
    {Py_mp_subscript, slot(cache_subscript)},
    {Py_sq_contains, slot(cache_contains)},
    {0, nullptr}};

PyType_Spec cache_spec = {"whycache._whycache.BaseCache", sizeof(CacheObject), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC
#ifdef Py_TPFLAGS_MAPPING
                              | Py_TPFLAGS_MAPPING
#endif
                          ,
                          cache_slots};

}  // namespace

// A callback must return: the end of the interpreter waits for it.
static void stay_if_exiting(const CacheObject& self) {
  if (!self.module->runtime->must_stay() || PythonCall::is_inside()) [[likely]]
    return;
  const ReleasedGil released;
  stay_until_exit();
}

std::shared_ptr<Handle> open_handle(CacheObject& self) {
  if (self.handle && !self.handle->closed.load(std::memory_order_relaxed)) [[likely]] {
    if (!CallbackScope::is_inside() || CacheInternal::state_if_open(self.handle->cache) != nullptr)
      return self.handle;
    // The thread may be the one that is opening the state again, and hold its mutex.
    PyErr_SetString(self.module->invalid_error,
                    "cache is closed, or being opened: a callback must not wait for that");
    return nullptr;
  }
  stay_if_exiting(self);
  PyErr_SetString(self.module->invalid_error,
                  self.handle ? "cache is closed" : "cache is not open");
  return nullptr;
}

std::shared_ptr<Handle> handle_to_wait_for(CacheObject& self) {
  if (CallbackScope::is_inside()) {
    PyErr_SetString(self.module->invalid_error,
                    "validate, filter_fn and on_event must not write, nor wait for the log");
    return nullptr;
  }
  stay_if_exiting(self);
  return open_handle(self);
}

bool add_cache_type(PyObject* module, ModuleState& state) {
  state.cache_type = PyType_FromModuleAndSpec(module, &cache_spec, nullptr);
  return state.cache_type != nullptr &&
         PyModule_AddObjectRef(module, "BaseCache", state.cache_type) == 0;
}

}  // namespace whycache::python
