// A disk that fills up beneath the database of a log. Needs root (root_tests.h).
#pragma once

#include <whycache/cache.h>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <random>
#include <string>

#include "base/file.h"
#include "log/root_tests.h"
#include "log/server_test_support.h"

namespace whycache {

// Fills the disk that contains the file up to `bytes_left`. Others may write there meanwhile.
inline void fill_disk(const std::string& filler, std::size_t bytes_left) {
  const std::filesystem::path directory = std::filesystem::path(filler).parent_path();
  const std::size_t available = std::filesystem::space(directory).available;
  require(available > bytes_left, "there is room to fill");
  const std::string bytes(std::size_t{1} << 20, 'x');
  const FileDescriptor file(::open(filler.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  require(static_cast<bool>(file), "create the file that fills the disk");
  for (std::size_t written = 0; written + bytes_left < available;) {
    const std::size_t wanted = std::min(bytes.size(), available - bytes_left - written);
    const ssize_t size = ::write(file.number(), bytes.data(), wanted);
    if (size < 0 && errno == ENOSPC && bytes_left == 0) return;
    require(size > 0, "fill the disk");
    written += static_cast<std::size_t>(size);
  }
}

// Returns random bytes, which no compression makes smaller.
inline std::string incompressible_bytes(std::size_t bytes) {
  static std::mt19937_64 random(testing::test_seed());
  std::string text(bytes, '\0');
  for (char& byte : text) byte = static_cast<char>(random());
  return text;
}

// Writes to the log at `url` until its disk, which contains `filler`, is full, makes room, and
// writes again; three times. The values are small, because some versions of InnoDB abort if a large
// value does not fit. Throws unless each refused write is Error(limit), and every machine has
// exactly the acknowledged ones.
inline void write_on_full_disk(const std::string& url, const TemporaryDirectory& directory,
                               const std::string& filler, std::size_t bytes_left) {
  Cache writer(url, options_for(directory, "writer"));
  Cache other(url, options_for(directory, "other"));
  std::map<std::string, std::string> expected;
  for (int round = 0; round < 3; ++round) {
    fill_disk(filler, bytes_left);
    std::optional<Error> error;
    for (int i = 0; i < 10'000 && !error; ++i) {
      const std::string key = "key " + std::to_string(round * 10'000 + i);
      const std::string value = incompressible_bytes(3000);
      error = thrown_error(
          [&] { writer.set(key, value, {.note = {}, .deadline = milliseconds(500)}); });
      if (!error) expected[key] = value;
    }
    require(error.has_value(), "a full disk refuses a write");
    require(error->kind() == ErrorKind::limit, error->what());
    require(error->system_error() == ENOSPC, "ENOSPC");
    require(other.update() == expected.size() && writer.applied_id() == expected.size(),
            "ids on a full disk");
    for (const auto& [key, value] : expected) require(other.get(key) == value, key);
    require(other.size() == expected.size(), "no other keys");

    std::filesystem::remove(filler);
    writer.set("room " + std::to_string(round), "room");
    expected["room " + std::to_string(round)] = "room";
  }
  require(other.update() == writer.applied_id() && other.digest() == writer.digest(), "digests");
}

}  // namespace whycache
