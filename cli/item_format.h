// The formats of items that `scan` and `mget` print and `import` reads:
//
//   text   key, tab, value, line feed; both escaped (escape.h)
//   json   {"key":"...","value":"..."}; key_base64 and value_base64 for bytes that are not UTF-8
//   null   key, zero byte, value, zero byte; unescaped, so they must not contain zero bytes
//
// A typed value is printed as JSON (value_json.h), which "typed":true marks in an object; in the
// format null, and on request, as its bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/types.h>

#include "cli/input.h"
#include "cli/output.h"
#include "cli/value_json.h"

namespace whycache::cli {

class ItemPrinter {
 public:
  enum class OutputFormat { text, json, null };
  static OutputFormat select_format(bool json, bool null_separated);

  ItemPrinter(Output& output, OutputFormat form, ValueForm value_form)
      : output_(output), format_(form), value_form_(value_form) {}

  void print_item(const Item& item) const;
  void print_key(std::string_view key) const;
  // Reports a requested key that does not exist; only JSON has a form for it.
  void print_missing(std::string_view key) const;

 private:
  Output& output_;
  OutputFormat format_;
  ValueForm value_form_;
};

class ItemReader {
 public:
  enum class InputFormat { detect, json, text, raw_text, null };
  // Parses "auto", "jsonl", "tsv", "raw-tsv" or "null". Returns nullopt for any other name.
  static std::optional<InputFormat> parse_format(std::string_view name);

  ItemReader(Input& input, InputFormat form) : input_(input), format_(form) {}

  // Reads the next item, which is valid until the next call. Returns false at the end. Throws
  // Failure, which names the line, if the input is malformed.
  bool next(Item& item);
  // Returns the line of the last item, counted from 1; in the null format, its number.
  std::uint64_t line_number() const { return line_number_; }

 private:
  Item parse_json(std::string_view line);
  std::string parse_typed_value(std::string_view line);
  Item parse_text(std::string_view line);
  [[noreturn]] void refuse(const std::string& reason) const;

  Input& input_;
  InputFormat format_;
  std::uint64_t line_number_ = 0;
  std::string key_;
  std::string value_;
};

}  // namespace whycache::cli
