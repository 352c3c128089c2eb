#include "cli/item_format.h"

#include <nlohmann/json.hpp>

#include "cli/escape.h"
#include "cli/exit_code.h"

namespace whycache::cli {

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

}  // namespace whycache::cli
