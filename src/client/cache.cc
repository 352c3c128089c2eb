// The cache object: reads go to the state, everything else to the protocols that join state and
// log.
#include <whycache/cache.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <utility>

#include "base/file.h"
#include "base/fork_handlers.h"
#include "base/url.h"
#include "client/appender.h"
#include "client/background_follower.h"
#include "client/bulk_load.h"
#include "client/cache_internal.h"
#include "client/change_feed.h"
#include "client/change_guards.h"
#include "client/follow.h"
#include "client/guards.h"
#include "client/lease.h"
#include "client/no_log.h"
#include "client/rebuild.h"
#include "client/rewrite.h"
#include "client/session.h"
#include "client/state_location.h"
#include "client/transact.h"
#include "client/update_notifier.h"
#include "client/write_queue.h"
#include "log/lazy_log.h"
#include "log/log_name.h"
#include "log/open_log.h"
#include "state/file/change_ring.h"
#include "state/file/state_file.h"
#include "state/state.h"

namespace whycache {
namespace {

constexpr std::uint32_t update_bytes_least = 4U << 10;
constexpr std::uint32_t update_bytes_most = 64U << 20;
constexpr std::size_t writer_name_bytes_max = 255;

Options checked(Options options) {
  const auto refuse = [](const std::string& message) { throw Error(ErrorKind::invalid, message); };
  if (options.update_bytes_max < update_bytes_least ||
      options.update_bytes_max > update_bytes_most) {
    refuse("update_bytes_max out of range: update_bytes_max=" +
           std::to_string(options.update_bytes_max) + " range=" +
           std::to_string(update_bytes_least) + ".." + std::to_string(update_bytes_most));
  }
  if (options.deadline.count() < 0)
    refuse("deadline is negative: deadline_ms=" + std::to_string(options.deadline.count()));
  const std::uint32_t mode = options.state_mode.value_or(0600);
  if ((mode & ~0666U) != 0 || (mode & 0600U) != 0600U) {
    refuse("state_mode must let its owner read and write, and let no user execute: state_mode=" +
           std::to_string(mode));
  }
  if (options.writer_name.size() > writer_name_bytes_max) {
    refuse("writer_name too long: bytes=" + std::to_string(options.writer_name.size()) +
           " bytes_max=" + std::to_string(writer_name_bytes_max));
  }
  if (const std::optional<double> share = options.guards.erased_share_max;
      share && !(*share >= 0 && *share <= 1)) {
    refuse("erased_share_max out of range: erased_share_max=" + std::to_string(*share) +
           " range=0..1");
  }
  const FollowPace& pace = options.follow_pace;
  if (std::min({pace.interval_min, pace.interval_max, pace.interval_max_notified}).count() <= 0)
    refuse("an interval of follow_pace is not positive");
  if (const std::optional<std::uint64_t> bytes = options.changes_bytes;
      bytes && *bytes != 0 && (*bytes < change_ring_bytes_min || *bytes > change_ring_bytes_most)) {
    refuse("changes_bytes out of range: changes_bytes=" + std::to_string(*bytes) +
           " range=" + std::to_string(change_ring_bytes_min) + ".." +
           std::to_string(change_ring_bytes_most) + " (or 0 for no ring of changes)");
  }
  // The system would take what is before it for the whole path.
  if (options.state_path.find('\0') != std::string::npos)
    refuse("state_path has a zero byte: bytes=" + std::to_string(options.state_path.size()));
  return options;
}

// Whether a cache has a log, or was attached to a state.
enum class Role : std::uint8_t { with_log, attached };

// The ring consists of whole pages.
std::optional<std::uint64_t> whole_pages(std::optional<std::uint64_t> bytes) {
  if (bytes) *bytes = (*bytes + change_ring_page_bytes - 1) & ~(change_ring_page_bytes - 1);
  return bytes;
}

StateOptions state_options(const Options& options, const std::string& path, Role role) {
  return {.path = path,
          .mode = options.state_mode.value_or(0600),
          .keeps_mode = !options.state_mode || role == Role::attached,
          .bytes_max = options.state_bytes_max,
          .any_file_system = options.any_file_system,
          .read_only = role == Role::attached,
          .any_owner = role == Role::attached,
          .waits_for_others = options.open == OpenMode::wait,
          .changes_bytes = whole_pages(options.changes_bytes)};
}

Options options_of(const AttachOptions& attach_options) {
  Options options;
  options.open = attach_options.open;
  options.state_mode = 0644;  // accepts the file of another user
  options.state_bytes_max = attach_options.state_bytes_max;
  options.any_file_system = attach_options.any_file_system;
  options.on_event = attach_options.on_event;
  return options;
}

// The members that a forked child must not share with its parent, and creates again: connections,
// mutexes, and the identity of the writer.
struct ProcessContext {
  ProcessContext(State& state, const StateLocation& location, Log& log,
                 std::unique_ptr<Log> owned_log, const Options& options,
                 AtomicCounters& cache_counters)
      : session(state, location, log, std::move(owned_log), options, cache_counters) {}

  const std::uint64_t owner_fork_count = fork_count();
  Session session;
  Appender appender{session};
  WriteQueue write_queue{session, appender};
  UpdateNotifier notifier{session};
  BackgroundFollower follower{session};  // destroyed first
  Mutex lifecycle_mutex;                 // held while the cache is closed or opened again
  ProcessContext* next_abandoned = nullptr;
};

// Leaks the context of the parent, in a child. The child must not touch it: its mutexes may be
// locked forever, and its connections are the parent's. A list keeps it reachable for leak
// checkers.
void abandon_parent_context(ProcessContext* context) {
  static std::atomic<ProcessContext*> abandoned{nullptr};
  context->next_abandoned = abandoned.load(std::memory_order_relaxed);
  while (!abandoned.compare_exchange_weak(context->next_abandoned, context,
                                          std::memory_order_relaxed)) {
  }
}

// The same for a cache without a log. By attaching, the application says that it wants this state,
// of whatever log it is.
void prepare_attached_state(Session& session) {
  if (session.state.usable()) {
    session.note_usable_state();
    session.note_seen_log(session.state.info().log_uuid);
  } else if (session.options.open == OpenMode::wait) {
    throw Error(ErrorKind::unavailable,
                "no usable state to attach to: " + session.state.unusable_reason() +
                    " (start a process that follows the log, such as whycache follow; or open with "
                    "OpenMode::now)");
  }
}

// Prepares the state for reading. Asks the log only if the state cannot serve reads without it: if
// there is none, or if it may be of another log.
void prepare_state(Session& session, const Deadline& deadline) {
  Backoff backoff(deadline, Backoff::log_pauses);
  if (!session.state.usable()) {
    if (session.options.open == OpenMode::wait) follow(session, backoff);
    return;
  }
  session.note_usable_state();
  const StateInfo info = session.state.info();
  const bool is_of_log = info.log_name == session.log.name() || session.location.is_name_confirmed;
  if (is_of_log && !session.state.adopted()) return;
  try {
    const Extent extent =
        session.call_log(backoff.deadline(), [](Log& log) { return log.extent(); });
    if (extent.uuid == info.log_uuid && !session.state.adopted())
      return session.note_seen_log(extent.uuid);
    follow(session, backoff);
  } catch (const LogError& error) {
    if (!error.is_retryable() && !error.gave_up()) throw;
    if (session.state.adopted() && info.log_name != session.log.name()) {
      throw Error(
          error.kind(),
          "state was brought here from elsewhere, and the log cannot confirm that it is its "
          "own: path=" +
              session.state.path() + " state_log=" + info.log_name + ": " + error.what());
    }
    session.note_opening_failure(error);
    session.report(Event::Kind::retried,
                   std::string("log is unreachable, opened with the state as it is: log=") +
                       session.log.name() + " applied_id=" + std::to_string(info.applied_id) +
                       ": " + error.what());
  }
}

}  // namespace

class Cache::Impl {
 public:
  Impl(std::unique_ptr<Log> log, Options given)
      : options_(checked(std::move(given))),
        role_(Role::with_log),
        location_(locate_state(options_, *log, opening_deadline_)) {
    open_state();
    open(std::move(log));
  }
  Impl(const std::string& state_path, const AttachOptions& given)
      : options_(checked(options_of(given))),
        role_(Role::attached),
        location_{path_for_format(absolute_path(state_path)), {}, {}} {
    open_state();
    open(std::make_unique<NoLog>(state_->path()));
  }
  void open(std::unique_ptr<Log> log) {
    try {
      Log& the_log = *log;
      context_.store(
          new ProcessContext(*state_, location_, the_log, std::move(log), options_, counters_));
      prepare(opening_deadline_);
      state_if_open_.store(&*state_, std::memory_order_release);
      start_follower();
    } catch (...) {
      shut_down();
      throw;
    }
  }
  ~Impl() { shut_down(); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  // For reads that ask before they take the slow path. No check of whether the cache is closed:
  // that disables their fast path.
  const State& state_for_reads() const { return *state_; }
  State* state_if_open() const { return state_if_open_.load(std::memory_order_acquire); }
  // Returns the state; opens it again if it was closed.
  State& state() const {
    State* const state = state_if_open_.load(std::memory_order_acquire);
    return state != nullptr ? *state : reopen();
  }
  void close_for_good() {
    is_closed_for_good_.store(true, std::memory_order_release);
    close(false);
  }
  bool is_deleted() const { return is_deleted_.load(std::memory_order_acquire); }
  // Returns the context of this process; creates it in a forked child.
  Session& session() const {
    state();
    return context_of_this_process().session;
  }
  // The same, for a call that needs the log.
  ProcessContext& context() const {
    state();
    if (role_ == Role::attached) NoLog(location_.path).fail();
    ProcessContext& context = context_of_this_process();
    context.session.refuse_in_callback();
    return context;
  }

  // Runs a read. If it finds the state damaged, the next update() rebuilds it.
  template <typename Read>
  auto read(const Read& read) {
    State& from = state();
    try {
      return read(from);
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::corrupt) note_damage();
      throw;
    }
  }

  void start_follower() const {
    if (options_.follow) context_of_this_process().follower.start();
  }

  void close(bool remove) {
    ProcessContext& context = context_of_this_process();
    context.session.refuse_in_callback();
    const MutexLock lock(context.lifecycle_mutex);
    if (remove && role_ == Role::attached) NoLog(location_.path).fail();
    State* const state = state_if_open_.exchange(nullptr, std::memory_order_acq_rel);
    // Before anything else: a child may be forked at any moment, in which nothing else does it.
    state_->enable_fast_reads(false);
    if (remove) is_deleted_.store(true, std::memory_order_release);
    if (state == nullptr && !remove) return;
    context.session.close();
    context.follower.stop();
    context.notifier.stop();
    context.write_queue.stop();
    state_->disable_mapping_cache();
    const Deadline deadline = Backoff(options_.deadline).deadline();
    if (remove) {
      state_->remove(deadline);
      remove_temporary_directory_if_owner();
    } else if (location_.temporary_directory.empty() && state_->can_lock()) {
      state_->sync(deadline);
    }
  }

  int notify_fd() const {
    state();
    ProcessContext& context = context_of_this_process();
    context.session.refuse_in_callback();
    const MutexLock lock(context.lifecycle_mutex);
    // Another thread may have closed the cache meanwhile.
    return context.notifier.start(state_if_open() != nullptr);
  }

  void note_damage() noexcept {
    try {
      session().note_damage();
    } catch (const std::exception&) {  // the reader must get the first error, about the damage
    }
  }
  bool is_attached() const { return role_ == Role::attached; }
  const std::string& path() const { return location_.path; }
  AtomicCounters& counters() { return counters_; }

 private:
  void prepare(const Deadline& deadline) const {
    Session& session = context_of_this_process().session;
    if (role_ == Role::attached) {
      prepare_attached_state(session);
    } else {
      prepare_state(session, deadline);
    }
  }

  [[gnu::cold, gnu::noinline]] State& reopen() const {
    ProcessContext& context = context_of_this_process();
    context.session.refuse_in_callback();
    const MutexLock lock(context.lifecycle_mutex);
    if (is_deleted()) {
      throw Error(ErrorKind::invalid, "cache is closed: its state was deleted through this object");
    }
    if (is_closed_for_good_.load(std::memory_order_acquire))
      throw Error(ErrorKind::invalid, "cache is closed");
    if (State* const state = state_if_open_.load(std::memory_order_acquire)) return *state;
    const Deadline deadline = Backoff(options_.deadline).deadline();
    state_->switch_if_replaced(deadline);
    context.session.reopen();
    context.write_queue.restart();
    prepare(deadline);
    context.notifier.restart();
    context.follower.start();
    state_->enable_mapping_cache();
    state_->enable_fast_reads(true);
    state_if_open_.store(&*state_, std::memory_order_release);
    return *state_;
  }

  ProcessContext& context_of_this_process() const {
    ProcessContext* const context = context_.load(std::memory_order_acquire);
    return context->owner_fork_count == fork_count() ? *context : create_child_context(context);
  }

  void open_state() {
    try {
      const bool waits = options_.open == OpenMode::wait;
      state_.emplace(state_options(options_, location_.path, role_),
                     waits ? opening_deadline_ : Deadline(std::chrono::milliseconds(0)));
      state_->set_owner(state_owner_);
    } catch (...) {
      remove_temporary_directory(location_);
      throw;
    }
  }

  [[gnu::cold, gnu::noinline]] ProcessContext& create_child_context(
      ProcessContext* of_parent) const {
    counters_.skip_unreported();
    std::unique_ptr<Log> reopened = reopen_lazily(of_parent->session.log);
    Log& log = *reopened;
    auto mine = std::make_unique<ProcessContext>(*state_, location_, log, std::move(reopened),
                                                 options_, counters_);
    ProcessContext* present = of_parent;
    // One thread wins if several create it.
    if (!context_.compare_exchange_strong(present, mine.get(), std::memory_order_acq_rel))
      return *present;
    abandon_parent_context(of_parent);
    ProcessContext& context = *mine.release();
    start_follower_of_child(context);
    return context;
  }

  void start_follower_of_child(ProcessContext& context) const noexcept {
    const MutexLock lock(context.lifecycle_mutex);
    if (state_if_open() == nullptr) return;  // reopen() starts it
    try {
      context.follower.start();
    } catch (const std::exception& error) {  // the call that created the context continues
      try {
        context.session.report(Event::Kind::not_following, error.what());
      } catch (const std::bad_alloc&) {
      }
    }
  }

  void remove_temporary_directory_if_owner() noexcept {
    if (owner_fork_count_ == fork_count()) remove_temporary_directory(location_);
  }

  void shut_down() noexcept {
    state_if_open_.store(nullptr, std::memory_order_release);
    ProcessContext* const context = context_.load();
    if (context != nullptr && context->owner_fork_count == fork_count()) {
      context->session.close();
      // Its threads may be in a callback that reads the cache, and needs the session to be refused.
      delete context;
      context_.store(nullptr);
    } else if (context != nullptr) {
      abandon_parent_context(context);
    }
    state_.reset();
    remove_temporary_directory_if_owner();
  }

  // Opens the cache again for a read that finds it closed.
  class Owner final : public StateOwner {
   public:
    explicit Owner(Impl& impl) : impl_(impl) {}
    void before_slow_read() override { impl_.state(); }
    void note_damage() noexcept override { impl_.note_damage(); }

   private:
    Impl& impl_;
  };

  // First, so that a read finds it without an addition. It stays mapped after close() until this
  // object is destroyed: another thread may be reading.
  mutable std::optional<State> state_;
  // Null while closed.
  mutable std::atomic<State*> state_if_open_{nullptr};
  std::atomic<bool> is_deleted_{false};
  // Stored (release) by close_for_good(), and loaded (acquire) by reopen() under the context's
  // lifecycle_mutex, which the close that follows the store waits for.
  std::atomic<bool> is_closed_for_good_{false};
  const Options options_;
  // Of all that opening waits for.
  const Deadline opening_deadline_{options_.deadline};
  const Role role_;
  const StateLocation location_;
  const std::uint64_t owner_fork_count_ = fork_count();
  mutable AtomicCounters counters_;
  Owner state_owner_{*this};
  mutable std::atomic<ProcessContext*> context_{nullptr};
};

namespace {

[[noreturn, gnu::cold, gnu::noinline]] void throw_moved_from() {
  throw Error(ErrorKind::invalid, "cache was moved from");
}

// Opens the log when it is needed. Creates it only if that is allowed and this machine has no state
// of it.
std::unique_ptr<Log> open_log_of_machine(std::string_view url, const Options& options) {
  Options place;
  place.name = options.name;
  // Now: the application may change its working directory before the log is opened.
  place.state_path = given_state_path(options);
  const auto open = [place = std::move(place), name = log_name(Url(url)),
                     may_create = options.create_log](const LogOpener& opener) {
    const std::optional<std::string> state = find_present_state(place, name);
    try {
      return opener(may_create && !state ? IfMissing::create : IfMissing::fail);
    } catch (const LogMissing& missing) {
      if (!state) throw;
      throw missing.with_state(*state);
    }
  };
  return open_log_lazily(url, std::min(options.deadline, default_log_deadline), open);
}

}  // namespace

Cache::Cache(std::string_view log_url, Options options) {
  std::unique_ptr<Log> log = open_log_of_machine(log_url, options);
  impl_ = std::make_unique<Impl>(std::move(log), std::move(options));
}

Cache::Cache(std::unique_ptr<Log> log, Options options) {
  if (!log) throw Error(ErrorKind::invalid, "no log given");
  impl_ = std::make_unique<Impl>(std::move(log), std::move(options));
}

Cache::Cache(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Cache Cache::attach(std::string_view state_path, const AttachOptions& options) {
  return Cache(std::make_unique<Impl>(std::string(state_path), options));
}

Cache::~Cache() = default;
Cache::Cache(Cache&&) noexcept = default;
Cache& Cache::operator=(Cache&&) noexcept = default;

Cache::Impl& Cache::impl() const {
  if (!impl_) [[unlikely]]
    throw_moved_from();
  return *impl_;
}

// --- Reads ---

std::optional<std::string> Cache::get(std::string_view key) const {
  return impl().state_for_reads().get(key);
}

bool Cache::get(std::string_view key, std::string& value) const {
  return impl().state_for_reads().get(key, value);
}

bool Cache::contains(std::string_view key) const { return impl().state_for_reads().contains(key); }

std::vector<std::optional<std::string>> Cache::get_multi(
    std::span<const std::string_view> keys) const {
  std::vector<std::optional<std::string>> values(keys.size());
  get_multi(keys, values);
  return values;
}

std::size_t Cache::get_multi(std::span<const std::string_view> keys,
                             std::span<std::optional<std::string>> values) const {
  if (values.size() != keys.size()) {
    throw Error(ErrorKind::invalid,
                "a value is needed for each key: keys=" + std::to_string(keys.size()) +
                    " values=" + std::to_string(values.size()));
  }
  return impl().read([&](const State& state) { return state.get_multi(keys, values); });
}

FreshValue Cache::get_fresh(std::string_view key, const FreshOptions& options) {
  FreshValue fresh;
  try {
    update({.staleness_max = options.staleness_max,
            .at_least = 0,
            .deadline = options.deadline,
            .stop = options.stop});
  } catch (const Error& error) {
    if (!options.serve_stale || error.kind() != ErrorKind::unavailable) throw;
    fresh.stale = true;
  }
  const View now = view();
  if (const std::optional<std::string_view> value = now.get(key)) fresh.value = *value;
  fresh.id = now.id();
  fresh.staleness = staleness();
  return fresh;
}

std::optional<VersionedValue> Cache::get_versioned(std::string_view key) const {
  return impl().read([&](const State& state) { return View(state.pin()).get_versioned(key); });
}

std::size_t Cache::count(const KeyRange& range) const {
  return impl().read([&](const State& state) { return View(state.pin()).count(range); });
}

std::size_t Cache::size() const {
  return impl().read(
      [](const State& state) { return static_cast<std::size_t>(state.info().item_count); });
}

View Cache::view() const {
  return impl().read([](const State& state) { return View(state.pin()); });
}

Changes Cache::changes(UpdateId from, KeyRange range, const ChangesOptions& options) const {
  Impl& cache = impl();
  const auto source =
      cache.is_attached() ? Changes::Feed::Source::ring_alone : Changes::Feed::Source::ring_and_log;
  return Changes(std::make_unique<Changes::Feed>([&cache]() -> Session& { return cache.session(); },
                                                 source, from, std::move(range), options));
}

// --- Writes ---

UpdateId Cache::set(std::string_view key, std::string_view value, const WriteOptions& options) {
  const Change change = Change::set(key, value);
  return impl().context().write_queue.write(std::span(&change, 1), options);
}

namespace {

std::vector<Change> changes_to_set(std::span<const Item> items) {
  std::vector<Change> changes;
  changes.reserve(items.size());
  for (const Item& item : items) changes.push_back(Change::set(item.key, item.value));
  return changes;
}

std::vector<Change> changes_to_erase(std::span<const std::string_view> keys) {
  std::vector<Change> changes;
  changes.reserve(keys.size());
  for (const std::string_view key : keys) changes.push_back(Change::erase(key));
  return changes;
}

}  // namespace

UpdateId Cache::set_multi(std::span<const Item> items, const WriteOptions& options) {
  return write(changes_to_set(items), options);
}

UpdateId Cache::fill(const std::function<std::optional<Item>()>& next,
                     const WriteOptions& options) {
  if (!next) throw Error(ErrorKind::invalid, "no function given");
  const std::size_t update_bytes_max = impl().context().session.options.update_bytes_max;
  const UpdateId last_id =
      whycache::bulk_load(next, update_bytes_max,
                          [&](std::span<const Item> items) { return set_multi(items, options); });
  return last_id != 0 ? last_id : applied_id();
}

UpdateId Cache::erase(std::string_view key, const WriteOptions& options) {
  const Change change = Change::erase(key);
  return impl().context().write_queue.write(std::span(&change, 1), options);
}

UpdateId Cache::erase(const KeyRange& range, const WriteOptions& options) {
  ProcessContext& context = impl().context();
  return erase_range(context.session, context.appender, range, options);
}

UpdateId Cache::erase_multi(std::span<const std::string_view> keys, const WriteOptions& options) {
  return write(changes_to_erase(keys), options);
}

UpdateId Cache::write(std::span<const Change> changes, const WriteOptions& options) {
  return impl().context().write_queue.write(changes, options);
}

std::future<UpdateId> Cache::set_async(std::string_view key, std::string_view value,
                                       const WriteOptions& options) {
  const Change change = Change::set(key, value);
  return write_async(std::span(&change, 1), options);
}

std::future<UpdateId> Cache::set_multi_async(std::span<const Item> items,
                                             const WriteOptions& options) {
  return write_async(changes_to_set(items), options);
}

std::future<UpdateId> Cache::erase_async(std::string_view key, const WriteOptions& options) {
  const Change change = Change::erase(key);
  return write_async(std::span(&change, 1), options);
}

std::future<UpdateId> Cache::erase_multi_async(std::span<const std::string_view> keys,
                                               const WriteOptions& options) {
  return write_async(changes_to_erase(keys), options);
}

std::future<UpdateId> Cache::write_async(std::span<const Change> changes,
                                         const WriteOptions& options) {
  return impl().context().write_queue.write_async(changes, options);
}

UpdateId Cache::transact(const std::function<void(Transaction&)>& function,
                         const TransactOptions& options) {
  ProcessContext& context = impl().context();
  return whycache::transact(context.session, context.appender, function, options);
}

std::optional<UpdateId> Cache::set_if(std::string_view key,
                                      std::optional<std::string_view> expected,
                                      std::string_view value, const WriteOptions& options) {
  ProcessContext& context = impl().context();
  return read_modify_write(
      context.session, context.appender, key,
      [&](std::optional<std::string_view> now) {
        return now == expected ? std::optional(Change::set(key, value)) : std::nullopt;
      },
      options);
}

std::optional<UpdateId> Cache::erase_if(std::string_view key, std::string_view expected,
                                        const WriteOptions& options) {
  ProcessContext& context = impl().context();
  return read_modify_write(
      context.session, context.appender, key,
      [&](std::optional<std::string_view> now) {
        return now == expected ? std::optional(Change::erase(key)) : std::nullopt;
      },
      options);
}

std::int64_t Cache::add(std::string_view key, std::int64_t delta, const WriteOptions& options) {
  ProcessContext& context = impl().context();
  std::int64_t sum = 0;
  std::string digits;
  read_modify_write(
      context.session, context.appender, key,
      [&](std::optional<std::string_view> now) {
        sum = sum_of(now, delta);
        digits = std::to_string(sum);
        return std::optional(Change::set(key, digits));
      },
      options);
  return sum;
}

std::optional<UpdateId> Cache::set_if_version(std::string_view key, UpdateId expected,
                                              std::string_view value, const WriteOptions& options) {
  return write_if_version(Change::set(key, value), expected, options);
}

std::optional<UpdateId> Cache::erase_if_version(std::string_view key, UpdateId expected,
                                                const WriteOptions& options) {
  return write_if_version(Change::erase(key), expected, options);
}

std::optional<UpdateId> Cache::write_if_version(const Change& change, UpdateId expected,
                                                const WriteOptions& options) {
  check_key(change.key);
  ProcessContext& context = impl().context();
  return write_decided(
      context.session, context.appender,
      [&](const View& view) {
        const bool matches = view.version(change.key).value_or(0) == expected;
        return matches ? std::vector<Change>{change} : std::vector<Change>{};
      },
      options);
}

std::optional<Lease> Cache::acquire(std::string_view key, std::chrono::milliseconds ttl,
                                    const LeaseOptions& options) {
  ProcessContext& context = impl().context();
  return acquire_lease(context.session, context.appender, key, ttl, options);
}

bool Cache::renew(Lease& lease, const LeaseOptions& options) {
  ProcessContext& context = impl().context();
  return renew_lease(context.session, context.appender, lease, options);
}

bool Cache::release(const Lease& lease, const LeaseOptions& options) {
  ProcessContext& context = impl().context();
  return release_lease(context.session, context.appender, lease, options);
}

// --- The log ---

namespace {

// Waits until another process may have brought an attached state further than `applied`. Returns
// false, at once, if the deadline has passed.
bool wait_for_another(const Session& session, const UpdateOptions& options, UpdateId applied,
                      Backoff& backoff) {
  const std::optional<std::chrono::nanoseconds> pause = backoff.next_pause();
  if (!pause) return false;
  // A poll without updates causes no wake-up, and neither does a state where there was none.
  if (options.staleness_max || !session.state.usable()) {
    backoff.deadline().sleep(*pause);
    return true;
  }
  try {
    session.state.wait(applied, backoff.deadline());
  } catch (const Error&) {  // the state of another log has come; the caller looks at it
    backoff.deadline().sleep(*pause);
  }
  return true;
}

// Waits until other processes have brought an attached state to where `options` want it.
UpdateId wait_for_others(Session& session, const UpdateOptions& options) {
  const State& state = session.state;
  Backoff backoff = session.backoff_for(options);
  for (;;) {
    // A call of update() says that the application wants the state of whatever log is there now.
    while (const std::optional<LogIdentity> other = state.switch_if_replaced(backoff.deadline())) {
      state.expect_log(other->uuid);
      session.note_seen_log(other->uuid);
    }
    UpdateId applied = 0;
    if (state.usable()) {
      if (!session.has_seen_any_log()) session.note_seen_log(state.info().log_uuid);
      const bool is_new_enough =
          !options.staleness_max || is_fresh(session, boot_time_ns(), options.staleness_max);
      applied = state.applied_id();
      if (is_new_enough && applied >= options.at_least) return applied;
    }
    if (!wait_for_another(session, options, applied, backoff)) {
      throw Error(ErrorKind::unavailable,
                  "no process of this machine has brought the state up to date in time: path=" +
                      state.path() + " applied_id=" + std::to_string(applied) +
                      " at_least=" + std::to_string(options.at_least) +
                      " deadline_ms=" + std::to_string(backoff.timeout().count()) +
                      " (does a process follow the log, such as whycache follow?)");
    }
  }
}

std::optional<UpdateId> applied_if_fresh(const Session& session, const UpdateOptions& options) {
  if (!(options.staleness_max > zero_staleness) ||
      !is_fresh(session, boot_time_ns(), options.staleness_max))
    return std::nullopt;
  const UpdateId applied = session.state.applied_id();
  return applied >= options.at_least ? std::optional(applied) : std::nullopt;
}

}  // namespace

UpdateId Cache::update(const UpdateOptions& options) {
  State& state = impl().state();
  state.unmap_if_idle();
  Session& session = impl().session();
  if (impl().is_attached()) [[unlikely]] {
    const bool asks_the_log =
        options.staleness_max ? *options.staleness_max <= zero_staleness : options.at_least == 0;
    if (asks_the_log) NoLog(state.path()).fail();
    return wait_for_others(session, options);
  }
  if (const std::optional<UpdateId> applied = applied_if_fresh(session, options)) return *applied;
  session.refuse_in_callback();
  Backoff backoff = session.backoff_for(options);
  return follow(session, backoff, options.at_least, options.staleness_max);
}

UpdateId Cache::rewrite_history(const RewriteOptions& options) {
  ProcessContext& context = impl().context();
  return whycache::rewrite_history(context.session, context.appender, options);
}

UpdateId Cache::delete_all_history(const WriteOptions& options) {
  ProcessContext& context = impl().context();
  return whycache::delete_all_history(context.session, context.appender, options);
}

LogGuards Cache::log_guards() const {
  return impl().read([](const State& state) { return log_guards_of(View(state.pin())); });
}

UpdateId Cache::set_log_guards(const LogGuards& guards, const WriteOptions& options) {
  return CacheInternal::change_log_guards(
      *this, [&](LogGuards& present) { present = guards; }, options);
}

UpdateId CacheInternal::change_log_guards(const Cache& cache,
                                          const std::function<void(LogGuards&)>& change,
                                          const WriteOptions& options) {
  ProcessContext& context = cache.impl().context();
  return whycache::change_log_guards(context.session, context.appender, change, options);
}

// --- Status ---

UpdateId Cache::wait(UpdateId after, const WaitOptions& options) const {
  State& state = impl().state();
  Session& session = impl().session();
  session.refuse_in_callback();
  // The wait ends for the caller's stop, and for closing.
  std::stop_source stop;
  const auto request_stop = [&] { stop.request_stop(); };
  const std::stop_token closing = session.closing_token();
  const std::stop_callback on_stop(options.stop, request_stop);
  const std::stop_callback on_close(closing, request_stop);
  const Deadline deadline(options.deadline.value_or(std::chrono::milliseconds::max()),
                          stop.get_token());
  const UpdateId id = impl().read([&](const State&) { return state.wait(after, deadline); });
  if (id <= after && closing.stop_requested())
    throw Error(ErrorKind::unavailable, "cache was closed while it waited for an update: state=" +
                                            state.path() + " after=" + std::to_string(after));
  return id;
}

int Cache::notify_fd() const { return impl().notify_fd(); }

UpdateId Cache::applied_id() const {
  return impl().read([](const State& state) { return state.applied_id(); });
}

std::chrono::nanoseconds Cache::staleness() const {
  const std::optional<std::int64_t> poll_time_ns = impl().state().last_poll_time_ns();
  if (!poll_time_ns) return std::chrono::nanoseconds::max();
  return std::chrono::nanoseconds(std::max<std::int64_t>(boot_time_ns() - *poll_time_ns, 0));
}

Digest Cache::digest() const {
  return impl().read([](const State& state) { return state.info().digest; });
}

bool Cache::valid() const noexcept { return impl_ && !impl_->is_deleted(); }

bool Cache::ready() const { return impl().state().usable(); }

std::string Cache::state_path() const { return impl().path(); }

Counters Cache::counters() const { return impl().counters().read(); }

Stats Cache::stats() const {
  Impl& cache = impl();
  const State& state = cache.state();
  const Session& session = cache.session();
  const StateInfo info = cache.read([](const State& from) { return from.info(); });
  Stats stats;
  stats.applied_id = info.applied_id;
  stats.known_head = state.known_head();
  stats.lag = stats.known_head > info.applied_id ? stats.known_head - info.applied_id : 0;
  stats.staleness = staleness();
  stats.item_count = info.item_count;
  stats.item_bytes = info.item_bytes;
  session.describe_log_health(stats);
  state.describe_use(stats);
  stats.counters = counters();
  return stats;
}

StateInspection Cache::inspect() const {
  return impl().read([](const State& state) { return state.inspect(); });
}

void Cache::close_shared_state() { impl().close(/*remove=*/false); }

void Cache::delete_shared_state() { impl().close(/*remove=*/true); }

Log& CacheInternal::log(const Cache& cache) { return cache.impl().session().log; }

Session& CacheInternal::session(const Cache& cache) { return cache.impl().session(); }

void CacheInternal::rebuild(Cache& cache) {
  cache.update();
  Session& session = cache.impl().context().session;
  Backoff backoff(session.options.deadline);
  rebuild_beside(session, RebuildReason::requested, backoff);
}

bool CacheInternal::shrink(Cache& cache) {
  Session& session = cache.impl().context().session;
  if (!session.state.can_lock() || !session.state.usable() || !session.state.is_mostly_free())
    return false;
  Backoff backoff(session.options.deadline);
  rebuild_beside(session, RebuildReason::mostly_free, backoff);
  return true;
}

State& CacheInternal::state(const Cache& cache) { return cache.impl().state(); }

State* CacheInternal::state_if_open(const Cache& cache) noexcept {
  return cache.impl_ ? cache.impl_->state_if_open() : nullptr;
}

void CacheInternal::close_for_good(Cache& cache) { cache.impl().close_for_good(); }

void CacheInternal::note_damage(const Cache& cache) noexcept {
  if (cache.impl_) cache.impl_->note_damage();
}

std::shared_ptr<const detail::Pin> CacheInternal::pin(const Cache& cache) {
  return cache.impl().read([](const State& state) { return state.pin(); });
}

std::optional<UpdateId> CacheInternal::applied_id_if_fresh(const Cache& cache,
                                                           const UpdateOptions& options) {
  Cache::Impl& impl = cache.impl();
  if (impl.state_if_open() == nullptr || impl.is_attached()) return std::nullopt;
  return applied_if_fresh(impl.session(), options);
}

void CacheInternal::write_async(Cache& cache, std::span<const Change> changes,
                                const WriteOptions& options,
                                std::shared_ptr<WriteCompletion> completion) {
  cache.impl().context().write_queue.write_async(changes, options, std::move(completion));
}

std::optional<UpdateId> CacheInternal::write_decided(
    Cache& cache, const std::function<std::vector<Change>(const View&)>& decide,
    const WriteOptions& options) {
  ProcessContext& context = cache.impl().context();
  return whycache::write_decided(context.session, context.appender, decide, options);
}

}  // namespace whycache
