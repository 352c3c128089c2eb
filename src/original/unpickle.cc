#include "original/unpickle.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include <whycache/value.h>

#include "base/bytes.h"

namespace whycache {
namespace {

// An object that the pickle has made.
struct PickledObject {
  enum class Kind : std::uint8_t {
    null,
    boolean,
    integer,
    floating,
    text,
    bytes,
    list,
    tuple,
    dict,  // its elements are keys and values in turn
    set,
    frozenset,
    date,
    time,
    datetime,
    timedelta,
    decimal,
    uuid,
    zone,
    global,  // a class or function, by its name
  };

  Kind kind = Kind::null;
  bool boolean = false;
  double floating = 0;
  // Of an integer: two's complement, most significant byte first. Of a text: UTF-8, in which
  // surrogates are encoded.
  std::string bytes;
  std::vector<PickledObject*> elements;
  ValueDate date;
  ValueTime time;
  ValueTimedelta timedelta;
  // Of a zone, and a time that has one.
  ValueZone::Kind zone = ValueZone::Kind::none;
  std::int64_t offset_microseconds = 0;
  std::string zone_name;
};

using Kind = PickledObject::Kind;

// Runs the instructions of a pickle, each of which takes objects from a stack and puts others
// there.
class PickleMachine {
 public:
  explicit PickleMachine(std::string_view pickle) : reader_(pickle, "pickle") {}

  const PickledObject& run() {
    while (true) {
      const std::uint8_t code = reader_.take_byte();
      if (code == '.') break;
      step(static_cast<char>(code));
    }
    if (stack_.size() != 1 || !marks_.empty()) corrupt("leaves other than one object");
    return *stack_.back();
  }

 private:
  [[noreturn]] void corrupt(std::string_view why) const {
    reader_.throw_corrupt(why, "stack", stack_.size());
  }
  [[noreturn]] static void refuse(const std::string& what) {
    throw Error(ErrorKind::invalid, "pickle has a value that is not plain: " + what.substr(0, 200));
  }

  // --- The stack ---

  PickledObject& make(Kind kind) {
    PickledObject& object = objects_.emplace_back();
    object.kind = kind;
    return object;
  }
  PickledObject& push(Kind kind) {
    PickledObject& object = make(kind);
    stack_.push_back(&object);
    return object;
  }
  std::size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  PickledObject* pop() {
    if (stack_.size() <= floor()) corrupt("takes more than there is");
    PickledObject* const object = stack_.back();
    stack_.pop_back();
    return object;
  }
  PickledObject& top() {
    if (stack_.size() <= floor()) corrupt("takes more than there is");
    return *stack_.back();
  }
  std::vector<PickledObject*> pop_to_mark() {
    if (marks_.empty()) corrupt("has no mark");
    const std::size_t begin = marks_.back();
    marks_.pop_back();
    std::vector<PickledObject*> objects(stack_.begin() + static_cast<std::ptrdiff_t>(begin),
                                        stack_.end());
    stack_.resize(begin);
    return objects;
  }

  // --- Instructions ---

  void step(char code) {
    if (step_scalar(code) || step_container(code) || step_memo(code)) return;
    switch (code) {
      case '\x80':
        if (const std::uint8_t protocol = reader_.take_byte(); protocol < 3 || protocol > 5)
          refuse("protocol " + std::to_string(protocol));
        return;
      case '\x95':  // the size of a frame
        reader_.take_bytes(8);
        return;
      case 'c': {
        const std::string module = take_line();
        push(Kind::global).bytes = module + '.' + take_line();
        return;
      }
      case '\x93': {
        const PickledObject* const name = pop();
        const PickledObject* const module = pop();
        if (name->kind != Kind::text || module->kind != Kind::text) corrupt("has no name");
        push(Kind::global).bytes = module->bytes + '.' + name->bytes;
        return;
      }
      case 'R':
      case '\x81': {
        const PickledObject* const arguments = pop();
        const PickledObject* const function = pop();
        if (function->kind != Kind::global || arguments->kind != Kind::tuple)
          corrupt("calls what is no function");
        return call(function->bytes, arguments->elements);
      }
      case 'b': {
        const PickledObject* const state = pop();
        return set_state(top(), *state);
      }
      default:
        refuse("instruction " + std::to_string(static_cast<unsigned char>(code)) + " at offset " +
               std::to_string(reader_.offset() - 1));
    }
  }

  bool step_scalar(char code) {
    switch (code) {
      case 'N': push(Kind::null); return true;
      case '\x88':
      case '\x89': push(Kind::boolean).boolean = code == '\x88'; return true;
      case 'J': push_integer(reader_.take_bytes(4)); return true;
      case 'K': push_unsigned(reader_.take_bytes(1)); return true;
      case 'M': push_unsigned(reader_.take_bytes(2)); return true;
      case '\x8a': push_integer(reader_.take_bytes(reader_.take_byte())); return true;
      case '\x8b': push_integer(take_sized(4)); return true;
      case 'G': {
        const auto bits = reader_.take_little_endian<std::uint64_t>();
        push(Kind::floating).floating = std::bit_cast<double>(__builtin_bswap64(bits));
        return true;
      }
      case '\x8c': push(Kind::text).bytes = take_sized(1); return true;
      case 'X': push(Kind::text).bytes = take_sized(4); return true;
      case '\x8d': push(Kind::text).bytes = take_sized(8); return true;
      case 'C': push(Kind::bytes).bytes = take_sized(1); return true;
      case 'B': push(Kind::bytes).bytes = take_sized(4); return true;
      case '\x8e': push(Kind::bytes).bytes = take_sized(8); return true;
      default: return false;
    }
  }

  bool step_container(char code) {
    switch (code) {
      case '(': marks_.push_back(stack_.size()); return true;
      case '0': pop(); return true;
      case '1': pop_to_mark(); return true;
      case '2': stack_.push_back(&top()); return true;
      case ']': push(Kind::list); return true;
      case ')': push(Kind::tuple); return true;
      case '}': push(Kind::dict); return true;
      case '\x8f': push(Kind::set); return true;
      case 'l':
      case 't':
      case 'd':
      case '\x91': {
        std::vector<PickledObject*> elements = pop_to_mark();
        const Kind kind = code == 'l'   ? Kind::list
                          : code == 't' ? Kind::tuple
                          : code == 'd' ? Kind::dict
                                        : Kind::frozenset;
        if (kind == Kind::dict && elements.size() % 2 != 0) corrupt("has half a pair");
        push(kind).elements = std::move(elements);
        return true;
      }
      case '\x85':
      case '\x86':
      case '\x87': {
        std::vector<PickledObject*> elements(static_cast<unsigned char>(code) - 0x84U);
        for (std::size_t i = elements.size(); i-- > 0;) elements[i] = pop();
        push(Kind::tuple).elements = std::move(elements);
        return true;
      }
      case 'a': {
        PickledObject* const element = pop();
        add(Kind::list, {element});
        return true;
      }
      case 's': {
        PickledObject* const value = pop();
        PickledObject* const key = pop();
        add(Kind::dict, {key, value});
        return true;
      }
      case 'e': add(Kind::list, pop_to_mark()); return true;
      case 'u': add(Kind::dict, pop_to_mark()); return true;
      case '\x90': add(Kind::set, pop_to_mark()); return true;
      default: return false;
    }
  }

  // Adds elements to the container on top of the stack.
  void add(Kind kind, const std::vector<PickledObject*>& elements) {
    PickledObject& container = top();
    if (container.kind != kind || (kind == Kind::dict && elements.size() % 2 != 0))
      corrupt("adds to another container");
    container.elements.insert(container.elements.end(), elements.begin(), elements.end());
  }

  bool step_memo(char code) {
    switch (code) {
      case '\x94': {
        const auto number = static_cast<std::uint32_t>(memo_.size());
        memo_[number] = &top();
        return true;
      }
      case 'q': memo_[reader_.take_byte()] = &top(); return true;
      case 'r': memo_[reader_.take_little_endian<std::uint32_t>()] = &top(); return true;
      case 'h': push_from_memo(reader_.take_byte()); return true;
      case 'j': push_from_memo(reader_.take_little_endian<std::uint32_t>()); return true;
      default: return false;
    }
  }

  void push_from_memo(std::uint32_t number) {
    const auto found = memo_.find(number);
    if (found == memo_.end()) corrupt("refers to an object that it lacks");
    stack_.push_back(found->second);
  }

  std::string_view take_sized(std::size_t bytes_of_size) {
    std::uint64_t size = 0;
    const std::string_view bytes = reader_.take_bytes(bytes_of_size);
    for (std::size_t i = 0; i < bytes.size(); ++i)
      size |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
    return reader_.take_bytes(size);
  }

  std::string take_line() {
    std::string line;
    while (line.size() < 256) {
      const auto byte = static_cast<char>(reader_.take_byte());
      if (byte == '\n') return line;
      line += byte;
    }
    corrupt("has a line that is too long");
  }

  // Takes two's complement, or an unsigned number, least significant byte first.
  void push_integer(std::string_view bytes) {
    std::string integer(bytes.rbegin(), bytes.rend());
    if (integer.empty()) integer = '\0';
    push(Kind::integer).bytes = std::move(integer);
  }
  void push_unsigned(std::string_view bytes) {
    std::string integer(1, '\0');
    integer.append(bytes.rbegin(), bytes.rend());
    push(Kind::integer).bytes = std::move(integer);
  }

  // --- Classes ---

  void call(const std::string& name, const std::vector<PickledObject*>& arguments) {
    const std::size_t count = arguments.size();
    const auto has_kinds = [&](auto... kinds) {
      const Kind wanted[] = {kinds...};
      if (count < sizeof...(kinds)) return false;
      for (std::size_t i = 0; i < sizeof...(kinds); ++i) {
        if (arguments[i]->kind != wanted[i]) return false;
      }
      return true;
    };
    if ((name == "builtins.set" || name == "builtins.frozenset") && count == 1 &&
        has_kinds(Kind::list)) {
      push(name == "builtins.set" ? Kind::set : Kind::frozenset).elements = arguments[0]->elements;
    } else if (name == "decimal.Decimal" && count == 1 && has_kinds(Kind::text)) {
      push(Kind::decimal).bytes = arguments[0]->bytes;
    } else if (name == "uuid.UUID" && count == 0) {
      push(Kind::uuid);
    } else if (name == "datetime.date" && count == 1 && has_kinds(Kind::bytes)) {
      push(Kind::date).date = date_of(arguments[0]->bytes, 4);
    } else if (name == "datetime.datetime" && count <= 2 && has_kinds(Kind::bytes)) {
      push_datetime(arguments);
    } else if (name == "datetime.time" && count <= 2 && has_kinds(Kind::bytes)) {
      push_time(arguments);
    } else if (name == "datetime.timedelta" && count == 3 &&
               has_kinds(Kind::integer, Kind::integer, Kind::integer)) {
      push(Kind::timedelta).timedelta = timedelta_of(arguments);
    } else if (name == "datetime.timezone" && count <= 2 && has_kinds(Kind::timedelta)) {
      push_offset(arguments);
    } else if (name == "builtins.getattr" && count == 2 && has_kinds(Kind::global, Kind::text) &&
               arguments[0]->bytes == "zoneinfo.ZoneInfo" && arguments[1]->bytes == "_unpickle") {
      push(Kind::global).bytes = "zoneinfo.ZoneInfo._unpickle";
    } else if (name == "zoneinfo.ZoneInfo._unpickle" && has_kinds(Kind::text)) {
      PickledObject& zone = push(Kind::zone);
      zone.zone = ValueZone::Kind::named;
      zone.zone_name = arguments[0]->bytes;
    } else {
      refuse(name);
    }
  }

  static std::int64_t number_of(const PickledObject& integer) {
    if (integer.kind != Kind::integer || integer.bytes.size() > 8) refuse("a number out of range");
    const bool is_negative = (static_cast<unsigned char>(integer.bytes[0]) & 0x80) != 0;
    std::uint64_t number = is_negative ? ~std::uint64_t{0} : 0;
    for (const char byte : integer.bytes) number = number << 8 | static_cast<unsigned char>(byte);
    return static_cast<std::int64_t>(number);
  }

  static ValueDate date_of(const std::string& bytes, std::size_t size) {
    if (bytes.size() != size) refuse("a date of another size");
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(bytes[i]); };
    return {static_cast<std::uint16_t>(byte(0) << 8 | byte(1)), byte(2), byte(3)};
  }

  // The high bit of `first` is the fold, where time begins with it.
  static ValueTime time_of(std::string_view bytes) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(bytes[i]); };
    ValueTime time;
    time.hour = byte(0);
    time.minute = byte(1);
    time.second = byte(2);
    time.microsecond = std::uint32_t{byte(3)} << 16 | std::uint32_t{byte(4)} << 8 | byte(5);
    return time;
  }

  void push_datetime(const std::vector<PickledObject*>& arguments) {
    const std::string& bytes = arguments[0]->bytes;
    constexpr std::size_t datetime_bytes = 10;
    ValueDate date = date_of(bytes, datetime_bytes);
    PickledObject& object = push(Kind::datetime);
    object.time = time_of(std::string_view(bytes).substr(4));
    object.time.fold = (date.month & 0x80) != 0;
    date.month &= 0x7f;
    object.date = date;
    if (arguments.size() == 2) set_zone(object, *arguments[1]);
  }

  void push_time(const std::vector<PickledObject*>& arguments) {
    constexpr std::size_t time_of_day_bytes = 6;
    if (arguments[0]->bytes.size() != time_of_day_bytes) refuse("a time of another size");
    PickledObject& object = push(Kind::time);
    object.time = time_of(arguments[0]->bytes);
    object.time.fold = (object.time.hour & 0x80) != 0;
    object.time.hour &= 0x7f;
    if (arguments.size() == 2) set_zone(object, *arguments[1]);
  }

  static void set_zone(PickledObject& object, const PickledObject& zone) {
    if (zone.kind == Kind::null) return;
    if (zone.kind != Kind::zone) refuse("a time zone of another class");
    object.zone = zone.zone;
    object.offset_microseconds = zone.offset_microseconds;
    object.zone_name = zone.zone_name;
  }

  static ValueTimedelta timedelta_of(const std::vector<PickledObject*>& arguments) {
    const std::int64_t days = number_of(*arguments[0]);
    const std::int64_t seconds = number_of(*arguments[1]);
    const std::int64_t microseconds = number_of(*arguments[2]);
    if (days < -999'999'999 || days > 999'999'999 || seconds < 0 || seconds >= 86'400 ||
        microseconds < 0 || microseconds >= 1'000'000)
      refuse("a timedelta out of range");
    return {static_cast<std::int32_t>(days), static_cast<std::uint32_t>(seconds),
            static_cast<std::uint32_t>(microseconds)};
  }

  void push_offset(const std::vector<PickledObject*>& arguments) {
    const ValueTimedelta& offset = arguments[0]->timedelta;
    if (arguments.size() == 2 && arguments[1]->kind != Kind::text) corrupt("has no name of a zone");
    PickledObject& zone = push(Kind::zone);
    zone.zone = ValueZone::Kind::offset;
    if (arguments.size() == 2) zone.zone_name = arguments[1]->bytes;
    if (offset.days < -1 || offset.days > 0) refuse("an offset out of range");
    zone.offset_microseconds =
        (std::int64_t{offset.days} * 86'400 + offset.seconds) * 1'000'000 + offset.microseconds;
  }

  // A UUID is made without arguments, and gets its number by a dict.
  void set_state(PickledObject& object, const PickledObject& state) {
    if (object.kind != Kind::uuid || state.kind != Kind::dict) refuse("an object with a state");
    for (std::size_t i = 0; i + 1 < state.elements.size(); i += 2) {
      const PickledObject& name = *state.elements[i];
      const PickledObject& value = *state.elements[i + 1];
      if (name.kind != Kind::text || name.bytes != "int") continue;
      if (value.kind != Kind::integer) refuse("a UUID without a number");
      std::string bytes = value.bytes;
      // Without the byte of the sign, and in full.
      if (bytes.size() > sizeof(Uuid) && bytes[0] == '\0') bytes.erase(0, 1);
      if (bytes.size() > sizeof(Uuid) ||
          (bytes.size() < sizeof(Uuid) && (static_cast<unsigned char>(bytes[0]) & 0x80) != 0))
        refuse("a UUID out of range");
      bytes.insert(0, sizeof(Uuid) - bytes.size(), '\0');
      object.bytes = std::move(bytes);
    }
  }

  ByteReader reader_;
  std::deque<PickledObject> objects_;  // which stay where they are
  std::vector<PickledObject*> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint32_t, PickledObject*> memo_;
};

// Writes an object. The depth is bounded by the writer.
void write_object(ValueWriter& writer, const PickledObject& object) {
  const auto write_elements = [&] {
    for (const PickledObject* const element : object.elements) write_object(writer, *element);
    writer.end();
  };
  ValueTime time = object.time;
  time.zone = {object.zone, object.offset_microseconds, object.zone_name};
  switch (object.kind) {
    case Kind::null: return writer.null();
    case Kind::boolean: return writer.boolean(object.boolean);
    case Kind::integer: return writer.big_integer(object.bytes);
    case Kind::floating: return writer.floating(object.floating);
    case Kind::text: return writer.surrogate_text(object.bytes);
    case Kind::bytes: return writer.bytes(object.bytes);
    case Kind::list: writer.begin_list(object.elements.size()); return write_elements();
    case Kind::tuple: writer.begin_tuple(object.elements.size()); return write_elements();
    case Kind::dict: writer.begin_dict(object.elements.size() / 2); return write_elements();
    case Kind::set: writer.begin_set(object.elements.size()); return write_elements();
    case Kind::frozenset: writer.begin_frozenset(object.elements.size()); return write_elements();
    case Kind::date: return writer.date(object.date);
    case Kind::time: return writer.time(time);
    case Kind::datetime: return writer.datetime(object.date, time);
    case Kind::timedelta: return writer.timedelta(object.timedelta);
    case Kind::decimal: return writer.decimal(object.bytes);
    case Kind::uuid: {
      Uuid uuid{};
      if (object.bytes.size() != uuid.size())
        throw Error(ErrorKind::corrupt, "pickle has a UUID without a number");
      std::ranges::copy(object.bytes, uuid.begin());
      return writer.uuid(uuid);
    }
    case Kind::zone:
    case Kind::global: break;
  }
  throw Error(ErrorKind::invalid, "pickle has a value that is not plain: " +
                                      (object.bytes.empty() ? "a time zone" : object.bytes));
}

}  // namespace

std::string value_of_pickle(std::string_view pickle) {
  PickleMachine machine(pickle);
  const PickledObject& object = machine.run();
  if (object.kind == Kind::bytes && !is_typed_value(object.bytes)) return object.bytes;
  ValueWriter writer;
  write_object(writer, object);
  return writer.finish();
}

}  // namespace whycache
