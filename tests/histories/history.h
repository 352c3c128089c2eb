// Histories: the calls of a process and their results, in a file that outlives the process.
//
// One write(2) to a file opened for appending writes a line, before the recorded call begins or
// after it has ended. If the process is killed at any moment, every line that it wrote is in the
// file, and at most the last one is truncated.
//
//   call SEQUENCE NOW                            a write begins
//   try SEQUENCE TOKEN READS CHANGES             one attempt; a transaction may have several
//   done SEQUENCE NOW ID                         the write was acknowledged
//   failed SEQUENCE NOW KIND                     the write threw an Error of this kind
//   saw BEGAN NOW FIRST LAST DIGEST ASKED FACTS  a read as of an id in FIRST..LAST
//   strange TEXT                                 an error that must never happen
//
// ASKED is the id that the read had to reach, or 0. READS, CHANGES and FACTS are lists of KEY=VALUE
// separated by commas, or "-"; KEY alone is an absent or erased key. Every attempt has a token of
// its own, and the values that it sets begin with the token, up to a '.'.
#pragma once

#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <whycache/error.h>
#include <whycache/types.h>

namespace whycache::testing {

// Keys with the values read or written; nullopt: absent or erased.
using KeyValues = std::vector<std::pair<std::string, std::optional<std::string>>>;

// One attempt of a write: its reads, if they matter, and its changes.
struct Attempt {
  std::string token;
  KeyValues reads;
  KeyValues changes;
};

struct Write {
  enum class Answer {
    none,             // the process died before
    acknowledged,     // the write is in the log at `id`
    nothing_written,  // the write is not in the log
    uncertain,
  };
  std::uint64_t sequence = 0;
  std::int64_t began_ns = 0;  // CLOCK_MONOTONIC, as are all times here
  std::int64_t ended_ns = 0;
  std::vector<Attempt> attempts{};
  Answer answer = Answer::none;
  UpdateId id = 0;
};

struct Observation {
  std::int64_t began_ns = 0;
  std::int64_t ended_ns = 0;
  UpdateId first = 0;
  UpdateId last = 0;
  std::optional<Digest> digest{};
  UpdateId at_least = 0;
  KeyValues key_values{};
};

// The history of one process, from its start to its exit.
struct History {
  std::string process;
  std::string machine;
  std::vector<Write> writes{};
  std::vector<Observation> observations{};
  // All ids returned to the process, in that order.
  std::vector<UpdateId> ids{};
  std::vector<std::string> unexpected{};
};

std::int64_t now_ns();

// Returns the token at the start of a value.
std::string_view token_of(std::string_view value);

// Writes the history of this process. Throws std::runtime_error if a write fails.
class HistoryWriter {
 public:
  explicit HistoryWriter(const std::string& path);
  HistoryWriter(const HistoryWriter&) = delete;
  HistoryWriter& operator=(const HistoryWriter&) = delete;
  ~HistoryWriter();

  // Returns the sequence number of the write.
  std::uint64_t begin_write();
  void record_attempt(std::uint64_t sequence, const Attempt& attempt);
  void record_acknowledged(std::uint64_t sequence, UpdateId id);
  void record_failure(std::uint64_t sequence, const Error& error);
  void record_read(const Observation& observation);
  void record_unexpected(const std::string& message);

 private:
  void write_line(const std::string& line);

  int file_;
  std::uint64_t sequence_ = 0;
};

// Reads the file of a HistoryWriter. Throws std::runtime_error if a line is malformed.
History read_history(std::istream& lines, const std::string& process, const std::string& machine);

}  // namespace whycache::testing
