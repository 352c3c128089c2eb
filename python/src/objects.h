// The objects of Python that hold a cache or a view of it.
#pragma once

#include "module.h"

#include <whycache/cache.h>

#include <memory>
#include <optional>
#include <string>

namespace whycache::python {

struct CacheObject {
  PyObject_HEAD ModuleState* module;
  Codec codec;
  // Null before __init__, and in an object that was deallocated.
  std::shared_ptr<Handle> handle;
  // A bytes object of the size of the last value, for the next one. Or null.
  PyObject* spare;
  PyObject* weak_references;
};

inline CacheObject& cache_of(PyObject* object) { return *reinterpret_cast<CacheObject*>(object); }

// Returns the handle, or null with an exception set if the cache is closed.
std::shared_ptr<Handle> open_handle(CacheObject& self);
// The same for a call that waits, which a callback of the cache must not make.
std::shared_ptr<Handle> handle_to_wait_for(CacheObject& self);

struct ValueMemoryObject;

// The dataset as of one update id.
struct ViewObject {
  PyObject_HEAD ModuleState* module;
  Codec codec;
  CacheObject* cache;
  std::optional<View> view;  // nullopt once it has ended
  // The values that memoryviews of this view refer to.
  ValueMemoryObject* first_memory;
  // Others of ModuleState::first_view.
  ViewObject* previous;
  ViewObject* next;
  PyObject* weak_references;
};

PyObject* make_view(CacheObject& cache);
// Returns a feed of the changes of a range, beyond an update id.
PyObject* make_changes(CacheObject& cache, UpdateId from, KeyRange range);
// Returns the view, or null with an exception set if it has ended.
const View* open_view(ViewObject& self);
// Returns a value of the view as Python sees it: a memoryview of plain bytes, or what a typed value
// holds. Null with an exception set if that fails.
PyObject* value_in_view(ViewObject& self, std::string_view stored, std::string_view key);

enum class RangeKind : std::uint8_t { keys, values, items };

// Takes prefix, start, stop and reverse, and returns a Range object. `source` is a Cache or a View.
PyObject* make_range(ModuleState& module, PyObject* source, RangeKind kind,
                     PyObject* const* arguments, Py_ssize_t count, PyObject* names);
// Reads the range that these arguments mean.
bool read_range(ModuleState& module, PyObject* const* arguments, Py_ssize_t count, PyObject* names,
                KeyRange& range, bool* reverse);

// Returns what a cache returns for stored bytes, or null with an exception set.
inline PyObject* decode_stored(ModuleState& module, Codec codec, std::string_view stored,
                               std::string_view key) {
  if (codec == Codec::bytes || (codec == Codec::typed && !is_typed(stored.data(), stored.size())))
      [[likely]]
    return bytes_of(stored);
  return decode_value(*module.values, codec, stored, key);
}

}  // namespace whycache::python
