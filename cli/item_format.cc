#include "cli/item_format.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/escape.h"
#include "cli/exit_code.h"

namespace whycache::cli {
namespace {

// An escaped byte takes at most six characters (JSON's \u00NN).
constexpr std::size_t line_bytes_max = (std::size_t{key_bytes_max} + value_bytes_max) * 6 + 1024;

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

}  // namespace

ItemPrinter::OutputFormat ItemPrinter::select_format(bool json, bool null_separated) {
  if (json && null_separated) {
    throw Failure(ExitCode::usage, "--json and --null exclude each other", "choose one of them");
  }
  return json ? OutputFormat::json : null_separated ? OutputFormat::null : OutputFormat::text;
}

void ItemPrinter::print_item(const Item& item) const {
  if (format_ == OutputFormat::json) {
    Json object;
    put_bytes(object, "key", item.key);
    put_value(object, item.value, value_form_);
    output_.write_json(object);
  } else if (format_ == OutputFormat::null) {
    output_.write(item.key);
    output_.write({"\0", 1});
    output_.write(item.value);
    output_.write({"\0", 1});
  } else {
    output_.write(escape(item.key));
    output_.write("\t");
    output_.write_line(value_to_line(item.value, value_form_));
  }
}

void ItemPrinter::print_key(std::string_view key) const {
  if (format_ == OutputFormat::json) {
    Json object;
    put_bytes(object, "key", key);
    output_.write_json(object);
  } else if (format_ == OutputFormat::null) {
    output_.write(key);
    output_.write({"\0", 1});
  } else {
    output_.write_line(escape(key));
  }
}

void ItemPrinter::print_missing(std::string_view key) const {
  if (format_ != OutputFormat::json) return;
  Json object;
  put_bytes(object, "key", key);
  object["value"] = nullptr;
  output_.write_json(object);
}

std::optional<ItemReader::InputFormat> ItemReader::parse_format(std::string_view name) {
  if (name == "auto") return InputFormat::detect;
  if (name == "jsonl") return InputFormat::json;
  if (name == "tsv") return InputFormat::text;
  if (name == "raw-tsv") return InputFormat::raw_text;
  if (name == "null") return InputFormat::null;
  return std::nullopt;
}

bool ItemReader::next(Item& item) {
  std::string_view record;
  if (format_ == InputFormat::null) {
    if (!input_.read_record('\0', key_bytes_max, record)) return false;
    ++line_number_;
    key_ = record;
    if (!input_.read_record('\0', value_bytes_max, record)) refuse("the last key has no value");
    item = {key_, record};
  } else {
    do {
      if (!input_.read_record('\n', line_bytes_max, record)) return false;
      ++line_number_;
    } while (format_ != InputFormat::text && format_ != InputFormat::raw_text && is_blank(record));
    if (format_ == InputFormat::detect)
      format_ = record.starts_with('{') ? InputFormat::json : InputFormat::text;
    item = format_ == InputFormat::json ? parse_json(record) : parse_text(record);
  }
  if (item.key.empty()) refuse("the key is empty");
  if (item.key.size() > key_bytes_max)
    refuse(fmt::format("the key is longer than {} bytes", key_bytes_max));
  if (item.value.size() > value_bytes_max)
    refuse(fmt::format("the value is longer than {} bytes", value_bytes_max));
  return true;
}

Item ItemReader::parse_json(std::string_view line) {
  Json object;
  try {
    object = Json::parse(line);
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
  if (const auto typed = object.find("typed"); typed != object.end() && *typed == true) {
    value_ = parse_typed_value(line);
  } else {
    take("value", value_);
  }
  return {key_, value_};
}

// Returns the "value" of an object that says it is typed.
std::string ItemReader::parse_typed_value(std::string_view line) {
  try {
    const Json object = parse_value_json(line);
    const auto value = object.find("value");
    if (value == object.end()) refuse(R"("value" is missing)");
    return value_from_json(*value);
  } catch (const Failure& failure) {
    refuse(failure.what());
  }
}

Item ItemReader::parse_text(std::string_view line) {
  const std::size_t tab = line.find('\t');
  if (tab == std::string_view::npos) refuse("no tab between key and value");
  if (format_ == InputFormat::raw_text) return {line.substr(0, tab), line.substr(tab + 1)};
  auto key = unescape(line.substr(0, tab));
  auto value = unescape(line.substr(tab + 1));
  if (!key || !value)
    refuse("invalid backslash escape (--format raw-tsv reads backslashes as they are)");
  key_ = std::move(*key);
  value_ = std::move(*value);
  return {key_, value_};
}

void ItemReader::refuse(const std::string& reason) const {
  throw Failure(ExitCode::usage,
                fmt::format("bad input: path={} {}={} reason=\"{}\"", input_.name(),
                            format_ == InputFormat::null ? "item" : "line", line_number_, reason),
                "correct it; `whycache import --dry-run` checks all of it without writing");
}

}  // namespace whycache::cli
