// The calls of a cache that wait: each start_*() returns a Pending object.
#include "cache_methods.h"
#include "objects.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/signals.h"
#include "client/cache_internal.h"
#include "pending.h"

namespace whycache::python {
namespace {

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

// A call opens a state that was closed. One that began before the cache was closed closes it again.
class CloseAgain {
 public:
  explicit CloseAgain(Handle& handle) : handle_(handle) {}
  ~CloseAgain() {
    if (!handle_.closed) return;
    try {
      handle_.close();
    } catch (const std::exception&) {  // close() itself has reported what is wrong
    }
  }
  CloseAgain(const CloseAgain&) = delete;
  CloseAgain& operator=(const CloseAgain&) = delete;

 private:
  Handle& handle_;
};

// A call that began this soon was not kept waiting by others: its thread had to be started.
constexpr std::chrono::milliseconds started_late_min{20};

// Starts a call on a worker's thread. If no thread is free before the deadline, the call fails.
PyObject* start_call(CacheObject& self, const std::shared_ptr<LoopWaker>& waker,
                     const std::optional<std::chrono::milliseconds>& deadline,
                     std::function<Outcome(Cache&, std::stop_token)> call) {
  const std::shared_ptr<Handle> handle = handle_to_wait_for(self);
  if (!handle) return nullptr;
  const std::chrono::milliseconds time = deadline.value_or(handle->deadline);
  const auto asked = std::chrono::steady_clock::now();
  try {
    auto state = std::make_shared<PendingState>(waker, handle->calls_under_way);
    Ref pending(make_pending(*self.module, state, reinterpret_cast<PyObject*>(&self)));
    if (!pending) return nullptr;
    self.module->runtime->workers()->run([handle, state, time, asked, call = std::move(call)] {
      state->run([&](std::stop_token stop) {
        if (handle->closed) {
          throw Error(ErrorKind::unavailable,
                      "cache was closed before this was begun, nothing was written");
        }
        const auto waited = std::chrono::steady_clock::now() - asked;
        if (waited > std::max(time, started_late_min)) {
          throw Error(
              ErrorKind::unavailable,
              "call was not begun until its deadline, since " +
                  std::to_string(Workers::threads_max) +
                  " others of this process wait for a log, nothing was written: deadline_ms=" +
                  std::to_string(time.count()));
        }
        const CloseAgain at_end(*handle);
        return call(handle->cache, std::move(stop));
      });
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

}  // namespace

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

namespace {

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
      // The pair may be a list, which other threads may change while its value is encoded.
      const Ref value = Ref::borrow(PySequence_Fast_GET_ITEM(pair.get(), 1));
      if (!values_.back().encode(self, value.get())) return false;
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

}  // namespace

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

namespace {

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

}  // namespace

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
    return start_call(self, call.waker, call.deadline,
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
        self, call.waker, call.deadline,
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
    return start_call(self, call.waker, call.deadline,
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
      self, call.waker, call.deadline,
      [key = std::string(key), delta, call](Cache& cache, std::stop_token stop) -> Outcome {
        return cache.add(key, delta, write_options(call, std::move(stop)));
      });
}

namespace {

bool read_milliseconds(PyObject* object, std::chrono::milliseconds& time) {
  const long long milliseconds = PyLong_AsLongLong(object);
  if (milliseconds == -1 && PyErr_Occurred() != nullptr) return false;
  time = std::chrono::milliseconds(milliseconds);
  return true;
}

// The last four arguments of a call for a lease: holder, clock skew and deadline in milliseconds,
// and the Completions of an event loop or None.
struct LeaseArguments {
  LeaseOptions options;
  std::shared_ptr<LoopWaker> waker;

  // Returns false with an exception set.
  bool read(CacheObject& self, PyObject* const* arguments) {
    Py_ssize_t bytes = 0;
    const char* const holder = PyUnicode_AsUTF8AndSize(arguments[0], &bytes);
    if (holder == nullptr) return false;
    options.holder.assign(holder, static_cast<std::size_t>(bytes));
    return read_milliseconds(arguments[1], options.clock_skew_max) &&
           read_deadline(arguments[2], options.deadline) &&
           waker_of(*self.module, arguments[3], waker);
  }
  LeaseOptions with_stop(std::stop_token stop) const {
    LeaseOptions copy = options;
    copy.stop = std::move(stop);
    return copy;
  }
};

// Reads a lease as the outcome of a call has it: a tuple of key, token, ttl in milliseconds, nonce
// and end in nanoseconds.
bool read_lease(CacheObject& self, PyObject* tuple, Lease& lease) {
  PyObject* key_object = nullptr;
  unsigned long long token = 0;
  unsigned long long nonce = 0;
  long long ttl = 0;
  long long end = 0;
  std::string_view key;
  if (!PyTuple_Check(tuple)) {
    PyErr_SetString(PyExc_TypeError, "a lease must be a tuple here");
    return false;
  }
  if (!PyArg_ParseTuple(tuple, "OKLKL", &key_object, &token, &ttl, &nonce, &end) ||
      !read_key(*self.module, key_object, key))
    return false;
  lease = {.key = std::string(key),
           .token = token,
           .ttl = std::chrono::milliseconds(ttl),
           .nonce = nonce,
           .end = std::chrono::nanoseconds(end)};
  return true;
}

}  // namespace

// start_acquire(key, ttl_ms, holder, clock_skew_ms, deadline, completions): the outcome is a tuple,
// see read_lease(), or None if another holder has the lease.
PyObject* cache_start_acquire(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  std::string_view key;
  std::chrono::milliseconds ttl{0};
  LeaseArguments call;
  if (!check_count("start_acquire", count, 6) || !read_key(*self.module, arguments[0], key) ||
      !read_milliseconds(arguments[1], ttl) || !call.read(self, arguments + 2))
    return nullptr;
  return start_call(
      self, call.waker, call.options.deadline,
      [key = std::string(key), ttl, call](Cache& cache, std::stop_token stop) -> Outcome {
        std::optional<Lease> lease = cache.acquire(key, ttl, call.with_stop(std::move(stop)));
        if (!lease) return std::monostate();
        return std::move(*lease);
      });
}

// start_renew(lease, holder, clock_skew_ms, deadline, completions): the outcome is the renewed
// lease, or None if it is held no more.
PyObject* cache_start_renew(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  Lease lease;
  LeaseArguments call;
  if (!check_count("start_renew", count, 5) || !read_lease(self, arguments[0], lease) ||
      !call.read(self, arguments + 1))
    return nullptr;
  return start_call(self, call.waker, call.options.deadline,
                    [lease, call](Cache& cache, std::stop_token stop) -> Outcome {
                      Lease renewed = lease;
                      if (!cache.renew(renewed, call.with_stop(std::move(stop))))
                        return std::monostate();
                      return renewed;
                    });
}

// start_release(lease, holder, clock_skew_ms, deadline, completions): the outcome is whether the
// lease was held.
PyObject* cache_start_release(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  Lease lease;
  LeaseArguments call;
  if (!check_count("start_release", count, 5) || !read_lease(self, arguments[0], lease) ||
      !call.read(self, arguments + 1))
    return nullptr;
  return start_call(self, call.waker, call.options.deadline,
                    [lease, call](Cache& cache, std::stop_token stop) -> Outcome {
                      return cache.release(lease, call.with_stop(std::move(stop)));
                    });
}

// start_set_log_guards(clear_allowed, erased_keys_max, erased_share_max, note, deadline,
// completions)
PyObject* cache_start_set_log_guards(PyObject* object, PyObject* const* arguments,
                                     Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  CallArguments call;
  LogGuards guards;
  if (!check_count("start_set_log_guards", count, 6) || !read_call(self, arguments + 3, call))
    return nullptr;
  const int clear_allowed = PyObject_IsTrue(arguments[0]);
  if (clear_allowed < 0) return nullptr;
  guards.clear_allowed = clear_allowed == 1;
  if (arguments[1] != Py_None) guards.erased_keys_max = PyLong_AsUnsignedLongLong(arguments[1]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (arguments[2] != Py_None) guards.erased_share_max = PyFloat_AsDouble(arguments[2]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  return start_call(self, call.waker, call.deadline,
                    [guards, call](Cache& cache, std::stop_token stop) -> Outcome {
                      return cache.set_log_guards(guards, write_options(call, std::move(stop)));
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
  return start_call(self, call.waker, call.deadline,
                    [range, call](Cache& cache, std::stop_token stop) -> Outcome {
                      return cache.erase(range, write_options(call, std::move(stop)));
                    });
}

namespace {

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

}  // namespace

PyObject* cache_start_update(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  UpdateOptions options;
  std::shared_ptr<LoopWaker> waker;
  if (!check_count("start_update", count, 4) || !read_update(arguments, options) ||
      !read_deadline(arguments[2], options.deadline) ||
      !waker_of(*self.module, arguments[3], waker))
    return nullptr;
  return start_call(self, waker, options.deadline,
                    [options](Cache& cache, std::stop_token stop) -> Outcome {
                      UpdateOptions with_stop = options;
                      with_stop.stop = std::move(stop);
                      return cache.update(with_stop);
                    });
}

namespace {

void start_thread(std::function<void()> function) {
  const BlockedSignals blocked;
  try {
    std::thread(std::move(function)).detach();
  } catch (const std::system_error& error) {
    throw Error(ErrorKind::limit,
                std::string("cannot start a thread: reason=\"") + error.code().message() +
                    "\" (raise the limits on threads and memory, see ulimit -u and -v)",
                error.code().value());
  }
}

}  // namespace

// start_wait(after, deadline, completions): without a deadline, waits for as long as it takes. The
// outcome is the applied id.
PyObject* cache_start_wait(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  CacheObject& self = cache_of(object);
  WaitOptions options;
  std::shared_ptr<LoopWaker> waker;
  if (!check_count("start_wait", count, 3)) return nullptr;
  const UpdateId after = PyLong_AsUnsignedLongLong(arguments[0]);
  if (PyErr_Occurred() != nullptr || !read_deadline(arguments[1], options.deadline) ||
      !waker_of(*self.module, arguments[2], waker))
    return nullptr;
  const std::shared_ptr<Handle> handle = handle_to_wait_for(self);
  if (!handle) return nullptr;
  try {
    // The end of the interpreter does not wait for it.
    const auto counted_by_nobody = std::make_shared<std::atomic<std::size_t>>(0);
    auto state = std::make_shared<PendingState>(waker, counted_by_nobody);
    Ref pending(make_pending(*self.module, state, object));
    if (!pending) return nullptr;
    // A thread of its own: the workers are few, and this may take forever.
    start_thread([handle, state, after, options] {
      state->run([&](std::stop_token stop) -> Outcome {
        if (handle->closed) throw Error(ErrorKind::unavailable, "cache was closed");
        const CloseAgain at_end(*handle);
        return handle->cache.wait(after, {.deadline = options.deadline, .stop = std::move(stop)});
      });
    });
    return pending.release();
  } catch (...) {
    return set_current_error(*self.module);
  }
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
      const Ref result(value ? call_until_exit([&] {
        return PyObject_Vectorcall(shared->get(), both, 2, nullptr);
      })
                             : nullptr);
      const int keeps = result ? PyObject_IsTrue(result.get()) : -1;
      if (keeps < 0) throw Error(ErrorKind::invalid, "filter_fn raised " + take_python_error());
      return keeps == 1;
    };
  }
  return start_call(self, waker, {}, [limit, keep](Cache& cache, std::stop_token stop) -> Outcome {
    return cache.rewrite_history({.limit = limit, .keep = keep, .stop = std::move(stop)});
  });
}

// start_delete_all_history(completions)
PyObject* cache_start_delete_all_history(PyObject* object, PyObject* completions) {
  CacheObject& self = cache_of(object);
  std::shared_ptr<LoopWaker> waker;
  if (!waker_of(*self.module, completions, waker)) return nullptr;
  return start_call(self, waker, {}, [](Cache& cache, const std::stop_token& /*stop*/) -> Outcome {
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

// start_close(): closes the cache on another thread, as close() does. The outcome is None.
PyObject* cache_start_close(PyObject* object, PyObject* /*unused*/) {
  CacheObject& self = cache_of(object);
  const std::shared_ptr<Handle> handle = self.handle;
  if (!handle || handle->closed.load()) Py_RETURN_NONE;
  try {
    auto state = std::make_shared<PendingState>(nullptr, handle->calls_under_way);
    Ref pending(make_pending(*self.module, state, object));
    if (!pending) return nullptr;
    self.module->runtime->workers()->run_at_once([handle, state] {
      state->run([&](const std::stop_token& /*stop*/) -> Outcome {
        handle->close();
        return std::monostate();
      });
    });
    return pending.release();
  } catch (...) {
    return set_current_error(*self.module);
  }
}

// wait_until_idle(milliseconds): waits for the calls that have been started, and returns how many
// have not finished.
PyObject* cache_wait_until_idle(PyObject* object, PyObject* milliseconds) {
  CacheObject& self = cache_of(object);
  const long long time = PyLong_AsLongLong(milliseconds);
  if (time == -1 && PyErr_Occurred() != nullptr) return nullptr;
  const std::shared_ptr<Handle> handle = self.handle;
  if (!handle) return PyLong_FromLong(0);
  constexpr long long milliseconds_max = 365LL * 86'400 * 1000;  // the clock counts nanoseconds
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::milliseconds(std::clamp(time, 0LL, milliseconds_max));
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

}  // namespace whycache::python
