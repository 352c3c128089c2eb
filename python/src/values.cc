#include "values.h"

namespace whycache::python {

class Values {
 public:
  explicit Values(PyObject* error) : decode_error(Ref::borrow(error)) {}
  const Ref decode_error;
};

void ValuesDeleter::operator()(Values* values) const { delete values; }

ValuesPointer make_values(PyObject* decode_error, PyObject* /*limit_error*/) {
  return ValuesPointer(new Values(decode_error));
}

bool find_codec(PyObject* name, Codec& codec) {
  if (!PyUnicode_Check(name)) {
    PyErr_Format(PyExc_TypeError, "codec must be a str, not %.100s", Py_TYPE(name)->tp_name);
    return false;
  }
  if (PyUnicode_CompareWithASCIIString(name, "typed") == 0) {
    codec = Codec::typed;
  } else if (PyUnicode_CompareWithASCIIString(name, "bytes") == 0) {
    codec = Codec::bytes;
  } else {
    PyErr_Format(PyExc_ValueError, "unknown codec: %R (typed, bytes)", name);
    return false;
  }
  return true;
}

bool encode_value(const Values& /*values*/, Codec /*codec*/, PyObject* value,
                  std::string& /*stored*/) {
  PyErr_Format(PyExc_TypeError, "value must be bytes, not %.100s", Py_TYPE(value)->tp_name);
  return false;
}

PyObject* decode_value(const Values& values, Codec /*codec*/, std::string_view /*stored*/,
                       std::string_view key) {
  const Ref name(PyBytes_FromStringAndSize(key.data(), static_cast<Py_ssize_t>(key.size())));
  if (name)
    PyErr_Format(values.decode_error.get(),
                 "value is typed, and this build reads plain bytes "
                 "only: key=%R",
                 name.get());
  return nullptr;
}

}  // namespace whycache::python
