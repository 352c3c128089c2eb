// The store of a tier: a server that is cheaper to ask than the log, memcached or Redis. The
// protocol is that of log/tiered_log.h, which is the only user. A store keeps:
//
//   the head record   replaced by compare-and-swap only
//   the poll lease    the process that adds it polls the log, no other does
//   fill leases       the process that adds the one of an update fetches it from the log
//   updates           the bytes of the last ones, by id
//
// A store may lose any of these at any time, and may hold wrong bytes. A failure is never an error:
// what was asked for is absent, and nothing was stored. Every function takes the prefix of the log
// (tiered_item_prefix()), which keeps logs apart.
//
// Threads: one thread at a time may make requests. The functions for waiting may be called by any
// thread at any time.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/types.h>

#include "base/call_limit.h"

namespace whycache {

class TierStore {
 public:
  struct StoredHead {
    std::string bytes;
    // With these bytes, differs in every head that there ever was; for publish().
    std::uint64_t version = 0;
  };
  struct HeadAndLease {
    std::optional<StoredHead> head;
    std::optional<std::string> poll_lease;
  };
  // An update without bytes is too large for the store.
  struct StoredUpdate {
    std::string bytes;
    bool is_too_large() const { return bytes.empty(); }
  };
  struct UpdateView {
    UpdateId id = 0;
    std::string_view bytes;
  };
  // A head record to store.
  struct HeadChange {
    std::optional<StoredHead> found;  // what it replaces; nullopt: there must be none
    UpdateId head = 0;                // what the record claims
    // Returns the record, which says when it was sent: called just before that, after the updates
    // were stored. Returns nullopt if it is too late to send it.
    std::function<std::optional<std::string>()> make_record;
  };
  enum class HeadResult {
    stored,
    not_stored,  // another head record is there
    failed,
  };
  struct Published {
    bool has_updates = false;  // whether the updates were stored
    HeadResult head = HeadResult::failed;
  };

  TierStore() = default;
  TierStore(const TierStore&) = delete;
  TierStore& operator=(const TierStore&) = delete;
  virtual ~TierStore() = default;

  // Whether a request may succeed: not for a while after a failure, and not in a forked child.
  virtual bool is_available() const noexcept = 0;

  // --- Requests. Each takes no longer than the timeout of the store. get_head() and get_updates()
  // may make two requests. publish() makes one per update, or two per MiB of them. ---

  // Returns nullopt if the request failed.
  virtual std::optional<HeadAndLease> get_head(const std::string& prefix) = 0;
  // Returns the updates `first`..`last`, in order; nullopt if the request failed.
  virtual std::optional<std::vector<std::optional<StoredUpdate>>> get_updates(
      const std::string& prefix, UpdateId first, UpdateId last) = 0;
  // Stores updates that follow each other, then the head record, if the one that `change` replaces
  // is still there. A store may leave out the updates if it does not store the record.
  virtual Published publish(const std::string& prefix, std::span<const UpdateView> updates,
                            const std::optional<HeadChange>& change) = 0;
  // Stores a poll lease in place of any other.
  virtual bool set_poll_lease(const std::string& prefix, std::string_view lease,
                              std::chrono::seconds duration) = 0;
  // Stores one if there is none.
  virtual bool add_poll_lease(const std::string& prefix, std::string_view lease,
                              std::chrono::seconds duration) = 0;
  virtual bool add_fill_lease(const std::string& prefix, UpdateId id,
                              std::chrono::seconds duration) = 0;

  // --- Waiting, as Log::wait() says. By default a store wakes no process. ---

  virtual bool notifies() const noexcept { return false; }
  virtual bool wait(const std::string& /*prefix*/, UpdateId /*after*/,
                    std::chrono::nanoseconds at_most) {
    CallLimit::sleep(at_most);
    return false;
  }
  // Returns the greatest id that wait() was told of.
  virtual UpdateId claimed_head() const noexcept { return 0; }
  // The log ends at `head`, says an answer that began after `claimed` was the claimed head. A claim
  // beyond it wakes no other waiter.
  virtual void note_head(UpdateId /*head*/, UpdateId /*claimed*/) noexcept {}
};

// Returns a new store, with connections of its own.
using MakeTierStore = std::function<std::unique_ptr<TierStore>()>;

// How long a store keeps an item after it was stored last.
inline constexpr std::chrono::seconds tier_item_lifetime{std::chrono::hours(24)};
// By default, memcached takes items of 1 MiB.
inline constexpr std::size_t tier_update_bytes_max = 1'000'000;

}  // namespace whycache
