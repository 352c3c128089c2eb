// Keeps what a tier knows of a log in memcached:
//
//   PREFIX u:ID      the bytes of update ID; with flag 1, empty: it is too large
//   PREFIX head      the head record
//   PREFIX ask       the poll lease
//   PREFIX fill:ID   the lease of the process that fetches update ID from the log
//
// A prefix has no spaces, as memcached's keys have none.
#pragma once

#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "log/memcached.h"
#include "log/tier_store.h"

namespace whycache {

class MemcachedStore final : public TierStore {
 public:
  MemcachedStore(const std::vector<MemcachedServer>& servers, std::chrono::milliseconds timeout)
      : memcached_(servers, timeout) {}

  bool is_available() const noexcept override { return memcached_.is_available(); }
  std::optional<HeadAndLease> get_head(const std::string& prefix) override;
  std::optional<std::vector<std::optional<StoredUpdate>>> get_updates(const std::string& prefix,
                                                                      UpdateId first,
                                                                      UpdateId last) override;
  Published publish(const std::string& prefix, std::span<const UpdateView> updates,
                    const std::optional<HeadChange>& change) override;
  bool set_poll_lease(const std::string& prefix, std::string_view lease,
                      std::chrono::seconds duration) override;
  bool add_poll_lease(const std::string& prefix, std::string_view lease,
                      std::chrono::seconds duration) override;
  bool add_fill_lease(const std::string& prefix, UpdateId id,
                      std::chrono::seconds duration) override;

 private:
  Memcached memcached_;
};

}  // namespace whycache
