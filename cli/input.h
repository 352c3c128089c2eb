// The input of a command: a file, or standard input if the name is "-".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace whycache::cli {

class Input {
 public:
  // Throws Failure if the file cannot be opened.
  explicit Input(const std::string& name);
  ~Input();
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  // Reads the next record, without the `separator` that ends it; the last one needs none. Returns
  // false at the end. The record is valid until the next call. Throws Failure if the record is
  // longer than `bytes_max` or cannot be read.
  bool read_record(char separator, std::size_t bytes_max, std::string_view& record);
  // Reads the rest of the input. Throws Failure if it is longer than `bytes_max`.
  std::string read_rest(std::size_t bytes_max);

  // Returns "standard input" or the name of the file, for messages.
  const std::string& name() const { return name_; }
  std::uint64_t bytes_read() const { return bytes_read_; }
  // Returns the size of the file; 0 if it is unknown.
  std::uint64_t bytes_total() const { return bytes_total_; }

 private:
  bool fill_buffer();

  std::string name_;
  int descriptor_;
  std::string buffer_;
  std::size_t begin_ = 0;  // of the unread bytes in buffer_
  bool at_end_ = false;
  std::uint64_t records_read_ = 0;
  std::uint64_t bytes_read_ = 0;
  std::uint64_t bytes_total_ = 0;
};

}  // namespace whycache::cli
