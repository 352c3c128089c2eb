#include "cli/value_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>
#include <vector>

#include <whycache/value.h>

#include "cli/big_integer.h"
#include "cli/escape.h"
#include "cli/exit_code.h"
#include "cli/value_time.h"

namespace whycache::cli {
namespace {

[[noreturn]] void refuse(const std::string& reason) {
  throw Failure(ExitCode::usage, "not a value: " + reason,
                "docs/formats/value.md has the forms of values");
}

Json tagged(const char* tag, Json json) {
  Json object = Json::object();
  object[tag] = std::move(json);
  return object;
}

const char* tag_of(ValueKind kind) {
  return kind == ValueKind::tuple ? "$tuple" : kind == ValueKind::set ? "$set" : "$frozenset";
}

Json floating_to_json(double number) {
  if (std::isnan(number)) return tagged("$float", "nan");
  if (std::isinf(number)) return tagged("$float", number > 0 ? "inf" : "-inf");
  return number;
}

std::string format_uuid(std::string_view uuid) {
  std::string text;
  for (std::size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", static_cast<unsigned char>(uuid[i]));
  }
  return text;
}

class JsonBuilder {
 public:
  explicit JsonBuilder(std::string_view value) : reader_(value) {}

  Json build() {
    const ValueToken& token = reader_.next();
    switch (token.kind) {
      case ValueKind::null: return nullptr;
      case ValueKind::boolean: return token.boolean;
      case ValueKind::integer: return token.integer;
      case ValueKind::unsigned_integer: return token.unsigned_integer;
      case ValueKind::floating: return floating_to_json(token.floating);
      case ValueKind::text: return token.bytes;
      case ValueKind::big_integer: return tagged("$int", format_big_integer(token.bytes));
      case ValueKind::surrogate_text: return tagged("$surrogates", encode_base64(token.bytes));
      case ValueKind::bytes: return tagged("$bytes", encode_base64(token.bytes));
      case ValueKind::decimal: return tagged("$decimal", token.bytes);
      case ValueKind::uuid: return tagged("$uuid", format_uuid(token.bytes));
      case ValueKind::date: return tagged("$date", format_date(token.date));
      case ValueKind::time: return tagged("$time", format_time_of_day(token.time));
      case ValueKind::datetime:
        return tagged("$datetime", format_date(token.date) + 'T' + format_time_of_day(token.time));
      case ValueKind::timedelta: return tagged("$timedelta", format_timedelta(token.timedelta));
      case ValueKind::dict: return build_dict(token.count);
      case ValueKind::list: return build_list(token.count);
      case ValueKind::tuple:
      case ValueKind::set:
      case ValueKind::frozenset: {
        const char* const tag = tag_of(token.kind);
        return tagged(tag, build_list(token.count));
      }
      case ValueKind::end: break;
    }
    throw Error(ErrorKind::corrupt, "typed value ends within a container");
  }

 private:
  Json build_list(std::size_t count) {
    Json list = Json::array();
    for (std::size_t i = 0; i < count; ++i) list.push_back(build());
    reader_.next();
    return list;
  }

  // An object, unless a key is no text, occurs twice or would look like a tag.
  Json build_dict(std::size_t count) {
    std::vector<std::pair<Json, Json>> pairs;
    std::unordered_set<std::string> names;
    bool is_object = true;
    for (std::size_t i = 0; i < count; ++i) {
      Json key = build();
      is_object = is_object && key.is_string() &&
                  !key.get_ref<const std::string&>().starts_with('$') &&
                  names.insert(key.get_ref<const std::string&>()).second;
      pairs.emplace_back(std::move(key), build());
    }
    reader_.next();
    if (is_object) {
      Json object = Json::object();
      // operator[] would compare each name with all others.
      auto& members = object.get_ref<Json::object_t&>();
      for (auto& [key, value] : pairs)
        members.emplace_back(key.get<std::string>(), std::move(value));
      return object;
    }
    Json list = Json::array();
    for (auto& [key, value] : pairs) list.push_back({std::move(key), std::move(value)});
    return tagged("$dict", std::move(list));
  }

  ValueReader reader_;
};

// Writes the value that JSON denotes.
class JsonWriter {
 public:
  std::string write(const Json& json) {
    try {
      write_json(json);
      return writer_.finish();
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::limit) throw;
      refuse(error.what());
    }
  }

  void write_tagged(const std::string& tag, const Json& json) {
    if (tag == "$tuple" || tag == "$set" || tag == "$frozenset") {
      if (!json.is_array()) refuse(tag + " is not followed by an array");
      tag == "$tuple" ? writer_.begin_tuple(json.size())
      : tag == "$set" ? writer_.begin_set(json.size())
                      : writer_.begin_frozenset(json.size());
      for (const Json& element : json) write_json(element);
      return writer_.end();
    }
    if (tag == "$dict") return write_pairs(json);
    if (!json.is_string()) refuse(tag + " is not followed by a string");
    write_text(tag, json.get_ref<const std::string&>());
  }

 private:
  void write_json(const Json& json) {
    if (json.is_null()) return writer_.null();
    if (json.is_boolean()) return writer_.boolean(json.get<bool>());
    if (json.is_number_unsigned()) return writer_.unsigned_integer(json.get<std::uint64_t>());
    if (json.is_number_integer()) return writer_.integer(json.get<std::int64_t>());
    if (json.is_number_float()) return writer_.floating(json.get<double>());
    if (json.is_string()) return writer_.text(json.get_ref<const std::string&>());
    if (json.is_array()) {
      writer_.begin_list(json.size());
      for (const Json& element : json) write_json(element);
      return writer_.end();
    }
    const auto& members = json.get_ref<const Json::object_t&>();
    if (members.size() == 1 && members.begin()->first.starts_with('$'))
      return write_tagged(members.begin()->first, members.begin()->second);
    writer_.begin_dict(members.size());
    for (const auto& [name, value] : members) {
      if (name.starts_with('$')) refuse("a name that begins with $ has others beside it: " + name);
      writer_.text(name);
      write_json(value);
    }
    writer_.end();
  }

  void write_pairs(const Json& pairs) {
    if (!pairs.is_array()) refuse("$dict is not followed by an array");
    writer_.begin_dict(pairs.size());
    for (const Json& pair : pairs) {
      if (!pair.is_array() || pair.size() != 2) refuse("$dict has an element that is no pair");
      write_json(pair[0]);
      write_json(pair[1]);
    }
    writer_.end();
  }

  void write_text(const std::string& tag, const std::string& text) {
    if (tag == "$int") return writer_.big_integer(found(parse_big_integer(text), tag, text));
    if (tag == "$float") return writer_.floating(found(parse_float(text), tag, text));
    if (tag == "$bytes") return writer_.bytes(found(decode_base64(text), tag, text));
    if (tag == "$surrogates") return writer_.surrogate_text(found(decode_base64(text), tag, text));
    if (tag == "$decimal") return writer_.decimal(text);
    if (tag == "$uuid") return writer_.uuid(found(parse_uuid(text), tag, text));
    if (tag == "$date") return writer_.date(found(parse_date(text), tag, text));
    if (tag == "$timedelta") return writer_.timedelta(found(parse_timedelta(text), tag, text));
    std::string zone_name;  // which the zone refers to
    if (tag == "$time") return writer_.time(found(parse_time_of_day(text, zone_name), tag, text));
    if (tag != "$datetime") refuse("unknown tag: " + tag);
    constexpr std::size_t date_characters = 10;
    const auto date = parse_date(std::string_view(text).substr(0, date_characters));
    if (!date || text.size() <= date_characters ||
        (text[date_characters] != 'T' && text[date_characters] != ' '))
      refuse(tag + ' ' + escape(text));
    writer_.datetime(
        *date,
        found(parse_time_of_day(std::string_view(text).substr(date_characters + 1), zone_name), tag,
              text));
  }

  template <typename T>
  static T found(std::optional<T> parsed, const std::string& tag, const std::string& text) {
    if (!parsed) refuse(tag + ' ' + escape(std::string_view(text).substr(0, 200)));
    return std::move(*parsed);
  }

  static std::optional<double> parse_float(std::string_view text) {
    if (text == "nan") return std::numeric_limits<double>::quiet_NaN();
    double number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return number;
  }

  static std::optional<Uuid> parse_uuid(std::string_view text) {
    std::string digits;
    std::ranges::copy_if(text, std::back_inserter(digits), [](char byte) { return byte != '-'; });
    Uuid uuid{};
    if (digits.size() != 2 * uuid.size()) return std::nullopt;
    for (std::size_t i = 0; i < uuid.size(); ++i) {
      const char* const begin = digits.data() + 2 * i;
      const auto [end, error] = std::from_chars(begin, begin + 2, uuid[i], 16);
      if (error != std::errc() || end != begin + 2) return std::nullopt;
    }
    return uuid;
  }

  ValueWriter writer_;
};

// Builds JSON as nlohmann's parser does, but keeps large integers and refuses equal names.
class ValueJsonHandler : public nlohmann::json_sax<Json> {
 public:
  ValueJsonHandler() noexcept(false) = default;
  ValueJsonHandler(const ValueJsonHandler&) = delete;
  ValueJsonHandler& operator=(const ValueJsonHandler&) = delete;

  Json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t& digits) override {
    if (digits.find_first_of(".eE") != string_t::npos) return add(value);
    return add(tagged("$int", digits));
  }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t& /*value*/) override { return false; }
  bool start_object(std::size_t /*count*/) override { return start(Json::object()); }
  bool start_array(std::size_t /*count*/) override { return start(Json::array()); }
  bool end_object() override { return end(); }
  bool end_array() override { return end(); }
  bool key(string_t& name) override {
    if (!levels_.back().names.insert(name).second) refuse("a name occurs twice: " + escape(name));
    levels_.back().name = std::move(name);
    return true;
  }
  bool parse_error(std::size_t /*position*/, const std::string& /*token*/,
                   const nlohmann::detail::exception& error) override {
    refuse(std::string("not JSON: ") + error.what());
  }

 private:
  struct Level {
    Json* container;
    std::string name;  // of the member that follows
    std::unordered_set<std::string> names;
  };

  Json* place(Json json) {
    if (levels_.empty()) {
      root_ = std::move(json);
      return &root_;
    }
    Level& level = levels_.back();
    if (level.container->is_array()) {
      level.container->push_back(std::move(json));
      return &level.container->back();
    }
    auto& members = level.container->get_ref<Json::object_t&>();
    members.emplace_back(std::move(level.name), std::move(json));
    return &members.back().second;
  }
  bool add(Json json) {
    place(std::move(json));
    return true;
  }
  bool start(Json container) {
    // Tags and pairs take levels of their own.
    if (levels_.size() >= 4 * value_depth_max) refuse("nested too deeply");
    Json* const placed = place(std::move(container));
    levels_.push_back({placed, {}, {}});
    return true;
  }
  bool end() {
    levels_.pop_back();
    return true;
  }

  Json root_;
  std::vector<Level> levels_;
};

}  // namespace

Json value_to_json(std::string_view value) { return JsonBuilder(value).build(); }

std::string value_from_json(const Json& json) { return JsonWriter().write(json); }

Json parse_value_json(std::string_view text) {
  ValueJsonHandler handler;
  if (!Json::sax_parse(text, &handler)) refuse("not JSON");
  return handler.take();
}

std::string parse_value(const std::string& type, std::string_view text) {
  if (type == "json") return value_from_json(parse_value_json(text));
  if (type == "str") return value_from_json(std::string(text));
  if (type == "bytes") {
    if (!is_typed_value(text)) return std::string(text);
    return encode_value(ValueBytes{std::string(text)});
  }
  if (type == "bool") {
    if (text != "true" && text != "false") refuse("bool " + escape(text) + " (true or false)");
    return encode_value(text == "true");
  }
  for (const char* const known :
       {"int", "float", "decimal", "uuid", "date", "time", "datetime", "timedelta"}) {
    if (type == known) return value_from_json(tagged(("$" + type).c_str(), std::string(text)));
  }
  throw Failure(ExitCode::usage, "unknown type of a value: type=" + escape(type),
                "choose one of json, str, int, float, bool, bytes, decimal, uuid, date, time, "
                "datetime, timedelta");
}

void put_value(Json& object, std::string_view value, ValueForm form) {
  if (form == ValueForm::typed && is_typed_value(value)) {
    try {
      object["value"] = value_to_json(value);
      object["typed"] = true;
      return;
    } catch (const Error& error) {
      put_bytes(object, "value", value);
      object["undecodable"] = error.what();
      return;
    }
  }
  put_bytes(object, "value", value);
}

std::string json_line(const Json& json) {
  const std::string text = json.dump();
  std::string line;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0U;
    if (byte == 0x7f) {
      line += "\\u007f";
    } else if (byte == 0xc2 && next >= 0x80 && next < 0xa0) {
      line += fmt::format("\\u00{:02x}", next);
      ++i;
    } else {
      line += text[i];
    }
  }
  return line;
}

std::string value_to_line(std::string_view value, ValueForm form) {
  if (form == ValueForm::typed && is_typed_value(value)) {
    try {
      return json_line(value_to_json(value));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::corrupt) throw;
    }
  }
  return escape(value);
}

}  // namespace whycache::cli
