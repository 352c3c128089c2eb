// Items as `scan` and `mget` print them and `import` reads them, in three forms:
//
//   text   key, tab, value, line feed; both escaped (escape.h)
//   json   {"key":"...","value":"..."}; key_base64 and value_base64 for bytes that are not UTF-8
//   null   key, zero byte, value, zero byte; nothing is escaped, so these are right only without zero bytes inside
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/types.h>

#include "cli/input.h"
#include "cli/output.h"

namespace whycache::cli {

class ItemPrinter {
 public:
  enum class OutputFormat { text, json, null };
  static OutputFormat select_format(bool json, bool null_separated);

  ItemPrinter(Output& output, OutputFormat form) : output_(output), format_(form) {}

  void print_item(const Item& item) const;
  void print_key(std::string_view key) const;
  // A key that was asked for and is not there: said in JSON only.
  void print_missing(std::string_view key) const;

 private:
  Output& output_;
  OutputFormat format_;
};

class ItemReader {
 public:
  enum class InputFormat { detect, json, text, raw_text, null };
  // "auto", "jsonl", "tsv", "raw-tsv", "null". nullopt: none of these.
  static std::optional<InputFormat> parse_format(std::string_view name);

  ItemReader(Input& input, InputFormat form) : input_(input), format_(form) {}

  // The next item, valid until the next call; false at the end. Throws Failure that names the line
  // of bad input.
  bool next(Item& item);
  // Of the item read last, from 1; with form null, the number of the item.
  std::uint64_t line_number() const { return line_number_; }

 private:
  Item parse_json(std::string_view line);
  Item parse_text(std::string_view line);
  [[noreturn]] void refuse(const std::string& why) const;

  Input& input_;
  InputFormat format_;
  std::uint64_t line_number_ = 0;
  std::string key_;
  std::string value_;
};

}  // namespace whycache::cli
