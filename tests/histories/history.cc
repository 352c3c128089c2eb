#include "histories/history.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <sstream>
#include <stdexcept>

namespace whycache::testing {
namespace {

std::string to_text(const KeyValues& key_values) {
  if (key_values.empty()) return "-";
  std::string text;
  for (const auto& [key, value] : key_values) {
    if (!text.empty()) text += ',';
    text += key;
    if (value) text += '=' + *value;
  }
  return text;
}

KeyValues parse_key_values(const std::string& text) {
  KeyValues key_values;
  if (text == "-") return key_values;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    const std::size_t at = word.find('=');
    if (at == std::string::npos) {
      key_values.emplace_back(word, std::nullopt);
    } else {
      key_values.emplace_back(word.substr(0, at), word.substr(at + 1));
    }
  }
  return key_values;
}

std::optional<Digest> to_digest(const std::string& text) {
  if (text == "-") return std::nullopt;
  std::istringstream words(text);
  Digest digest;
  char colon = 0;
  words >> digest.low >> colon >> digest.high;
  if (!words || colon != ':') throw std::runtime_error("not a digest: " + text);
  return digest;
}

Write::Answer answer_of(const std::string& kind) {
  if (kind == to_string(ErrorKind::uncertain)) return Write::Answer::uncertain;
  for (const ErrorKind known : {ErrorKind::invalid, ErrorKind::limit, ErrorKind::unavailable,
                                ErrorKind::conflict, ErrorKind::refused, ErrorKind::corrupt}) {
    if (kind == to_string(known)) return Write::Answer::nothing_written;
  }
  throw std::runtime_error("not an error kind: " + kind);
}

}  // namespace

std::int64_t now_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

std::string_view token_of(std::string_view value) { return value.substr(0, value.find('.')); }

// --- Writing. ---

HistoryWriter::HistoryWriter(const std::string& path)
    : file_(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) {
  if (file_ < 0) throw std::runtime_error("cannot open history " + path);
}

HistoryWriter::~HistoryWriter() { ::close(file_); }

void HistoryWriter::write_line(const std::string& line) {
  if (::write(file_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
    throw std::runtime_error("cannot write history");
  }
}

std::uint64_t HistoryWriter::begin_write() {
  write_line("call " + std::to_string(++sequence_) + ' ' + std::to_string(now_ns()) + '\n');
  return sequence_;
}

void HistoryWriter::record_attempt(std::uint64_t sequence, const Attempt& attempt) {
  write_line("try " + std::to_string(sequence) + ' ' + attempt.token + ' ' +
             to_text(attempt.reads) + ' ' + to_text(attempt.changes) + '\n');
}

void HistoryWriter::record_acknowledged(std::uint64_t sequence, UpdateId id) {
  write_line("done " + std::to_string(sequence) + ' ' + std::to_string(now_ns()) + ' ' +
             std::to_string(id) + '\n');
}

void HistoryWriter::record_failure(std::uint64_t sequence, const Error& error) {
  write_line("failed " + std::to_string(sequence) + ' ' + std::to_string(now_ns()) + ' ' +
             to_string(error.kind()) + '\n');
}

void HistoryWriter::record_read(const Observation& seen) {
  const std::string digest =
      seen.digest ? std::to_string(seen.digest->low) + ':' + std::to_string(seen.digest->high)
                  : "-";
  write_line("saw " + std::to_string(seen.began_ns) + ' ' + std::to_string(seen.ended_ns) + ' ' +
             std::to_string(seen.first) + ' ' + std::to_string(seen.last) + ' ' + digest + ' ' +
             std::to_string(seen.at_least) + ' ' + to_text(seen.key_values) + '\n');
}

void HistoryWriter::record_unexpected(const std::string& message) {
  std::string line = "strange " + message;
  std::replace(line.begin(), line.end(), '\n', ' ');
  write_line(line + '\n');
}

// --- Reading. ---

History read_history(std::istream& lines, const std::string& process, const std::string& machine) {
  History history{.process = process, .machine = machine};
  for (std::string line; std::getline(lines, line);) {
    if (lines.eof()) break;  // truncated: the write(2) of the line was interrupted
    std::istringstream words(line);
    std::string keyword;
    words >> keyword;
    const auto reject_line = [&] {
      throw std::runtime_error(process + ": not a line of a history: " + line);
    };
    const auto find_write = [&]() -> Write& {
      std::uint64_t sequence = 0;
      words >> sequence;
      if (!words || sequence == 0 || sequence > history.writes.size()) reject_line();
      return history.writes[sequence - 1];
    };
    if (keyword == "call") {
      Write write;
      words >> write.sequence >> write.began_ns;
      if (write.sequence != history.writes.size() + 1) reject_line();
      history.writes.push_back(write);
    } else if (keyword == "try") {
      Write& write = find_write();
      Attempt attempt;
      std::string reads;
      std::string changes;
      words >> attempt.token >> reads >> changes;
      attempt.reads = parse_key_values(reads);
      attempt.changes = parse_key_values(changes);
      write.attempts.push_back(std::move(attempt));
    } else if (keyword == "done") {
      Write& write = find_write();
      words >> write.ended_ns >> write.id;
      write.answer = Write::Answer::acknowledged;
      history.ids.push_back(write.id);
    } else if (keyword == "failed") {
      Write& write = find_write();
      std::string kind;
      words >> write.ended_ns >> kind;
      write.answer = answer_of(kind);
    } else if (keyword == "saw") {
      Observation seen;
      std::string digest;
      std::string key_values;
      words >> seen.began_ns >> seen.ended_ns >> seen.first >> seen.last >> digest >>
          seen.at_least >> key_values;
      seen.digest = to_digest(digest);
      seen.key_values = parse_key_values(key_values);
      history.ids.insert(history.ids.end(), {seen.first, seen.last});
      history.observations.push_back(std::move(seen));
    } else if (keyword == "strange") {
      history.unexpected.push_back(line.substr(keyword.size() + 1));
    } else {
      reject_line();
    }
    if (!words) reject_line();
  }
  return history;
}

}  // namespace whycache::testing
