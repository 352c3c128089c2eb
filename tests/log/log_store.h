// What the contract suite (log_contract.h) has to know about a log to play its stories with it.
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

// How the suite gets at the log under test. Every story has a store of its own, empty to begin
// with.
class LogStore {
 public:
  virtual ~LogStore() = default;

  // The log in this store. Opened again, it is the same log through an object that shares nothing
  // with the first but the store.
  virtual std::unique_ptr<Log> open() = 0;

  // What not every store can do; stories that need it are skipped.

  // Whether open() in a forked child opens the parent's log.
  virtual bool is_shared_by_processes() const { return false; }
  // Whether the store may go on for a moment with what a process asked for that was killed: a
  // server does.
  virtual bool outlives_killed_clients() const { return false; }
  // Another log in the same store.
  virtual std::unique_ptr<Log> open_other_instance() { return nullptr; }
  // Deletes the log as a person would; the next open() makes another. False: cannot.
  virtual bool delete_externally() { return false; }
  // Puts an update where append() never would. False: cannot.
  virtual bool put_stray(UpdateId, std::string_view) { return false; }
  // How many updates lie in the store, strays and all.
  virtual std::optional<std::uint64_t> stored_updates() { return std::nullopt; }
};

struct LogUnderTest {
  std::string name;
  std::function<std::unique_ptr<LogStore>()> make_store;
  // How many appends the crowds make together. A thousand is plenty; a log behind a slow network
  // may want fewer.
  unsigned concurrent_append_count = 4000;

  static std::string name_of(const ::testing::TestParamInfo<LogUnderTest>& info) {
    return info.param.name;
  }
  friend std::ostream& operator<<(std::ostream& out, const LogUnderTest& log) {
    return out << log.name;
  }
};

}  // namespace whycache
