// What can be set: when a cache is opened, and with each call. Every struct is an aggregate, to be
// filled with designated initializers: `{.name = "flags", .deadline = 2s}`.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/types.h>

namespace whycache {

// Something the application's operator may want to know. The library itself never prints.
struct Event {
  enum class Kind {
    rebuilt,     // the state was built anew from the log; `message` says why
    recovered,   // a writer died midway; its half-applied update was taken back
    retried,     // the log failed and is asked again
    stray_state  // a state file that cannot be used is about to be replaced; `message` says why
  };
  Kind kind;
  std::string message;
};

// What an application forbids itself, checked before anything is written: a slip should not empty
// the cache of every machine. Erased keys are counted by this machine's state at the time. Off
// unless set.
struct Guards {
  // The most keys, and the largest share of all keys (0 to 1), that one call or one `keep` rewrite
  // may erase.
  std::optional<std::uint64_t> erased_keys_max{};
  std::optional<double> erased_share_max{};
  // Says why a change must not be written; nullopt: it may. Called by any thread that writes,
  // before the log is asked; must not call back into the cache.
  std::function<std::optional<std::string>(const Change&)> validate{};
};

struct Options {
  // Names the state file of this machine: 1 to 100 of A-Z a-z 0-9 _ - . and not first a dot.
  // Default: made from the log's name, different for every log.
  std::string name{};
  // The state file itself, or a folder for it (with a trailing '/'); the folder has to be there.
  // Default: $WHYCACHE_STATE, then $STATE_DIRECTORY/NAME.state, /var/lib/whycache/NAME.state for
  // root, else $XDG_STATE_HOME/whycache/NAME.state or ~/.local/state/whycache/NAME.state; these
  // folders are made, mode 0700. /dev/shm/... keeps it off the disk. The state of a `memory:` log,
  // which ends with its process, is by default a file of its own that goes when the cache is
  // closed.
  std::string state_path{};
  // Permission bits of the state file and its lock file. Others may read it exactly if this says
  // so.
  std::uint32_t state_mode = 0600;
  // Refuse to grow the state beyond this. Reserves address space, not memory.
  std::uint64_t state_bytes_max = std::uint64_t{64} << 30;
  // Accept a state on a file system that is not known to share memory between processes (NFS, FUSE
  // ...).
  bool any_file_system = false;
  // How many views all processes of this machine may hold at once; fixed when the state is made.
  std::uint32_t reader_slots = 1024;

  // Longest encoded update, 4 KiB to 64 MiB. set_multi beyond it becomes several updates, in order,
  // each atomic; with split_updates off it is refused instead.
  std::uint32_t update_bytes_max = 1U << 20;
  bool split_updates = true;

  // How long one update of a write, or an update() may take before it gives up, waiting included.
  // Building a state and rewriting history take as long as they take: there it is how long the log
  // may stay silent. A log that is named by a URL waits no longer than this for a lock or an
  // answer, but for one given with a call: that is looked at between the log's own waits
  // (docs/logs.md, deadline_ms).
  std::chrono::milliseconds deadline{10'000};

  // What set_async() and the like may keep in memory until it is written; beyond it they throw
  // Error limit.
  std::size_t queue_bytes_max = std::size_t{64} << 20;
  Guards guards{};
  // Stored with every update for people to read, at most 255 bytes. Default: host name and process
  // id.
  std::string writer_name{};

  // Called on the thread that noticed, never concurrently with itself. Must return soon, as others
  // may wait for what this thread is doing, and must not call back into the cache. What it throws
  // is dropped: a write that is in the log does not fail because nobody could be told of it.
  std::function<void(const Event&)> on_event{};
};

struct UpdateOptions {
  // Do nothing if some process of this machine asked the log at most this long ago: that costs
  // nanoseconds. Else apply all that the log had that long ago, or more. 0: all that it has when
  // this is called. Without a bound a log that has memcached in front of it answers from there, as
  // of a few seconds ago at most (docs/logs.md); other logs are asked.
  std::optional<std::chrono::nanoseconds> staleness_max{};
  // Ask until at least this id is applied, or the deadline has passed (Error unavailable).
  UpdateId at_least = 0;
  // Default: Options::deadline.
  std::optional<std::chrono::milliseconds> deadline{};
};

struct WriteOptions {
  // Stored with the update for people to read, at most 255 bytes.
  std::string note{};
  // Default: Options::deadline.
  std::optional<std::chrono::milliseconds> deadline{};
};

struct TransactOptions {
  // Stored with the update for people to read, at most 255 bytes.
  std::string note{};
  // Default: Options::deadline.
  std::optional<std::chrono::milliseconds> deadline{};
  // How often the function is run at most.
  int attempts_max = 100;
};

struct FreshOptions {
  // How old the data may be, as in UpdateOptions.
  std::chrono::nanoseconds staleness_max{0};
  // When the log does not answer in time: throw Error unavailable, or give what there is and say
  // that it is stale.
  bool serve_stale = false;
  // Default: Options::deadline.
  std::optional<std::chrono::milliseconds> deadline{};
};

struct RewriteOptions {
  // Updates up to and including this id are replaced by the entries as of it. 0: the head at the
  // time.
  UpdateId limit = 0;
  // Keys it refuses are first erased by a real update, so that all machines stay equal. Asked again
  // for a key that somebody set meanwhile; so nothing newer than what it saw is erased. Must not
  // call back into the cache.
  std::function<bool(std::string_view key, std::string_view value)> keep{};
};

}  // namespace whycache
