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
  enum class Form { text, json, null };
  static Form form(bool json, bool null_separated);

  ItemPrinter(Output& output, Form form) : output_(output), form_(form) {}

  void item(const Item& item) const;
  void key(std::string_view key) const;
  // A key that was asked for and is not there: said in JSON only.
  void missing(std::string_view key) const;

 private:
  Output& output_;
  Form form_;
};

class ItemReader {
 public:
  enum class Form { detect, json, text, raw_text, null };
  // "auto", "jsonl", "tsv", "raw-tsv", "null". nullopt: none of these.
  static std::optional<Form> form_named(std::string_view name);

  ItemReader(Input& input, Form form) : input_(input), form_(form) {}

  // The next item, valid until the next call; false at the end. Throws Failure that names the line of bad input.
  bool next(Item& item);
  // Of the item read last, from 1; with form null, the number of the item.
  std::uint64_t line() const { return line_; }

 private:
  Item read_json(std::string_view line);
  Item read_text(std::string_view line);
  [[noreturn]] void refuse(const std::string& why) const;

  Input& input_;
  Form form_;
  std::uint64_t line_ = 0;
  std::string key_;
  std::string value_;
};

}  // namespace whycache::cli
