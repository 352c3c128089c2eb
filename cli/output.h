// Standard output: data and nothing else. Messages go to standard error.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace whycache::cli {

// Fields come out in the order they were put in.
using Json = nlohmann::ordered_json;

// Collects what is written and passes it on in large pieces. A write that fails (full disk, closed
// descriptor) throws Failure; a reader that has gone away (`whycache scan | head`) ends the process
// by SIGPIPE, as a pipeline expects.
class Output {
 public:
  Output() = default;
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void write(std::string_view bytes);
  // Adds the line feed.
  void write_line(std::string_view text);
  // One object on a line. Strings in it have to be valid UTF-8, see put_bytes().
  void write_json(const Json& object);

  // Passes on what was collected; for somebody who is looking.
  void flush();
  // The last flush. Closes standard output, because some file systems tell of a failed write only
  // then.
  void close();

  // Whether a person is looking.
  static bool is_terminal();

 private:
  std::string buffer_;
};

// Sets `field` if `bytes` are valid UTF-8, else `field`_base64.
void put_bytes(Json& object, const std::string& field, std::string_view bytes);

// A line on standard error: "whycache: ..." and, indented on the next line, what to do about it.
void print_message(std::string_view message, std::string_view next = {});

}  // namespace whycache::cli
