// The log: an external, durable, ordered sequence of updates. It is the truth; every state is a
// copy.
//
// Implement this interface to keep the log in a store of your own. `examples/own_log.h` does so in
// about a hundred lines. `tests/log/log_contract.h` is the suite that your log has to pass.
//
// A log stores opaque bytes under dense ids and need not decode them. The layer above encodes
// updates, chains each to the previous one, and verifies both.
//
//   id        1   2   3   4   5   6   7
//             |-- deleted -|   u   u   u      base = 4, head = 7
//             `-- the base parts replace 1..4
//
// Threads: any number of threads may call at once. Processes: any number of processes and machines
// use one store at once, and only the store coordinates them.
//
// Errors: throw Error(unavailable) if the store did not answer and did nothing. Throw
// Error(uncertain) if an append or a rewrite may or may not have happened. Throw Error(corrupt) if
// the store's own structure is broken. Throw Error(limit) or Error(invalid) if the store can never
// accept the call. Never return a partial answer without an error. Any other exception counts as
// Error(uncertain).
//
// A log may read the cache that calls it. Whatever needs the log throws Error(invalid) there.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/error.h>
#include <whycache/types.h>

namespace whycache {

// The range of updates that a log has.
struct Extent {
  // Random, drawn when the log is created.
  Uuid uuid{};
  // The base replaces the updates 1..base, which are deleted. 0: history was never rewritten.
  UpdateId base = 0;
  // The value that rewrite() got with the base. 0 while base is 0.
  std::uint64_t base_chain = 0;
  // The greatest update id in the log; at least `base`.
  UpdateId head = 0;
  // Where the log is stored, the same for every machine: a copy of a log has the same uuid. A tier
  // (memcached or Redis) keeps the updates of each store apart. 0: Log::name() says where.
  std::uint64_t store_id = 0;
};

// The answer of poll().
struct PollResult {
  Extent extent;
  // The answer describes the log as it was at most this long before the call. 0: it came from the
  // store itself, as with read().
  std::chrono::nanoseconds staleness{0};
};

class WHYCACHE_API Log {
 public:
  // Returns false to stop.
  using VisitUpdate = std::function<bool(UpdateId id, std::string_view bytes)>;
  using VisitPart = std::function<bool(std::string_view bytes)>;
  // Returns the next part of a new base, valid until the next call, or nullopt at the end.
  using NextPart = std::function<std::optional<std::string_view>()>;

  enum class Appended {
    yes,         // durable, and visible to every later read
    taken,       // another update has this id
    below_base,  // the base is at or beyond this id: the writer missed a rewrite
  };

  virtual ~Log() = default;

  // Returns a name for messages, without secrets: "sqlite:///var/lib/flags.db?instance=default". No
  // two logs may have the same: a machine's default state of the log is named after it.
  virtual std::string name() const = 0;

  // Returns uuid, base and head, in one cheap round trip.
  virtual Extent extent() = 0;

  // Inserts `bytes` at `id` if no update has that id and base < id holds *after* the insert. If it
  // returns `yes`, the insert was atomic and is durable. The caller has read id - 1, so ids stay
  // dense. One round trip.
  //
  // After a failover, a new connection may lead to a store with other updates. There an append must
  // throw Error(unavailable) until id - 1 was read over that connection. The caller then reads back
  // and compares.
  virtual Appended append(UpdateId id, std::string_view bytes) = 0;

  // Visits the updates that exist in `first`..`last`, in id order, until `visit` returns false. The
  // bytes are valid during the visit. Returns the extent as it is *after* the rows were read; the
  // caller must not trust rows at or below its base. Fetches pages by number of rows and bytes,
  // never by ranges of ids.
  virtual Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) = 0;

  // Visits the updates from `first` on, for a follower that verifies them. A log with a cheaper
  // tier in front of its store may answer from that tier, and says how old the answer is. The limit
  // is `staleness_max`, or with nullopt what the log's options allow.
  //
  // An answer with a staleness above 0 is only a claim. It has at most 4 MiB of rows, and the
  // caller accepts all of them or none. Its extent names no update beyond these rows. If the answer
  // does not continue the caller's history, the caller polls again with a staleness_max of 0 before
  // it reports that anything is wrong. Otherwise as read().
  virtual PollResult poll(UpdateId first, std::optional<std::chrono::nanoseconds> staleness_max,
                          const VisitUpdate& visit) {
    static_cast<void>(staleness_max);
    return {read(first, std::numeric_limits<UpdateId>::max(), visit), {}};
  }

  // Waits until there may be an update beyond `after`: at most for `at_most`, and no longer than
  // call_time_left(). It also returns when a stop of the call is requested. Returns true if the
  // store says that there may be one, and false otherwise: before the time has passed, if it cannot
  // rely on being told. The answer is a hint. A wake-up without an update, and an update without a
  // wake-up, cost time and nothing else: the caller reads the log, and does so at intervals anyway.
  // Until a thread has read it, all waits may return true.
  //
  // If this process cannot be woken, for lack of a descriptor for example, throws an Error once
  // that says why. Afterwards notifies() returns false, and wait() sleeps. The default sleeps.
  virtual bool wait(UpdateId after, std::chrono::nanoseconds at_most);
  // Returns whether the store wakes wait(). If it does not, the caller polls, at an interval that
  // follows the traffic. Does not block.
  virtual bool notifies() const noexcept { return false; }

  // Visits the parts of the current base in order, until `visit` returns false. Visits nothing
  // while base is 0. Throws Error(unavailable) if the base is replaced midway; the caller then
  // restarts.
  virtual void read_base(const VisitPart& visit) = 0;

  // Writes a new base beside the log and switches to it in one atomic step, if `base` is greater
  // than the current base and not beyond the head. Then deletes the updates up to `base`, older
  // bases, and stray rows below. Never touches an update above `base`. Returns false if the current
  // base is already at or beyond `base`; it then writes nothing, and only deletes what interrupted
  // rewrites left behind.
  //
  // A rewrite may be interrupted anywhere, and several may run at once. Immediately before the
  // call, the cache has verified the update at `base`. A failover may still put another store in
  // place before the switch. Verify once more at the switch, as the logs of this library do: the
  // update at `base` names its chain, which must equal `base_chain`.
  virtual bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) = 0;

  // Throws Error(invalid), with EACCES or EROFS as its system error, if the store does not let this
  // process rewrite the history; else changes nothing. The cache asks before it erases keys by a
  // call that rewrites after that. The default is to let rewrite() find out.
  virtual void check_may_rewrite() {}

  // Returns Extent::store_id of the store that the last call reached, or 0 if it is not known. Any
  // thread may call it at any time; it does not block.
  virtual std::uint64_t store_id() const noexcept { return 0; }

  // Closes connections to the store that are idle; the next call opens them again. A process that
  // asks seldom should not occupy a server's connections. Does not block.
  virtual void release_idle_connections() noexcept {}

  // Returns a new log on the same store for a child after fork(), which must not share connections
  // with its parent. Returns nullptr if the child can continue to use this object.
  virtual std::unique_ptr<Log> reopen() { return nullptr; }
};

// For a log of your own: returns how long its call on this thread may still wait. The cache's
// deadlines and stop requests hold only if the log waits no longer. 0 once the deadline has passed
// or a stop was requested; nanoseconds::max() outside such a call. Costs some tens of nanoseconds.
WHYCACHE_API std::chrono::nanoseconds call_time_left() noexcept;

// Opens the log that a URL names: `memory:`, `memory:name`, `file:///dir`, `sqlite:///file.db`,
// `mysql://user@host/database` or `postgres://user@host/database`. Each takes `?instance=NAME`
// (default "default"; 1 to 48 of A-Z a-z 0-9 _) and options of its own (docs/logs.md). Creates the
// log if it is missing, but not the directory or database that contains it. With `create=off` in
// the URL, throws Error(invalid) then.
//
// Throws Error(invalid) for a wrong scheme, option or path, or a missing permission. Throws
// Error(unavailable) or Error(corrupt) as the calls above do.
WHYCACHE_API std::unique_ptr<Log> open_log(std::string_view url);

}  // namespace whycache
