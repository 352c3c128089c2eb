#include "values.h"

#include <datetime.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include <whycache/value.h>

namespace whycache::python {

// Modules are imported when the first value needs them. While a module is not imported, there are
// no objects of its types.
class Values {
 public:
  Values(PyObject* decode, PyObject* limit)
      : decode_error(Ref::borrow(decode)), limit_error(Ref::borrow(limit)) {}

  // The C interface of datetime. Returns null, with an exception set if it was to be imported.
  PyDateTime_CAPI* datetime(bool imports) const {
    if (datetime_ == nullptr && (imports || is_imported("datetime")))
      datetime_ = static_cast<PyDateTime_CAPI*>(PyCapsule_Import(PyDateTime_CAPSULE_NAME, 0));
    return datetime_;
  }
  PyObject* zone_info(bool imports) const {
    return find(zone_info_, "zoneinfo", "ZoneInfo", imports);
  }
  PyObject* decimal(bool imports) const { return find(decimal_, "decimal", "Decimal", imports); }
  PyObject* uuid(bool imports) const { return find(uuid_, "uuid", "UUID", imports); }
  PyObject* json_dumps() const { return find(json_dumps_, "json", "dumps", true); }
  PyObject* json_loads() const { return find(json_loads_, "json", "loads", true); }
  PyObject* pickle_dumps() const { return find(pickle_dumps_, "pickle", "dumps", true); }
  PyObject* pickle_loads() const { return find(pickle_loads_, "pickle", "loads", true); }

  // A context of decimal that raises for what is no decimal, whatever the thread's own one does.
  PyObject* decimal_context() const {
    if (decimal_context_) return decimal_context_.get();
    const Ref module(PyImport_ImportModule("decimal"));
    if (!module) return nullptr;
    const Ref signal(PyObject_GetAttrString(module.get(), "InvalidOperation"));
    const Ref context_class(PyObject_GetAttrString(module.get(), "Context"));
    if (!signal || !context_class) return nullptr;
    const Ref arguments(PyTuple_New(0));
    const Ref names(Py_BuildValue("{s[O]}", "traps", signal.get()));
    if (!arguments || !names) return nullptr;
    Ref context(PyObject_Call(context_class.get(), arguments.get(), names.get()));
    if (context) decimal_context_ = std::move(context);
    return decimal_context_.get();
  }

  const Ref decode_error;
  const Ref limit_error;

 private:
  static bool is_imported(const char* module) {
    PyObject* const modules = PyImport_GetModuleDict();
    return modules != nullptr && PyDict_GetItemString(modules, module) != nullptr;
  }

  static PyObject* find(Ref& member, const char* module, const char* name, bool imports) {
    if (member || (!imports && !is_imported(module))) return member.get();
    const Ref imported(PyImport_ImportModule(module));
    if (!imported) return nullptr;
    Ref found(PyObject_GetAttrString(imported.get(), name));
    if (found && !member) member = std::move(found);
    return member.get();
  }

  mutable PyDateTime_CAPI* datetime_ = nullptr;
  mutable Ref zone_info_;
  mutable Ref decimal_;
  mutable Ref decimal_context_;
  mutable Ref uuid_;
  mutable Ref json_dumps_;
  mutable Ref json_loads_;
  mutable Ref pickle_dumps_;
  mutable Ref pickle_loads_;
};

namespace {

Ref bytes_object(std::string_view bytes) {
  return Ref(PyBytes_FromStringAndSize(bytes.data(), static_cast<Py_ssize_t>(bytes.size())));
}

// A call of Python has failed and has set its exception.
struct PythonFailure {};

PyObject* checked(PyObject* object) {
  if (object == nullptr) throw PythonFailure();
  return object;
}

// --- Encoding ---

// Writes an object of Python. Only objects of exactly the known types are written: one of a
// subclass would be another object when it is read.
class Encoder {
 public:
  explicit Encoder(const Values& values) : values_(values) {}

  // Throws PythonFailure, Error or std::bad_alloc.
  std::string encode(PyObject* object) {
    write(object);
    return writer_.finish();
  }

 private:
  void write(PyObject* object) {
    if (object == Py_None) return writer_.null();
    if (object == Py_True || object == Py_False) return writer_.boolean(object == Py_True);
    if (PyLong_CheckExact(object)) return write_integer(object);
    if (PyFloat_CheckExact(object)) return writer_.floating(PyFloat_AS_DOUBLE(object));
    if (PyUnicode_CheckExact(object)) return write_text(object);
    if (PyBytes_CheckExact(object)) return writer_.bytes(bytes_in(object));
    if (PyList_CheckExact(object) || PyTuple_CheckExact(object) || PyDict_CheckExact(object) ||
        PySet_CheckExact(object) || PyFrozenSet_CheckExact(object))
      return write_container(object);
    write_other(object);
  }

  static std::string_view bytes_in(PyObject* bytes) {
    return {PyBytes_AS_STRING(bytes), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes))};
  }

  void write_integer(PyObject* object) {
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow == 0) return writer_.integer(number);
    // With the bit of the sign, in whole bytes.
    const Ref bits(checked(PyObject_CallMethod(object, "bit_length", nullptr)));
    const Py_ssize_t size = PyLong_AsSsize_t(bits.get()) / 8 + 1;
    const Ref to_bytes(checked(PyObject_GetAttrString(object, "to_bytes")));
    const Ref arguments(checked(Py_BuildValue("(ns)", size, "big")));
    const Ref names(checked(Py_BuildValue("{sO}", "signed", Py_True)));
    const Ref bytes(checked(PyObject_Call(to_bytes.get(), arguments.get(), names.get())));
    writer_.big_integer(bytes_in(bytes.get()));
  }

  void write_text(PyObject* object) {
    Py_ssize_t size = 0;
    if (const char* const text = PyUnicode_AsUTF8AndSize(object, &size))
      return writer_.text({text, static_cast<std::size_t>(size)});
    if (PyErr_ExceptionMatches(PyExc_UnicodeEncodeError) == 0) throw PythonFailure();
    PyErr_Clear();
    const Ref bytes(checked(PyUnicode_AsEncodedString(object, "utf-8", "surrogatepass")));
    writer_.surrogate_text(bytes_in(bytes.get()));
  }

  void write_container(PyObject* object) {
    if (containers_.size() == value_depth_max) refuse_depth(object);
    containers_.push_back(object);
    if (PyDict_CheckExact(object)) {
      write_dict(object);
    } else if (PyList_CheckExact(object)) {
      writer_.begin_list(static_cast<std::size_t>(PyList_GET_SIZE(object)));
      // Other threads may run meanwhile, and change the list: the writer refuses another count.
      for (Py_ssize_t i = 0; i < PyList_GET_SIZE(object); ++i)
        write(Ref::borrow(PyList_GET_ITEM(object, i)).get());
    } else if (PyTuple_CheckExact(object)) {
      writer_.begin_tuple(static_cast<std::size_t>(PyTuple_GET_SIZE(object)));
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); ++i) write(PyTuple_GET_ITEM(object, i));
    } else {
      write_set(object);
    }
    writer_.end();
    containers_.pop_back();
  }

  void write_dict(PyObject* object) {
    writer_.begin_dict(static_cast<std::size_t>(PyDict_GET_SIZE(object)));
    Py_ssize_t position = 0;
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    while (PyDict_Next(object, &position, &key, &value) != 0) {
      const Ref held_key = Ref::borrow(key);
      const Ref held_value = Ref::borrow(value);
      write(key);
      write(value);
    }
  }

  void write_set(PyObject* object) {
    const auto count = static_cast<std::size_t>(PySet_GET_SIZE(object));
    PySet_CheckExact(object) ? writer_.begin_set(count) : writer_.begin_frozenset(count);
    const Ref iterator(checked(PyObject_GetIter(object)));
    while (const Ref element{PyIter_Next(iterator.get())}) write(element.get());
    if (PyErr_Occurred() != nullptr) throw PythonFailure();
  }

  [[noreturn]] void refuse_depth(PyObject* object) {
    if (std::ranges::find(containers_, object) != containers_.end()) {
      PyErr_Format(PyExc_ValueError, "value contains itself: type=%.100s",
                   Py_TYPE(object)->tp_name);
    } else {
      PyErr_Format(PyExc_ValueError, "value is nested too deeply: depth_max=%zu", value_depth_max);
    }
    throw PythonFailure();
  }

  void write_other(PyObject* object) {
    if (PyDateTime_CAPI* const datetime = values_.datetime(false)) {
      if (Py_IS_TYPE(object, datetime->DateTimeType)) return write_datetime(*datetime, object);
      if (Py_IS_TYPE(object, datetime->DateType)) return writer_.date(date_of(object));
      if (Py_IS_TYPE(object, datetime->TimeType)) return write_time(*datetime, object);
      if (Py_IS_TYPE(object, datetime->DeltaType)) {
        return writer_.timedelta(
            {PyDateTime_DELTA_GET_DAYS(object),
             static_cast<std::uint32_t>(PyDateTime_DELTA_GET_SECONDS(object)),
             static_cast<std::uint32_t>(PyDateTime_DELTA_GET_MICROSECONDS(object))});
      }
    }
    const auto type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type == values_.decimal(false)) return write_decimal(object);
    if (type == values_.uuid(false)) return write_uuid(object);
    if (PyErr_Occurred() == nullptr) {
      PyErr_Format(PyExc_TypeError,
                   "a value of type %.200s cannot be stored: convert it to a type of "
                   "docs/formats/value.md, of which subclasses are no part",
                   Py_TYPE(object)->tp_name);
    }
    throw PythonFailure();
  }

  static ValueDate date_of(PyObject* object) {
    return {static_cast<std::uint16_t>(PyDateTime_GET_YEAR(object)),
            static_cast<std::uint8_t>(PyDateTime_GET_MONTH(object)),
            static_cast<std::uint8_t>(PyDateTime_GET_DAY(object))};
  }

  void write_datetime(PyDateTime_CAPI& datetime, PyObject* object) {
    ValueTime time;
    time.hour = static_cast<std::uint8_t>(PyDateTime_DATE_GET_HOUR(object));
    time.minute = static_cast<std::uint8_t>(PyDateTime_DATE_GET_MINUTE(object));
    time.second = static_cast<std::uint8_t>(PyDateTime_DATE_GET_SECOND(object));
    time.microsecond = static_cast<std::uint32_t>(PyDateTime_DATE_GET_MICROSECOND(object));
    time.fold = PyDateTime_DATE_GET_FOLD(object) != 0;
    Ref name;
    time.zone = zone_of(datetime, PyDateTime_DATE_GET_TZINFO(object), name);
    writer_.datetime(date_of(object), time);
  }

  void write_time(PyDateTime_CAPI& datetime, PyObject* object) {
    ValueTime time;
    time.hour = static_cast<std::uint8_t>(PyDateTime_TIME_GET_HOUR(object));
    time.minute = static_cast<std::uint8_t>(PyDateTime_TIME_GET_MINUTE(object));
    time.second = static_cast<std::uint8_t>(PyDateTime_TIME_GET_SECOND(object));
    time.microsecond = static_cast<std::uint32_t>(PyDateTime_TIME_GET_MICROSECOND(object));
    time.fold = PyDateTime_TIME_GET_FOLD(object) != 0;
    Ref name;
    time.zone = zone_of(datetime, PyDateTime_TIME_GET_TZINFO(object), name);
    writer_.time(time);
  }

  // `name` holds what the zone's name refers to.
  ValueZone zone_of(PyDateTime_CAPI& datetime, PyObject* zone, Ref& name) {
    if (zone == Py_None) return {};
    if (zone == datetime.TimeZone_UTC) return {ValueZone::Kind::offset, 0, {}};
    if (Py_IS_TYPE(zone, Py_TYPE(datetime.TimeZone_UTC))) return offset_of(zone, name);
    if (reinterpret_cast<PyObject*>(Py_TYPE(zone)) == values_.zone_info(false)) {
      name = Ref(checked(PyObject_GetAttrString(zone, "key")));
      if (name.get() != Py_None) return {ValueZone::Kind::named, 0, text_in(name.get())};
    }
    if (PyErr_Occurred() == nullptr) {
      PyErr_Format(PyExc_TypeError,
                   "a time zone of type %.200s cannot be stored: convert the time to a "
                   "datetime.timezone, or a zoneinfo.ZoneInfo that has a key",
                   Py_TYPE(zone)->tp_name);
    }
    throw PythonFailure();
  }

  static ValueZone offset_of(PyObject* zone, Ref& name) {
    const Ref arguments(checked(PyObject_CallMethod(zone, "__getinitargs__", nullptr)));
    PyObject* offset = nullptr;
    PyObject* text = nullptr;
    if (PyArg_ParseTuple(arguments.get(), "O|U", &offset, &text) == 0) throw PythonFailure();
    ValueZone result{ValueZone::Kind::offset, 0, {}};
    result.offset_microseconds = (std::int64_t{PyDateTime_DELTA_GET_DAYS(offset)} * 86'400 +
                                  PyDateTime_DELTA_GET_SECONDS(offset)) *
                                     1'000'000 +
                                 PyDateTime_DELTA_GET_MICROSECONDS(offset);
    if (text != nullptr) {
      name = Ref::borrow(text);
      result.name = text_in(text);
      if (result.name.empty()) {
        PyErr_SetString(PyExc_ValueError, "a time zone whose name is empty cannot be stored");
        throw PythonFailure();
      }
    }
    return result;
  }

  static std::string_view text_in(PyObject* text) {
    Py_ssize_t size = 0;
    const char* const utf8 = PyUnicode_AsUTF8AndSize(text, &size);
    if (utf8 == nullptr) throw PythonFailure();
    return {utf8, static_cast<std::size_t>(size)};
  }

  void write_decimal(PyObject* object) {
    const Ref text(checked(PyObject_Str(object)));
    std::string digits(text_in(text.get()));
    // The thread's context may ask for a small e.
    std::ranges::replace(digits, 'e', 'E');
    writer_.decimal(digits);
  }

  void write_uuid(PyObject* object) {
    const Ref bytes(checked(PyObject_GetAttrString(object, "bytes")));
    Uuid uuid{};
    if (!PyBytes_CheckExact(bytes.get()) || bytes_in(bytes.get()).size() != uuid.size()) {
      PyErr_SetString(PyExc_ValueError, "a UUID has other than 16 bytes");
      throw PythonFailure();
    }
    std::ranges::copy(bytes_in(bytes.get()), uuid.begin());
    writer_.uuid(uuid);
  }

  const Values& values_;
  ValueWriter writer_;
  std::vector<PyObject*> containers_;  // that are being written, from the outermost
};

// --- Decoding ---

class Decoder {
 public:
  Decoder(const Values& values, std::string_view value) : values_(values), reader_(value) {}

  // Throws PythonFailure, or Error.
  PyObject* decode() { return read(); }

 private:
  PyObject* read() {
    const ValueToken& token = reader_.next();
    switch (token.kind) {
      case ValueKind::text: return text(token);
      case ValueKind::integer: return checked(PyLong_FromLongLong(token.integer));
      case ValueKind::null: return Py_NewRef(Py_None);
      case ValueKind::boolean: return Py_NewRef(token.boolean ? Py_True : Py_False);
      case ValueKind::floating: return checked(PyFloat_FromDouble(token.floating));
      case ValueKind::unsigned_integer:
        return checked(PyLong_FromUnsignedLongLong(token.unsigned_integer));
      case ValueKind::bytes: return checked(bytes_object(token.bytes).release());
      case ValueKind::list: return read_list(static_cast<Py_ssize_t>(token.count));
      case ValueKind::tuple: return read_tuple(static_cast<Py_ssize_t>(token.count));
      case ValueKind::dict: return read_dict(static_cast<Py_ssize_t>(token.count));
      case ValueKind::set:
      case ValueKind::frozenset: return read_set(token.kind, static_cast<Py_ssize_t>(token.count));
      case ValueKind::big_integer: return integer(token);
      case ValueKind::surrogate_text:
        return checked(PyUnicode_DecodeUTF8(
            token.bytes.data(), static_cast<Py_ssize_t>(token.bytes.size()), "surrogatepass"));
      case ValueKind::decimal: return decimal(token);
      case ValueKind::uuid: return uuid(token);
      default: return time(token);
    }
  }

  static PyObject* text(const ValueToken& token) {
    const auto size = static_cast<Py_ssize_t>(token.bytes.size());
    if (!token.is_ascii) return checked(PyUnicode_DecodeUTF8(token.bytes.data(), size, nullptr));
    PyObject* const text = checked(PyUnicode_New(size, 127));
    if (size > 0) token.bytes.copy(static_cast<char*>(PyUnicode_DATA(text)), token.bytes.size());
    return text;
  }

  PyObject* read_list(Py_ssize_t count) {
    Ref list(checked(PyList_New(count)));
    for (Py_ssize_t i = 0; i < count; ++i) PyList_SET_ITEM(list.get(), i, read());
    reader_.next();
    return list.release();
  }

  PyObject* read_tuple(Py_ssize_t count) {
    Ref tuple(checked(PyTuple_New(count)));
    for (Py_ssize_t i = 0; i < count; ++i) PyTuple_SET_ITEM(tuple.get(), i, read());
    reader_.next();
    return tuple.release();
  }

  PyObject* read_dict(Py_ssize_t count) {
    Ref dict(checked(PyDict_New()));
    for (Py_ssize_t i = 0; i < count; ++i) {
      const Ref key(read());
      const Ref value(read());
      if (PyDict_SetItem(dict.get(), key.get(), value.get()) < 0) throw PythonFailure();
    }
    if (PyDict_GET_SIZE(dict.get()) != count)
      throw Error(ErrorKind::corrupt, "typed value has equal keys");
    reader_.next();
    return dict.release();
  }

  PyObject* read_set(ValueKind kind, Py_ssize_t count) {
    Ref set(checked(kind == ValueKind::set ? PySet_New(nullptr) : PyFrozenSet_New(nullptr)));
    for (Py_ssize_t i = 0; i < count; ++i) {
      const Ref element(read());
      if (PySet_Add(set.get(), element.get()) < 0) throw PythonFailure();
    }
    if (PySet_GET_SIZE(set.get()) != count)
      throw Error(ErrorKind::corrupt, "typed value has equal elements in a set");
    reader_.next();
    return set.release();
  }

  static PyObject* integer(const ValueToken& token) {
    const auto type = reinterpret_cast<PyObject*>(&PyLong_Type);
    const Ref from_bytes(checked(PyObject_GetAttrString(type, "from_bytes")));
    const Ref bytes = bytes_object(token.bytes);
    checked(bytes.get());
    const Ref arguments(checked(Py_BuildValue("(Os)", bytes.get(), "big")));
    const Ref names(checked(Py_BuildValue("{sO}", "signed", Py_True)));
    return checked(PyObject_Call(from_bytes.get(), arguments.get(), names.get()));
  }

  PyObject* decimal(const ValueToken& token) const {
    PyObject* const type = checked(values_.decimal(true));
    PyObject* const context = checked(values_.decimal_context());
    const Ref digits(checked(PyUnicode_DecodeASCII(
        token.bytes.data(), static_cast<Py_ssize_t>(token.bytes.size()), nullptr)));
    return checked(PyObject_CallFunctionObjArgs(type, digits.get(), context, nullptr));
  }

  PyObject* uuid(const ValueToken& token) const {
    PyObject* const type = checked(values_.uuid(true));
    const Ref arguments(checked(PyTuple_New(0)));
    const Ref names(checked(Py_BuildValue("{sy#}", "bytes", token.bytes.data(),
                                          static_cast<Py_ssize_t>(token.bytes.size()))));
    return checked(PyObject_Call(type, arguments.get(), names.get()));
  }

  PyObject* time(const ValueToken& token) const {
    PyDateTime_CAPI* const datetime = values_.datetime(true);
    if (datetime == nullptr) throw PythonFailure();
    const ValueDate& date = token.date;
    const ValueTime& time = token.time;
    if (token.kind == ValueKind::date)
      return checked(datetime->Date_FromDate(date.year, date.month, date.day, datetime->DateType));
    if (token.kind == ValueKind::timedelta) {
      return checked(datetime->Delta_FromDelta(
          token.timedelta.days, static_cast<int>(token.timedelta.seconds),
          static_cast<int>(token.timedelta.microseconds), 1, datetime->DeltaType));
    }
    const Ref zone = zone_object(*datetime, time.zone);
    const auto microsecond = static_cast<int>(time.microsecond);
    const int fold = time.fold ? 1 : 0;
    if (token.kind == ValueKind::time) {
      return checked(datetime->Time_FromTimeAndFold(
          time.hour, time.minute, time.second, microsecond, zone.get(), fold, datetime->TimeType));
    }
    return checked(datetime->DateTime_FromDateAndTimeAndFold(
        date.year, date.month, date.day, time.hour, time.minute, time.second, microsecond,
        zone.get(), fold, datetime->DateTimeType));
  }

  Ref zone_object(PyDateTime_CAPI& datetime, const ValueZone& zone) const {
    if (zone.kind == ValueZone::Kind::none) return Ref::borrow(Py_None);
    const Ref name(checked(PyUnicode_DecodeUTF8(
        zone.name.data(), static_cast<Py_ssize_t>(zone.name.size()), nullptr)));
    if (zone.kind == ValueZone::Kind::named)
      return Ref(checked(PyObject_CallOneArg(checked(values_.zone_info(true)), name.get())));
    constexpr std::int64_t second = 1'000'000;
    const std::int64_t microseconds = (zone.offset_microseconds % second + second) % second;
    const std::int64_t seconds = (zone.offset_microseconds - microseconds) / second;
    const Ref offset(checked(datetime.Delta_FromDelta(
        0, static_cast<int>(seconds), static_cast<int>(microseconds), 1, datetime.DeltaType)));
    return Ref(checked(
        datetime.TimeZone_FromTimeZone(offset.get(), zone.name.empty() ? nullptr : name.get())));
  }

  const Values& values_;
  ValueReader reader_;
};

std::uint64_t word_at(const char* bytes) {
  std::uint64_t word = 0;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

// A word at a time; the last one overlaps the one before it.
bool is_ascii(std::string_view text) {
  constexpr std::size_t word_bytes = sizeof(std::uint64_t);
  std::uint64_t bits = 0;
  if (text.size() >= word_bytes) {
    const char* const last = text.data() + text.size() - word_bytes;
    for (const char* at = text.data(); at < last; at += word_bytes) bits |= word_at(at);
    bits |= word_at(last);
  } else {
    for (const char byte : text) bits |= static_cast<unsigned char>(byte);
  }
  return (bits & 0x8080808080808080) == 0;
}

// A word at a time: the read has just stored these bytes, 16 or 32 at once. A load that needs two
// of these stores waits until both have reached the cache; of short loads, fewer do.
void copy_words(char* to, std::string_view text) {
  constexpr std::size_t word_bytes = sizeof(std::uint64_t);
  if (text.size() < word_bytes) {
    for (const char byte : text) *to++ = byte;
    return;
  }
  const std::size_t last = text.size() - word_bytes;
  for (std::size_t at = 0; at < last; at += word_bytes) {
    const std::uint64_t word = word_at(text.data() + at);
    std::memcpy(to + at, &word, sizeof word);
  }
  const std::uint64_t word = word_at(text.data() + last);
  std::memcpy(to + last, &word, sizeof word);
}

// Returns a short text of ASCII, which is by far the most frequent typed value; null without an
// exception if `stored` is none, or there is no memory.
PyObject* decode_short_text(std::string_view stored) {
  if (stored.size() < 3 || !is_typed(stored.data(), stored.size())) return nullptr;
  const auto code = static_cast<std::uint8_t>(stored[2]);
  const bool is_short = (code & 0xe0) == 0xa0;
  if (!is_short && (code != 0xd9 || stored.size() < 4)) return nullptr;
  const std::size_t size = is_short ? code & 0x1f : static_cast<std::uint8_t>(stored[3]);
  const std::string_view text = stored.substr(is_short ? 3 : 4);
  if (text.size() != size || !is_ascii(text)) return nullptr;
  PyObject* const object = PyUnicode_New(static_cast<Py_ssize_t>(size), 127);
  if (object == nullptr) {
    PyErr_Clear();
  } else if (size > 0) {
    copy_words(static_cast<char*>(PyUnicode_DATA(object)), text);
  }
  return object;
}

// --- Codecs that Python implements ---

Ref utf8_of(PyObject* text) { return Ref(PyUnicode_AsUTF8String(text)); }

Ref call_codec(PyObject* function, PyObject* argument, PyObject* names) {
  if (function == nullptr) return {};
  const Ref arguments(PyTuple_Pack(1, argument));
  if (!arguments) return {};
  return Ref(PyObject_Call(function, arguments.get(), names));
}

Ref encode_by_python(const Values& values, Codec codec, PyObject* value) {
  if (codec == Codec::bytes && PyBytes_CheckExact(value)) return Ref::borrow(value);
  if (codec == Codec::utf8 && PyUnicode_CheckExact(value)) return utf8_of(value);
  if (codec == Codec::json) {
    const Ref names(Py_BuildValue("{sOsOs(ss)}", "ensure_ascii", Py_False, "allow_nan", Py_False,
                                  "separators", ",", ":"));
    if (!names) return {};
    const Ref text = call_codec(values.json_dumps(), value, names.get());
    return text ? utf8_of(text.get()) : Ref();
  }
  if (codec == Codec::pickle) {
    Ref bytes = call_codec(values.pickle_dumps(), value, nullptr);
    if (!bytes || PyBytes_CheckExact(bytes.get())) return bytes;
  }
  PyErr_Format(PyExc_TypeError, "codec %s stores %s, not %.200s",
               codec == Codec::bytes ? "bytes" : "utf8", codec == Codec::bytes ? "bytes" : "str",
               Py_TYPE(value)->tp_name);
  return {};
}

PyObject* decode_by_python(const Values& values, Codec codec, std::string_view stored) {
  const auto size = static_cast<Py_ssize_t>(stored.size());
  if (codec == Codec::pickle) {
    const Ref bytes = bytes_object(stored);
    return bytes ? call_codec(values.pickle_loads(), bytes.get(), nullptr).release() : nullptr;
  }
  Ref text(PyUnicode_DecodeUTF8(stored.data(), size, nullptr));
  if (!text || codec == Codec::utf8) return text.release();
  return call_codec(values.json_loads(), text.get(), nullptr).release();
}

// `key` is empty if the bytes were not read from a cache.
void set_decode_error(const Values& values, std::string_view key, PyObject* reason) {
  if (key.empty()) {
    PyErr_Format(values.decode_error.get(), "value cannot be decoded: reason=%S", reason);
  } else if (const Ref name = bytes_object(key)) {
    PyErr_Format(values.decode_error.get(), "value cannot be decoded: key=%R reason=%S", name.get(),
                 reason);
  }
}

// Replaces the current exception by a DecodeError that has it as its cause. Exceptions that do not
// come from the value remain.
void raise_decode_error(const Values& values, std::string_view key) {
  if (PyErr_ExceptionMatches(PyExc_Exception) == 0 ||
      PyErr_ExceptionMatches(PyExc_MemoryError) != 0)
    return;
  PyObject* type = nullptr;
  PyObject* error = nullptr;
  PyObject* trace = nullptr;
  PyErr_Fetch(&type, &error, &trace);
  PyErr_NormalizeException(&type, &error, &trace);
  if (trace != nullptr && error != nullptr) PyException_SetTraceback(error, trace);
  const Ref held_type(type);
  Ref cause(error);
  const Ref held_trace(trace);
  if (!cause) return;
  set_decode_error(values, key, cause.get());
  PyErr_Fetch(&type, &error, &trace);
  PyErr_NormalizeException(&type, &error, &trace);
  if (error != nullptr &&
      PyObject_TypeCheck(error, reinterpret_cast<PyTypeObject*>(PyExc_BaseException)) != 0)
    PyException_SetCause(error, cause.release());
  PyErr_Restore(type, error, trace);
}

[[gnu::noinline]] PyObject* decode_any_value(const Values& values, Codec codec,
                                             std::string_view stored, std::string_view key) {
  PyObject* value = nullptr;
  try {
    if (codec == Codec::bytes) return bytes_object(stored).release();
    value = codec == Codec::typed ? Decoder(values, stored).decode()
                                  : decode_by_python(values, codec, stored);
  } catch (const PythonFailure&) {
  } catch (const Error& error) {
    const Ref reason(PyUnicode_FromString(error.what()));
    if (reason) set_decode_error(values, key, reason.get());
    return nullptr;
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  if (value == nullptr) raise_decode_error(values, key);
  return value;
}

struct CodecName {
  const char* name;
  Codec codec;
};
constexpr CodecName codec_names[] = {{"typed", Codec::typed},
                                     {"bytes", Codec::bytes},
                                     {"utf8", Codec::utf8},
                                     {"json", Codec::json},
                                     {"pickle", Codec::pickle}};

}  // namespace

void ValuesDeleter::operator()(Values* values) const { delete values; }

ValuesPointer make_values(PyObject* decode_error, PyObject* limit_error) {
  return ValuesPointer(new Values(decode_error, limit_error));
}

bool find_codec(PyObject* name, Codec& codec) {
  if (!PyUnicode_Check(name)) {
    PyErr_Format(PyExc_TypeError, "codec must be a str, not %.100s", Py_TYPE(name)->tp_name);
    return false;
  }
  for (const CodecName& known : codec_names) {
    if (PyUnicode_CompareWithASCIIString(name, known.name) != 0) continue;
    codec = known.codec;
    return true;
  }
  PyErr_Format(PyExc_ValueError, "unknown codec: %R (typed, bytes, utf8, json, pickle)", name);
  return false;
}

bool encode_value(const Values& values, Codec codec, PyObject* value, std::string& stored) {
  try {
    if (codec != Codec::typed) {
      const Ref bytes = encode_by_python(values, codec, value);
      if (!bytes) return false;
      stored.assign(PyBytes_AS_STRING(bytes.get()),
                    static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.get())));
    } else if (PyBytes_CheckExact(value) &&
               !is_typed(PyBytes_AS_STRING(value),
                         static_cast<std::size_t>(PyBytes_GET_SIZE(value)))) {
      stored.assign(PyBytes_AS_STRING(value), static_cast<std::size_t>(PyBytes_GET_SIZE(value)));
    } else {
      stored = Encoder(values).encode(value);
    }
    return true;
  } catch (const PythonFailure&) {
  } catch (const Error& error) {
    PyErr_SetString(error.kind() == ErrorKind::limit ? values.limit_error.get() : PyExc_ValueError,
                    error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return false;
}

PyObject* decode_value(const Values& values, Codec codec, std::string_view stored,
                       std::string_view key) {
  PyObject* const text = codec == Codec::typed ? decode_short_text(stored) : nullptr;
  return text != nullptr ? text : decode_any_value(values, codec, stored, key);
}

}  // namespace whycache::python
