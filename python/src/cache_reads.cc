// Reads of a cache: of one key, of many, and of ranges.
#include "cache_methods.h"
#include "objects.h"

#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "client/cache_internal.h"
#include "state/read/pin.h"
#include "state/state.h"

namespace whycache::python {
namespace {

// Larger values are copied without the GIL.
constexpr std::size_t value_bytes_with_gil_max = std::size_t{64} << 10;
// Reads of more keys than this release the GIL.
constexpr std::size_t keys_with_gil_max = 256;

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

// Returns null while the cache is closed. Valid as long as the GIL is held.
inline const State* open_state(const CacheObject& self) {
  return self.handle ? CacheInternal::state_if_open(self.handle->cache) : nullptr;
}

// Returns the value, or null: with `absent` set if the key is absent, else with an exception set.
[[gnu::always_inline]] inline PyObject* read_value(CacheObject& self, std::string_view key,
                                                   bool& absent) {
  PyObject* spare = std::exchange(self.spare, nullptr);
  const State* const state = open_state(self);
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

}  // namespace

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
  if (const State* const state = open_state(self)) {
    EntryVersion version;
    if (const std::optional<bool> found = state->try_find_version(key, version)) [[likely]]
      return *found ? 1 : 0;
  }
  const std::shared_ptr<Handle> handle = open_handle(self);
  if (!handle) return -1;
  try {
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
    if (state != nullptr && key_count <= keys_with_gil_max && !state->may_wait_for_file()) {
      try {
        state->pin()->get_many(
            all, [&](std::size_t i, const LookupResult& result) { put(i, result.value); });
      } catch (const Error&) {
        const ReleasedGil released;
        static_cast<void>(handle->cache.get_multi(all));  // takes note of damage
        throw;
      }
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

PyObject* cache_keys(PyObject* object, PyObject* const* arguments, Py_ssize_t count,
                     PyObject* names) {
  return make_range(*cache_of(object).module, object, RangeKind::keys, arguments, count, names);
}

PyObject* cache_values(PyObject* object, PyObject* const* arguments, Py_ssize_t count,
                       PyObject* names) {
  return make_range(*cache_of(object).module, object, RangeKind::values, arguments, count, names);
}

PyObject* cache_items(PyObject* object, PyObject* const* arguments, Py_ssize_t count,
                      PyObject* names) {
  return make_range(*cache_of(object).module, object, RangeKind::items, arguments, count, names);
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

// As long as the stamp is the same, so is the value: Memo compares it. Takes no view.
PyObject* cache_version_stamp(PyObject* object, PyObject* key_object) {
  CacheObject& self = cache_of(object);
  std::string_view key;
  if (!read_key(*self.module, key_object, key)) return nullptr;
  EntryVersion version;
  const State* const state = open_state(self);
  std::optional<bool> found = state ? state->try_find_version(key, version) : std::nullopt;
  if (!found) {
    const std::shared_ptr<Handle> handle = open_handle(self);
    if (!handle) return nullptr;
    try {
      const ReleasedGil released;
      found = CacheInternal::state(handle->cache).find_version(key, version);
    } catch (...) {
      return set_current_error(*self.module);
    }
  }
  if (!*found) Py_RETURN_NONE;
  char stamp[sizeof version];
  std::memcpy(stamp, &version, sizeof version);
  return bytes_of({stamp, sizeof stamp});
}

// start_changes(from, begin, end)
PyObject* cache_start_changes(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 3) return PyErr_Format(PyExc_TypeError, "start_changes() takes 3 arguments");
  const unsigned long long from = PyLong_AsUnsignedLongLong(arguments[0]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  KeyRange range;
  if (!PyBytes_Check(arguments[1]) || (arguments[2] != Py_None && !PyBytes_Check(arguments[2])))
    return PyErr_Format(PyExc_TypeError, "prefix, start and stop must be bytes");
  const auto bytes_in = [](PyObject* bytes) {
    return std::string(PyBytes_AS_STRING(bytes), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes)));
  };
  range.begin = bytes_in(arguments[1]);
  if (arguments[2] != Py_None) range.end = bytes_in(arguments[2]);
  return make_changes(cache_of(object), from, std::move(range));
}

}  // namespace whycache::python
