// Histories: what each process did and was told, in its own words, in a file that outlives it.
//
// A line is written by one write(2) to a file opened for appending before what it tells of begins,
// or after it has ended; so when the process is killed at any moment, every line it wrote is there,
// and at most the last is cut short.
//
//   call SEQUENCE NOW                            a write begins
//   try SEQUENCE TOKEN READS CHANGES             and is tried (a transaction perhaps several times)
//   done SEQUENCE NOW ID                         it was acknowledged
//   failed SEQUENCE NOW KIND                     it was not: the kind of the Error
//   saw BEGAN NOW FIRST LAST DIGEST ASKED FACTS  a read: as of an id in FIRST..LAST; ASKED: the id it had to be beyond,
//   or 0 strange TEXT                                 what must not happen at all
//
// READS, CHANGES and FACTS are KEY=VALUE, or KEY alone for an absent or erased key, with commas in
// between, or "-". A token is different for every try; the values that a try sets begin with it, up
// to a '.'.
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

// Keys with what was read there, or is written there; nullopt: absent, erased.
using KeyValues = std::vector<std::pair<std::string, std::optional<std::string>>>;

// One time that a write was tried: what it had read, if that matters, and what it wrote.
struct Attempt {
  std::string token;
  KeyValues reads;
  KeyValues changes;
};

struct Write {
  enum class Answer {
    none,             // the process died first
    acknowledged,     // it is in the log, at `id`
    nothing_written,  // it is not
    uncertain,
  };
  std::uint64_t sequence = 0;
  std::int64_t began_ns = 0;  // CLOCK_MONOTONIC, as all times here
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

// Of one process, from its start to its end.
struct History {
  std::string process;
  std::string machine;
  std::vector<Write> writes{};
  std::vector<Observation> observations{};
  // All ids it was told, in that order.
  std::vector<UpdateId> ids{};
  std::vector<std::string> unexpected{};
};

std::int64_t now_ns();

// The token that a value begins with.
std::string_view token_of(std::string_view value);

// Writes the history of the process it is used in. Throws std::runtime_error if that fails.
class HistoryWriter {
 public:
  explicit HistoryWriter(const std::string& path);
  HistoryWriter(const HistoryWriter&) = delete;
  HistoryWriter& operator=(const HistoryWriter&) = delete;
  ~HistoryWriter();

  // Returns its sequence.
  std::uint64_t begin_write();
  void record_attempt(std::uint64_t sequence, const Attempt& attempt);
  void record_acknowledged(std::uint64_t sequence, UpdateId id);
  void record_failure(std::uint64_t sequence, const Error& error);
  void record_read(const Observation& observation);
  void record_unexpected(const std::string& what);

 private:
  void write_line(const std::string& line);

  int file_;
  std::uint64_t sequence_ = 0;
};

// Reads what a HistoryWriter wrote. Throws std::runtime_error if it is anything else.
History read_history(std::istream& lines, const std::string& process, const std::string& machine);

}  // namespace whycache::testing
