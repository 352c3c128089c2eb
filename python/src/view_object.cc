// A view, and the memory of its values that memoryviews refer to.
#include "objects.h"

#include <structmember.h>

#include "client/lease_record.h"

namespace whycache::python {

// Exports the bytes of one value. A memoryview of it keeps it alive, and it keeps the bytes where
// they are: the end of the view releases the memoryview, but a slice of that, or an array of
// another library on top of it, may live on.
struct ValueMemoryObject {
  PyObject_HEAD View pinned;
  std::string_view bytes;
  PyObject* memoryview;  // a weak reference
  ViewObject* view;      // null once the view has ended
  ValueMemoryObject* previous;
  ValueMemoryObject* next;
};

namespace {

// --- The memory of a value ---

ValueMemoryObject& memory_of(PyObject* object) {
  return *reinterpret_cast<ValueMemoryObject*>(object);
}

int memory_get_buffer(PyObject* object, Py_buffer* buffer, int flags) {
  const ValueMemoryObject& self = memory_of(object);
  if (self.view == nullptr) {
    PyErr_SetString(PyExc_BufferError, "view has ended");
    buffer->obj = nullptr;
    return -1;
  }
  // Read-only: the const is kept.
  return PyBuffer_FillInfo(buffer, object, const_cast<char*>(self.bytes.data()),
                           static_cast<Py_ssize_t>(self.bytes.size()), 1, flags);
}

void unlink(ValueMemoryObject& self) {
  if (self.view == nullptr) return;
  (self.previous != nullptr ? self.previous->next : self.view->first_memory) = self.next;
  if (self.next != nullptr) self.next->previous = self.previous;
  self.view = nullptr;
}

void memory_dealloc(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  ValueMemoryObject& self = memory_of(object);
  unlink(self);
  Py_CLEAR(self.memoryview);
  self.pinned.~View();
  type->tp_free(object);
  Py_DECREF(type);
}

PyType_Slot memory_slots[] = {{Py_tp_doc, const_cast<char*>("The bytes of a value in a view.")},
                              {Py_tp_dealloc, slot(memory_dealloc)},
                              {Py_bf_getbuffer, slot(memory_get_buffer)},
                              {0, nullptr}};

PyType_Spec memory_spec = {"whycache._whycache.ValueMemory", sizeof(ValueMemoryObject), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, memory_slots};

PyObject* make_memoryview(ViewObject& view, std::string_view bytes) {
  auto* const type = reinterpret_cast<PyTypeObject*>(view.module->value_memory_type);
  const Ref object(type->tp_alloc(type, 0));
  if (!object) return nullptr;
  ValueMemoryObject& self = memory_of(object.get());
  new (&self.pinned) View(*view.view);
  self.bytes = bytes;
  self.view = &view;
  self.next = view.first_memory;
  if (self.next != nullptr) self.next->previous = &self;
  view.first_memory = &self;
  PyObject* const memoryview = PyMemoryView_FromObject(object.get());
  if (memoryview == nullptr) return nullptr;
  self.memoryview = PyWeakref_NewRef(memoryview, nullptr);
  if (self.memoryview == nullptr) {
    Py_DECREF(memoryview);
    return nullptr;
  }
  return memoryview;
}

// --- The view ---

ViewObject& view_of(PyObject* object) { return *reinterpret_cast<ViewObject*>(object); }

void unlink(ViewObject& self) {
  if (self.previous == nullptr && self.next == nullptr && self.module->first_view != &self) return;
  (self.previous != nullptr ? self.previous->next : self.module->first_view) = self.next;
  if (self.next != nullptr) self.next->previous = self.previous;
  self.previous = nullptr;
  self.next = nullptr;
}

// Releases the memoryviews and the pin. Leaves a Python exception that is set as it is.
void end_view(ViewObject& self) {
  if (!self.view) return;
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  while (ValueMemoryObject* const memory = self.first_memory) {
    unlink(*memory);
    const Ref held = Ref::borrow(reinterpret_cast<PyObject*>(memory));
    PyObject* const target =
        memory->memoryview != nullptr ? PyWeakref_GetObject(memory->memoryview) : Py_None;
    if (target == Py_None || target == nullptr) continue;
    const Ref memoryview = Ref::borrow(target);
    const Ref released(PyObject_CallMethod(memoryview.get(), "release", nullptr));
    // BufferError: something that was made of the memoryview lives on. It keeps the bytes.
    if (!released) PyErr_Clear();
  }
  unlink(self);
  self.view.reset();
  PyErr_Restore(type, value, trace);
}

PyObject* find(ViewObject& self, PyObject* key_object, PyObject* absent) {
  std::string_view key;
  if (!read_key(*self.module, key_object, key)) return nullptr;
  const View* const view = open_view(self);
  if (view == nullptr) return nullptr;
  try {
    if (const std::optional<std::string_view> value = view->get(key))
      return value_in_view(self, *value, key);
  } catch (...) {
    return set_current_error(*self.module);
  }
  if (absent != nullptr) {
    Py_INCREF(absent);
    return absent;
  }
  PyErr_SetObject(PyExc_KeyError, key_object);
  return nullptr;
}

PyObject* view_get(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  if (count < 1 || count > 2)
    return PyErr_Format(PyExc_TypeError, "get() takes 1 or 2 arguments: %zd given", count);
  return find(view_of(object), arguments[0], count == 2 ? arguments[1] : nullptr);
}

PyObject* view_subscript(PyObject* object, PyObject* key_object) {
  return find(view_of(object), key_object, nullptr);
}

int view_contains(PyObject* object, PyObject* key_object) {
  ViewObject& self = view_of(object);
  std::string_view key;
  if (!read_key(*self.module, key_object, key)) return -1;
  const View* const view = open_view(self);
  if (view == nullptr) return -1;
  try {
    return view->contains(key) ? 1 : 0;
  } catch (...) {
    set_current_error(*self.module);
    return -1;
  }
}

PyObject* view_get_multi(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  if (count < 1 || count > 2)
    return PyErr_Format(PyExc_TypeError, "get_multi() takes 1 or 2 arguments: %zd given", count);
  const Ref keys(PySequence_Tuple(arguments[0]));
  if (!keys) return nullptr;
  const Py_ssize_t key_count = PyTuple_GET_SIZE(keys.get());
  Ref result(PyList_New(key_count));
  if (!result) return nullptr;
  for (Py_ssize_t i = 0; i < key_count; ++i) {
    PyObject* const value =
        find(view_of(object), PyTuple_GET_ITEM(keys.get(), i), count == 2 ? arguments[1] : Py_None);
    if (value == nullptr) return nullptr;
    PyList_SET_ITEM(result.get(), i, value);
  }
  return result.release();
}

Py_ssize_t view_length(PyObject* object) {
  const View* const view = open_view(view_of(object));
  return view != nullptr ? static_cast<Py_ssize_t>(view->size()) : -1;
}

PyObject* view_version(PyObject* object, PyObject* key_object) {
  ViewObject& self = view_of(object);
  std::string_view key;
  if (!read_key(*self.module, key_object, key)) return nullptr;
  const View* const view = open_view(self);
  if (view == nullptr) return nullptr;
  try {
    if (const std::optional<UpdateId> version = view->version(key))
      return PyLong_FromUnsignedLongLong(*version);
  } catch (...) {
    return set_current_error(*self.module);
  }
  Py_RETURN_NONE;
}

PyObject* view_count(PyObject* object, PyObject* const* arguments, Py_ssize_t count,
                     PyObject* names) {
  ViewObject& self = view_of(object);
  KeyRange range;
  if (!read_range(*self.module, arguments, count, names, range, nullptr)) return nullptr;
  const View* const view = open_view(self);
  if (view == nullptr) return nullptr;
  try {
    const View pinned = *view;  // another thread may end the view
    std::size_t keys = 0;
    {
      const ReleasedGil released;
      keys = pinned.count(range);
    }
    return PyLong_FromSize_t(keys);
  } catch (...) {
    return set_current_error(*self.module);
  }
}

template <RangeKind kind>
PyObject* view_range(PyObject* object, PyObject* const* arguments, Py_ssize_t count,
                     PyObject* names) {
  return make_range(*view_of(object).module, object, kind, arguments, count, names);
}

PyObject* view_iterate(PyObject* object) {
  const Ref range(
      make_range(*view_of(object).module, object, RangeKind::keys, nullptr, 0, nullptr));
  return range ? PyObject_GetIter(range.get()) : nullptr;
}

PyObject* view_id(PyObject* object, void* /*unused*/) {
  const View* const view = open_view(view_of(object));
  return view != nullptr ? PyLong_FromUnsignedLongLong(view->id()) : nullptr;
}

PyObject* view_ended(PyObject* object, void* /*unused*/) {
  return PyBool_FromLong(!view_of(object).view);
}

PyObject* view_digest(PyObject* object, PyObject* /*unused*/) {
  const View* const view = open_view(view_of(object));
  return view != nullptr ? PyUnicode_FromString(to_string(view->digest()).c_str()) : nullptr;
}

PyObject* view_enter(PyObject* object, PyObject* /*unused*/) {
  return Ref::borrow(object).release();
}

// holds(key, token, nonce): whether the value of the key is this lease.
PyObject* view_holds(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  ViewObject& self = view_of(object);
  std::string_view key;
  if (count != 3) return PyErr_Format(PyExc_TypeError, "holds() takes 3 arguments");
  if (!read_key(*self.module, arguments[0], key)) return nullptr;
  Lease lease;
  lease.token = PyLong_AsUnsignedLongLong(arguments[1]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  lease.nonce = PyLong_AsUnsignedLongLong(arguments[2]);
  const View* const view = PyErr_Occurred() != nullptr ? nullptr : open_view(self);
  if (view == nullptr) return nullptr;
  try {
    const std::optional<std::string_view> value = view->get(key);
    const std::optional<LeaseRecord> record = value ? decode_lease(*value) : std::nullopt;
    return PyBool_FromLong(record && record->is_of(lease));
  } catch (...) {
    return set_current_error(*self.module);
  }
}

PyObject* view_close(PyObject* object, PyObject* /*unused*/) {
  end_view(view_of(object));
  Py_RETURN_NONE;
}

PyObject* view_exit(PyObject* object, PyObject* const* /*arguments*/, Py_ssize_t /*count*/) {
  end_view(view_of(object));
  Py_RETURN_NONE;
}

int view_traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(reinterpret_cast<PyObject*>(view_of(object).cache));
  return 0;
}

int view_clear(PyObject* object) {
  Py_CLEAR(view_of(object).cache);
  return 0;
}

void view_dealloc(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  ViewObject& self = view_of(object);
  if (self.weak_references != nullptr) PyObject_ClearWeakRefs(object);
  // The memoryviews of a view that nothing refers to any more stay valid: no block has ended.
  while (self.first_memory != nullptr) unlink(*self.first_memory);
  unlink(self);
  view_clear(object);
  self.view.~optional();
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef view_methods[] = {
    {"get", method(view_get), METH_FASTCALL,
     "get($self, key, default=..., /)\n--\n\n"
     "Returns the value of a key: a read-only memoryview if it is plain bytes, else the object. "
     "If\n"
     "the key is absent, returns the default, or raises KeyError if none is given."},
    {"get_multi", method(view_get_multi), METH_FASTCALL,
     "get_multi($self, keys, default=None, /)\n--\n\n"
     "Returns a list of the values in the order of the keys; the default for absent keys."},
    {"version", view_version, METH_O,
     "version($self, key, /)\n--\n\nReturns the version of a key's value, or None if the key is "
     "absent."},
    {"count", method(view_count), METH_FASTCALL | METH_KEYWORDS,
     "count($self, *, prefix=None, start=None, stop=None)\n--\n\nReturns the number of keys in a "
     "range."},
    {"keys", method(view_range<RangeKind::keys>), METH_FASTCALL | METH_KEYWORDS,
     "keys($self, *, prefix=None, start=None, stop=None, reverse=False)\n--\n\nReturns the keys in "
     "order."},
    {"values", method(view_range<RangeKind::values>), METH_FASTCALL | METH_KEYWORDS,
     "values($self, *, prefix=None, start=None, stop=None, reverse=False)\n--\n\n"
     "Returns the values in the order of their keys."},
    {"items", method(view_range<RangeKind::items>), METH_FASTCALL | METH_KEYWORDS,
     "items($self, *, prefix=None, start=None, stop=None, reverse=False)\n--\n\n"
     "Returns pairs of key and value in key order."},
    {"holds", method(view_holds), METH_FASTCALL,
     "holds($self, key, token, nonce, /)\n--\n\n"
     "Returns whether the value of the key is this lease."},
    {"digest", view_digest, METH_NOARGS, "digest($self)\n--\n\nReturns the digest of the items."},
    {"close", view_close, METH_NOARGS,
     "close($self)\n--\n\n"
     "Ends the view. Its memoryviews raise ValueError from now on. What was made of one, such as "
     "a\n"
     "slice or an array, keeps the bytes in place until it is freed."},
    {"__enter__", view_enter, METH_NOARGS, nullptr},
    {"__exit__", method(view_exit), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef view_properties[] = {
    {"id", view_id, nullptr, "The update id as of which it reads.", nullptr},
    {"ended", view_ended, nullptr, "Whether the view has ended.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMemberDef view_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(ViewObject, weak_references), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyType_Slot view_slots[] = {
    {Py_tp_doc, const_cast<char*>("The dataset as of one update id. Hold it for a request, not for "
                                  "a day: it keeps what is overwritten meanwhile.")},
    {Py_tp_dealloc, slot(view_dealloc)},
    {Py_tp_traverse, slot(view_traverse)},
    {Py_tp_clear, slot(view_clear)},
    {Py_tp_methods, view_methods},
    {Py_tp_getset, view_properties},
    {Py_tp_members, view_members},
    {Py_tp_iter, slot(view_iterate)},
    {Py_mp_length, slot(view_length)},
    {Py_mp_subscript, slot(view_subscript)},
    {Py_sq_contains, slot(view_contains)},
    {0, nullptr}};

PyType_Spec view_spec = {
    "whycache._whycache.View", sizeof(ViewObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, view_slots};

}  // namespace

PyObject* make_view(CacheObject& cache) {
  ModuleState& module = *cache.module;
  const std::shared_ptr<Handle> handle = open_handle(cache);
  if (!handle) return nullptr;
  std::optional<View> view;
  try {
    const ReleasedGil released;
    view.emplace(handle->cache.view());
  } catch (...) {
    return set_current_error(module);
  }
  auto* const type = reinterpret_cast<PyTypeObject*>(module.view_type);
  PyObject* const object = type->tp_alloc(type, 0);
  if (object == nullptr) return nullptr;
  ViewObject& self = view_of(object);
  self.module = &module;
  self.codec = cache.codec;
  Py_INCREF(reinterpret_cast<PyObject*>(&cache));
  self.cache = &cache;
  new (&self.view) std::optional<View>(std::move(view));
  self.next = module.first_view;
  if (self.next != nullptr) self.next->previous = &self;
  module.first_view = &self;
  return object;
}

const View* open_view(ViewObject& self) {
  if (self.view) [[likely]]
    return &*self.view;
  PyErr_SetString(self.module->invalid_error, "view has ended");
  return nullptr;
}

PyObject* value_in_view(ViewObject& self, std::string_view stored, std::string_view key) {
  const bool is_plain = self.codec == Codec::typed ? !is_typed(stored.data(), stored.size())
                                                   : self.codec == Codec::bytes;
  return is_plain ? make_memoryview(self, stored)
                  : decode_value(*self.module->values, self.codec, stored, key);
}

bool add_view_types(PyObject* module, ModuleState& state) {
  state.value_memory_type = PyType_FromModuleAndSpec(module, &memory_spec, nullptr);
  state.view_type = PyType_FromModuleAndSpec(module, &view_spec, nullptr);
  return state.value_memory_type != nullptr && state.view_type != nullptr &&
         PyModule_AddObjectRef(module, "View", state.view_type) == 0;
}

void end_all_views(ModuleState& state) {
  while (ViewObject* const view = state.first_view) {
    const Ref held = Ref::borrow(reinterpret_cast<PyObject*>(view));
    end_view(*view);
  }
}

}  // namespace whycache::python
