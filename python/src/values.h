// Python objects as stored values, and back (docs/formats/value.md).
#pragma once

#include "python.h"

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace whycache::python {

// How a cache stores values. `typed` is the default: bytes as they are, everything else as a typed
// value.
enum class Codec : std::uint8_t { typed, bytes, utf8, json, pickle };

// What encoding and decoding need of Python: the classes of dates and so on, and the exceptions.
class Values;
struct ValuesDeleter {
  void operator()(Values* values) const;
};
using ValuesPointer = std::unique_ptr<Values, ValuesDeleter>;

// Returns null, with an exception set, if a module cannot be imported.
ValuesPointer make_values(PyObject* decode_error, PyObject* limit_error);

// Finds a codec by its name. Returns false, with a ValueError or TypeError set, if there is none.
bool find_codec(PyObject* name, Codec& codec);

// Whether stored bytes are a typed value.
inline bool is_typed(const char* stored, std::size_t bytes) {
  return bytes >= 2 && stored[0] == '\xc1' && stored[1] == '\x01';
}

// Replaces `stored` by what the value is stored as. Returns false, with an exception set: TypeError
// if the codec does not store values of this type, ValueError, or LimitError.
bool encode_value(const Values& values, Codec codec, PyObject* value, std::string& stored);

// Returns a new reference, or null with an exception set: DecodeError, which names the key, or
// MemoryError. The bytes must not change meanwhile.
PyObject* decode_value(const Values& values, Codec codec, std::string_view stored,
                       std::string_view key);

}  // namespace whycache::python
