// The servers of the tiers, memcached and Redis, for tests of what both promise. They reach the
// items of a log without the library.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <whycache/types.h>

#include "log/tier_store.h"

namespace whycache::testing {

enum class TierKind { memcached, redis };

std::string name_of(TierKind kind);
inline std::ostream& operator<<(std::ostream& out, TierKind kind) { return out << name_of(kind); }

// Returns the kinds that this build has and whose servers are installed. Says which are not.
std::vector<TierKind> tier_kinds();

// Returns `kind`, if it is one of them.
std::vector<TierKind> only(TierKind kind);
// Names a parameter of a test.
inline std::string name_of_kind(const ::testing::TestParamInfo<TierKind>& info) {
  return name_of(info.param);
}

// `addresses`: several with commas between, if the kind allows it.
MakeTierStore make_tier(TierKind kind, const std::string& addresses,
                        std::chrono::milliseconds timeout);
// Returns what the URL of a log begins and ends with.
std::string tiered_url(TierKind kind, const std::string& url, const std::string& address);

class TierServer {
 public:
  // `options`: of the kind's server class.
  static std::unique_ptr<TierServer> start_new(TierKind kind, std::vector<std::string> options = {},
                                               bool by_socket = false);
  // The server that all tests of this process share.
  static TierServer& shared(TierKind kind);

  virtual ~TierServer() = default;

  virtual TierKind kind() const = 0;
  virtual std::string address() const = 0;
  virtual void start() = 0;  // without items, on the same port
  virtual void kill() = 0;
  virtual void pause() = 0;
  virtual void resume() = 0;

  // The items of the log with this prefix (tiered_item_prefix()).
  virtual std::optional<std::string> head(const std::string& prefix) = 0;
  virtual void set_head(const std::string& prefix, const std::string& bytes) = 0;
  virtual void remove_head(const std::string& prefix) = 0;
  virtual std::optional<std::string> update(const std::string& prefix, UpdateId id) = 0;
  virtual void set_update(const std::string& prefix, UpdateId id, const std::string& bytes) = 0;
  virtual void remove_update(const std::string& prefix, UpdateId id) = 0;
  virtual void remove_fill_lease(const std::string& prefix, UpdateId id) = 0;

  virtual void flush_all() = 0;
  virtual std::uint64_t item_count() = 0;
  virtual std::uint64_t evictions() = 0;
  // How many requests have found their key since the server started.
  virtual std::uint64_t hits() = 0;
};

}  // namespace whycache::testing
