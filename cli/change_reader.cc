#include "cli/change_reader.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/escape.h"
#include "cli/exit_code.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/value_json.h"

namespace whycache::cli {
namespace {

// An escaped byte takes at most six characters (JSON's \u00NN).
constexpr std::size_t line_bytes_max = (std::size_t{key_bytes_max} + value_bytes_max) * 6 + 1024;
constexpr std::size_t detection_bytes = 64 << 10;
constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
constexpr std::string_view space = " \t\r\n";

bool is_blank(std::string_view line) { return line.find_first_not_of(space) == line.npos; }

std::string_view without_carriage_return(std::string_view line) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

std::string_view first_line(std::string_view text) { return text.substr(0, text.find('\n')); }

bool equals_ignoring_case(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) ==
           std::tolower(static_cast<unsigned char>(y));
  });
}

bool is_field_of_item(std::string_view name) {
  return name == "key" || name == "key_base64" || name == "value" || name == "value_base64" ||
         name == "erase";
}

// Returns the name of the first member of the object that `text` begins with, if it is plain.
std::string_view first_member(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(space, 1);
  if (begin == text.npos || text[begin] != '"') return {};
  const std::size_t end = text.find('"', begin + 1);
  return end == text.npos ? std::string_view() : text.substr(begin + 1, end - begin - 1);
}

// Whether a text that begins with '{' is an item on each line, rather than one object of all items.
bool has_object_per_line(std::string_view text) {
  const std::string_view line = first_line(text);
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (object.is_object()) {
    const auto members = object.items();
    return std::any_of(members.begin(), members.end(),
                       [](const auto& member) { return is_field_of_item(member.key()); });
  }
  return line.find_first_not_of(space, 1) != line.npos && is_field_of_item(first_member(text));
}

// Whether a line names a column of each name, as the header of a CSV file.
bool is_csv_header(std::string_view line, const FormatOptions& options) {
  bool has_key = false;
  bool has_value = false;
  for (std::string_view rest = without_carriage_return(line);;) {
    const std::size_t comma = rest.find(',');
    std::string_view name = rest.substr(0, comma);
    if (name.size() >= 2 && name.front() == '"' && name.back() == '"')
      name = name.substr(1, name.size() - 2);
    has_key = has_key || equals_ignoring_case(name, options.key_column);
    has_value = has_value || equals_ignoring_case(name, options.value_column);
    if (comma == rest.npos) return has_key && has_value;
    rest.remove_prefix(comma + 1);
  }
}

}  // namespace

InputFormat FormatOptions::format() const {
  if (null_separated) return InputFormat::null;
  if (name == "auto") return InputFormat::detect;
  if (name == "jsonl") return InputFormat::jsonl;
  if (name == "json") return InputFormat::json;
  if (name == "csv") return InputFormat::csv;
  if (name == "tsv") return InputFormat::text;
  if (name == "raw-tsv") return InputFormat::raw_text;
  if (name == "null") return InputFormat::null;
  throw Failure(ExitCode::usage, "no such format: name=" + name,
                "choose auto, jsonl, json, csv, tsv, raw-tsv or null");
}

void add_format_options(CLI::App& parser, FormatOptions& options) {
  parser
      .add_option("--format", options.name,
                  "auto, jsonl, json, csv, tsv, raw-tsv, null (auto: by how it begins)")
      ->type_name("NAME");
  add_null_option(parser, options.null_separated, "the same as --format null");
  parser.add_option("--key-column", options.key_column, "the column of keys in a CSV file (key)")
      ->type_name("NAME");
  parser
      .add_option("--value-column", options.value_column,
                  "the column of values in a CSV file (value)")
      ->type_name("NAME");
}

ChangeReader::ChangeReader(Input& input, const FormatOptions& options)
    : input_(&input), options_(&options), format_(options.format()) {}

bool ChangeReader::next(Change& change) {
  if (!std::exchange(has_begun_, true)) detect_format();
  const auto read = [&] {
    switch (format_) {
      case InputFormat::null: return next_null(change);
      case InputFormat::jsonl: return next_jsonl(change);
      case InputFormat::json: return next_json(change);
      case InputFormat::csv: return next_csv(change);
      default: return next_text(change);
    }
  };
  if (!read()) return false;
  if (change.key.empty()) refuse("the key is empty");
  if (change.key.size() > key_bytes_max)
    refuse(fmt::format("the key is longer than {} bytes", key_bytes_max));
  if (change.value.size() > value_bytes_max)
    refuse(fmt::format("the value is longer than {} bytes", value_bytes_max));
  return true;
}

void ChangeReader::detect_format() {
  if (format_ == InputFormat::null) return;
  if (input_->peek(byte_order_mark.size()) == byte_order_mark) input_->skip(byte_order_mark.size());
  if (format_ != InputFormat::detect) return;
  std::string_view text = input_->peek(detection_bytes);
  text.remove_prefix(std::min(text.find_first_not_of(space), text.size()));
  if (text.starts_with('{')) {
    format_ = has_object_per_line(text) ? InputFormat::jsonl : InputFormat::json;
  } else if (text.starts_with('[')) {
    // A key of the format text may begin like this, too.
    const std::size_t at = text.find_first_not_of(space, 1);
    const bool is_array = at == text.npos || text[at] == '{' || text[at] == '[' || text[at] == ']';
    format_ = is_array ? InputFormat::json : InputFormat::text;
  } else {
    const std::string_view line = first_line(text);
    const bool is_csv = line.find('\t') == line.npos && is_csv_header(line, *options_);
    format_ = is_csv || input_->name().ends_with(".csv") ? InputFormat::csv : InputFormat::text;
  }
}

bool ChangeReader::next_null(Change& change) {
  std::string_view record;
  if (!input_->read_record('\0', key_bytes_max, record)) return false;
  ++line_number_;
  key_ = record;
  if (!input_->read_record('\0', value_bytes_max, record)) refuse("the last key has no value");
  change = Change::set(key_, record);
  return true;
}

bool ChangeReader::next_text(Change& change) {
  std::string_view line;
  if (!input_->read_record('\n', line_bytes_max, line)) return false;
  ++line_number_;
  line = without_carriage_return(line);
  const std::size_t tab = line.find('\t');
  if (tab == line.npos) refuse("no tab between key and value");
  if (format_ == InputFormat::raw_text) {
    change = Change::set(line.substr(0, tab), line.substr(tab + 1));
    return true;
  }
  auto key = unescape(line.substr(0, tab));
  auto value = unescape(line.substr(tab + 1));
  if (!key || !value)
    refuse("invalid backslash escape (--format raw-tsv reads backslashes as they are)");
  key_ = std::move(*key);
  value_ = std::move(*value);
  change = Change::set(key_, value_);
  return true;
}

// --- JSON ---

bool ChangeReader::next_jsonl(Change& change) {
  std::string_view line;
  do {
    if (!input_->read_record('\n', line_bytes_max, line)) return false;
    ++line_number_;
  } while (is_blank(line));
  change = parse_object(line);
  return true;
}

Change ChangeReader::parse_object(std::string_view text) {
  Json object;
  try {
    object = Json::parse(text);
  } catch (const Json::exception& error) {
    refuse(std::string("not JSON: ") + error.what());
  }
  if (!object.is_object()) refuse("not a JSON object");
  const auto take = [&](const char* field, std::string& bytes) {
    const auto plain = object.find(field);
    const auto base64 = object.find(std::string(field) + "_base64");
    if (plain != object.end() && plain->is_string()) {
      bytes = plain->get_ref<const std::string&>();
    } else if (plain != object.end()) {
      refuse(fmt::format(R"("{}" is not a string)", field));
    } else if (base64 == object.end() || !base64->is_string()) {
      refuse(fmt::format(R"("{0}" or "{0}_base64" is missing)", field));
    } else if (auto decoded = decode_base64(base64->get_ref<const std::string&>())) {
      bytes = std::move(*decoded);
    } else {
      refuse(fmt::format(R"("{}_base64" is not base64)", field));
    }
  };
  take("key", key_);
  if (const auto erase = object.find("erase"); erase != object.end()) {
    if (!erase->is_boolean()) refuse(R"("erase" is not true or false)");
    if (erase->get<bool>()) {
      if (object.contains("value") || object.contains("value_base64"))
        refuse(R"("erase" is true, and there is a value)");
      return Change::erase(key_);
    }
  }
  if (const auto typed = object.find("typed"); typed != object.end() && *typed == true) {
    value_ = parse_typed_value(text);
  } else {
    take("value", value_);
  }
  return Change::set(key_, value_);
}

// Returns the "value" of an object that says it is typed.
std::string ChangeReader::parse_typed_value(std::string_view text) {
  try {
    const Json object = parse_value_json(text);
    const auto value = object.find("value");
    if (value == object.end()) refuse(R"("value" is missing)");
    return value_from_json(*value);
  } catch (const Failure& failure) {
    refuse(failure.what());
  }
}

Change ChangeReader::parse_pair(std::string_view text) {
  Json pair;
  try {
    pair = Json::parse(text);
  } catch (const Json::exception& error) {
    refuse(std::string("not JSON: ") + error.what());
  }
  if (!pair.is_array() || pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
    refuse("not an object, nor a pair of two strings");
  key_ = pair[0].get_ref<const std::string&>();
  value_ = pair[1].get_ref<const std::string&>();
  return Change::set(key_, value_);
}

// A value that is no string is stored as it is written.
Change ChangeReader::take_member(std::string key, std::string_view value) {
  Json parsed;
  try {
    parsed = Json::parse(value);
  } catch (const Json::exception& error) {
    refuse(std::string("not JSON: ") + error.what());
  }
  key_ = std::move(key);
  if (parsed.is_string()) {
    value_ = parsed.get_ref<const std::string&>();
  } else if (parsed.is_number() || parsed.is_boolean()) {
    value_ = value;
  } else {
    refuse(fmt::format("the value is not a string, a number, true or false: key={}", escape(key_)));
  }
  return Change::set(key_, value_);
}

int ChangeReader::skip_space() {
  int byte = input_->peek_byte();
  while (byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n') {
    input_->read_byte();
    byte = input_->peek_byte();
  }
  return byte;
}

// Reads what is before the first change. Returns false if there is none.
bool ChangeReader::begin_json() {
  const int first = skip_space();
  if (first == Input::end_of_input) refuse("there is no JSON");
  if (first != '{' && first != '[') refuse("not a JSON object or array");
  input_->read_byte();
  is_array_ = first == '[';
  if (skip_space() != (is_array_ ? ']' : '}')) return true;
  input_->read_byte();
  end_json();
  return false;
}

void ChangeReader::end_json() {
  has_ended_ = true;
  if (skip_space() != Input::end_of_input) refuse("there is more after the end of the JSON");
}

// Reads the text of a value up to the comma, colon or bracket behind it. Whether it is valid is
// found out when it is parsed.
std::string ChangeReader::read_json_value() {
  std::string text;
  std::size_t depth = 0;
  bool in_string = false;
  skip_space();
  for (;;) {
    const int byte = input_->peek_byte();
    if (byte == Input::end_of_input) refuse("the JSON is cut short");
    if (!in_string && depth == 0 && (byte == ',' || byte == ':' || byte == ']' || byte == '}'))
      break;
    text += static_cast<char>(input_->read_byte());
    if (text.size() > line_bytes_max) refuse(fmt::format("longer than {} bytes", line_bytes_max));
    if (in_string && byte == '\\') {
      const int escaped = input_->read_byte();
      if (escaped == Input::end_of_input) refuse("the JSON is cut short");
      text += static_cast<char>(escaped);
    } else if (byte == '"') {
      in_string = !in_string;
    } else if (!in_string && (byte == '{' || byte == '[')) {
      ++depth;
    } else if (!in_string && (byte == '}' || byte == ']')) {
      --depth;
    }
  }
  text.erase(text.find_last_not_of(space) + 1);
  return text;
}

bool ChangeReader::next_json(Change& change) {
  if (has_ended_) return false;
  ++line_number_;
  if (line_number_ == 1) {
    if (!begin_json()) return false;
  } else {
    const int separator = skip_space();
    if (separator == (is_array_ ? ']' : '}')) {
      input_->read_byte();
      --line_number_;
      end_json();
      return false;
    }
    if (separator != ',') refuse("no comma between two elements");
    input_->read_byte();
  }
  const std::string text = read_json_value();
  if (is_array_) {
    change = text.starts_with('[') ? parse_pair(text) : parse_object(text);
    return true;
  }
  const Json key = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!key.is_string()) refuse("a name is not a string");
  if (skip_space() != ':') refuse("no colon after a name");
  input_->read_byte();
  change = take_member(key.get<std::string>(), read_json_value());
  return true;
}

// --- CSV ---

// Reads the fields of a record (RFC 4180). Returns false at the end.
bool ChangeReader::read_csv_record() {
  if (input_->peek_byte() == Input::end_of_input) return false;
  line_number_ = ++lines_read_;
  field_count_ = 0;
  std::size_t bytes = 0;
  for (bool ended = false; !ended; ++field_count_) {
    if (field_count_ == fields_.size()) fields_.emplace_back();
    std::string& field = fields_[field_count_];
    field.clear();
    const bool is_quoted = input_->peek_byte() == '"';
    if (is_quoted) input_->read_byte();
    for (bool in_quotes = is_quoted;;) {
      int byte = input_->read_byte();
      if (in_quotes && byte == '"' && input_->peek_byte() != '"') {
        in_quotes = false;
        byte = input_->read_byte();
        if (byte == '\r' && input_->peek_byte() == '\n') byte = input_->read_byte();
        if (byte != ',' && byte != '\n' && byte != Input::end_of_input)
          refuse("there is text after the quotation mark that ends a field");
      } else if (in_quotes && byte == '"') {
        input_->read_byte();  // the second of two, which stand for one
      } else if (!in_quotes && byte == '\r' && input_->peek_byte() == '\n') {
        byte = input_->read_byte();
      }
      if (byte == Input::end_of_input && in_quotes) refuse("a quoted field has no end");
      if (byte == Input::end_of_input || (!in_quotes && byte == '\n')) {
        ended = true;
        break;
      }
      if (!in_quotes && byte == ',') break;
      if (!in_quotes && byte == '"') refuse("there is a quotation mark in a field without them");
      if (byte == '\n') ++lines_read_;
      field += static_cast<char>(byte);
      if (++bytes > line_bytes_max) refuse(fmt::format("longer than {} bytes", line_bytes_max));
    }
  }
  return true;
}

void ChangeReader::read_csv_header() {
  if (!read_csv_record()) refuse("there is no header");
  const auto find = [&](const std::string& name, const char* option) {
    std::size_t found = field_count_;
    std::string columns;
    for (std::size_t i = 0; i < field_count_; ++i) {
      columns += (i == 0 ? "" : ",") + fields_[i];
      if (!equals_ignoring_case(fields_[i], name)) continue;
      if (found < field_count_) refuse(fmt::format("two columns are named {}", name));
      found = i;
    }
    if (found == field_count_) {
      refuse(fmt::format("the header has no column named {}, see {}: columns={}", escape(name),
                         option, escape(columns.substr(0, 200))));
    }
    return found;
  };
  key_index_ = find(options_->key_column, "--key-column");
  value_index_ = find(options_->value_column, "--value-column");
  column_count_ = field_count_;
}

bool ChangeReader::next_csv(Change& change) {
  if (column_count_ == 0) read_csv_header();
  do {
    if (!read_csv_record()) return false;
  } while (column_count_ > 1 && field_count_ == 1 && fields_[0].empty());  // an empty line
  if (field_count_ != column_count_) {
    refuse(fmt::format("the record has {} fields, and the header has {}", field_count_,
                       column_count_));
  }
  change = Change::set(fields_[key_index_], fields_[value_index_]);
  return true;
}

void ChangeReader::refuse(const std::string& reason) const {
  throw Failure(ExitCode::usage,
                fmt::format("bad input: path={} {}={} reason=\"{}\"", input_->name(),
                            counts_changes() ? "item" : "line",
                            std::max<std::uint64_t>(line_number_, 1), reason),
                "correct it; `whycache import --dry-run` checks all of it without writing");
}

}  // namespace whycache::cli
