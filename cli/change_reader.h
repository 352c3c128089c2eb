// Reads the changes that an input asks for. Formats:
//
//   jsonl     an object per line: {"key":"a","value":"b"} or {"key":"a","erase":true}; key_base64
//             and value_base64 for bytes that are not UTF-8
//   json      one document: an object {"a":"b"}, or an array of objects as above or of pairs
//   csv       RFC 4180, with a header that names the columns
//   text      key, tab, value; both escaped (escape.h)
//   raw_text  key, tab, value
//   null      key, zero byte, value, zero byte
//
// A byte order mark is skipped, and lines may end with CR LF, in all but `null`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/types.h>

#include "cli/input.h"

namespace CLI {
class App;
}

namespace whycache::cli {

enum class InputFormat { detect, jsonl, json, csv, text, raw_text, null };

// --format, --null, --key-column, --value-column
struct FormatOptions {
  std::string name = "auto";
  bool null_separated = false;
  std::string key_column = "key";
  std::string value_column = "value";

  // Throws Failure for a name that no format has.
  InputFormat format() const;
};
void add_format_options(CLI::App& parser, FormatOptions& options);

// Copying a reader copies its place in the format, but not that in the input (Input::seek).
class ChangeReader {
 public:
  ChangeReader(Input& input, const FormatOptions& options);

  // Reads the next change, which is valid until the next call. Returns false at the end. Throws
  // Failure, which names the line, if the input is malformed.
  bool next(Change& change);
  // Returns the line at which the last change begins, counted from 1. In the null and json formats,
  // returns the number of the change.
  std::uint64_t line_number() const { return line_number_; }

 private:
  void detect_format();
  bool next_text(Change& change);
  bool next_null(Change& change);
  bool next_jsonl(Change& change);
  bool next_json(Change& change);
  bool next_csv(Change& change);

  Change parse_object(std::string_view text);
  std::string parse_typed_value(std::string_view text);
  Change parse_pair(std::string_view text);
  Change take_member(std::string key, std::string_view value);

  int skip_space();
  bool begin_json();
  std::string read_json_value();
  void end_json();

  bool read_csv_record();
  void read_csv_header();

  bool counts_changes() const {
    return format_ == InputFormat::null || format_ == InputFormat::json;
  }
  [[noreturn]] void refuse(const std::string& reason) const;

  Input* input_;
  const FormatOptions* options_;
  InputFormat format_;
  bool has_begun_ = false;
  std::uint64_t line_number_ = 0;
  std::string key_;
  std::string value_;
  // json:
  bool is_array_ = false;
  bool has_ended_ = false;
  // csv:
  std::uint64_t lines_read_ = 0;
  std::vector<std::string> fields_;
  std::size_t field_count_ = 0;
  std::size_t column_count_ = 0;
  std::size_t key_index_ = 0;
  std::size_t value_index_ = 0;
};

}  // namespace whycache::cli
