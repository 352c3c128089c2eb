// The log: the external, durable, ordered sequence of updates that is the truth.
//
// Implement this to keep the truth in a store of your own; `examples/own_log.cc` does it in under a
// hundred lines, and `tests/log/log_contract.h` is the suite your log has to pass.
//
// A log stores opaque bytes under dense ids. It need not look inside them: what an update says, how
// it is chained to the one before and whether it is to be believed is the business of the layer
// above.
//
//   id        1   2   3   4   5   6   7
//             |--- gone ---|   u   u   u      base = 4, head = 7
//             `-- base parts stand for 1..4
//
// Thread rules: calls may come from several threads at once. Process rules: any number of processes
// and machines use one store at once; nothing but the store itself coordinates them. Errors: Error
// of kind unavailable when the store did not answer and surely did nothing; uncertain when an
// append or rewrite may or may not have happened; corrupt when the store's own structure is broken;
// limit or invalid when the store can never take this. Never a partial answer without an error.
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

// Where a log begins and ends.
struct Extent {
  Uuid uuid{};        // random, made with the log
  UpdateId base = 0;  // updates 1..base are gone, the base stands for them; 0: never rewritten
  std::uint64_t base_chain = 0;  // what rewrite() was given with the base; 0 while base is 0
  UpdateId head = 0;             // greatest update id in the log; at least base
};

// What look() answers.
struct PollResult {
  Extent extent;
  // How long before the call, at most, the log was as this says. 0: the store itself was asked, as
  // by read().
  std::chrono::nanoseconds staleness{0};
};

class WHYCACHE_API Log {
 public:
  // Returns whether to go on.
  using VisitUpdate = std::function<bool(UpdateId id, std::string_view bytes)>;
  using VisitPart = std::function<bool(std::string_view bytes)>;
  // The next part of a new base, valid until the next call; nullopt at the end.
  using NextPart = std::function<std::optional<std::string_view>()>;

  enum class Appended {
    yes,         // durable, and visible to everybody who reads from now on
    taken,       // another update has this id
    below_base,  // the base has passed this id: the writer slept through a rewrite
  };

  virtual ~Log() = default;

  // For messages, without secrets: "sqlite:///var/lib/flags.db?instance=default".
  virtual std::string name() const = 0;

  // One cheap round trip.
  virtual Extent extent() = 0;

  // Puts `bytes` at `id` if nothing is there and base < id holds *after* the insert. Atomic and
  // durable when it returns `yes`. The caller has seen id - 1, so ids stay dense. One round trip.
  // Where a lost connection may be followed by one to a store with other updates (a failover), the
  // first append over the new one must be `unavailable` until id - 1 was read over it: the caller
  // then looks, and finds out.
  virtual Appended append(UpdateId id, std::string_view bytes) = 0;

  // Visits the updates that exist in `first`..`last`, in id order, until `visit` returns false. The
  // bytes are valid during the call. Returns the extent as it is *after* the rows were read: rows
  // at or below its base must not be believed by the caller. Pages by rows and bytes, never by id
  // space.
  virtual Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) = 0;

  // The updates from `first` on, for who follows and verifies. A log that has something cheaper in
  // front of its store may answer from there, and says how old the answer is: at most `age_max`,
  // or, with nullopt, what the log's options allow. An answer whose age is not 0 is a claim: its
  // rows, 4 MiB at most, stand and fall together, and its extent promises no update beyond them.
  // Who finds that it does not continue what he has looks again with age_max 0 before he believes
  // that anything is wrong. Errors and all else as read().
  virtual PollResult poll(UpdateId first, std::optional<std::chrono::nanoseconds> age_max,
                          const VisitUpdate& visit) {
    static_cast<void>(age_max);
    return {read(first, std::numeric_limits<UpdateId>::max(), visit), {}};
  }

  // Visits the parts of the current base in order. Visits nothing while base is 0. A base that is
  // replaced midway gives Error unavailable; the caller begins again.
  virtual void read_base(const VisitPart& visit) = 0;

  // Writes a new base beside the log, switches to it in one atomic step if `base` is greater than
  // the present one and not beyond the head, then deletes the updates up to it, older bases, and
  // stray rows below. May be interrupted anywhere and run by several at once; never touches an
  // update above `base`. The cache has read, just before, that the update at `base` is the one the
  // base stands for. A store that may be another one by the time of the switch (a failover) should
  // look again then, as the logs of this library do: their updates say their chain, which
  // `base_chain` has to be. Returns false if the present base is already at or beyond `base`:
  // nothing is written then, but what rewrites that were interrupted left behind is deleted.
  virtual bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) = 0;

  // Lets go of connections to the store that are not in use just now; the next call opens them
  // anew. For who asks seldom, and would else keep a server's connections from others. Does not
  // wait, and does not throw.
  virtual void release_idle_connections() noexcept {}

  // A fresh log on the same store, for the child after fork(), which must not share connections
  // with its parent. nullptr: this log needs or knows no such thing, and the child goes on with
  // this object.
  virtual std::unique_ptr<Log> reopen() { return nullptr; }
};

// Opens the log a URL names: `memory:`, `memory:name`, `file:///dir`, `sqlite:///file.db`,
// `mysql://user@host/database`, each with `?instance=NAME` (default "default"; 1 to 48 of A-Z a-z
// 0-9 _) and options of its own (docs/logs.md). Makes it if it is not there, but not the folder or
// database it lies in. Throws Error: invalid (scheme, option, path, permission), unavailable,
// corrupt.
WHYCACHE_API std::unique_ptr<Log> open_log(std::string_view url);

}  // namespace whycache
