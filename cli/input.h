// What a command reads: a file, or standard input when the name is "-".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace whycache::cli {

class Input {
 public:
  // Throws Failure.
  explicit Input(const std::string& name);
  ~Input();
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  // The next piece up to `separator`, which is not part of it; the last one needs none. False at
  // the end. The piece is valid until the next call. Throws Failure for a piece of more than
  // `bytes_max`.
  bool read_record(char separator, std::size_t bytes_max, std::string_view& piece);
  // All that is left. Throws Failure for more than `bytes_max`.
  std::string read_rest(std::size_t bytes_max);

  // "standard input", or the file's name: for messages.
  const std::string& name() const { return name_; }
  std::uint64_t bytes_read() const { return bytes_read_; }
  // Size of the file; 0 if nobody can know.
  std::uint64_t bytes_total() const { return bytes_total_; }

 private:
  bool fill_buffer();

  std::string name_;
  int descriptor_;
  std::string buffer_;
  std::size_t begin_ = 0;  // of what was not handed out
  bool at_end_ = false;
  std::uint64_t records_read_ = 0;
  std::uint64_t bytes_read_ = 0;
  std::uint64_t bytes_total_ = 0;
};

}  // namespace whycache::cli
