// What a cache tells of itself: ids, health, and what its state file holds.
#include "cache_methods.h"
#include "objects.h"

#include <chrono>
#include <optional>
#include <string>
#include <type_traits>

#include "state/file/machine_counters.h"

namespace whycache::python {
namespace {

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

}  // namespace

PyObject* cache_notify_fd(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.notify_fd(); },
      [](int descriptor) { return PyLong_FromLong(descriptor); });
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

// read_log_guards(): clear_allowed, erased_keys_max and erased_share_max, in a tuple.
PyObject* cache_read_log_guards(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.log_guards(); },
      [](const LogGuards& guards) -> PyObject* {
        const Ref keys(guards.erased_keys_max ? PyLong_FromUnsignedLongLong(*guards.erased_keys_max)
                                              : Ref::borrow(Py_None).release());
        const Ref share(guards.erased_share_max ? PyFloat_FromDouble(*guards.erased_share_max)
                                                : Ref::borrow(Py_None).release());
        if (!keys || !share) return nullptr;
        return Py_BuildValue("(OOO)", guards.clear_allowed ? Py_True : Py_False, keys.get(),
                             share.get());
      });
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

namespace {

PyObject* dict_of(const Counters& counters) {
  Ref dict(PyDict_New());
  if (!dict) return nullptr;
  for (const CounterMember& counter : all_counters)
    if (!put(dict.get(), counter.name, counters.*counter.value)) return nullptr;
  return dict.release();
}

}  // namespace

PyObject* cache_counters(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.counters(); }, dict_of);
}

namespace {

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
      put(to, "pinned_bytes", stats.pinned_bytes) && put(to, "counters", dict_of(stats.counters)) &&
      put(to, "machine_counters", dict_of(stats.machine_counters));
  return complete ? dict.release() : nullptr;
}

}  // namespace

PyObject* cache_stats(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.stats(); }, dict_of_stats);
}

namespace {

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
      put(to, "processes", processes.release()) &&
      put(to, "machine_counters", dict_of(state.machine_counters));
  return complete ? dict.release() : nullptr;
}

}  // namespace

PyObject* cache_inspect(PyObject* object, PyObject* /*unused*/) {
  return ask(
      object, [](Cache& cache) { return cache.inspect(); }, dict_of_inspection);
}

}  // namespace whycache::python
