// The keys, values or items of a range, and iterators over them.
#include "objects.h"

#include <memory>
#include <vector>

namespace whycache::python {
namespace {

struct RangeObject {
  PyObject_HEAD ModuleState* module;
  PyObject* source;  // a Cache or a View
  RangeKind kind;
  bool reverse;
  KeyRange range;
};

// How many items are collected at a time: few at first, for callers that want only a few. Larger
// batches are collected without the GIL.
constexpr std::size_t batch_least = 4;
constexpr std::size_t batch_most = 256;
constexpr std::size_t batch_with_gil_max = 16;

struct RangeIteratorObject {
  PyObject_HEAD ModuleState* module;
  RangeKind kind;
  Codec codec;
  ViewObject* source_view;   // the view whose values it returns; null for those of a cache
  std::optional<View> view;  // nullopt at the end
  // The position: in `keys` if it returns keys, else in `items`.
  Items::Iterator items;
  Keys::Iterator keys;
  bool collecting;
  std::vector<Item> batch;
  std::size_t index;
  std::size_t batch_max;
};

RangeObject& range_of(PyObject* object) { return *reinterpret_cast<RangeObject*>(object); }
RangeIteratorObject& iterator_of(PyObject* object) {
  return *reinterpret_cast<RangeIteratorObject*>(object);
}

bool is_view(const ModuleState& module, PyObject* source) {
  return Py_TYPE(source) == reinterpret_cast<PyTypeObject*>(module.view_type);
}

// --- Iterators ---

// Collects what follows. Returns false with an exception set.
bool collect(RangeIteratorObject& self) {
  if (self.collecting) {
    PyErr_SetString(PyExc_ValueError, "another thread is advancing this iterator");
    return false;
  }
  self.index = 0;
  self.batch.clear();
  const auto take = [&] {
    if (self.kind == RangeKind::keys) {
      for (; self.batch.size() < self.batch_max && self.keys != std::default_sentinel; ++self.keys)
        self.batch.push_back({*self.keys, {}});
    } else {
      for (; self.batch.size() < self.batch_max && self.items != std::default_sentinel;
           ++self.items)
        self.batch.push_back(*self.items);
    }
  };
  self.collecting = true;
  try {
    self.batch.reserve(self.batch_max);
    if (self.batch_max > batch_with_gil_max) {
      const ReleasedGil released;
      take();
    } else {
      take();
    }
  } catch (...) {
    self.collecting = false;
    self.batch.clear();
    set_current_error(*self.module);
    return false;
  }
  self.collecting = false;
  self.batch_max = std::min(self.batch_max * 4, batch_most);
  return true;
}

PyObject* value_of(RangeIteratorObject& self, const Item& item) {
  if (self.source_view != nullptr) return value_in_view(*self.source_view, item.value, item.key);
  return decode_stored(*self.module, self.codec, item.value, item.key);
}

PyObject* object_of(RangeIteratorObject& self, const Item& item) {
  switch (self.kind) {
    case RangeKind::keys: return bytes_of(item.key);
    case RangeKind::values: return value_of(self, item);
    case RangeKind::items: break;
  }
  PyObject* const key = bytes_of(item.key);
  if (key == nullptr) return nullptr;
  PyObject* const value = value_of(self, item);
  PyObject* const pair = value != nullptr ? PyTuple_New(2) : nullptr;
  if (pair == nullptr) {
    Py_DECREF(key);
    Py_XDECREF(value);
    return nullptr;
  }
  PyTuple_SET_ITEM(pair, 0, key);
  PyTuple_SET_ITEM(pair, 1, value);
  return pair;
}

PyObject* iterator_next(PyObject* object) {
  RangeIteratorObject& self = iterator_of(object);
  if (!self.view) return nullptr;
  if (self.source_view != nullptr && open_view(*self.source_view) == nullptr) return nullptr;
  if (self.collecting || self.index == self.batch.size()) {
    if (!collect(self)) return nullptr;
    if (self.batch.empty()) {
      self.items = {};
      self.keys = {};
      self.view.reset();
      return nullptr;
    }
  }
  // The iterator may be used again while a value is decoded. The view keeps the bytes.
  const Item item = self.batch[self.index++];
  return object_of(self, item);
}

int iterator_traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(reinterpret_cast<PyObject*>(iterator_of(object).source_view));
  return 0;
}

int iterator_clear(PyObject* object) {
  Py_CLEAR(iterator_of(object).source_view);
  return 0;
}

void iterator_dealloc(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  iterator_clear(object);
  RangeIteratorObject& self = iterator_of(object);
  self.batch.~vector();
  std::destroy_at(&self.items);
  std::destroy_at(&self.keys);
  self.view.~optional();
  type->tp_free(object);
  Py_DECREF(type);
}

PyType_Slot iterator_slots[] = {
    {Py_tp_dealloc, slot(iterator_dealloc)}, {Py_tp_traverse, slot(iterator_traverse)},
    {Py_tp_clear, slot(iterator_clear)},     {Py_tp_iter, slot(PyObject_SelfIter)},
    {Py_tp_iternext, slot(iterator_next)},   {0, nullptr}};

PyType_Spec iterator_spec = {
    "whycache._whycache.RangeIterator", sizeof(RangeIteratorObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, iterator_slots};

// --- Ranges ---

// Sets the view of the source, and which of its objects values belong to.
bool view_of_source(RangeObject& self, std::optional<View>& view, ViewObject*& source_view,
                    Codec& codec) {
  if (is_view(*self.module, self.source)) {
    source_view = reinterpret_cast<ViewObject*>(self.source);
    codec = source_view->codec;
    const View* const open = open_view(*source_view);
    if (open == nullptr) return false;
    view = *open;
    return true;
  }
  auto& cache = *reinterpret_cast<CacheObject*>(self.source);
  codec = cache.codec;
  const std::shared_ptr<Handle> handle = open_handle(cache);
  if (!handle) return false;
  const ReleasedGil released;
  view.emplace(handle->cache.view());
  return true;
}

PyObject* iterate(RangeObject& self, bool reverse) {
  ModuleState& module = *self.module;
  std::optional<View> view;
  ViewObject* source_view = nullptr;
  Codec codec{};
  Items::Iterator items;
  Keys::Iterator keys;
  try {
    if (!view_of_source(self, view, source_view, codec)) return nullptr;
    if (self.kind == RangeKind::keys) {
      const Keys all = view->keys(self.range);
      const Keys ordered = reverse ? all.reversed() : all;
      keys = ordered.begin();
    } else {
      const Items all = view->items(self.range);
      const Items ordered = reverse ? all.reversed() : all;
      items = ordered.begin();
    }
    auto* const type = reinterpret_cast<PyTypeObject*>(module.range_iterator_type);
    PyObject* const object = type->tp_alloc(type, 0);
    if (object == nullptr) return nullptr;
    RangeIteratorObject& iterator = iterator_of(object);
    iterator.module = &module;
    iterator.kind = self.kind;
    iterator.codec = codec;
    Py_XINCREF(reinterpret_cast<PyObject*>(source_view));
    iterator.source_view = source_view;
    new (&iterator.view) std::optional<View>(std::move(view));
    new (&iterator.items) Items::Iterator(std::move(items));
    new (&iterator.keys) Keys::Iterator(std::move(keys));
    new (&iterator.batch) std::vector<Item>;
    iterator.batch_max = batch_least;
    return object;
  } catch (...) {
    return set_current_error(module);
  }
}

PyObject* range_iterate(PyObject* object) {
  RangeObject& self = range_of(object);
  return iterate(self, self.reverse);
}

PyObject* range_reversed(PyObject* object, PyObject* /*unused*/) {
  RangeObject& self = range_of(object);
  return iterate(self, !self.reverse);
}

Py_ssize_t range_length(PyObject* object) {
  RangeObject& self = range_of(object);
  std::optional<View> view;
  ViewObject* source_view = nullptr;
  Codec codec{};
  try {
    if (!view_of_source(self, view, source_view, codec)) return -1;
    const ReleasedGil released;
    return static_cast<Py_ssize_t>(view->count(self.range));
  } catch (...) {
    set_current_error(*self.module);
    return -1;
  }
}

int range_traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(range_of(object).source);
  return 0;
}

int range_clear(PyObject* object) {
  Py_CLEAR(range_of(object).source);
  return 0;
}

void range_dealloc(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  range_clear(object);
  range_of(object).range.~KeyRange();
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef range_methods[] = {
    {"__reversed__", range_reversed, METH_NOARGS, "Iterates in the opposite order."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot range_slots[] = {
    {Py_tp_doc, const_cast<char*>("Keys, values or items of a range, in key order. Each iteration "
                                  "sees the dataset as of one update id.")},
    {Py_tp_dealloc, slot(range_dealloc)},
    {Py_tp_traverse, slot(range_traverse)},
    {Py_tp_clear, slot(range_clear)},
    {Py_tp_methods, range_methods},
    {Py_tp_iter, slot(range_iterate)},
    {Py_sq_length, slot(range_length)},
    {0, nullptr}};

PyType_Spec range_spec = {
    "whycache._whycache.Range", sizeof(RangeObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, range_slots};

bool read_bound(PyObject* object, const char* name, std::optional<std::string>& bound) {
  if (object == Py_None) return true;
  if (!PyBytes_Check(object)) {
    PyErr_Format(PyExc_TypeError, "%s must be bytes or None, not %.100s", name,
                 Py_TYPE(object)->tp_name);
    return false;
  }
  bound.emplace(PyBytes_AS_STRING(object), static_cast<std::size_t>(PyBytes_GET_SIZE(object)));
  return true;
}

// Returns the range of keys that start with the prefix and are in start..stop.
KeyRange range_between(const std::optional<std::string>& prefix,
                       const std::optional<std::string>& start,
                       const std::optional<std::string>& stop) {
  KeyRange range = prefix ? KeyRange::prefix(*prefix) : KeyRange::all();
  if (start && *start > range.begin) range.begin = *start;
  if (stop && (!range.end || *stop < *range.end)) range.end = *stop;
  // A range that ends before it begins is empty.
  if (range.end && *range.end < range.begin) range.end = range.begin;
  return range;
}

}  // namespace

bool read_range(ModuleState& /*module*/, PyObject* const* arguments, Py_ssize_t count,
                PyObject* names, KeyRange& range, bool* reverse) {
  if (count != 0) {
    PyErr_SetString(PyExc_TypeError, "prefix, start, stop and reverse are keyword arguments");
    return false;
  }
  std::optional<std::string> prefix;
  std::optional<std::string> start;
  std::optional<std::string> stop;
  const Py_ssize_t name_count = names != nullptr ? PyTuple_GET_SIZE(names) : 0;
  for (Py_ssize_t i = 0; i < name_count; ++i) {
    PyObject* const name = PyTuple_GET_ITEM(names, i);
    PyObject* const value = arguments[i];
    if (PyUnicode_CompareWithASCIIString(name, "prefix") == 0) {
      if (!read_bound(value, "prefix", prefix)) return false;
    } else if (PyUnicode_CompareWithASCIIString(name, "start") == 0) {
      if (!read_bound(value, "start", start)) return false;
    } else if (PyUnicode_CompareWithASCIIString(name, "stop") == 0) {
      if (!read_bound(value, "stop", stop)) return false;
    } else if (reverse != nullptr && PyUnicode_CompareWithASCIIString(name, "reverse") == 0) {
      const int is_true = PyObject_IsTrue(value);
      if (is_true < 0) return false;
      *reverse = is_true == 1;
    } else {
      PyErr_Format(PyExc_TypeError, "unknown argument: %U", name);
      return false;
    }
  }
  range = range_between(prefix, start, stop);
  return true;
}

PyObject* make_range(ModuleState& module, PyObject* source, RangeKind kind,
                     PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  KeyRange range;
  bool reverse = false;
  if (!read_range(module, arguments, count, names, range, &reverse)) return nullptr;
  auto* const type = reinterpret_cast<PyTypeObject*>(module.range_type);
  PyObject* const object = type->tp_alloc(type, 0);
  if (object == nullptr) return nullptr;
  RangeObject& self = range_of(object);
  self.module = &module;
  Py_INCREF(source);
  self.source = source;
  self.kind = kind;
  self.reverse = reverse;
  new (&self.range) KeyRange(std::move(range));
  return object;
}

bool add_range_types(PyObject* module, ModuleState& state) {
  state.range_type = PyType_FromModuleAndSpec(module, &range_spec, nullptr);
  state.range_iterator_type = PyType_FromModuleAndSpec(module, &iterator_spec, nullptr);
  return state.range_type != nullptr && state.range_iterator_type != nullptr;
}

}  // namespace whycache::python
