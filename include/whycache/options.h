// Options of a cache and of single calls. Every struct is an aggregate, to be filled with
// designated initializers: `{.state_mode = 0640, .deadline = 2s}`.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>

#include <whycache/types.h>

namespace whycache {

// An event that the operator of the application may want to know. The library itself never prints.
struct Event {
  enum class Kind {
    rebuilt,    // the state was rebuilt from the log; `message` says why
    recovered,  // a writer died while it applied an update; the update was rolled back
    // The log failed and is asked again. Reported when that begins, and while it lasts at intervals
    // that double from a minute to an hour; `message` then says for how long.
    retried,
    stray_state,  // a state file cannot be used and will be replaced; `message` says why
    reconnected,  // the log answers again after a failure that was reported
    // The follower (Options::follow) cannot follow. Reported as `retried` is; `message` says why.
    not_following,
    following,  // the follower follows again after a failure that was reported
    // The log cannot wake the follower, which polls it instead; `message` says why. Reported once.
    polling,
    // The ring of recent changes cannot be written; `message` says why. Feeds read the log instead.
    // Reported when that begins.
    changes_not_kept
  };
  Kind kind;
  std::string message;
};

// Limits that an application sets to its own writes, so that a mistake does not empty the cache of
// every machine. Checked before anything is written; a write that violates one throws
// Error(refused). Erased keys are counted by this machine's state at the time. Off unless set.
struct Guards {
  // The most keys that one call or one rewrite with `keep` may erase, as a number and as a share of
  // all keys (0 to 1).
  std::optional<std::uint64_t> erased_keys_max{};
  std::optional<double> erased_share_max{};
  // Returns the reason why a change must not be written, or nullopt if it may. Runs on any thread
  // that writes, before the log is asked. May read the cache; calls that need the log, and
  // close_shared_state(), throw Error(invalid) there.
  std::function<std::optional<std::string>(const Change&)> validate{};
};

// Limits that live in the log, and that each write of each machine obeys, the command line included
// (Cache::set_log_guards). Earlier versions of the library ignore them.
struct LogGuards {
  // Whether one call may erase all keys, as delete_all_history() does. A single key may be erased.
  bool clear_allowed = true;
  // The most keys that one update, one call and one rewrite with `keep` may erase. Absent keys do
  // not count.
  std::optional<std::uint64_t> erased_keys_max{};
  // The same as a share of all keys, 0 to 1. A single key may be erased, however large its share.
  std::optional<double> erased_share_max{};

  friend bool operator==(const LogGuards&, const LogGuards&) = default;
};

// What opening a cache does if this machine has no usable state.
enum class OpenMode : std::uint8_t {
  wait,  // builds one from the log, which may take long, or throws
  // Returns at once; reads throw Error(unavailable) until update() or a write has built one. In a
  // directory, waits up to 100 ms for the log: it may have a state under another name.
  // Opening throws only what no log can help: Error(invalid) for a wrong option, URL or state path,
  // and for a state that this process may not open; Error(limit) if descriptors, memory or disk
  // space are missing. A state that was copied from another machine, or is of a log of another
  // name, is compared with the log anyway, up to the deadline; Error(corrupt) if it is of
  // another log, and Error(unavailable) if it was copied and the log cannot tell.
  now
};

// How often a follower polls the log. Each interval is shortened by a random part of up to a
// quarter, so that machines do not poll at the same moment.
struct FollowPace {
  // The interval while updates arrive. It doubles with each poll that finds none, up to one of the
  // following.
  std::chrono::nanoseconds interval_min = std::chrono::milliseconds(5);
  // For a log that does not tell of new updates.
  std::chrono::nanoseconds interval_max = std::chrono::seconds(2);
  // For a log that does (Log::notifies). The follower then polls because it was told to, and at
  // this interval in case that was lost. Files and SQLite cannot tell of what another machine
  // writes, and are polled at interval_max anyway.
  std::chrono::nanoseconds interval_max_notified = std::chrono::seconds(20);
};

struct Options {
  // A label for people: 1 to 100 of A-Z a-z 0-9 _ - . and no dot at the start. It does not choose
  // the state: all caches of a machine on one log share one, whatever their names, and the command
  // line finds it. Only the temporary state of a `memory:` log bears the name.
  std::string name{};
  // The path of the state file or, with a trailing '/', of an existing directory for it. In a
  // directory, the file is LOG.state. LOG is derived from the log's name (Log::name). If the log
  // has a state there under another of its names (host name or address, socket, another mount),
  // LOG.state is a symbolic link to that; the log's uuid decides
  // (docs/decisions/one-state-per-log.md). Two logs of one name, as in two containers, need
  // different paths.
  //
  // Default: $WHYCACHE_STATE, then $STATE_DIRECTORY/LOG.state, then /var/lib/whycache/LOG.state for
  // root, else $XDG_STATE_HOME/whycache/LOG.state or ~/.local/state/whycache/LOG.state. The cache
  // creates these directories with mode 0700. A setuid or setgid program ignores the environment.
  // A path below /dev/shm keeps the state off the disk. A `memory:` log ends with its process, so
  // by default its state is a temporary file that is removed when the cache is closed.
  std::string state_path{};
  OpenMode open = OpenMode::wait;
  // Whether a log that a URL names is created if it is missing; `create=off` in the URL forbids it,
  // too. A log of which this machine has a state is never created again, whatever this says: it is
  // away, or was deleted. Opening a missing log throws Error(invalid); or, if there is a state,
  // Error(unavailable) from the calls that need the log.
  bool create_log = true;
  // Whether update() and writes accept an empty log in place of one from which this machine has
  // items, as one that was created by mistake where the log's disk was not mounted. Accepting it
  // empties the state. Otherwise they throw Error(corrupt), and reads continue. Logs in memory are
  // always accepted.
  bool accept_replaced_log = false;
  // Permission bits of the state file. Other users can read the cache only if these bits allow it.
  // The lock file beside it is only for those who may write to the state. A state that exists loses
  // the bits that are not given here; if it belongs to another user, opening it then throws
  // Error(invalid). Unset: 0600 for the first state, and a state keeps its bits, owner and group
  // when it is built again.
  std::optional<std::uint32_t> state_mode{};
  // The largest size of the state, in bytes. Reserves address space, not memory. If an update does
  // not fit, update() throws Error(limit), and the write that appended it Error(uncertain).
  std::uint64_t state_bytes_max = std::uint64_t{64} << 30;
  // Accepts a state on a file system that is not known to share memory between processes (NFS, FUSE
  // and others), or that writes changed blocks to a new place (btrfs, zfs, bcachefs): there a full
  // disk ends the writing process by SIGBUS.
  bool any_file_system = false;

  // The size in bytes of the ring of recent changes, the file STATE.changes beside the state: from
  // 64 KiB to 4 GiB, or 0 for none. Cache::changes() reads it, and reads the log for what is no
  // longer in it. The file grows to this size as it is filled. The size belongs to the state: a
  // process that writes with another size begins the ring again. Unset: the size that it has. A new
  // one then gets 16 MiB, or a sixteenth of its file system if that is less.
  std::optional<std::uint64_t> changes_bytes{};

  // Deprecated, without effect: the number of views is not limited.
  std::uint32_t reader_slots = 0;

  // The longest encoded update in bytes, 4 KiB to 64 MiB. A batch that needs more becomes several
  // updates, in order, each atomic. With split_updates off, it throws Error(limit) instead.
  std::uint32_t update_bytes_max = 1U << 20;
  bool split_updates = true;

  // How long update(), or one update of a write, may take before it fails, waiting included. The
  // logs of this library return at most 50 ms later, whatever their store does. The exception is a
  // hanging disk of a file or SQLite log. While a state is built or history is rewritten, the
  // deadline limits only how long the log may stay silent.
  std::chrono::milliseconds deadline{10'000};

  // The most bytes of keys and values that set_async() and the like keep in memory until they are
  // written. Beyond it they throw Error(limit).
  std::size_t queue_bytes_max = std::size_t{64} << 20;
  Guards guards{};
  // Stored with every update and every new base for people to read, at most 255 bytes. Default:
  // user@host:pid (program), where the user is a number if /etc/passwd does not have it.
  std::string writer_name{};

  // Whether a thread of this cache keeps the state fresh, so that no call of the application has to
  // update(). Of all processes with such a thread, and of `whycache follow`, one per machine polls
  // the log. If it ends, even by SIGKILL, another one continues within a second. The thread starts
  // with the cache, ends when that is closed, and starts again when it is opened again. A forked
  // child starts its own with its first call that needs the log. Whatever keeps it from following
  // is reported as Event::Kind::not_following, and it tries again. Reads never wait for it, and
  // update() does not ask the log while staleness() is within the bound of the call.
  bool follow = false;
  FollowPace follow_pace{};

  // Runs on the thread that noticed the event, never concurrently with itself. Must return soon,
  // since other threads and processes may wait for that thread. May read the cache, but not while
  // it is opened; calls that need the log or wait, notify_fd() and close_shared_state() throw
  // Error(invalid) there. An exception it throws is dropped: a write that is in the log does not
  // fail because of it.
  std::function<void(const Event&)> on_event{};
};

// How Cache::attach() opens a state.
struct AttachOptions {
  // wait: throws if there is no usable state. now: reads throw Error(unavailable) until there is.
  OpenMode open = OpenMode::wait;
  // As in Options.
  std::uint64_t state_bytes_max = std::uint64_t{64} << 30;
  bool any_file_system = false;
  std::function<void(const Event&)> on_event{};
};

struct UpdateOptions {
  // Accepts what the machine knew at most this long ago. If one of its processes asked the log
  // within this time, update() does nothing and costs nanoseconds. Else it applies at least
  // everything that the log had that long ago. 0: everything that the log has when update() is
  // called. The first call of each process, or forked child, asks the log whatever the bound: until
  // then the process has not seen that the state is of its log.
  //
  // nullopt: a log with memcached or Redis in front of it answers from there, some seconds late
  // at most (docs/logs.md). Any other log is asked itself.
  std::optional<std::chrono::nanoseconds> staleness_max{};
  // Polls the log until this id is applied. Throws Error(unavailable) if the deadline passes first.
  UpdateId at_least = 0;
  // Default: Options::deadline.
  std::optional<std::chrono::milliseconds> deadline{};
  // A stop request makes the call give up as if its deadline had passed.
  std::stop_token stop{};
};

struct WaitOptions {
  // How long to wait at most. Default: until there is an update.
  std::optional<std::chrono::milliseconds> deadline{};
  // A stop request ends the wait as if its deadline had passed.
  std::stop_token stop{};
};

struct WriteOptions {
  // Stored with the update for people to read, at most 255 bytes.
  std::string note{};
  // Default: Options::deadline.
  std::optional<std::chrono::milliseconds> deadline{};
  // A stop request makes the call give up: it no longer waits, and a write that has not begun is
  // not made. A write with a token does not share an append with others.
  std::stop_token stop{};
};

struct TransactOptions {
  // Stored with the update for people to read, at most 255 bytes.
  std::string note{};
  // Default: Options::deadline.
  std::optional<std::chrono::milliseconds> deadline{};
  // A stop request makes the call give up as if its deadline had passed.
  std::stop_token stop{};
  // How many times the function runs at most.
  int attempts_max = 100;
};

struct FreshOptions {
  // How old the data may be, as in UpdateOptions.
  std::chrono::nanoseconds staleness_max{0};
  // If the log does not answer in time: true returns the value at hand, marked as stale; false
  // throws Error(unavailable).
  bool serve_stale = false;
  // Default: Options::deadline.
  std::optional<std::chrono::milliseconds> deadline{};
  // A stop request makes the call give up as if its deadline had passed.
  std::stop_token stop{};
};

struct ChangesOptions {
  // How long to wait for changes in all. Changes that are there already are returned even if it is
  // 0. nullopt: until a stop is requested.
  std::optional<std::chrono::milliseconds> deadline{};
  // A stop request ends the feed as if the deadline had passed.
  std::stop_token stop{};
};

struct RewriteOptions {
  // The base to make: the items as of this id replace the updates up to and including it. 0: the
  // head at the time of the call.
  UpdateId limit = 0;
  // Returns whether to keep a key. The others are first erased by ordinary updates, so that all
  // machines stay equal. If another writer has set such a key meanwhile, `keep` is asked again with
  // the new value, and nothing newer than it saw is erased. May read the cache; calls that need the
  // log, and close_shared_state(), throw Error(invalid) there.
  std::function<bool(std::string_view key, std::string_view value)> keep{};
  // A stop request makes the call give up as if the log had not answered in time.
  std::stop_token stop{};
  // Stored with the base for people to read, at most 255 bytes, beside the writer and the time.
  std::string note{};
};

}  // namespace whycache
