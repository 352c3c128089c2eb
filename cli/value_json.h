// Typed values as JSON, and back: docs/formats/value.md has the notation. It keeps every value
// exactly; objects with one name that begins with $ stand for what JSON lacks.
#pragma once

#include <string>
#include <string_view>

#include "cli/output.h"

namespace whycache::cli {

// Throws Error(corrupt) if the bytes are not those of a value.
Json value_to_json(std::string_view value);
// Throws Failure if no value has this form.
std::string value_from_json(const Json& json);

// Parses JSON without losing what values keep: integers of any size become $int, and equal names
// in an object are refused. Throws Failure.
Json parse_value_json(std::string_view text);

// Returns the value of a type that `text` denotes, as it is to be stored. Types: json, str, int,
// float, bool, bytes, decimal, uuid, date, time, datetime, timedelta. Throws Failure.
std::string parse_value(const std::string& type, std::string_view text);

// Whether values are printed as they are stored, or typed values as JSON.
enum class ValueForm : bool { typed, raw };

// Sets "value", or "value_base64" for bytes that are not UTF-8. Of a typed value, "value" is its
// JSON, and "typed" is true. One that cannot be read is put as its bytes, and "undecodable" says
// why.
void put_value(Json& object, std::string_view value, ValueForm form);
// Returns JSON on one line, in which all control characters are escaped, also those that JSON
// permits and terminals interpret.
std::string json_line(const Json& json);
// Returns the escaped bytes of a plain value, the JSON of a typed one.
std::string value_to_line(std::string_view value, ValueForm form);

}  // namespace whycache::cli
