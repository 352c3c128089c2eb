// Helpers of the tests of logs in database servers (mysql_*_test.cc, postgres_*_test.cc).
#pragma once

#include <gtest/gtest.h>
#include <whycache/cache.h>
#include <whycache/log.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

#include "log/child.h"
#include "log/log_helpers.h"
#include "support/certificate_authority.h"
#include "support/seed.h"
#include "support/temporary_directory.h"
#include "support/thrown_error.h"

namespace whycache {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::CertificateAuthority;
using testing::expect_error;
using testing::TemporaryDirectory;
using testing::thrown_error;

// Appends `bytes`, which must be unique in the log, exactly once: retries while the log is
// unavailable, and reads it after an uncertain append.
inline void append_until_acknowledged(Log& log, const std::string& bytes) {
  std::optional<UpdateId> uncertain_from;
  for (;;) {
    try {
      // An append that was uncertain may still be executed, until another update takes its id.
      const UpdateId head = log.extent().head;
      if (uncertain_from) {
        const Updates since = updates_of(log, *uncertain_from);
        if (std::any_of(since.begin(), since.end(),
                        [&](const auto& update) { return update.second == bytes; }))
          return;
        if (head > *uncertain_from) uncertain_from.reset();
      }
      // Read from the head itself: a log with a new connection requires that before an append.
      if (!uncertain_from) uncertain_from = head;
      if (log.append(head + 1, bytes) == Appended::yes) return;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::unavailable && error.kind() != ErrorKind::uncertain) throw;
      std::this_thread::sleep_for(milliseconds(10));
    }
  }
}

inline milliseconds measure_duration(const std::function<void()>& call) {
  const auto began = steady_clock::now();
  call();
  return std::chrono::duration_cast<milliseconds>(steady_clock::now() - began);
}

inline bool becomes_true_within(milliseconds timeout, const std::function<bool()>& what) {
  const auto end = steady_clock::now() + timeout;
  while (!what()) {
    if (steady_clock::now() > end) return false;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return true;
}

inline std::string replace_all(std::string text, const std::string& what, const std::string& with) {
  for (std::size_t at = text.find(what); at != std::string::npos;
       at = text.find(what, at + with.size()))
    text.replace(at, what.size(), with);
  return text;
}

// Options of a cache with its own state file.
inline Options options_for(const TemporaryDirectory& directory, const std::string& name) {
  Options options;
  options.state_path = directory.file(name);
  options.any_file_system = true;
  return options;
}

}  // namespace whycache
