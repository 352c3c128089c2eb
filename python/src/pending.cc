#include "pending.h"

#include <structmember.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace whycache::python {

// --- The event loop's side ---

LoopWaker::LoopWaker() : descriptor_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (descriptor_ < 0) {
    throw Error(ErrorKind::limit,
                std::string("cannot wake an event loop: call=eventfd reason=\"") +
                    std::strerror(errno) + "\" (raise the limit on open files, see ulimit -n)",
                errno);
  }
}

LoopWaker::~LoopWaker() { ::close(descriptor_); }

void LoopWaker::wake() noexcept {
  const std::uint64_t one = 1;
  // Fails only if the counter is full: the loop is awake then.
  [[maybe_unused]] const ssize_t written = ::write(descriptor_, &one, sizeof one);
}

void LoopWaker::add(PendingState& finished) noexcept {
  const MutexLock lock(mutex_);
  if (abandoned_) return;
  std::shared_ptr<PendingState>& end = last_ != nullptr ? last_->next_finished : first_;
  end = finished.shared_from_this();
  last_ = &finished;
}

std::shared_ptr<PendingState> LoopWaker::take() noexcept {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t read = ::read(descriptor_, &count, sizeof count);
  const MutexLock lock(mutex_);
  last_ = nullptr;
  return std::move(first_);
}

void LoopWaker::abandon() noexcept {
  {
    const MutexLock lock(mutex_);
    abandoned_ = true;
  }
  // One by one: a destructor that followed the links would need a stack as long as the list.
  for (std::shared_ptr<PendingState> state = take(); state;)
    state = std::exchange(state->next_finished, nullptr);
}

// --- The outcome ---

PendingState::PendingState(std::shared_ptr<LoopWaker> waker,
                           std::shared_ptr<std::atomic<std::size_t>> calls_under_way)
    : WriteCompletion(waker),
      loop_waker_(std::move(waker)),
      calls_under_way_(std::move(calls_under_way)),
      process_id_(::getpid()) {
  ++*calls_under_way_;
}

PendingState::~PendingState() {
  if (!done_) --*calls_under_way_;  // it was not started
}

bool PendingState::is_of_parent() const { return process_id_ != ::getpid(); }

void PendingState::finish_with(const Outcome& outcome, const std::exception_ptr& failure) noexcept {
  {
    const MutexLock lock(mutex_);
    outcome_ = outcome;
    failure_ = failure;
    done_ = true;
    --*calls_under_way_;
    // Under the mutex: a waiter that returned could free this object.
    finished_.notify_all();
  }
  if (loop_waker_) loop_waker_->add(*this);
}

void PendingState::run(const std::function<Outcome(std::stop_token)>& call) noexcept {
  Outcome outcome;
  std::exception_ptr failure;
  try {
    outcome = call(stop_.get_token());
  } catch (...) {
    failure = std::current_exception();
  }
  finish_with(outcome, failure);
  if (loop_waker_) loop_waker_->wake();
}

bool PendingState::done() const {
  const MutexLock lock(mutex_);
  return done_;
}

bool PendingState::wait_for(std::chrono::milliseconds time) {
  MutexLock lock(mutex_);
  // The mutex is held while it runs.
  const auto is_done = [&]() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { return done_; };
  return finished_.wait_for(lock.native(), time, is_done);
}

Outcome PendingState::outcome() const {
  const MutexLock lock(mutex_);
  if (failure_) std::rethrow_exception(failure_);
  return outcome_;
}

namespace {

// --- Pending ---

// Signals are looked at this often while a call waits.
constexpr std::chrono::milliseconds signal_interval{20};

struct PendingObject {
  PyObject_HEAD ModuleState* module;
  std::shared_ptr<PendingState> state;
  PyObject* cache;
  PyObject* waiter;  // what the event loop's side keeps here
  PyObject*
      convert;  // makes of the outcome what result() returns; null or None: the outcome itself
};

PendingObject& pending_of(PyObject* object) { return *reinterpret_cast<PendingObject*>(object); }

PyObject* object_of(const Outcome& outcome) {
  if (const auto* const id = std::get_if<UpdateId>(&outcome))
    return PyLong_FromUnsignedLongLong(*id);
  if (const auto* const sum = std::get_if<std::int64_t>(&outcome)) return PyLong_FromLongLong(*sum);
  if (const auto* const yes = std::get_if<bool>(&outcome)) return PyBool_FromLong(*yes);
  if (const auto* const lease = std::get_if<Lease>(&outcome)) {
    return Py_BuildValue(
        "(y#KLKL)", lease->key.data(), static_cast<Py_ssize_t>(lease->key.size()),
        static_cast<unsigned long long>(lease->token), static_cast<long long>(lease->ttl.count()),
        static_cast<unsigned long long>(lease->nonce), static_cast<long long>(lease->end.count()));
  }
  Py_RETURN_NONE;
}

bool refuse_in_child(PendingObject& self) {
  if (!self.state->is_of_parent()) return false;
  PyErr_SetString(
      self.module->uncertain_error,
      "the call was made by the process that this one was forked from, which alone gets "
      "its outcome");
  return true;
}

PyObject* pending_done(PyObject* object, PyObject* /*unused*/) {
  PendingObject& self = pending_of(object);
  return PyBool_FromLong(!self.state->is_of_parent() && self.state->done());
}

// Returns the outcome, or null with an exception set, which is TimeoutError if it is not known yet.
PyObject* pending_result(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  PendingObject& self = pending_of(object);
  if (count > 1) return PyErr_Format(PyExc_TypeError, "result() takes at most 1 argument");
  double seconds = -1;
  if (count == 1 && arguments[0] != Py_None) {
    seconds = PyFloat_AsDouble(arguments[0]);
    if (seconds == -1.0 && PyErr_Occurred() != nullptr) return nullptr;
    if (!(seconds >= 0)) seconds = 0;
  }
  if (refuse_in_child(self)) return nullptr;
  const std::shared_ptr<PendingState> state = self.state;
  const auto began = std::chrono::steady_clock::now();
  while (!state->done()) {
    auto time = signal_interval;
    if (seconds >= 0) {
      const double left =
          seconds - std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
      if (left <= 0) {
        PyErr_SetString(PyExc_TimeoutError, "the outcome is not known yet");
        return nullptr;
      }
      if (left < std::chrono::duration<double>(time).count())
        time = std::chrono::milliseconds(static_cast<int>(left * 1000) + 1);
    }
    bool done = false;
    {
      const ReleasedGil released;
      done = state->wait_for(time);
    }
    if (!done && PyErr_CheckSignals() < 0) return nullptr;
  }
  try {
    Ref outcome(object_of(state->outcome()));
    const Ref convert = Ref::borrow(self.convert);
    if (!outcome || !convert || convert.get() == Py_None) return outcome.release();
    return PyObject_CallOneArg(convert.get(), outcome.get());
  } catch (...) {
    return set_current_error(*self.module);
  }
}

PyObject* pending_stop(PyObject* object, PyObject* /*unused*/) {
  PendingObject& self = pending_of(object);
  if (!self.state->is_of_parent()) self.state->request_stop();
  Py_RETURN_NONE;
}

int pending_traverse(PyObject* object, visitproc visit, void* arg) {
  PendingObject& self = pending_of(object);
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self.cache);
  Py_VISIT(self.waiter);
  Py_VISIT(self.convert);
  return 0;
}

int pending_clear(PyObject* object) {
  PendingObject& self = pending_of(object);
  Py_CLEAR(self.cache);
  Py_CLEAR(self.waiter);
  Py_CLEAR(self.convert);
  return 0;
}

void pending_dealloc(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  // First: what follows may release the GIL, and the event loop's side must not find the object.
  pending_of(object).state->object = nullptr;
  pending_clear(object);
  pending_of(object).state.~shared_ptr();
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef pending_methods[] = {
    {"done", pending_done, METH_NOARGS, "Returns whether the outcome is known."},
    {"result", method(pending_result), METH_FASTCALL,
     "result($self, timeout=None, /)\n--\n\n"
     "Waits for the outcome and returns it, or raises what the call has raised. Raises "
     "TimeoutError\n"
     "if it is not known after so many seconds; the call continues, and may be asked again."},
    {"stop", pending_stop, METH_NOARGS,
     "Makes a call that still waits give up. It then raises as if its deadline had passed."},
    {nullptr, nullptr, 0, nullptr}};

PyMemberDef pending_members[] = {
    {"waiter", T_OBJECT, offsetof(PendingObject, waiter), 0, "The future that waits for it."},
    {"convert", T_OBJECT, offsetof(PendingObject, convert), 0,
     "What makes the result of the outcome, or None."},
    {nullptr, 0, 0, 0, nullptr}};

PyType_Slot pending_slots[] = {
    {Py_tp_doc, const_cast<char*>("The outcome of a call that waits, to be had later.")},
    {Py_tp_dealloc, slot(pending_dealloc)},
    {Py_tp_traverse, slot(pending_traverse)},
    {Py_tp_clear, slot(pending_clear)},
    {Py_tp_methods, pending_methods},
    {Py_tp_members, pending_members},
    {0, nullptr}};

PyType_Spec pending_spec = {
    "whycache._whycache.Pending", sizeof(PendingObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, pending_slots};

// --- Completions ---

struct CompletionsObject {
  PyObject_HEAD ModuleState* module;
  std::shared_ptr<LoopWaker> waker;
};

CompletionsObject& completions_of(PyObject* object) {
  return *reinterpret_cast<CompletionsObject*>(object);
}

PyObject* completions_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {nullptr};
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, ":Completions", const_cast<char**>(names)))
    return nullptr;
  ModuleState* const module = state_of_type(type);
  if (module == nullptr) return nullptr;
  try {
    auto waker = std::make_shared<LoopWaker>();
    PyObject* const object = type->tp_alloc(type, 0);
    if (object == nullptr) return nullptr;
    CompletionsObject& self = completions_of(object);
    self.module = module;
    new (&self.waker) std::shared_ptr<LoopWaker>(std::move(waker));
    return object;
  } catch (...) {
    return set_current_error(*module);
  }
}

void completions_dealloc(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  completions_of(object).waker->abandon();
  completions_of(object).waker.~shared_ptr();
  type->tp_free(object);
  Py_DECREF(type);
}

PyObject* completions_fileno(PyObject* object, PyObject* /*unused*/) {
  return PyLong_FromLong(completions_of(object).waker->descriptor());
}

PyObject* completions_take(PyObject* object, PyObject* /*unused*/) {
  Ref list(PyList_New(0));
  if (!list) return nullptr;
  bool failed = false;
  for (std::shared_ptr<PendingState> state = completions_of(object).waker->take(); state;
       state = std::move(state->next_finished)) {
    if (state->object != nullptr && PyList_Append(list.get(), state->object) < 0) failed = true;
  }
  return failed ? nullptr : list.release();
}

PyMethodDef completions_methods[] = {
    {"fileno", completions_fileno, METH_NOARGS,
     "Returns a descriptor that becomes readable when calls have finished."},
    {"take", completions_take, METH_NOARGS,
     "Returns the Pending objects that have finished since the last call."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot completions_slots[] = {
    {Py_tp_doc, const_cast<char*>("The calls of one event loop that have finished.")},
    {Py_tp_new, slot(completions_new)},
    {Py_tp_dealloc, slot(completions_dealloc)},
    {Py_tp_methods, completions_methods},
    {0, nullptr}};

PyType_Spec completions_spec = {"whycache._whycache.Completions", sizeof(CompletionsObject), 0,
                                Py_TPFLAGS_DEFAULT, completions_slots};

}  // namespace

PyObject* make_pending(ModuleState& module, std::shared_ptr<PendingState> state, PyObject* cache) {
  auto* const type = reinterpret_cast<PyTypeObject*>(module.pending_type);
  PyObject* const object = type->tp_alloc(type, 0);
  if (object == nullptr) return nullptr;
  PendingObject& self = pending_of(object);
  self.module = &module;
  new (&self.state) std::shared_ptr<PendingState>(std::move(state));
  self.cache = Ref::borrow(cache).release();
  self.state->object = object;
  return object;
}

bool waker_of(ModuleState& module, PyObject* completions, std::shared_ptr<LoopWaker>& waker) {
  if (completions == Py_None) return true;
  if (!PyObject_TypeCheck(completions, reinterpret_cast<PyTypeObject*>(module.completions_type))) {
    PyErr_Format(PyExc_TypeError, "completions must be Completions or None, not %.100s",
                 Py_TYPE(completions)->tp_name);
    return false;
  }
  waker = completions_of(completions).waker;
  return true;
}

bool add_pending_types(PyObject* module, ModuleState& state) {
  state.pending_type = PyType_FromModuleAndSpec(module, &pending_spec, nullptr);
  state.completions_type = PyType_FromModuleAndSpec(module, &completions_spec, nullptr);
  return state.pending_type != nullptr && state.completions_type != nullptr &&
         PyModule_AddObjectRef(module, "Pending", state.pending_type) == 0 &&
         PyModule_AddObjectRef(module, "Completions", state.completions_type) == 0;
}

}  // namespace whycache::python
