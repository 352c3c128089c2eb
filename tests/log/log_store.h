// The access of the contract suite (log_contract.h) to a log under test.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>

#include <gtest/gtest.h>
#include <whycache/log.h>

namespace whycache {

// Gives the suite access to the log under test. Every test has its own store, which is empty at
// first.
class LogStore {
 public:
  virtual ~LogStore() = default;

  // Opens the log in this store. A second call opens the same log through an object that shares
  // only the store with the first.
  virtual std::unique_ptr<Log> open() = 0;

  // Optional capabilities. Tests that need a missing one are skipped.

  // Whether open() in a forked child opens the parent's log.
  virtual bool is_shared_by_processes() const { return false; }
  // Whether the store may still run a request of a killed process for a moment, as a server does.
  virtual bool outlives_killed_clients() const { return false; }
  // Whether the log must be able to wake its waiters in this store. False skips the tests of that
  // if Log::notifies() says no.
  virtual bool must_notify() const { return false; }
  // Opens another log in the same store. Returns nullptr if the store holds only one log.
  virtual std::unique_ptr<Log> open_other_instance() { return nullptr; }
  // Deletes the log without using it, as an administrator would. The next open() creates a new one.
  // Returns false if unsupported.
  virtual bool delete_externally() { return false; }
  // Stores an update where append() never would. Returns false if unsupported.
  virtual bool put_stray(UpdateId, std::string_view) { return false; }
  // Returns the number of stored updates, including strays. Returns nullopt if unsupported.
  virtual std::optional<std::uint64_t> stored_updates() { return std::nullopt; }
};

struct LogUnderTest {
  std::string name;
  std::function<std::unique_ptr<LogStore>()> make_store;
  // How many appends the concurrent writers of a test make in total. A thousand is enough; a log
  // behind a slow network may need fewer.
  unsigned concurrent_append_count = 4000;

  static std::string name_of(const ::testing::TestParamInfo<LogUnderTest>& info) {
    return info.param.name;
  }
  friend std::ostream& operator<<(std::ostream& out, const LogUnderTest& log) {
    return out << log.name;
  }
};

}  // namespace whycache
