// A feed of changes. _changes.py waits for it in the way of each cache.
#include "objects.h"

#include <whycache/changes.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <utility>

namespace whycache::python {
namespace {

struct ChangesObject {
  PyObject_HEAD ModuleState* module;
  CacheObject* cache;
  std::optional<Changes> feed;
  bool taking;
};

ChangesObject& changes_of(PyObject* object) { return *reinterpret_cast<ChangesObject*>(object); }

const char* kind_name(FeedChange::Kind kind) {
  switch (kind) {
    case FeedChange::Kind::set: return "set";
    case FeedChange::Kind::erase: return "delete";
    case FeedChange::Kind::erase_all: return "delete_all";
    case FeedChange::Kind::reset: return "reset";
  }
  return "?";
}

// Returns the exception that is set as an object, and clears it.
PyObject* take_exception() {
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  Py_XDECREF(type);
  Py_XDECREF(trace);
  return value;
}

// Returns (kind, id, key, value, time_us, writer, note, ends_update, is_undecodable), or null with
// an exception set. Instead of a value that cannot be decoded, it has the exception.
PyObject* tuple_of(ChangesObject& self, const FeedChange& change) {
  const bool has_key =
      change.kind == FeedChange::Kind::set || change.kind == FeedChange::Kind::erase;
  const Ref key(has_key ? bytes_of(change.key) : Ref::borrow(Py_None).release());
  if (!key) return nullptr;
  bool is_undecodable = false;
  Ref value = Ref::borrow(Py_None);
  if (change.kind == FeedChange::Kind::set) {
    value = Ref(decode_stored(*self.module, self.cache->codec, change.value, change.key));
    if (!value) {
      // Any other exception, such as KeyboardInterrupt, is raised in its turn, too: returning here
      // would lose the changes that were taken.
      is_undecodable = true;
      value = Ref(take_exception());
      if (!value) return nullptr;
    }
  }
  const auto since_epoch = change.time.time_since_epoch();
  const auto time_us = std::chrono::duration_cast<std::chrono::microseconds>(since_epoch).count();
  const Ref writer(PyUnicode_DecodeUTF8(
      change.writer.data(), static_cast<Py_ssize_t>(change.writer.size()), "backslashreplace"));
  const Ref note(PyUnicode_DecodeUTF8(
      change.note.data(), static_cast<Py_ssize_t>(change.note.size()), "backslashreplace"));
  if (!writer || !note) return nullptr;
  return Py_BuildValue(
      "sKOOLOOOO", kind_name(change.kind), static_cast<unsigned long long>(change.id), key.get(),
      value.get(), static_cast<long long>(time_us), writer.get(), note.get(),
      change.ends_update ? Py_True : Py_False, is_undecodable ? Py_True : Py_False);
}

// Takes the change that the feed has next, without the GIL.
std::optional<FeedChange> next_of(ChangesObject& self, std::chrono::milliseconds wait) {
  const ReleasedGil released;
  return self.feed->next(wait);
}

// take(count_max, milliseconds): returns a list of changes, empty if there is none in time, and the
// position of the feed behind them.
PyObject* changes_take(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  ChangesObject& self = changes_of(object);
  if (count != 2) return PyErr_Format(PyExc_TypeError, "take() takes 2 arguments");
  const Py_ssize_t count_max = PyLong_AsSsize_t(arguments[0]);
  const long long milliseconds = PyLong_AsLongLong(arguments[1]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (self.taking) {
    PyErr_SetString(PyExc_ValueError, "another thread is advancing this feed");
    return nullptr;
  }
  const std::shared_ptr<Handle> handle = handle_to_wait_for(*self.cache);
  if (!handle) return nullptr;
  Ref list(PyList_New(0));
  if (!list) return nullptr;
  struct TakingMark {
    bool& taking;
    ~TakingMark() { taking = false; }
  };
  self.taking = true;
  const TakingMark mark{self.taking};
  std::chrono::milliseconds wait(std::clamp<long long>(milliseconds, 0, 3'600'000));
  try {
    while (PyList_GET_SIZE(list.get()) < count_max) {
      const std::optional<FeedChange> change = next_of(self, wait);
      if (!change) break;
      const Ref tuple(tuple_of(self, *change));
      if (!tuple || PyList_Append(list.get(), tuple.get()) != 0) return nullptr;
      wait = std::chrono::milliseconds(0);
    }
  } catch (...) {
    // What was taken must not be lost. The next call fails, if this was not to pass.
    if (PyList_GET_SIZE(list.get()) == 0) return set_current_error(*self.module);
  }
  return Py_BuildValue("NK", list.release(),
                       static_cast<unsigned long long>(self.feed->position()));
}

PyObject* changes_position(PyObject* object, PyObject* /*unused*/) {
  return PyLong_FromUnsignedLongLong(changes_of(object).feed->position());
}

int changes_traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(reinterpret_cast<PyObject*>(changes_of(object).cache));
  return 0;
}

void changes_dealloc(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  ChangesObject& self = changes_of(object);
  self.feed.~optional();  // before the cache that it reads
  Py_CLEAR(self.cache);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef changes_methods[] = {
    {"take", method(changes_take), METH_FASTCALL,
     "take($self, count_max, milliseconds, /)\n--\n\n"
     "Returns a list of at most so many changes, and the position behind them. Waits for the\n"
     "first one."},
    {"position", changes_position, METH_NOARGS,
     "position($self)\n--\n\nReturns the id of the last update that was taken as a whole."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot changes_slots[] = {{Py_tp_doc, const_cast<char*>("A feed of changes.")},
                               {Py_tp_dealloc, slot(changes_dealloc)},
                               {Py_tp_traverse, slot(changes_traverse)},
                               {Py_tp_methods, changes_methods},
                               {0, nullptr}};

PyType_Spec changes_spec = {
    "whycache._whycache.Changes", sizeof(ChangesObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, changes_slots};

}  // namespace

PyObject* make_changes(CacheObject& cache, UpdateId from, KeyRange range) {
  ModuleState& module = *cache.module;
  const std::shared_ptr<Handle> handle = open_handle(cache);
  if (!handle) return nullptr;
  std::optional<Changes> feed;
  try {
    const ReleasedGil released;
    feed.emplace(handle->cache.changes(from, std::move(range)));
  } catch (...) {
    return set_current_error(module);
  }
  auto* const type = reinterpret_cast<PyTypeObject*>(module.changes_type);
  PyObject* const object = type->tp_alloc(type, 0);
  if (object == nullptr) return nullptr;
  ChangesObject& self = changes_of(object);
  self.module = &module;
  Py_INCREF(reinterpret_cast<PyObject*>(&cache));
  self.cache = &cache;
  new (&self.feed) std::optional<Changes>(std::move(feed));
  return object;
}

bool add_changes_type(PyObject* module, ModuleState& state) {
  state.changes_type = PyType_FromModuleAndSpec(module, &changes_spec, nullptr);
  return state.changes_type != nullptr &&
         PyModule_AddObjectRef(module, "Changes", state.changes_type) == 0;
}

}  // namespace whycache::python
