// Standard output: data and nothing else. Messages go to standard error.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace whycache::cli {

// Preserves the insertion order of fields.
using Json = nlohmann::ordered_json;

// Buffers output and writes it in large chunks. A failed write (full disk, closed descriptor)
// throws Failure. If the reader has closed the pipe (`whycache scan | head`), SIGPIPE ends the
// process, as a pipeline expects.
class Output {
 public:
  Output() = default;
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  void write(std::string_view bytes);
  // Appends a line feed.
  void write_line(std::string_view text);
  // Writes one object on a line. Its strings must be valid UTF-8; see put_bytes().
  void write_json(const Json& object);

  // Writes the buffered output, for readers that wait for it.
  void flush();
  // Flushes and closes standard output: some file systems report a failed write only then.
  void close();

  static bool is_terminal();

 private:
  std::string buffer_;
};

// Sets `field` if `bytes` is valid UTF-8, else `field`_base64.
void put_bytes(Json& object, const std::string& field, std::string_view bytes);

// Prints "whycache: MESSAGE" on standard error and, indented on the next line, the next step.
void print_message(std::string_view message, std::string_view next_step = {});

}  // namespace whycache::cli
