// The input of a command: a file, or standard input if the name is "-".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace whycache::cli {

class Input {
 public:
  static constexpr int end_of_input = -1;

  // Throws Failure if the file cannot be opened.
  explicit Input(const std::string& name);
  ~Input();
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  // Reads the next record, without the `separator` that ends it; the last one needs none. Returns
  // false at the end. The record is valid until the next call. Throws Failure if the record is
  // longer than `bytes_max` or cannot be read.
  bool read_record(char separator, std::size_t bytes_max, std::string_view& record);
  // Returns up to `bytes_max` bytes that come next, and leaves them unread.
  std::string_view peek(std::size_t bytes_max);
  void skip(std::size_t bytes) { take(bytes); }
  // Returns the next byte, or end_of_input.
  int read_byte() {
    if (begin_ == buffer_.size() && !fill_buffer()) return end_of_input;
    ++bytes_read_;
    return static_cast<unsigned char>(buffer_[begin_++]);
  }
  // Returns the next byte without reading it, or end_of_input.
  int peek_byte() {
    if (begin_ == buffer_.size() && !fill_buffer()) return end_of_input;
    return static_cast<unsigned char>(buffer_[begin_]);
  }

  // Whether seek() works: the input is a file, or hold() was called.
  bool is_seekable() const { return is_seekable_; }
  // Copies the unread rest of an input that is not a file to a temporary file that has no name, in
  // TMPDIR or /tmp, so that it can be read twice. Throws Failure if it has no room.
  void hold();
  // The position of the next unread byte, for seek().
  std::uint64_t position() const { return position_ - (buffer_.size() - begin_); }
  void seek(std::uint64_t position);
  // Whether the unread rest of a seekable input has these bytes. Leaves it unread.
  bool contains(std::string_view bytes);

  // Reads the rest of the input. Throws Failure if it is longer than `bytes_max`.
  std::string read_rest(std::size_t bytes_max);

  // Returns "standard input" or the name of the file, for messages.
  const std::string& name() const { return name_; }
  std::uint64_t bytes_read() const { return bytes_read_; }
  // Returns the size of the file; 0 if it is unknown.
  std::uint64_t bytes_total() const { return bytes_total_; }

 private:
  bool fill_buffer();
  void take(std::size_t bytes) {
    begin_ += bytes;
    bytes_read_ += bytes;
  }

  std::string name_;
  int descriptor_;
  std::string buffer_;
  std::size_t begin_ = 0;  // of the unread bytes in buffer_
  bool at_end_ = false;
  bool is_seekable_ = false;
  std::uint64_t position_ = 0;  // of the descriptor, in a seekable input
  std::uint64_t records_read_ = 0;
  std::uint64_t bytes_read_ = 0;
  std::uint64_t bytes_total_ = 0;
};

}  // namespace whycache::cli
