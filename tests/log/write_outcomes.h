// Shared by the tests of logs behind connections that are cut: mysql_cuts_test.cc,
// postgres_cuts_test.cc.
#pragma once

#include <gtest/gtest.h>
#include <whycache/error.h>
#include <whycache/types.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "support/child_process.h"
#include "support/seed.h"
#include "support/tcp_proxy.h"

namespace whycache {

// The outcomes that writers got for their writes. Each write has a unique text.
class WriteOutcomes {
 public:
  void record_acknowledged(const std::string& text, UpdateId id) {
    const std::lock_guard guard(mutex_);
    acknowledged_[text] = id;
  }
  void record_refused(const std::string& text) {
    const std::lock_guard guard(mutex_);
    refused_.push_back(text);
  }
  // `unavailable` guarantees that nothing was written; `uncertain` guarantees nothing.
  void record_failure(const std::string& text, const Error& error) {
    if (error.kind() == ErrorKind::unavailable) {
      record_refused(text);
      ++unavailable_count;
    } else if (error.kind() == ErrorKind::uncertain) {
      ++uncertain_count;
    } else {
      ADD_FAILURE() << text << ": " << to_string(error.kind()) << ": " << error.what();
    }
  }

  // `found`: the ids at which each text is in the log.
  void expect_consistent_with(const std::map<std::string, std::vector<UpdateId>>& found) const {
    std::uint64_t lost = 0;
    std::uint64_t doubled = 0;
    std::uint64_t unexpected = 0;
    for (const auto& [text, ids] : found) doubled += ids.size() > 1;
    for (const auto& [text, id] : acknowledged_) {
      const auto place = found.find(text);
      const bool is_there = place != found.end() && place->second.front() == id;
      if (!is_there && ++lost <= 3)
        ADD_FAILURE() << "acknowledged, but not in the log: " << text << " id=" << id;
    }
    for (const std::string& text : refused_) {
      if (found.contains(text) && ++unexpected <= 3)
        ADD_FAILURE() << "refused, but in the log: " << text;
    }
    EXPECT_EQ(doubled, 0U);
    EXPECT_GT(acknowledged_.size(), 0U);
    EXPECT_GT(unavailable_count.load(), 0U);
    EXPECT_GT(uncertain_count.load(), 0U);
    std::printf(
        "acknowledged=%zu unavailable=%u uncertain=%u lost=%llu doubled=%llu unexpected=%llu\n",
        acknowledged_.size(), unavailable_count.load(), uncertain_count.load(),
        static_cast<unsigned long long>(lost), static_cast<unsigned long long>(doubled),
        static_cast<unsigned long long>(unexpected));
  }

  std::atomic<unsigned> unavailable_count{0};
  std::atomic<unsigned> uncertain_count{0};

 private:
  std::mutex mutex_;
  std::map<std::string, UpdateId> acknowledged_;
  std::vector<std::string> refused_;
};

// Cuts a connection at a random byte of one direction.
inline testing::TcpProxy::ConnectionFaults random_cut(std::mt19937_64& random) {
  testing::TcpProxy::ConnectionFaults faults;
  const std::uint64_t bytes_max = random() % 4 == 0 ? 20'000 : 2'500;
  (random() % 2 == 0 ? faults.to_server : faults.to_client).cut_after = random() % bytes_max;
  faults.cut_by_reset = random() % 2 == 0;
  if (random() % 16 == 0) faults.to_client.chunk_bytes_max = 1 + random() % 7;
  return faults;
}

// Retries while the log is unavailable or the outcome is uncertain. Rethrows any other error.
template <typename Call>
auto retry_until_success(const Call& call) {
  for (;;) {
    try {
      return call();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::unavailable && error.kind() != ErrorKind::uncertain) throw;
    }
  }
}

inline std::uint64_t cut_count_min() {
  return testing::number_from_environment("WHYCACHE_CUTS", 6000) / 2;
}

}  // namespace whycache
