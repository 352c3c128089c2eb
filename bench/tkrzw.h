// The common part of the two Tkrzw subjects: a database file that is open for writing until
// close(). Then it is opened only for reading, so that several processes can have it open.
#pragma once

#include <sys/stat.h>
#include <tkrzw_dbm.h>

#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "bench/subject.h"

namespace bench {

template <typename Database>
class Tkrzw {
 public:
  static constexpr bool writer_excludes_readers = true;
  using Tuning = typename Database::TuningParameters;

  Tkrzw(const std::string& path, const Tuning& tuning) : path_(path), tuning_(tuning) {
    open_database(true);
  }
  Tkrzw(const Tkrzw&) = delete;
  Tkrzw& operator=(const Tkrzw&) = delete;
  ~Tkrzw() {
    if (database_.IsOpen()) database_.Close();  // close() might throw
  }

  void open() { open_database(false); }
  void close() {
    if (database_.IsOpen()) check(database_.Close(), "close");
  }

  void set(std::span<const Item> items) {
    if (!database_.IsOpen() || !database_.IsWritable()) {
      close();
      open_database(true);
    }
    for (const Item& item : items) check(database_.Set(item.key, item.value), "set");
  }

  bool get(std::string_view key, std::string& value) {
    return database_.Get(key, &value) == tkrzw::Status::SUCCESS;
  }
  std::size_t get_multi(std::span<const std::string_view> keys,
                        std::span<std::optional<std::string>> values) {
    return get_each(*this, keys, values);
  }

  std::uint64_t external_bytes() const {
    struct stat status;
    return ::stat(path_.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_blocks) * 512
                                               : 0;
  }

 protected:
  Database& database() { return database_; }

  static void check(const tkrzw::Status& status, const char* what) {
    if (status != tkrzw::Status::SUCCESS)
      throw std::runtime_error(std::string("tkrzw: ") + what + ": " + tkrzw::ToString(status));
  }

 private:
  void open_database(bool writable) {
    check(database_.OpenAdvanced(path_, writable, tkrzw::File::OPEN_DEFAULT, tuning_), "open");
  }

  std::string path_;
  Tuning tuning_;
  Database database_;
};

}  // namespace bench
