// The formats of items that `scan` and `mget` print, and `import` reads (change_reader.h):
//
//   text   key, tab, value, line feed; both escaped (escape.h)
//   json   {"key":"...","value":"..."}; key_base64 and value_base64 for bytes that are not UTF-8
//   null   key, zero byte, value, zero byte; unescaped, so they must not contain zero bytes
//
// A typed value is printed as JSON (value_json.h), which "typed":true marks in an object; in the
// format null, and on request, as its bytes.
#pragma once

#include <string_view>

#include <whycache/types.h>

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

}  // namespace whycache::cli
