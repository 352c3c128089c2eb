#include "histories/history.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <sstream>
#include <stdexcept>

namespace whycache::testing {
namespace {

std::string to_text(const KeyValues& facts) {
  if (facts.empty()) return "-";
  std::string text;
  for (const auto& [key, value] : facts) {
    if (!text.empty()) text += ',';
    text += key;
    if (value) text += '=' + *value;
  }
  return text;
}

KeyValues to_facts(const std::string& text) {
  KeyValues facts;
  if (text == "-") return facts;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    const std::size_t at = word.find('=');
    if (at == std::string::npos) {
      facts.emplace_back(word, std::nullopt);
    } else {
      facts.emplace_back(word.substr(0, at), word.substr(at + 1));
    }
  }
  return facts;
}

std::optional<Digest> to_digest(const std::string& text) {
  if (text == "-") return std::nullopt;
  std::istringstream words(text);
  Digest digest;
  char colon = 0;
  words >> digest.low >> colon >> digest.high;
  if (!words || colon != ':') throw std::runtime_error("no digest: " + text);
  return digest;
}

Write::Answer answer_of(const std::string& kind) {
  if (kind == to_string(ErrorKind::uncertain)) return Write::Answer::uncertain;
  for (const ErrorKind known : {ErrorKind::invalid, ErrorKind::limit, ErrorKind::unavailable,
                                ErrorKind::conflict, ErrorKind::refused, ErrorKind::corrupt}) {
    if (kind == to_string(known)) return Write::Answer::nothing_written;
  }
  throw std::runtime_error("no kind of an error: " + kind);
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

void HistoryWriter::record_unexpected(const std::string& what) {
  std::string line = "strange " + what;
  std::replace(line.begin(), line.end(), '\n', ' ');
  write_line(line + '\n');
}

// --- Reading. ---

History read_history(std::istream& lines, const std::string& process, const std::string& machine) {
  History history{.process = process, .machine = machine};
  for (std::string line; std::getline(lines, line);) {
    if (lines.eof()) break;  // cut short: it was not written
    std::istringstream words(line);
    std::string what;
    words >> what;
    const auto give_up = [&] {
      throw std::runtime_error(process + ": not a line of a history: " + line);
    };
    const auto write_told_of = [&]() -> Write& {
      std::uint64_t sequence = 0;
      words >> sequence;
      if (!words || sequence == 0 || sequence > history.writes.size()) give_up();
      return history.writes[sequence - 1];
    };
    if (what == "call") {
      Write write;
      words >> write.sequence >> write.began_ns;
      if (write.sequence != history.writes.size() + 1) give_up();
      history.writes.push_back(write);
    } else if (what == "try") {
      Write& write = write_told_of();
      Attempt attempt;
      std::string reads;
      std::string changes;
      words >> attempt.token >> reads >> changes;
      attempt.reads = to_facts(reads);
      attempt.changes = to_facts(changes);
      write.attempts.push_back(std::move(attempt));
    } else if (what == "done") {
      Write& write = write_told_of();
      words >> write.ended_ns >> write.id;
      write.answer = Write::Answer::acknowledged;
      history.ids.push_back(write.id);
    } else if (what == "failed") {
      Write& write = write_told_of();
      std::string kind;
      words >> write.ended_ns >> kind;
      write.answer = answer_of(kind);
    } else if (what == "saw") {
      Observation seen;
      std::string digest;
      std::string facts;
      words >> seen.began_ns >> seen.ended_ns >> seen.first >> seen.last >> digest >>
          seen.at_least >> facts;
      seen.digest = to_digest(digest);
      seen.key_values = to_facts(facts);
      history.ids.insert(history.ids.end(), {seen.first, seen.last});
      history.observations.push_back(std::move(seen));
    } else if (what == "strange") {
      history.unexpected.push_back(line.substr(what.size() + 1));
    } else {
      give_up();
    }
    if (!words) give_up();
  }
  return history;
}

}  // namespace whycache::testing
