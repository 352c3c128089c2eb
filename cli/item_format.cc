#include "cli/item_format.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/escape.h"
#include "cli/exit_code.h"

namespace whycache::cli {
namespace {

// Escaped, a byte takes at most six characters (JSON's \u00NN).
constexpr std::size_t line_bytes_max = (std::size_t{key_bytes_max} + value_bytes_max) * 6 + 1024;

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

}  // namespace

ItemPrinter::Form ItemPrinter::form(bool json, bool null_separated) {
  if (json && null_separated) {
    throw Failure(ExitCode::usage, "--json and --null exclude each other", "choose one of them");
  }
  return json ? Form::json : null_separated ? Form::null : Form::text;
}

void ItemPrinter::item(const Item& item) const {
  if (form_ == Form::json) {
    Json object;
    put_bytes(object, "key", item.key);
    put_bytes(object, "value", item.value);
    output_.json(object);
  } else if (form_ == Form::null) {
    output_.write(item.key);
    output_.write({"\0", 1});
    output_.write(item.value);
    output_.write({"\0", 1});
  } else {
    output_.write(escape(item.key));
    output_.write("\t");
    output_.line(escape(item.value));
  }
}

void ItemPrinter::key(std::string_view key) const {
  if (form_ == Form::json) {
    Json object;
    put_bytes(object, "key", key);
    output_.json(object);
  } else if (form_ == Form::null) {
    output_.write(key);
    output_.write({"\0", 1});
  } else {
    output_.line(escape(key));
  }
}

void ItemPrinter::missing(std::string_view key) const {
  if (form_ != Form::json) return;
  Json object;
  put_bytes(object, "key", key);
  object["value"] = nullptr;
  output_.json(object);
}

std::optional<ItemReader::Form> ItemReader::form_named(std::string_view name) {
  if (name == "auto") return Form::detect;
  if (name == "jsonl") return Form::json;
  if (name == "tsv") return Form::text;
  if (name == "raw-tsv") return Form::raw_text;
  if (name == "null") return Form::null;
  return std::nullopt;
}

bool ItemReader::next(Item& item) {
  std::string_view piece;
  if (form_ == Form::null) {
    if (!input_.next('\0', key_bytes_max, piece)) return false;
    ++line_;
    key_ = piece;
    if (!input_.next('\0', value_bytes_max, piece)) refuse("a key without a value at the end");
    item = {key_, piece};
  } else {
    do {
      if (!input_.next('\n', line_bytes_max, piece)) return false;
      ++line_;
    } while (form_ != Form::text && form_ != Form::raw_text && is_blank(piece));
    if (form_ == Form::detect) form_ = piece.starts_with('{') ? Form::json : Form::text;
    item = form_ == Form::json ? read_json(piece) : read_text(piece);
  }
  if (item.key.empty()) refuse("the key is empty");
  if (item.key.size() > key_bytes_max) refuse(fmt::format("the key is longer than {} bytes", key_bytes_max));
  if (item.value.size() > value_bytes_max) refuse(fmt::format("the value is longer than {} bytes", value_bytes_max));
  return true;
}

Item ItemReader::read_json(std::string_view line) {
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
  take("value", value_);
  return {key_, value_};
}

Item ItemReader::read_text(std::string_view line) {
  const std::size_t tab = line.find('\t');
  if (tab == std::string_view::npos) refuse("no tab between key and value");
  if (form_ == Form::raw_text) return {line.substr(0, tab), line.substr(tab + 1)};
  auto key = unescape(line.substr(0, tab));
  auto value = unescape(line.substr(tab + 1));
  if (!key || !value) refuse("a backslash that escapes nothing (--format raw-tsv takes it as it is)");
  key_ = std::move(*key);
  value_ = std::move(*value);
  return {key_, value_};
}

void ItemReader::refuse(const std::string& why) const {
  throw Failure(ExitCode::usage,
                fmt::format("bad input: path={} {}={} reason=\"{}\"", input_.name(),
                            form_ == Form::null ? "item" : "line", line_, why),
                "correct it; `whycache import --dry-run` looks at all of it without writing");
}

}  // namespace whycache::cli
