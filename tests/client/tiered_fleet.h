// A fleet whose machines read updates from a tier. It counts the calls of each that still reach
// the log.
//
//   TieredFleet fleet(TierKind::redis);
//   TieredMachine berlin = fleet.open("berlin");
//   TieredMachine tokyo = fleet.open("tokyo");
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/fleet.h"
#include "log/tiered_log.h"
#include "log/tiered_store.h"

namespace whycache::testing {

// Longer than any test: no machine confirms with the log by itself.
inline constexpr std::chrono::seconds confirm_never{3600};

struct TieredMachine {
  std::unique_ptr<std::atomic<std::uint64_t>> log_calls;  // calls that reached the log
  std::unique_ptr<Cache> cache;

  Cache* operator->() const { return cache.get(); }
};

class TieredFleet {
 public:
  // All machines together read the log once every `confirm`. `timeout` for the tier is longer than
  // a busy machine needs.
  explicit TieredFleet(TierKind kind, std::chrono::seconds confirm = std::chrono::seconds(1),
                       std::chrono::seconds ask = std::chrono::seconds(600),
                       std::chrono::milliseconds timeout = std::chrono::milliseconds(2'000))
      : kind_(kind), confirm_(confirm), ask_(ask), timeout_(timeout) {
    add_server();
  }

  // Opens a machine with the tier, or without it if `tiered` is false; `follows`: Options::follow.
  TieredMachine open(const std::string& name, bool tiered = true, bool follows = false) {
    TieredMachine machine;
    machine.log_calls = std::make_unique<std::atomic<std::uint64_t>>(0);
    std::unique_ptr<Log> log =
        std::make_unique<CountingLog>(open_log(fleet_.url()), *machine.log_calls);
    if (tiered) log = std::make_unique<TieredLog>(std::move(log), tier(), options());
    Options with_listener = fleet_.options(name);
    with_listener.on_event = events_.listener();
    with_listener.follow = follows;
    machine.cache = std::make_unique<Cache>(std::move(log), with_listener);
    return machine;
  }
  std::vector<TieredMachine> open_many(int count) {
    std::vector<TieredMachine> machines;
    for (int i = 0; i < count; ++i) machines.push_back(open("machine" + std::to_string(i)));
    return machines;
  }

  MakeTierStore tier() const {
    std::string addresses;
    for (const auto& server : servers_)
      addresses += (addresses.empty() ? "" : ",") + server->address();
    return make_tier(kind_, addresses, timeout_);
  }
  TierOptions options() const {
    TierOptions options;
    options.confirm_interval = confirm_;
    options.own_poll_interval = ask_;
    options.timeout = timeout_;
    return options;
  }
  // No data of the tier is staler, unless the tier returns wrong data.
  std::chrono::milliseconds staleness_max() const { return 2 * confirm_ + std::chrono::seconds(3); }

  void add_server(std::vector<std::string> with = {}, bool by_socket = false) {
    servers_.push_back(TierServer::start_new(kind_, std::move(with), by_socket));
  }
  void replace_servers(std::vector<std::string> with, bool by_socket = false) {
    servers_.clear();
    add_server(std::move(with), by_socket);
  }
  TierServer& server(std::size_t number = 0) { return *servers_.at(number); }

  // The items of the log in the tier.
  std::optional<std::string> head() { return server().head(prefix()); }
  void set_head(const std::string& bytes) { server().set_head(prefix(), bytes); }
  std::optional<std::string> update(UpdateId id) { return server().update(prefix(), id); }
  void set_update(UpdateId id, const std::string& bytes) {
    server().set_update(prefix(), id, bytes);
  }
  void remove_update(UpdateId id) { server().remove_update(prefix(), id); }
  void remove_head() { server().remove_head(prefix()); }
  void remove_fill_lease(UpdateId id) { server().remove_fill_lease(prefix(), id); }

  // The database of the log, for direct SQL.
  Database database() const { return Database(fleet_.directory().file("log.db")); }
  const Fleet& fleet() const { return fleet_; }
  const Events& events() const { return events_; }

 private:
  std::string prefix() const {
    const std::unique_ptr<Log> log = fleet_.log();
    return tiered_item_prefix(log->extent(), log->name());
  }

  TierKind kind_;
  std::chrono::seconds confirm_;
  std::chrono::seconds ask_;
  std::chrono::milliseconds timeout_;
  Events events_;
  Fleet fleet_{"sqlite"};
  std::vector<std::unique_ptr<TierServer>> servers_;
};

// Polls with update() until `done` returns true. Returns false if it does not within `timeout`.
template <typename Done>
bool poll_until(const TieredMachine& machine, std::chrono::milliseconds timeout, const Done& done) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  for (;;) {
    machine->update();
    if (done()) return true;
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

// Updates each machine twice: the first update of a tier reads the log.
inline void warm_up(const std::vector<TieredMachine>& machines) {
  for (const TieredMachine& machine : machines) machine->update();
  for (const TieredMachine& machine : machines) machine->update();
}

}  // namespace whycache::testing
