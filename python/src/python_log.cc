#include "python_log.h"

#include <cstring>
#include <string>

namespace whycache::python {
namespace {

// Whether a call that failed may have changed the store.
enum class Effect : std::uint8_t { none, possible };

class PythonLog : public Log {
 public:
  PythonLog(ModuleState& module, PyObject* adapter, std::string name)
      : module_(module), adapter_(module.runtime, adapter), name_(std::move(name)) {}

  std::string name() const override { return name_; }

  Extent extent() override {
    const PythonCall call(runtime());
    require(call);
    return read_extent(call_method("extent", Ref(PyTuple_New(0)), Effect::none).get());
  }

  Appended append(UpdateId id, std::string_view bytes) override {
    const PythonCall call(runtime());
    require(call);
    const Ref result =
        call_method("append",
                    Ref(Py_BuildValue("(Ky#)", static_cast<unsigned long long>(id), bytes.data(),
                                      static_cast<Py_ssize_t>(bytes.size()))),
                    Effect::possible);
    const long outcome = PyLong_AsLong(result.get());
    if (outcome == 0) return Appended::yes;
    if (outcome == 1) return Appended::taken;
    if (outcome == 2) return Appended::below_base;
    throw nonsense("append", ErrorKind::uncertain);
  }

  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    const PythonCall call(runtime());
    require(call);
    const Ref rows = call_method("read",
                                 Ref(Py_BuildValue("(KK)", static_cast<unsigned long long>(first),
                                                   static_cast<unsigned long long>(last))),
                                 Effect::none);
    UpdateId previous = 0;
    while (const Ref row = next_of(rows)) {
      unsigned long long id = 0;
      const char* bytes = nullptr;
      Py_ssize_t size = 0;
      if (!PyTuple_Check(row.get()) || !PyArg_ParseTuple(row.get(), "Ky#", &id, &bytes, &size)) {
        PyErr_Clear();
        throw nonsense("read", ErrorKind::corrupt);
      }
      if (id < first || id > last || id <= previous) {
        throw Error(ErrorKind::corrupt,
                    "log returned an update that was not asked for, or out of "
                    "order: log=" +
                        name_ + " id=" + std::to_string(id) + " first=" + std::to_string(first) +
                        " last=" + std::to_string(last));
      }
      previous = id;
      if (!visit_without_gil([&] { return visit(id, {bytes, static_cast<std::size_t>(size)}); }))
        break;
    }
    if (PyErr_Occurred() != nullptr) throw_python_error("read", Effect::none);
    return read_extent(call_method("extent", Ref(PyTuple_New(0)), Effect::none).get());
  }

  void read_base(const VisitPart& visit) override {
    const PythonCall call(runtime());
    require(call);
    const Ref parts = call_method("read_base", Ref(PyTuple_New(0)), Effect::none);
    while (const Ref part = next_of(parts)) {
      char* bytes = nullptr;
      Py_ssize_t size = 0;
      if (PyBytes_AsStringAndSize(part.get(), &bytes, &size) < 0) {
        PyErr_Clear();
        throw nonsense("read_base", ErrorKind::corrupt);
      }
      if (!visit_without_gil([&] { return visit({bytes, static_cast<std::size_t>(size)}); }))
        return;
    }
    if (PyErr_Occurred() != nullptr) throw_python_error("read_base", Effect::none);
  }

  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    const PythonCall call(runtime());
    require(call);
    // The iterator of the parts is a function of Python that calls this.
    PartSource source{next_part, nullptr};
    const Ref capsule(PyCapsule_New(&source, capsule_name, nullptr));
    static PyMethodDef next_method = {"next_part", next_part_of_capsule, METH_NOARGS,
                                      "Returns the next part, or None."};
    const Ref next(capsule ? PyCFunction_New(&next_method, capsule.get()) : nullptr);
    Ref result;
    try {
      result = call_method(
          "rewrite",
          Ref(next ? Py_BuildValue("(KKO)", static_cast<unsigned long long>(base),
                                   static_cast<unsigned long long>(base_chain), next.get())
                   : nullptr),
          Effect::possible);
    } catch (...) {
      if (capsule) PyCapsule_SetPointer(capsule.get(), &ended_source);
      if (source.failure) std::rethrow_exception(source.failure);
      throw;
    }
    PyCapsule_SetPointer(capsule.get(), &ended_source);
    if (source.failure) std::rethrow_exception(source.failure);
    return result.get() == Py_True;
  }

  std::unique_ptr<Log> reopen() override {
    const PythonCall call(runtime());
    require(call);
    const Ref result = call_method("reopen", Ref(PyTuple_New(0)), Effect::none);
    return std::make_unique<PythonLog>(module_, result.get(), name_);
  }

 private:
  struct PartSource {
    const NextPart& next_part;
    std::exception_ptr failure;
  };
  static constexpr const char* capsule_name = "whycache.next_part";
  // What the capsule refers to once rewrite() has returned.
  static inline char ended_source = 0;

  static PyObject* next_part_of_capsule(PyObject* capsule, PyObject* /*unused*/) {
    void* const pointer = PyCapsule_GetPointer(capsule, capsule_name);
    if (pointer == nullptr) return nullptr;
    if (pointer == &ended_source) {
      PyErr_SetString(PyExc_RuntimeError, "rewrite() has returned: its parts are gone");
      return nullptr;
    }
    auto& source = *static_cast<PartSource*>(pointer);
    try {
      std::optional<std::string_view> part;
      {
        const ReleasedGil released;
        part = source.next_part();
      }
      if (!part) Py_RETURN_NONE;
      return bytes_of(*part);
    } catch (...) {
      source.failure = std::current_exception();
      PyErr_SetString(PyExc_RuntimeError, "the next part cannot be made");
      return nullptr;
    }
  }

  Runtime& runtime() const { return adapter_.runtime(); }

  void require(const PythonCall& call) const {
    if (!call.allowed()) {
      throw Error(ErrorKind::unavailable,
                  "the interpreter has ended, and with it the log: log=" + name_);
    }
  }

  // What is visited may wait for locks, whose holders may wait for the GIL.
  template <typename Visit>
  static bool visit_without_gil(const Visit& visit) {
    const ReleasedGil released;
    return visit();
  }

  Ref call_method(const char* method, const Ref& arguments, Effect effect) const {
    const Ref function(arguments ? PyObject_GetAttrString(adapter_.get(), method) : nullptr);
    Ref result(function ? call_until_exit(
                              [&] { return PyObject_CallObject(function.get(), arguments.get()); })
                        : nullptr);
    if (!result) throw_python_error(method, effect);
    return result;
  }

  static Ref next_of(const Ref& iterator) {
    return Ref(call_until_exit([&] { return PyIter_Next(iterator.get()); }));
  }

  Error nonsense(const char* method, ErrorKind kind) const {
    PyErr_Clear();
    return Error(kind, std::string("log returned what its interface does not allow: log=") + name_ +
                           " method=" + method);
  }

  // Throws the C++ exception for the Python exception that is set.
  [[noreturn]] void throw_python_error(const char* method, Effect effect) const {
    ErrorKind kind = effect == Effect::none ? ErrorKind::unavailable : ErrorKind::uncertain;
    const std::pair<PyObject*, ErrorKind> kinds[] = {
        {module_.limit_error, ErrorKind::limit},
        {module_.unavailable_error, ErrorKind::unavailable},
        {module_.uncertain_error, ErrorKind::uncertain},
        {module_.conflict_error, ErrorKind::conflict},
        {module_.refused_error, ErrorKind::refused},
        {module_.corrupt_error, ErrorKind::corrupt},
        {module_.invalid_error, ErrorKind::invalid}};
    for (const auto& [type, its_kind] : kinds) {
      if (PyErr_ExceptionMatches(type) != 0) kind = its_kind;
    }
    throw Error(kind,
                "log failed: log=" + name_ + " method=" + method + ": " + take_python_error());
  }

  // Takes (uuid, base, base_chain, head, store_id).
  Extent read_extent(PyObject* tuple) const {
    const char* uuid = nullptr;
    Py_ssize_t uuid_bytes = 0;
    unsigned long long base = 0;
    unsigned long long base_chain = 0;
    unsigned long long head = 0;
    unsigned long long store_id = 0;
    if (!PyTuple_Check(tuple) ||
        !PyArg_ParseTuple(tuple, "y#KKKK", &uuid, &uuid_bytes, &base, &base_chain, &head,
                          &store_id) ||
        uuid_bytes != 16 || head < base)
      throw nonsense("extent", ErrorKind::corrupt);
    Extent extent;
    std::memcpy(extent.uuid.data(), uuid, extent.uuid.size());
    extent.base = base;
    extent.base_chain = base_chain;
    extent.head = head;
    extent.store_id = store_id;
    return extent;
  }

  ModuleState& module_;
  const SharedObject adapter_;
  const std::string name_;
};

}  // namespace

std::unique_ptr<Log> make_python_log(ModuleState& module, PyObject* adapter) {
  const Ref name(PyObject_CallMethod(adapter, "name", nullptr));
  if (!name) return nullptr;
  const char* const utf8 = PyUnicode_AsUTF8(name.get());
  if (utf8 == nullptr) return nullptr;
  return std::make_unique<PythonLog>(module, adapter, utf8);
}

}  // namespace whycache::python
