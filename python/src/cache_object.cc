// The type that whycache.Cache and whycache.aio.Cache derive from: reads, and the beginning of
// everything that waits. What these classes do is in whycache/_operations.py.
#include "objects.h"

#include <structmember.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <span>
#include <thread>
#include <vector>

#include "client/cache_internal.h"
#include "pending.h"
#include "python_log.h"
#include "state/state.h"

namespace whycache::python {
namespace {

// Larger values are copied without the GIL.
constexpr std::size_t value_bytes_with_gil_max = std::size_t{64} << 10;
// Reads of more keys than this release the GIL.
constexpr std::size_t keys_with_gil_max = 256;

CacheObject& cache_of(PyObject* object) { return *reinterpret_cast<CacheObject*>(object); }

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

// Returns a message for an exception of Python that cannot pass through C++, and clears it.
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

const char* name_of(Event::Kind kind) {
  switch (kind) {
    case Event::Kind::rebuilt: return "rebuilt";
    case Event::Kind::recovered: return "recovered";
    case Event::Kind::retried: return "retried";
    case Event::Kind::stray_state: return "stray_state";
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
    const Ref result(
        message ? PyObject_CallFunction(shared->get(), "sO", name_of(event.kind), message.get())
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
    const Ref result(
        key && value && kind ? PyObject_Vectorcall(shared->get(), arguments, 3, nullptr) : nullptr);
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
  PyObject* erased_keys_max = Py_None;
  PyObject* erased_share_max = Py_None;
  PyObject* validate = Py_None;
  PyObject* on_event = Py_None;
  const char* name = "";
  const char* writer_name = "";
  int attach = 0;
  int wait = 1;
  int any_file_system = 0;
  int split_updates = 1;
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
                                  "update_bytes_max",
                                  "split_updates",
                                  "deadline_ms",
                                  "queue_bytes_max",
                                  "erased_keys_max",
                                  "erased_share_max",
                                  "validate",
                                  "writer_name",
                                  "on_event",
                                  nullptr};
    return PyArg_ParseTupleAndKeywords(
               arguments, keywords, "OO|$sOppOKpIpLKOOOsO:Cache", const_cast<char**>(names), &log,
               &codec, &name, &state_path, &attach, &wait, &state_mode, &state_bytes_max,
               &any_file_system, &update_bytes_max, &split_updates, &deadline_ms, &queue_bytes_max,
               &erased_keys_max, &erased_share_max, &validate, &writer_name, &on_event) != 0;
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
  options.update_bytes_max = given.update_bytes_max;
  options.split_updates = given.split_updates != 0;
  options.deadline = std::chrono::milliseconds(given.deadline_ms);
  options.queue_bytes_max = static_cast<std::size_t>(given.queue_bytes_max);
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
    return self.handle ? 0 : -1;
  } catch (...) {
    set_current_error(*self.module);
    return -1;
  }
}

int cache_traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  return 0;
}

void cache_dealloc(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  CacheObject& self = cache_of(object);
  if (self.weak_references != nullptr) PyObject_ClearWeakRefs(object);
  Py_CLEAR(self.spare);
  if (self.handle) {
    std::shared_ptr<Handle> handle = std::move(self.handle);
    const ReleasedGil released;  // closing waits for writes under way
    handle.reset();
  }
  self.handle.~shared_ptr();
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* cache_close(PyObject* object, PyObject* /*unused*/) {
  CacheObject& self = cache_of(object);
  const std::shared_ptr<Handle> handle = self.handle;
  if (!handle || handle->closed.exchange(true)) Py_RETURN_NONE;
  try {
    const ReleasedGil released;
    if (handle->cache.valid()) handle->cache.close_shared_state();
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
  return call_without_gil(object, [](Cache& cache) { cache.close_shared_state(); });
}

PyObject* cache_delete_shared_state(PyObject* object, PyObject* /*unused*/) {
  return call_without_gil(object, [](Cache& cache) { cache.delete_shared_state(); });
}

// --- Point reads ---

// A bytes object that a value is copied to.
struct BytesBuffer : ValueBuffer {
  explicit BytesBuffer(PyObject* spare) : object(spare) {
    data = PyBytes_AS_STRING(object);
    bytes = static_cast<std::size_t>(PyBytes_GET_SIZE(object));
    bytes_max = value_bytes_with_gil_max;
    resize = [](ValueBuffer& buffer, std::size_t wanted) {
      auto& self = static_cast<BytesBuffer&>(buffer);
      PyObject* const other = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(wanted));
      if (other == nullptr) {
        PyErr_Clear();  // the slow path fails in the same way
        return false;
      }
      Py_DECREF(self.object);
      self.object = other;
      self.data = PyBytes_AS_STRING(other);
      self.bytes = wanted;
      return true;
    };
  }

  PyObject* object;
};

// Keeps a bytes object for the next value, unless a read on the way here has left another.
inline void keep_spare(CacheObject& self, PyObject* spare) {
  if (self.spare == nullptr) {
    self.spare = spare;
  } else {
    Py_DECREF(spare);
  }
}

// Reads without the GIL: whatever the fast path cannot decide. Returns as read_value().
[[gnu::cold, gnu::noinline]] PyObject* read_slowly(CacheObject& self, std::string_view key,
                                                   bool& absent) {
  const std::shared_ptr<Handle> handle = open_handle(self);
  if (!handle) return nullptr;
  std::string value;
  try {
    bool found = false;
    {
      const ReleasedGil released;
      found = handle->cache.get(key, value);
    }
    absent = !found;
    if (absent) return nullptr;
  } catch (...) {
    return set_current_error(*self.module);
  }
  if (value.size() <= value_bytes_with_gil_max ||
      (self.codec != Codec::bytes &&
       !(self.codec == Codec::typed && !is_typed(value.data(), value.size()))))
    return decode_stored(*self.module, self.codec, value, key);
  PyObject* const bytes = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(value.size()));
  if (bytes != nullptr) {
    const ReleasedGil released;
    std::memcpy(PyBytes_AS_STRING(bytes), value.data(), value.size());
  }
  return bytes;
}

// Returns the value, or null: with `absent` set if the key is absent, else with an exception set.
[[gnu::always_inline]] inline PyObject* read_value(CacheObject& self, std::string_view key,
                                                   bool& absent) {
  PyObject* spare = std::exchange(self.spare, nullptr);
  const State* const state =
      self.handle ? CacheInternal::state_if_open(self.handle->cache) : nullptr;
  if (spare == nullptr) spare = PyBytes_FromStringAndSize(nullptr, 0);
  BytesBuffer buffer(spare);
  if (state != nullptr && state->try_get(key, buffer)) [[likely]] {
    const bool is_plain = self.codec == Codec::typed ? !is_typed(buffer.data, buffer.bytes)
                                                     : self.codec == Codec::bytes;
    if (is_plain) [[likely]] {
      // The next value most often has the same size.
      self.spare = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(buffer.bytes));
      if (self.spare == nullptr) PyErr_Clear();
      return buffer.object;
    }
    PyObject* const value =
        decode_value(*self.module->values, self.codec, {buffer.data, buffer.bytes}, key);
    keep_spare(self, buffer.object);
    return value;
  }
  keep_spare(self, buffer.object);
  if (state != nullptr && !buffer.is_undecided) {
    absent = true;
    return nullptr;
  }
  return read_slowly(self, key, absent);
}

PyObject* cache_get(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  if (count < 1 || count > 2) [[unlikely]]
    return PyErr_Format(PyExc_TypeError, "get() takes 1 or 2 arguments: %zd given", count);
  std::string_view key;
  if (!read_key(*self.module, arguments[0], key)) [[unlikely]]
    return nullptr;
  bool absent = false;
  PyObject* const value = read_value(self, key, absent);
  if (!absent) [[likely]]
    return value;
  if (count == 2) {
    Py_INCREF(arguments[1]);
    return arguments[1];
  }
  PyErr_SetObject(PyExc_KeyError, arguments[0]);
  return nullptr;
}

PyObject* cache_subscript(PyObject* object, PyObject* key_object) {
  return cache_get(object, &key_object, 1);
}

int cache_contains(PyObject* object, PyObject* key_object) {
  CacheObject& self = cache_of(object);
  std::string_view key;
  if (!read_key(*self.module, key_object, key)) return -1;
  const std::shared_ptr<Handle> handle = open_handle(self);
  if (!handle) return -1;
  try {
    // Waits only where a state was replaced or closed.
    if (CacheInternal::state_if_open(handle->cache) != nullptr)
      return handle->cache.contains(key) ? 1 : 0;
    const ReleasedGil released;
    return handle->cache.contains(key) ? 1 : 0;
  } catch (...) {
    set_current_error(*self.module);
    return -1;
  }
}

Py_ssize_t cache_length(PyObject* object) {
  CacheObject& self = cache_of(object);
  const std::shared_ptr<Handle> handle = open_handle(self);
  if (!handle) return -1;
  try {
    const ReleasedGil released;
    return static_cast<Py_ssize_t>(handle->cache.size());
  } catch (...) {
    set_current_error(*self.module);
    return -1;
  }
}

// --- Reads of many keys ---

// get_multi(keys, default=None): the values in the order of the keys.
PyObject* cache_get_multi(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  if (count < 1 || count > 2)
    return PyErr_Format(PyExc_TypeError, "get_multi() takes 1 or 2 arguments: %zd given", count);
  PyObject* const absent = count == 2 ? arguments[1] : Py_None;
  // A copy: other threads may change a list meanwhile.
  const Ref keys(PySequence_Tuple(arguments[0]));
  if (!keys) return nullptr;
  const std::shared_ptr<Handle> handle = open_handle(self);
  if (!handle) return nullptr;
  const auto key_count = static_cast<std::size_t>(PyTuple_GET_SIZE(keys.get()));
  constexpr std::size_t few = 64;
  std::string_view few_keys[few];
  std::vector<std::string_view> many_keys;
  std::string_view* key_views = few_keys;
  Ref result;
  try {
    if (key_count > few) {
      many_keys.resize(key_count);
      key_views = many_keys.data();
    }
    for (std::size_t i = 0; i < key_count; ++i) {
      PyObject* const key = PyTuple_GET_ITEM(keys.get(), static_cast<Py_ssize_t>(i));
      if (!read_key(*self.module, key, key_views[i])) return nullptr;
    }
    result = Ref(PyList_New(static_cast<Py_ssize_t>(key_count)));
    if (!result) return nullptr;
    const std::span<const std::string_view> all(key_views, key_count);
    bool failed = false;
    const auto put = [&](std::size_t i, std::string_view stored) {
      if (failed) return;
      PyObject* const value = decode_stored(*self.module, self.codec, stored, all[i]);
      failed = value == nullptr;
      PyList_SET_ITEM(result.get(), static_cast<Py_ssize_t>(i), value);
    };
    const State* const state = CacheInternal::state_if_open(handle->cache);
    if (state != nullptr && key_count <= keys_with_gil_max) {
      state->get_multi(all, put);
    } else {
      // The view keeps the bytes in place, so that they can be found without the GIL.
      std::vector<std::optional<std::string_view>> found(key_count);
      std::optional<View> view;
      {
        const ReleasedGil released;
        view.emplace(handle->cache.view());
        for (std::size_t i = 0; i < key_count; ++i) found[i] = view->get(all[i]);
      }
      for (std::size_t i = 0; i < key_count; ++i) {
        if (found[i]) put(i, *found[i]);
      }
    }
    if (failed) return nullptr;
  } catch (...) {
    return set_current_error(*self.module);
  }
  for (std::size_t i = 0; i < key_count; ++i) {
    const auto at = static_cast<Py_ssize_t>(i);
    if (PyList_GET_ITEM(result.get(), at) != nullptr) continue;
    Py_INCREF(absent);
    PyList_SET_ITEM(result.get(), at, absent);
  }
  return result.release();
}

PyObject* cache_view(PyObject* object, PyObject* /*unused*/) { return make_view(cache_of(object)); }

template <RangeKind kind>
PyObject* cache_range(PyObject* object, PyObject* const* arguments, Py_ssize_t count,
                      PyObject* names) {
  return make_range(*cache_of(object).module, object, kind, arguments, count, names);
}

PyObject* cache_iterate(PyObject* object) {
  const Ref range(
      make_range(*cache_of(object).module, object, RangeKind::keys, nullptr, 0, nullptr));
  return range ? PyObject_GetIter(range.get()) : nullptr;
}

PyObject* cache_count(PyObject* object, PyObject* const* arguments, Py_ssize_t count,
                      PyObject* names) {
  CacheObject& self = cache_of(object);
  KeyRange range;
  if (!read_range(*self.module, arguments, count, names, range, nullptr)) return nullptr;
  const std::shared_ptr<Handle> handle = open_handle(self);
  if (!handle) return nullptr;
  try {
    std::size_t keys = 0;
    {
      const ReleasedGil released;
      keys = handle->cache.count(range);
    }
    return PyLong_FromSize_t(keys);
  } catch (...) {
    return set_current_error(*self.module);
  }
}

// Returns (value, version), or None if the key is absent.
PyObject* cache_get_versioned(PyObject* object, PyObject* key_object) {
  CacheObject& self = cache_of(object);
  std::string_view key;
  if (!read_key(*self.module, key_object, key)) return nullptr;
  const std::shared_ptr<Handle> handle = open_handle(self);
  if (!handle) return nullptr;
  std::optional<VersionedValue> found;
  try {
    const ReleasedGil released;
    found = handle->cache.get_versioned(key);
  } catch (...) {
    return set_current_error(*self.module);
  }
  if (!found) Py_RETURN_NONE;
  const Ref value(decode_stored(*self.module, self.codec, found->value, key));
  if (!value) return nullptr;
  return Py_BuildValue("OK", value.get(), static_cast<unsigned long long>(found->version));
}

// --- Facts ---

PyObject* hex_of(const std::string& digits) { return PyUnicode_FromString(digits.c_str()); }

PyObject* text_of(const std::string& text) {
  return PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()),
                              "backslashreplace");
}

bool put(PyObject* dict, const char* name, PyObject* value) {
  const Ref held(value);
  return held && PyDict_SetItemString(dict, name, held.get()) == 0;
}
bool put(PyObject* dict, const char* name, std::uint64_t value) {
  return put(dict, name, PyLong_FromUnsignedLongLong(value));
}
bool put(PyObject* dict, const char* name, const std::string& text) {
  return put(dict, name, text_of(text));
}
bool put(PyObject* dict, const char* name, bool value) {
  return put(dict, name, PyBool_FromLong(value));
}
bool put(PyObject* dict, const char* name, const std::optional<std::uint64_t>& value) {
  return put(dict, name,
             value ? PyLong_FromUnsignedLongLong(*value) : Ref::borrow(Py_None).release());
}
// Seconds; infinity for never.
PyObject* seconds_of(std::chrono::nanoseconds time) {
  return PyFloat_FromDouble(time == std::chrono::nanoseconds::max()
                                ? Py_HUGE_VAL
                                : std::chrono::duration<double>(time).count());
}

// Calls a function of the cache without the GIL, and makes a Python object of what it returns.
template <typename Call, typename Make>
PyObject* ask(PyObject* object, const Call& call, const Make& make) {
  CacheObject& self = cache_of(object);
  const std::shared_ptr<Handle> handle = open_handle(self);
  if (!handle) return nullptr;
  try {
    std::optional<std::decay_t<decltype(call(handle->cache))>> result;
    {
      const ReleasedGil released;
      result.emplace(call(handle->cache));
    }
    return make(*result);
  } catch (...) {
    return set_current_error(*self.module);
  }
}

PyObject* cache_applied_id(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.applied_id(); },
      [](UpdateId id) { return PyLong_FromUnsignedLongLong(id); });
}

PyObject* cache_staleness(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.staleness(); }, seconds_of);
}

PyObject* cache_digest(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.digest(); },
      [](const Digest& digest) { return hex_of(to_string(digest)); });
}

PyObject* cache_ready(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.ready(); },
      [](bool ready) { return PyBool_FromLong(ready); });
}

PyObject* cache_valid(PyObject* object, PyObject* /*unused*/) {
  const std::shared_ptr<Handle> handle = cache_of(object).handle;
  return PyBool_FromLong(handle && !handle->closed.load() && handle->cache.valid());
}

PyObject* cache_state_path(PyObject* object, PyObject* /*unused*/) {
  CacheObject& self = cache_of(object);
  if (!self.handle) {
    PyErr_SetString(self.module->invalid_error, "cache is not open");
    return nullptr;
  }
  const std::string path = self.handle->cache.state_path();
  return PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size()));
}

PyObject* dict_of(const Counters& counters) {
  Ref dict(PyDict_New());
  PyObject* const to = dict.get();
  const bool complete = dict && put(to, "updates_applied", counters.updates_applied) &&
                        put(to, "updates_written", counters.updates_written) &&
                        put(to, "append_conflicts", counters.append_conflicts) &&
                        put(to, "log_retries", counters.log_retries) &&
                        put(to, "rebuilds_behind_base", counters.rebuilds_behind_base) &&
                        put(to, "rebuilds_diverged", counters.rebuilds_diverged) &&
                        put(to, "rebuilds_replaced", counters.rebuilds_replaced) &&
                        put(to, "rebuilds_damaged", counters.rebuilds_damaged) &&
                        put(to, "recoveries", counters.recoveries);
  return complete ? dict.release() : nullptr;
}

PyObject* cache_counters(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.counters(); }, dict_of);
}

PyObject* dict_of_stats(const Stats& stats) {
  Ref dict(PyDict_New());
  PyObject* const to = dict.get();
  const auto since = [&]() -> PyObject* {
    if (!stats.log_down_since) return Ref::borrow(Py_None).release();
    return PyFloat_FromDouble(
        std::chrono::duration<double>(stats.log_down_since->time_since_epoch()).count());
  };
  const bool complete =
      dict && put(to, "applied_id", stats.applied_id) && put(to, "known_head", stats.known_head) &&
      put(to, "lag", stats.lag) && put(to, "staleness", seconds_of(stats.staleness)) &&
      put(to, "log_is_up", stats.log_is_up) && put(to, "log_error", stats.log_error) &&
      put(to, "log_down_since", since()) && put(to, "item_count", stats.item_count) &&
      put(to, "item_bytes", stats.item_bytes) && put(to, "file_bytes", stats.file_bytes) &&
      put(to, "oldest_pinned_id", stats.oldest_pinned_id) &&
      put(to, "oldest_pinned_process_id", stats.oldest_pinned_process_id) &&
      put(to, "oldest_pinned_process_name", stats.oldest_pinned_process_name) &&
      put(to, "pinned_bytes", stats.pinned_bytes) && put(to, "counters", dict_of(stats.counters));
  return complete ? dict.release() : nullptr;
}

PyObject* cache_stats(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.stats(); }, dict_of_stats);
}

PyObject* dict_of_inspection(const StateInspection& state) {
  Ref dict(PyDict_New());
  Ref kinds(PyDict_New());
  Ref processes(PyList_New(0));
  PyObject* const to = dict.get();
  if (!dict || !kinds || !processes) return nullptr;
  for (const SegmentKindUsage& usage : state.segments_by_kind) {
    Ref one(PyDict_New());
    if (!one || !put(one.get(), "segment_count", usage.segment_count) ||
        !put(one.get(), "bytes", usage.bytes) || !put(one.get(), "live_bytes", usage.live_bytes) ||
        PyDict_SetItemString(kinds.get(), usage.kind.c_str(), one.get()) < 0)
      return nullptr;
  }
  for (const ProcessInfo& process : state.processes) {
    Ref one(PyDict_New());
    if (!one || !put(one.get(), "process_id", process.process_id) ||
        !put(one.get(), "process_name", process.process_name) ||
        !put(one.get(), "oldest_pinned_id", process.oldest_pinned_id) ||
        PyList_Append(processes.get(), one.get()) < 0)
      return nullptr;
  }
  const bool complete =
      put(to, "applied_id", state.info.applied_id) &&
      put(to, "digest", to_string(state.info.digest)) &&
      put(to, "item_count", state.info.item_count) &&
      put(to, "item_bytes", state.info.item_bytes) &&
      put(to, "log_uuid", to_string(state.info.log_uuid)) &&
      put(to, "log_name", state.info.log_name) && put(to, "state_id", state.info.state_id) &&
      put(to, "superseded", state.info.superseded) && put(to, "file_bytes", state.file_bytes) &&
      put(to, "segment_bytes", state.segment_bytes) &&
      put(to, "reclaim_generation", state.reclaim_generation) &&
      put(to, "reclaim_horizon", state.reclaim_horizon) &&
      put(to, "writer_active", state.writer_active) &&
      put(to, "created_in_this_boot", state.created_in_this_boot) &&
      put(to, "created", PyFloat_FromDouble(static_cast<double>(state.created_us) / 1e6)) &&
      put(to, "index_pages", state.index_pages) &&
      put(to, "index_global_depth", state.index_global_depth) &&
      put(to, "index_words", state.index_words) && put(to, "index_used", state.index_used) &&
      put(to, "index_tombstones", state.index_tombstones) &&
      put(to, "tree_height", state.tree_height) && put(to, "segments_by_kind", kinds.release()) &&
      put(to, "processes", processes.release());
  return complete ? dict.release() : nullptr;
}

PyObject* cache_inspect(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.inspect(); }, dict_of_inspection);
}

// --- Calls that wait ---

// What every such call takes: note, deadline in milliseconds (negative: the cache's), and the
// Completions of an event loop or None.
struct CallArguments {
  std::string note;
  std::optional<std::chrono::milliseconds> deadline;
  std::shared_ptr<LoopWaker> waker;
};

bool read_deadline(PyObject* object, std::optional<std::chrono::milliseconds>& deadline) {
  if (object == Py_None) return true;
  const long long milliseconds = PyLong_AsLongLong(object);
  if (milliseconds == -1 && PyErr_Occurred() != nullptr) return false;
  deadline = std::chrono::milliseconds(milliseconds);
  return true;
}

// Converts the last three arguments.
bool read_call(CacheObject& self, PyObject* const* arguments, CallArguments& call) {
  if (arguments[0] != Py_None) {
    Py_ssize_t bytes = 0;
    const char* const note = PyUnicode_AsUTF8AndSize(arguments[0], &bytes);
    if (note == nullptr) return false;
    call.note.assign(note, static_cast<std::size_t>(bytes));
  }
  return read_deadline(arguments[1], call.deadline) &&
         waker_of(*self.module, arguments[2], call.waker);
}

void stay_if_exiting(const CacheObject& self) {
  if (!self.module->runtime->must_stay()) [[likely]]
    return;
  const ReleasedGil released;
  stay_until_exit();
}

// Returns the handle for a call that waits; null with an exception set.
std::shared_ptr<Handle> handle_to_wait_for(CacheObject& self) {
  if (CallbackScope::is_inside()) {
    PyErr_SetString(self.module->invalid_error,
                    "validate, filter_fn and on_event must not write, nor wait for the log");
    return nullptr;
  }
  stay_if_exiting(self);
  return open_handle(self);
}

// Starts a call on a worker's thread.
PyObject* start_call(CacheObject& self, const std::shared_ptr<LoopWaker>& waker,
                     std::function<Outcome(Cache&, std::stop_token)> call) {
  const std::shared_ptr<Handle> handle = handle_to_wait_for(self);
  if (!handle) return nullptr;
  try {
    auto state = std::make_shared<PendingState>(waker, handle->calls_under_way);
    Ref pending(make_pending(*self.module, state, reinterpret_cast<PyObject*>(&self)));
    if (!pending) return nullptr;
    self.module->runtime->workers()->run([handle, state, call = std::move(call)] {
      state->run([&](std::stop_token stop) { return call(handle->cache, std::move(stop)); });
    });
    return pending.release();
  } catch (...) {
    return set_current_error(*self.module);
  }
}

WriteOptions write_options(const CallArguments& call, std::stop_token stop = {}) {
  return {.note = call.note, .deadline = call.deadline, .stop = std::move(stop)};
}

// A value as it is to be stored: of a bytes object, which it keeps, or encoded.
class StoredValue {
 public:
  // Returns false with an exception set.
  bool encode(CacheObject& self, PyObject* value) {
    const bool may_be_plain = self.codec == Codec::typed || self.codec == Codec::bytes;
    if (PyBytes_CheckExact(value) && may_be_plain) {
      const char* const data = PyBytes_AS_STRING(value);
      const auto bytes = static_cast<std::size_t>(PyBytes_GET_SIZE(value));
      if (self.codec == Codec::bytes || !is_typed(data, bytes)) {
        held_ = Ref::borrow(value);
        plain_ = {data, bytes};
        return true;
      }
    }
    encoded_.emplace();
    return encode_value(*self.module->values, self.codec, value, *encoded_);
  }
  std::string_view view() const { return encoded_ ? std::string_view(*encoded_) : plain_; }

 private:
  Ref held_;
  std::string_view plain_;
  std::optional<std::string> encoded_;
};

PyObject* start_changes(CacheObject& self, std::span<const Change> changes,
                        const CallArguments& call) {
  const std::shared_ptr<Handle> handle = handle_to_wait_for(self);
  if (!handle) return nullptr;
  try {
    auto state = std::make_shared<PendingState>(call.waker, handle->calls_under_way);
    Ref pending(make_pending(*self.module, state, reinterpret_cast<PyObject*>(&self)));
    if (!pending) return nullptr;
    {
      const ReleasedGil released;
      CacheInternal::write_async(handle->cache, changes, write_options(call), std::move(state));
    }
    return pending.release();
  } catch (...) {
    return set_current_error(*self.module);
  }
}

bool check_count(const char* name, Py_ssize_t count, Py_ssize_t wanted) {
  if (count == wanted) return true;
  PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments: %zd given", name, wanted, count);
  return false;
}

// start_set(key, value, note, deadline, completions)
PyObject* cache_start_set(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  std::string_view key;
  StoredValue value;
  CallArguments call;
  if (!check_count("start_set", count, 5) || !read_key(*self.module, arguments[0], key) ||
      !value.encode(self, arguments[1]) || !read_call(self, arguments + 2, call))
    return nullptr;
  const Change change = Change::set(key, value.view());
  return start_changes(self, std::span(&change, 1), call);
}

// start_delete(key, note, deadline, completions)
PyObject* cache_start_delete(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  std::string_view key;
  CallArguments call;
  if (!check_count("start_delete", count, 4) || !read_key(*self.module, arguments[0], key) ||
      !read_call(self, arguments + 1, call))
    return nullptr;
  const Change change = Change::erase(key);
  return start_changes(self, std::span(&change, 1), call);
}

// The changes of an iterable of (key, value) to set, and of one of keys to delete. Keeps what they
// refer to.
class ChangeList {
 public:
  // Returns false with an exception set.
  bool read(CacheObject& self, PyObject* sets, PyObject* deletes) {
    return read_sets(self, sets) && read_deletes(self, deletes);
  }
  std::vector<Change> changes() const {
    std::vector<Change> changes;
    changes.reserve(values_.size() + deleted_.size());
    for (std::size_t i = 0; i < values_.size(); ++i)
      changes.push_back(Change::set(set_keys_[i], values_[i].view()));
    for (const std::string_view key : deleted_) changes.push_back(Change::erase(key));
    return changes;
  }

 private:
  bool read_sets(CacheObject& self, PyObject* sets) {
    const Ref iterator(PyObject_GetIter(sets));
    if (!iterator) return false;
    while (const Ref item{PyIter_Next(iterator.get())}) {
      const Ref pair(PySequence_Fast(item.get(), "items must be pairs of key and value"));
      if (!pair) return false;
      if (PySequence_Fast_GET_SIZE(pair.get()) != 2) {
        PyErr_Format(PyExc_ValueError, "items must be pairs of key and value: length=%zd",
                     PySequence_Fast_GET_SIZE(pair.get()));
        return false;
      }
      PyObject* const key_object = PySequence_Fast_GET_ITEM(pair.get(), 0);
      std::string_view key;
      if (!read_key(*self.module, key_object, key)) return false;
      held_.push_back(Ref::borrow(key_object));
      set_keys_.push_back(key);
      values_.emplace_back();
      if (!values_.back().encode(self, PySequence_Fast_GET_ITEM(pair.get(), 1))) return false;
    }
    return PyErr_Occurred() == nullptr;
  }
  bool read_deletes(CacheObject& self, PyObject* deletes) {
    const Ref iterator(PyObject_GetIter(deletes));
    if (!iterator) return false;
    while (Ref key_object{PyIter_Next(iterator.get())}) {
      std::string_view key;
      if (!read_key(*self.module, key_object.get(), key)) return false;
      held_.push_back(std::move(key_object));
      deleted_.push_back(key);
    }
    return PyErr_Occurred() == nullptr;
  }

  std::vector<Ref> held_;
  std::vector<std::string_view> set_keys_;
  std::deque<StoredValue> values_;
  std::vector<std::string_view> deleted_;
};

// start_write(sets, deletes, note, deadline, completions)
PyObject* cache_start_write(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  CallArguments call;
  if (!check_count("start_write", count, 5) || !read_call(self, arguments + 2, call))
    return nullptr;
  try {
    ChangeList list;
    if (!list.read(self, arguments[0], arguments[1])) return nullptr;
    return start_changes(self, list.changes(), call);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

// The changes with copies of their bytes, for another thread.
class OwnedChanges {
 public:
  explicit OwnedChanges(std::span<const Change> changes) {
    for (const Change& change : changes) {
      Change copy = change;
      copy.key = bytes_.emplace_back(change.key);
      copy.value = bytes_.emplace_back(change.value);
      changes_.push_back(copy);
    }
  }
  const std::vector<Change>& get() const { return changes_; }

 private:
  std::deque<std::string> bytes_;
  std::vector<Change> changes_;
};

// start_commit(view, read_keys, read_ranges, sets, deletes, note, deadline, completions): writes if
// what was read in the view is the same as of the head of the log. The outcome is the update id, or
// None if it was not the same.
PyObject* cache_start_commit(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  CallArguments call;
  if (!check_count("start_commit", count, 8) || !read_call(self, arguments + 5, call))
    return nullptr;
  if (!PyObject_TypeCheck(arguments[0], reinterpret_cast<PyTypeObject*>(self.module->view_type)))
    return PyErr_Format(PyExc_TypeError, "view must be a View");
  const View* const view = open_view(*reinterpret_cast<ViewObject*>(arguments[0]));
  if (view == nullptr) return nullptr;
  try {
    std::vector<std::string> keys;
    std::vector<KeyRange> ranges;
    const Ref key_iterator(PyObject_GetIter(arguments[1]));
    if (!key_iterator) return nullptr;
    while (const Ref key_object{PyIter_Next(key_iterator.get())}) {
      std::string_view key;
      if (!read_key(*self.module, key_object.get(), key)) return nullptr;
      keys.emplace_back(key);
    }
    const Ref range_iterator(PyErr_Occurred() != nullptr ? nullptr
                                                         : PyObject_GetIter(arguments[2]));
    if (!range_iterator) return nullptr;
    while (const Ref bounds{PyIter_Next(range_iterator.get())}) {
      const char* begin = nullptr;
      const char* end = nullptr;
      Py_ssize_t begin_bytes = 0;
      Py_ssize_t end_bytes = 0;
      if (!PyArg_ParseTuple(bounds.get(), "y#z#", &begin, &begin_bytes, &end, &end_bytes))
        return nullptr;
      KeyRange& range = ranges.emplace_back();
      range.begin.assign(begin, static_cast<std::size_t>(begin_bytes));
      if (end != nullptr) range.end.emplace(end, static_cast<std::size_t>(end_bytes));
    }
    ChangeList list;
    if (PyErr_Occurred() != nullptr || !list.read(self, arguments[3], arguments[4])) return nullptr;
    const auto changes = std::make_shared<const OwnedChanges>(list.changes());
    return start_call(self, call.waker,
                      [then = *view, keys = std::move(keys), ranges = std::move(ranges), changes,
                       call](Cache& cache, std::stop_token stop) -> Outcome {
                        const auto same_items = [](const Items& a, const Items& b) {
                          auto in_a = a.begin();
                          auto in_b = b.begin();
                          for (; in_a != std::default_sentinel && in_b != std::default_sentinel;
                               ++in_a, ++in_b) {
                            if (*in_a != *in_b) return false;
                          }
                          return in_a == std::default_sentinel && in_b == std::default_sentinel;
                        };
                        const std::optional<UpdateId> id = CacheInternal::write_decided(
                            cache,
                            [&](const View& now) -> std::vector<Change> {
                              for (const std::string& key : keys) {
                                if (then.get(key) != now.get(key)) return {};
                              }
                              for (const KeyRange& range : ranges) {
                                if (!same_items(then.items(range), now.items(range))) return {};
                              }
                              return changes->get();
                            },
                            write_options(call, std::move(stop)));
                        if (!id) return std::monostate();
                        return *id;
                      });
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

// start_set_if(key, expected, value, note, deadline, completions): the outcome is the update id, or
// None. `expected` and `value` are None for an absent key: expected must be, value is to be.
// Wrapped in a 1-tuple otherwise, since None is a value.
PyObject* cache_start_set_if(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  std::string_view key;
  CallArguments call;
  StoredValue expected;
  StoredValue value;
  if (!check_count("start_set_if", count, 6) || !read_key(*self.module, arguments[0], key) ||
      !read_call(self, arguments + 3, call))
    return nullptr;
  const auto encode = [&](PyObject* given, StoredValue& to) {
    if (given == Py_None) return true;
    if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) != 1) {
      PyErr_SetString(PyExc_TypeError, "expected and value must be None or a tuple of one value");
      return false;
    }
    return to.encode(self, PyTuple_GET_ITEM(given, 0));
  };
  if (!encode(arguments[1], expected) || !encode(arguments[2], value)) return nullptr;
  const auto owned = [](PyObject* given, const StoredValue& stored) {
    return given == Py_None ? std::nullopt : std::optional(std::string(stored.view()));
  };
  try {
    return start_call(
        self, call.waker,
        [key = std::string(key), expected = owned(arguments[1], expected),
         value = owned(arguments[2], value), call](Cache& cache, std::stop_token stop) -> Outcome {
          const WriteOptions options = write_options(call, std::move(stop));
          std::optional<UpdateId> id;
          if (value) {
            id = cache.set_if(key, expected, *value, options);
          } else {
            id = cache.erase_if(key, expected.value_or(""), options);
          }
          if (!id) return std::monostate();
          return *id;
        });
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

// start_set_if_version(key, version, value, note, deadline, completions), as start_set_if().
PyObject* cache_start_set_if_version(PyObject* object, PyObject* const* arguments,
                                     Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  std::string_view key;
  CallArguments call;
  StoredValue value;
  if (!check_count("start_set_if_version", count, 6) ||
      !read_key(*self.module, arguments[0], key) || !read_call(self, arguments + 3, call))
    return nullptr;
  const UpdateId version = PyLong_AsUnsignedLongLong(arguments[1]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  const bool sets = arguments[2] != Py_None;
  if (sets && (!PyTuple_Check(arguments[2]) || PyTuple_GET_SIZE(arguments[2]) != 1))
    return PyErr_Format(PyExc_TypeError, "value must be None or a tuple of one value");
  if (sets && !value.encode(self, PyTuple_GET_ITEM(arguments[2], 0))) return nullptr;
  try {
    return start_call(self, call.waker,
                      [key = std::string(key), version, sets, value = std::string(value.view()),
                       call](Cache& cache, std::stop_token stop) -> Outcome {
                        const WriteOptions options = write_options(call, std::move(stop));
                        const std::optional<UpdateId> id =
                            sets ? cache.set_if_version(key, version, value, options)
                                 : cache.erase_if_version(key, version, options);
                        if (!id) return std::monostate();
                        return *id;
                      });
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

// start_add(key, delta, note, deadline, completions)
PyObject* cache_start_add(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  std::string_view key;
  CallArguments call;
  if (!check_count("start_add", count, 5) || !read_key(*self.module, arguments[0], key) ||
      !read_call(self, arguments + 2, call))
    return nullptr;
  const long long delta = PyLong_AsLongLong(arguments[1]);
  if (delta == -1 && PyErr_Occurred() != nullptr) return nullptr;
  return start_call(
      self, call.waker,
      [key = std::string(key), delta, call](Cache& cache, std::stop_token stop) -> Outcome {
        return cache.add(key, delta, write_options(call, std::move(stop)));
      });
}

// start_delete_range(begin, end, note, deadline, completions)
PyObject* cache_start_delete_range(PyObject* object, PyObject* const* arguments, Py_ssize_t count,
                                   PyObject* names) {
  CacheObject& self = cache_of(object);
  CallArguments call;
  KeyRange range;
  if (count != 3) return PyErr_Format(PyExc_TypeError, "start_delete_range() takes 3 arguments");
  if (!read_call(self, arguments, call) ||
      !read_range(*self.module, arguments + 3, 0, names, range, nullptr))
    return nullptr;
  return start_call(self, call.waker, [range, call](Cache& cache, std::stop_token stop) -> Outcome {
    return cache.erase(range, write_options(call, std::move(stop)));
  });
}

// start_update(staleness_ns or None, at_least, deadline, completions)
bool read_update(PyObject* const* arguments, UpdateOptions& options) {
  if (arguments[0] != Py_None) {
    const long long staleness = PyLong_AsLongLong(arguments[0]);
    if (staleness == -1 && PyErr_Occurred() != nullptr) return false;
    options.staleness_max = std::chrono::nanoseconds(staleness);
  }
  options.at_least = PyLong_AsUnsignedLongLong(arguments[1]);
  return PyErr_Occurred() == nullptr;
}

PyObject* cache_start_update(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  UpdateOptions options;
  std::shared_ptr<LoopWaker> waker;
  if (!check_count("start_update", count, 4) || !read_update(arguments, options) ||
      !read_deadline(arguments[2], options.deadline) ||
      !waker_of(*self.module, arguments[3], waker))
    return nullptr;
  return start_call(self, waker, [options](Cache& cache, std::stop_token stop) -> Outcome {
    UpdateOptions with_stop = options;
    with_stop.stop = std::move(stop);
    return cache.update(with_stop);
  });
}

// update_if_fresh(staleness_ns, at_least): the applied id if update() need not ask the log, or
// None.
PyObject* cache_update_if_fresh(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  UpdateOptions options;
  if (!check_count("update_if_fresh", count, 2) || !read_update(arguments, options)) return nullptr;
  if (!self.handle || self.handle->closed.load(std::memory_order_relaxed)) {
    open_handle(self);
    return nullptr;
  }
  try {
    const std::optional<UpdateId> id =
        CacheInternal::applied_id_if_fresh(self.handle->cache, options);
    if (id) return PyLong_FromUnsignedLongLong(*id);
  } catch (...) {
    return set_current_error(*self.module);
  }
  Py_RETURN_NONE;
}

// start_rewrite(limit, keep or None, completions). `keep` gets key and value. What it raises ends
// the rewrite, and is raised.
PyObject* cache_start_rewrite(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  std::shared_ptr<LoopWaker> waker;
  if (!check_count("start_rewrite", count, 3) || !waker_of(*self.module, arguments[2], waker))
    return nullptr;
  const UpdateId limit = PyLong_AsUnsignedLongLong(arguments[0]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  std::function<bool(std::string_view, std::string_view)> keep;
  if (arguments[1] != Py_None) {
    const auto shared = std::make_shared<SharedObject>(self.module->runtime, arguments[1]);
    keep = [shared, codec = self.codec, &module = *self.module](std::string_view key,
                                                                std::string_view stored) {
      const PythonCall call(shared->runtime());
      if (!call.allowed()) throw Error(ErrorKind::unavailable, "the interpreter is about to end");
      const CallbackScope callback;
      const Ref key_object(bytes_of(key));
      const Ref value(key_object ? decode_stored(module, codec, stored, key) : nullptr);
      PyObject* const both[] = {key_object.get(), value.get()};
      const Ref result(value ? PyObject_Vectorcall(shared->get(), both, 2, nullptr) : nullptr);
      const int keeps = result ? PyObject_IsTrue(result.get()) : -1;
      if (keeps < 0) throw Error(ErrorKind::invalid, "filter_fn raised " + take_python_error());
      return keeps == 1;
    };
  }
  return start_call(self, waker, [limit, keep](Cache& cache, std::stop_token stop) -> Outcome {
    return cache.rewrite_history({.limit = limit, .keep = keep, .stop = std::move(stop)});
  });
}

// start_delete_all_history(completions)
PyObject* cache_start_delete_all_history(PyObject* object, PyObject* completions) {
  CacheObject& self = cache_of(object);
  std::shared_ptr<LoopWaker> waker;
  if (!waker_of(*self.module, completions, waker)) return nullptr;
  return start_call(self, waker, [](Cache& cache, const std::stop_token& /*stop*/) -> Outcome {
    return cache.delete_all_history();
  });
}

// In a forked child: the calls that are under way are the parent's.
PyObject* cache_forget_calls(PyObject* object, PyObject* /*unused*/) {
  const std::shared_ptr<Handle>& handle = cache_of(object).handle;
  try {
    if (handle) handle->calls_under_way = std::make_shared<std::atomic<std::size_t>>(0);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  Py_RETURN_NONE;
}

// wait_until_idle(milliseconds): waits for the calls that have been started, and returns how many
// have not finished.
PyObject* cache_wait_until_idle(PyObject* object, PyObject* milliseconds) {
  CacheObject& self = cache_of(object);
  const long long time = PyLong_AsLongLong(milliseconds);
  if (time == -1 && PyErr_Occurred() != nullptr) return nullptr;
  const std::shared_ptr<Handle> handle = self.handle;
  if (!handle) return PyLong_FromLong(0);
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(time);
  while (*handle->calls_under_way > 0 && std::chrono::steady_clock::now() < end) {
    {
      const ReleasedGil released;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (PyErr_CheckSignals() < 0) return nullptr;
  }
  return PyLong_FromSize_t(*handle->calls_under_way);
}

// check_value(value): raises what storing the value would raise.
PyObject* cache_check_value(PyObject* object, PyObject* value) {
  StoredValue stored;
  if (!stored.encode(cache_of(object), value)) return nullptr;
  return PyLong_FromSize_t(stored.view().size());
}

PyMethodDef cache_methods[] = {
    {"get", method(cache_get), METH_FASTCALL,
     "get($self, key, default=<unrepresentable>, /)\n--\n\n"
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
    {"view", cache_view, METH_NOARGS,
     "view($self)\n--\n\n"
     "Returns the dataset as of one update id, for a with statement. Values that are plain bytes\n"
     "come as memoryviews of the shared state, without a copy. They end with the view."},
    {"keys", method(cache_range<RangeKind::keys>), METH_FASTCALL | METH_KEYWORDS,
     "keys($self, *, prefix=None, start=None, stop=None, reverse=False)\n--\n\n"
     "Returns the keys in order. Each iteration sees the dataset as of one update id."},
    {"values", method(cache_range<RangeKind::values>), METH_FASTCALL | METH_KEYWORDS,
     "values($self, *, prefix=None, start=None, stop=None, reverse=False)\n--\n\n"
     "Returns the values in the order of their keys, as keys() does."},
    {"items", method(cache_range<RangeKind::items>), METH_FASTCALL | METH_KEYWORDS,
     "items($self, *, prefix=None, start=None, stop=None, reverse=False)\n--\n\n"
     "Returns pairs of key and value in key order, as keys() does."},
    {"count", method(cache_count), METH_FASTCALL | METH_KEYWORDS,
     "count($self, *, prefix=None, start=None, stop=None)\n--\n\nReturns the number of keys in a "
     "range."},
    {"applied_id", cache_applied_id, METH_NOARGS,
     "applied_id($self)\n--\n\nReturns the id of the last update in the state."},
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
    {"start_delete_range", method(cache_start_delete_range), METH_FASTCALL | METH_KEYWORDS,
     nullptr},
    {"start_update", method(cache_start_update), METH_FASTCALL, nullptr},
    {"update_if_fresh", method(cache_update_if_fresh), METH_FASTCALL, nullptr},
    {"start_rewrite", method(cache_start_rewrite), METH_FASTCALL, nullptr},
    {"start_delete_all_history", cache_start_delete_all_history, METH_O, nullptr},
    {"forget_calls", cache_forget_calls, METH_NOARGS, nullptr},
    {"wait_until_idle", cache_wait_until_idle, METH_O, nullptr},
    {"check_value", cache_check_value, METH_O, nullptr},
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

std::shared_ptr<Handle> open_handle(CacheObject& self) {
  if (self.handle && !self.handle->closed.load(std::memory_order_relaxed)) [[likely]]
    return self.handle;
  stay_if_exiting(self);
  PyErr_SetString(self.module->invalid_error,
                  self.handle ? "cache is closed" : "cache is not open");
  return nullptr;
}

bool add_cache_type(PyObject* module, ModuleState& state) {
  state.cache_type = PyType_FromModuleAndSpec(module, &cache_spec, nullptr);
  return state.cache_type != nullptr &&
         PyModule_AddObjectRef(module, "BaseCache", state.cache_type) == 0;
}

}  // namespace whycache::python
