#include "state/state.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>
#include <optional>
#include <utility>

#include "base/fork_handlers.h"
#include "state/file/lock_file.h"
#include "state/file/lock_queue.h"
#include "state/file/state_file.h"
#include "state/index/fast_lookup_avx2.h"
#include "state/index/lookup.h"
#include "state/read/copy_short.h"
#include "state/read/pin.h"
#include "state/read/rcu.h"
#include "state/verify.h"
#include "state/write/builder.h"
#include "state/write/writable_mapping_cache.h"
#include "state/write/writer.h"

namespace whycache {
namespace {

constexpr int point_read_tries = 4;
constexpr std::int64_t look_for_successor_every_ns = 10'000'000;
constexpr std::chrono::milliseconds install_patience{10'000};

bool is_superseded(const Mapping& mapping) {
  return (mapping.header().reclaim_generation.load(std::memory_order_acquire) & superseded_bit) != 0;
}

// Who may read the state may also say, in the lock file, what it holds: read permission brings write permission there.
std::uint32_t lock_file_mode(std::uint32_t state_mode) { return state_mode | (state_mode & 0444) >> 1; }

// Perhaps what a read stumbled over lies where the file has grown to since this process asked how long it is.
void see_growth(const Mapping& mapping) {
  if (mapping.header().file_bytes.load(std::memory_order_acquire) > mapping.usable_bytes())
    mapping.refresh_usable_bytes();
}

// Whether the state goes on where the other one, of the same log, ends. A damaged one does not.
bool has_more_applied(const Mapping& mapping, const StateInfo& than) {
  try {
    const StateInfo info = state_info(mapping);
    return info.log_uuid == than.log_uuid && info.applied_id > than.applied_id;
  } catch (const Error&) {
    return false;
  }
}

const char* name_of(StateLock lock) {
  switch (lock) {
    case StateLock::writer: return "writer";
    case StateLock::follow: return "follow";
    case StateLock::append: return "append";
    case StateLock::install: return "install";
  }
  return "?";
}

}  // namespace

struct State::Inner final : ForkListener {
  explicit Inner(State& owner) : plan(owner.plan_) {}
  ~Inner() = default;

  void before_fork() noexcept override { switch_mutex.lock(); }
  void after_fork_in_parent() noexcept override { switch_mutex.unlock(); }
  void after_fork_in_child() noexcept override {
    switch_mutex.unlock();
    // Some other thread of the parent may have held these, and what they stood for is the parent's.
    for (std::timed_mutex& mutex : lock_mutexes) new (&mutex) std::timed_mutex;
    new (&find_mutex) std::mutex;
  }

  std::shared_ptr<Mapping> mapping_now() const {
    const std::lock_guard guard(switch_mutex);
    return shared;
  }

  // Unmaps what was replaced, as far as no thread can still be reading it. The caller holds switch_mutex.
  void sweep_replaced() noexcept {
    std::erase_if(replaced, [](Replaced& one) { return one.is_over(); });
  }

  // Under find_mutex, and it was found under that, too, or under StateLock::install, without which no other comes to
  // stand there. (Or nobody else knows this State yet.)
  void switch_to(std::shared_ptr<Mapping> mapping) {
    {
      const std::lock_guard guard(switch_mutex);
      sweep_replaced();
      replaced.emplace_back();  // what needs memory comes first: the old mapping must not go before its time
      replaced.back().mapping = std::move(shared);
      shared = std::move(mapping);
      current.store(shared.get(), std::memory_order_release);
      plan.store(shared->last_plan(), std::memory_order_release);
      replaced.back().begin_grace();
    }
    kept.drop();  // it is the old file's
  }

  // A read of `mapping` found that it needs another plan. Whoever holds the mutex may just be switching to another
  // file; then that comes first, and the next read of this kind tries again.
  void renew_plan(const Mapping& mapping) {
    const std::unique_lock lock(switch_mutex, std::try_to_lock);
    if (lock && shared.get() == &mapping) plan.store(mapping.last_plan(), std::memory_order_release);
  }

  struct Replaced {
    std::shared_ptr<Mapping> mapping;
    std::optional<GracePeriod> grace;  // nullopt: there was no memory for it, and it begins when there is

    void begin_grace() noexcept {
      try {
        grace.emplace();
      } catch (const std::bad_alloc&) {
      }
    }
    bool is_over() noexcept {
      if (!grace) begin_grace();
      return grace && grace->over();
    }
  };

  std::shared_ptr<LockFile> lock_file;
  mutable std::array<std::timed_mutex, 4> lock_mutexes;
  // Point reads load it inside a Reading; stored under switch_mutex.
  std::atomic<const Mapping*> current{nullptr};
  std::atomic<const LookupPlan*>& plan;  // of the same, for the quick ones
  mutable std::mutex switch_mutex;
  // From looking for the file that is in place until it has been switched to: else who was slow would switch back to
  // one that is not there any more. Taken before switch_mutex, and never while a StateLock is waited for.
  std::mutex find_mutex;
  std::shared_ptr<Mapping> shared;  // the same, for who keeps it
  std::vector<Replaced> replaced;
  KeptMapping kept;
  std::string why_unusable;        // under switch_mutex
  std::int64_t found_none_ns = 0;  // under find_mutex: when there was no successor that could be used; 0: never
};

// --- Opening ---

namespace {

// What a read finds where there is no state: a plan that fits no file.
const LookupPlan& no_plan() {
  alignas(Header) static constexpr std::byte no_file[sizeof(Header)]{};
  static const LookupPlan plan = LookupPlan::none(no_file, KeyHash());
  return plan;
}

}  // namespace

State::State(StateOptions options)
    : options_(std::move(options)), plan_(&no_plan()), get_(quickest_get()), inner_(std::make_unique<Inner>(*this)) {}

State::~State() {
  if (inner_) unregister_fork_listener(inner_.get());
}

std::unique_ptr<State> State::open(const StateOptions& options) {
  if (options.path.empty()) throw Error(ErrorKind::invalid, "no path for the state");
  check_place(options);
  StateOptions absolute = options;  // the process may change its folder later
  if (options.path.front() != '/') absolute.path = std::filesystem::current_path().string() + "/" + options.path;
  std::unique_ptr<State> state(new State(absolute));
  Inner& inner = *state->inner_;
  inner.lock_file =
      std::make_shared<LockFile>(absolute.path + ".lock", lock_file_mode(absolute.mode), absolute.reader_slots);
  register_fork_listener(&inner);
  // One in its place is opened without waiting for anybody.
  FoundFile found = find_state_file(absolute, *inner.lock_file, false);
  if (!found.mapping) {
    const Deadline deadline(install_patience);
    const HeldLock install = state->lock(StateLock::install, deadline);
    const HeldLock writer = state->lock(StateLock::writer, deadline);
    found = find_state_file(absolute, *inner.lock_file, true);
  }
  state->adopted_ = found.adopted;
  inner.why_unusable = found.why_not;
  if (found.mapping) inner.switch_to(std::move(found.mapping));
  return state;
}

bool State::usable() const {
  const std::shared_ptr<Mapping> mapping = inner_->mapping_now();
  // One that is superseded and still in its place: whoever was about to replace it is at it, or has died.
  return mapping && (!is_superseded(*mapping) || (is_in_place(*mapping) && mapping->holds_whole_file()));
}

std::string State::why_unusable() const {
  const std::lock_guard guard(inner_->switch_mutex);
  return inner_->why_unusable.empty() ? "it was removed: path=" + options_.path : inner_->why_unusable;
}

void State::follow_switch() const {
  Inner& inner = *inner_;
  const std::shared_ptr<Mapping> mapping = inner.mapping_now();
  if (mapping && mapping->holds_whole_file() && is_in_place(*mapping)) {
    if (is_superseded(*mapping)) take_back_superseding();
    const std::lock_guard guard(inner.switch_mutex);
    inner.sweep_replaced();
    return;
  }
  {
    const std::lock_guard finding(inner.find_mutex);
    if (std::shared_ptr<Mapping> found = find_state_file(options_, *inner.lock_file, false).mapping) {
      inner.switch_to(std::move(found));
      return;
    }
  }
  std::string why_not;
  {
    // Perhaps one from elsewhere was put there, which has to be verified and made ours.
    const Deadline deadline(install_patience);
    const HeldLock install = lock(StateLock::install, deadline);
    const HeldLock writer = lock(StateLock::writer, deadline);
    FoundFile found = find_state_file(options_, *inner.lock_file, true);
    if (found.mapping) {
      const std::lock_guard finding(inner.find_mutex);
      inner.switch_to(std::move(found.mapping));
      return;
    }
    why_not = std::move(found.why_not);
  }
  // Nothing took its place (yet): reads go on from what there was, and usable() says that a new one has to be made.
  if (mapping) supersede(*mapping);
  const std::lock_guard guard(inner.switch_mutex);
  inner.why_unusable = why_not;
}

// Who meant to replace the file may have died after he had said so, and before he did it: reads would take the long way
// from then on, to see whether there is another one. As whoever writes does.
void State::take_back_superseding() const noexcept {
  try {
    const Deadline at_once(std::chrono::milliseconds(0));
    const HeldLock install = lock(StateLock::install, at_once);
    const HeldLock writer = lock(StateLock::writer, at_once);
    if (const FileDescriptor file = open_file_if_there(options_.path, O_RDWR))
      set_superseded(file, options_.path, false);
  } catch (const Error&) {  // somebody is at it, or we may not write to it
  }
}

// --- Reads ---

namespace {

// Which bytes are copied to where, the processor must know before the entry's size is there, or else it can begin
// neither with the entry's later cache lines nor with whoever reads the copy: so a value as long as the one before is
// copied by the old one's size, which is the same.
void copy_into(std::string& value, std::string_view found) {
  const std::size_t bytes_before = value.size();
  if (bytes_before == found.size()) {
    std::memcpy(value.data(), found.data(), unrelated(bytes_before));
  } else {
    value.assign(found.data(), found.size());
  }
}

// Asked when an entry was found, not before, so that it need not be kept. If by then the entry's update is published,
// there was a moment in between when the entry was its key's newest and visible: when it was found, or when its update
// was published.
auto greatest_of(const Header& header) {
  return [&header] { return header.applied_id.greatest(std::memory_order_acquire); };
}

}  // namespace

namespace {

// What a get began with: left here by this thread for what is done seldom, or with values of other sizes, so that it
// need not be kept at hand.
struct BegunGet {
  const State* state;
  const Header* header;
  Unpinned read;
};
constinit thread_local BegunGet begun_get __attribute__((tls_model("initial-exec"))) = {nullptr, nullptr, Unpinned()};

}  // namespace

bool State::finish_get(std::string_view key, std::string& value, std::string_view found) {
  const BegunGet get = begun_get;
  bool holds = false;
  {
    // There may be no memory for the value.
    struct Leaving {
      ReadingThread& thread;
      ~Leaving() { thread.leave(); }
    } const leaving{*this_reader.thread};
    // Perhaps that of another file by now, in which what was found does not lie.
    const LookupPlan& plan = *get.state->plan_.load(std::memory_order_acquire);
    if (is_within(plan, found)) [[likely]] {
      copy_into(value, found);
      holds = get.read.holds(*get.header);
    }
  }
  return holds || get.state->get_again(key, value);
}

// No call lies on the way of a get, for what has to be kept across one would have to be stored; what is seldom is
// called at its end.
static_assert(copy_few_max <= quick_value_bytes_max);

template <bool two_words>
[[gnu::always_inline]] inline bool State::get_quickly(ReadingThread& thread, std::string_view key,
                                                      std::string& value) const {
  thread.enter();
  const LookupPlan& plan = *plan_.load(std::memory_order_acquire);
  const Header& header = plan.header();
  const Unpinned read(header);
  QuickValue found;
  const Quick quick = quick_look_up<two_words>(plan, header, key, greatest_of(header), found);
  if (quick == Quick::yes && !read.superseded()) [[likely]] {
    // Which bytes are copied must not depend on the size in the entry. The compiler knows that it is the same.
    const std::size_t bytes = unrelated(value.size());
    if (found.bytes != bytes || bytes > copy_few_max) [[unlikely]] {
      begun_get = {this, &header, read};
      return finish_get(key, value, {found.key + key.size(), found.bytes});
    }
    copy_few(value.data(), found.key + key.size(), unrelated(bytes));
    if (read.holds(header)) [[likely]] {
      thread.leave();
      return true;
    }
  } else if (quick == Quick::no && !read.superseded() && read.holds(header)) {
    thread.leave();
    return missed();
  }
  thread.leave();
  return get_again(key, value);
}

bool State::is_filtered_out(ReadingThread& thread, std::string_view key) const {
  thread.enter();
  const LookupPlan& plan = *plan_.load(std::memory_order_acquire);
  const Header& header = plan.header();
  const Unpinned read(header);
  const bool filtered_out =
      whycache::is_filtered_out(plan, header, plan.key_hash(key)) && !read.superseded() && read.holds(header);
  thread.leave();
  if (filtered_out) this_reader.filtered_out();
  return filtered_out;
}

#if WHYCACHE_AVX2
[[WHYCACHE_FOR_AVX2]] bool State::get_expecting_none_by_avx2(std::string_view key, std::string& value) const {
  ReadingThread* const thread = this_reader.thread;
  if (thread == nullptr) [[unlikely]]
    return get_again(key, value);
  thread->enter();
  const LookupPlan& plan = *plan_.load(std::memory_order_acquire);
  const Header& header = plan.header();
  const Unpinned read(header);
  if (!avx2::is_filtered_out(plan, header, key) || read.superseded() || !read.holds(header)) [[unlikely]]
    return get_unfiltered(key, value);  // which enters again, and leaves
  thread->leave();
  this_reader.filtered_out();
  return false;
}

// What get_anywhere() does.
[[WHYCACHE_FOR_AVX2]] bool State::get_by_avx2(const State& state, std::string_view key, std::string& value) {
  ReadingThread* const thread = this_reader.quick;
  if (!is_two_words(key.size())) [[unlikely]]
    return state.get_by_any_key(key, value);
  if (thread == nullptr) [[unlikely]]
    return state.get_expecting_none_by_avx2(key, value);
  thread->enter();
  const LookupPlan& plan = *state.plan_.load(std::memory_order_acquire);
  const Header& header = plan.header();
  const Unpinned read(header);
  QuickValue found;
  const Quick quick = avx2::look_up(plan, header, key, greatest_of(header), found);
  if (quick == Quick::yes && !read.superseded()) [[likely]] {
    const std::size_t bytes = unrelated(value.size());
    if (found.bytes != bytes || bytes > copy_few_max) [[unlikely]] {
      avx2::leave_wide_vectors();
      begun_get = {&state, &header, read};
      return finish_get(key, value, {found.key + key.size(), found.bytes});
    }
    avx2::copy(value.data(), found.key + key.size(), unrelated(bytes));
    avx2::leave_wide_vectors();
    if (read.holds(header)) [[likely]] {
      thread->leave();
      return true;
    }
  } else if (quick == Quick::no && !read.superseded() && read.holds(header)) {
    avx2::leave_wide_vectors();
    thread->leave();
    return missed();
  }
  avx2::leave_wide_vectors();
  thread->leave();
  return state.get_again(key, value);
}
#endif

template <bool two_words>
[[gnu::always_inline]] inline bool State::contains_quickly(ReadingThread& thread, std::string_view key) const {
  thread.enter();
  const LookupPlan& plan = *plan_.load(std::memory_order_acquire);
  const Header& header = plan.header();
  const Unpinned read(header);
  QuickValue found;
  const Quick quick = quick_look_up<two_words>(plan, header, key, greatest_of(header), found);
  const bool known = quick != Quick::unsure && !read.superseded() && read.holds(header);
  thread.leave();
  if (known && quick == Quick::no) return missed();
  return known ? quick == Quick::yes : contains_again(key);
}

bool State::get_anywhere(const State& state, std::string_view key, std::string& value) {
  const ThisReader& reader = this_reader;
  if (key.size() - 8 < reader.two_words_sizes) [[likely]]
    return state.get_quickly<true>(*reader.quick, key, value);
  return state.get_by_any_key(key, value);
}

State::Get* State::quickest_get() {
#if WHYCACHE_AVX2
  if (has_avx2()) return get_by_avx2;
#endif
  return get_anywhere;
}

bool State::get_by_any_key(std::string_view key, std::string& value) const {
  ReadingThread* const thread = this_reader.quick;
  return thread != nullptr ? get_quickly<false>(*thread, key, value) : get_expecting_none(key, value);
}

bool State::contains(std::string_view key) const {
  const ThisReader& reader = this_reader;
  if (key.size() - 8 < reader.two_words_sizes) [[likely]]
    return contains_quickly<true>(*reader.quick, key);
  return contains_any_key(key);
}

bool State::contains_any_key(std::string_view key) const {
  ReadingThread* const thread = this_reader.quick;
  return thread != nullptr ? contains_quickly<false>(*thread, key) : contains_expecting_none(key);
}

bool State::get_expecting_none(std::string_view key, std::string& value) const {
  ReadingThread* const thread = this_reader.thread;
  if (thread == nullptr) [[unlikely]]
    return get_again(key, value);
  return !is_filtered_out(*thread, key) && get_unfiltered(key, value);
}

bool State::get_unfiltered(std::string_view key, std::string& value) const {
  ReadingThread& thread = *this_reader.thread;
  const bool found =
      is_two_words(key.size()) ? get_quickly<true>(thread, key, value) : get_quickly<false>(thread, key, value);
  if (found) this_reader.found();
  return found;
}

bool State::contains_expecting_none(std::string_view key) const {
  ReadingThread* const thread = this_reader.thread;
  if (thread == nullptr) return contains_again(key);
  if (is_filtered_out(*thread, key)) return false;
  const bool found =
      is_two_words(key.size()) ? contains_quickly<true>(*thread, key) : contains_quickly<false>(*thread, key);
  if (found) this_reader.found();
  return found;
}

bool State::get_again(std::string_view key, std::string& value) const {
  return read_again(key, [&](std::string_view found) { copy_into(value, found); });
}

bool State::contains_again(std::string_view key) const {
  return read_again(key, [](std::string_view) {});
}

template <typename Use>
bool State::read_again(std::string_view key, const Use& use) const {
  {
    const Reading reading;
    const Mapping* const mapping = inner_->current.load(std::memory_order_acquire);
    for (int tries = 0; mapping != nullptr && tries < point_read_tries; ++tries) {
      const ReadOutcome outcome = try_point_read(*mapping, key, use);
      if (mapping->last_plan() != plan_.load(std::memory_order_relaxed)) inner_->renew_plan(*mapping);
      if (outcome == ReadOutcome::yes) return true;
      if (outcome == ReadOutcome::no) return missed();
      if (outcome == ReadOutcome::superseded) break;
      see_growth(*mapping);
    }
  }
  const std::shared_ptr<const detail::Pin> held = pin();  // until the value is copied
  const LookupResult result = held->get(key);
  if (result.found != Found::yes) return missed();
  use(result.value);
  return true;
}

std::shared_ptr<Mapping> State::find_successor() const {
  try {
    return find_state_file(options_, *inner_->lock_file, false).mapping;
  } catch (const Error&) {
    // Something that is no state was put there, or one that is just being made ours. A read is not the place to say so:
    // it has the old file to read from, and the next update() finds out.
    return nullptr;
  }
}

std::shared_ptr<Mapping> State::newest_mapping() const {
  Inner& inner = *inner_;
  const auto has_successor = [this](const Mapping& mapping) {
    return is_superseded(mapping) && !is_in_place(mapping) && ::access(options_.path.c_str(), F_OK) == 0;
  };
  for (;;) {
    std::shared_ptr<Mapping> mapping = inner.mapping_now();
    // Until there is another file in its place, reads go on from the old one.
    if (!mapping || (mapping->holds_whole_file() && !has_successor(*mapping))) return mapping;
    // Whoever reads meanwhile waits until it is found: what was written to it before he began he has to see.
    const std::lock_guard finding(inner.find_mutex);
    if (inner.mapping_now() != mapping) continue;
    // One that cannot be used is tried now and then only.
    const std::int64_t now = boot_time_ns();
    if (inner.found_none_ns != 0 && now - inner.found_none_ns < look_for_successor_every_ns) return mapping;
    std::shared_ptr<Mapping> successor = find_successor();
    const bool is_whole = successor && successor->holds_whole_file();
    inner.found_none_ns = is_whole ? 0 : now;
    if (!successor) return mapping;
    inner.switch_to(successor);
    if (!is_whole) return successor;
  }
}

std::shared_ptr<const detail::Pin> State::pin() const {
  unmap_if_idle();
  std::shared_ptr<Mapping> mapping = newest_mapping();
  if (!mapping) throw Error(ErrorKind::invalid, "no usable state: " + why_unusable());
  return std::make_shared<const detail::Pin>(std::move(mapping), inner_->lock_file);
}

UpdateId State::get_multi(std::span<const std::string_view> keys,
                          const std::function<void(std::size_t, std::string_view)>& found) const {
  const std::shared_ptr<const detail::Pin> held = pin();
  held->get_many(keys, [&](std::size_t i, const LookupResult& result) { found(i, result.value); });
  return held->id();
}

StateInfo State::info() const {
  const std::shared_ptr<Mapping> mapping = newest_mapping();
  if (!mapping) throw Error(ErrorKind::invalid, "no usable state: " + why_unusable());
  return state_info(*mapping);
}

UpdateId State::applied_id() const {
  {
    const Reading reading;
    const Mapping* const mapping = inner_->current.load(std::memory_order_acquire);
    if (mapping != nullptr) {
      const UpdateId id = mapping->header().applied_id.load(std::memory_order_acquire);
      if (!is_superseded(*mapping)) return id;  // asked last: nothing was applied elsewhere before it was
    }
  }
  return info().applied_id;
}

// --- Freshness ---

std::optional<std::int64_t> State::asked_at_ns() const { return asked_at(&LockFileHeader::asked_at_ns); }

std::optional<std::int64_t> State::store_asked_at_ns() const { return asked_at(&LockFileHeader::store_asked_at_ns); }

std::optional<std::int64_t> State::asked_at(std::atomic<std::int64_t> LockFileHeader::*which) const {
  const Reading reading;
  const Mapping* const mapping = inner_->current.load(std::memory_order_acquire);
  const LockFileHeader& shared = inner_->lock_file->header();
  const std::int64_t at = (shared.*which).load(std::memory_order_acquire);
  if (mapping == nullptr || at == 0 || shared.asked_state_id.load(std::memory_order_relaxed) != mapping->state_id())
    return std::nullopt;
  return at;
}

UpdateId State::known_head() const { return inner_->lock_file->header().known_head.load(std::memory_order_relaxed); }

void State::set_asked(std::int64_t at_ns, UpdateId head, bool by_store) const {
  const std::shared_ptr<Mapping> mapping = inner_->mapping_now();
  if (!mapping) return;
  LockFileHeader& shared = inner_->lock_file->header();
  if (shared.asked_state_id.load(std::memory_order_relaxed) != mapping->state_id()) {
    shared.asked_at_ns.store(0, std::memory_order_relaxed);
    shared.store_asked_at_ns.store(0, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    shared.asked_state_id.store(mapping->state_id(), std::memory_order_relaxed);
  }
  shared.known_head.store(head, std::memory_order_relaxed);
  if (by_store) shared.store_asked_at_ns.store(at_ns, std::memory_order_release);
  shared.asked_at_ns.store(at_ns, std::memory_order_release);
}

// --- Locks ---

HeldLock::HeldLock(const State* state, StateLock lock, std::unique_lock<std::timed_mutex> threads, std::uint64_t forks)
    : state_(state), lock_(lock), threads_(std::move(threads)), fork_count_(forks) {}

HeldLock::HeldLock(HeldLock&& other) noexcept
    : state_(std::exchange(other.state_, nullptr)),
      lock_(other.lock_),
      threads_(std::move(other.threads_)),
      fork_count_(other.fork_count_) {}

HeldLock::~HeldLock() {
  if (state_ == nullptr) return;
  if (fork_count_ != fork_count()) {
    threads_.release();  // the parent's, and made anew in this child
    return;
  }
  release_lock(*state_->inner_->lock_file, lock_);
}

HeldLock State::lock(StateLock which, const Deadline& deadline) const {
  Inner& inner = *inner_;
  const auto offset = static_cast<std::uint64_t>(which);
  const auto gave_up = [&] {
    return Error(ErrorKind::unavailable, std::string("another process or thread holds the ") + name_of(which) +
                                             " lock: path=" + inner.lock_file->path() +
                                             " (retry, or raise the deadline)");
  };
  std::unique_lock<std::timed_mutex> threads(inner.lock_mutexes[offset], std::defer_lock);
  if (!threads.try_lock() && !threads.try_lock_for(deadline.left())) throw gave_up();
  if (!wait_for_lock(*inner.lock_file, which, deadline)) throw gave_up();
  HeldLock held(this, which, std::move(threads), fork_count());
  inner.lock_file->check_in_place();
  return held;
}

void State::announce_release(StateLock which) const noexcept { wake_next(*inner_->lock_file, which); }

// --- Writing ---

std::unique_ptr<StateWriter> State::begin_write(const Deadline& deadline, AfterWriting after) const {
  for (int tries = 0;; ++tries) {
    HeldLock writer = lock(StateLock::writer, deadline);
    const std::shared_ptr<Mapping> mapping = inner_->mapping_now();
    if (mapping && is_in_place(*mapping))
      return open_writer(std::move(writer), options_, *inner_->lock_file, *mapping, inner_->kept, after);
    if (tries == 2)
      throw Error(ErrorKind::corrupt,
                  "state file was removed or is being replaced: path=" + options_.path + " (update, then retry)");
    { const HeldLock released = std::move(writer); }
    follow_switch();
  }
}

void State::unmap_if_idle() const noexcept { inner_->kept.drop_if_idle(); }

void State::keep_nothing() const noexcept { inner_->kept.keep_nothing(); }

std::unique_ptr<StateBuilder> State::begin_build(const Uuid& log_uuid, const std::string& log_name) const {
  const auto put_in_place = [this](const std::string& built_path, const StateInfo& built, StateBuilder::Install how,
                                   const std::function<void()>& catch_up) {
    const Deadline deadline(install_patience);
    const HeldLock install = lock(StateLock::install, deadline);
    const HeldLock writer = lock(StateLock::writer, deadline);
    // Superseded first: else, should this process die in between, who only reads would never hear of the new one. Until
    // the new one is in its place, readers find the old one there and go on from it.
    const std::shared_ptr<Mapping> old = inner_->mapping_now();
    if (old && is_in_place(*old) && has_more_applied(*old, built)) {
      if (how == StateBuilder::Install::unless_behind) return false;
      if (catch_up) catch_up();
    }
    const FileDescriptor old_file = open_file_if_there(options_.path, O_RDWR);
    if (old_file) {
      check_may_be_replaced(old_file, options_.path);
      supersede(old_file, options_.path);
    }
    if (::rename(built_path.c_str(), options_.path.c_str()) != 0) {
      const int error = errno;
      if (old_file) set_superseded(old_file, options_.path, false);
      throw system_error("cannot put state file in place", options_.path, error);
    }
    inner_->lock_file->header().asked_at_ns.store(0, std::memory_order_release);
    inner_->lock_file->header().store_asked_at_ns.store(0, std::memory_order_release);
    FoundFile found = find_state_file(options_, *inner_->lock_file, true);
    if (!found.mapping) throw Error(ErrorKind::corrupt, "new state cannot be used: " + found.why_not);
    {
      const std::lock_guard finding(inner_->find_mutex);
      inner_->switch_to(std::move(found.mapping));
    }
    if (old) supersede(*old);  // if it had been moved away from the path
    return true;
  };
  return open_builder(options_, log_uuid, log_name, put_in_place);
}

// --- Care ---

void State::sync(const Deadline& deadline) const {
  const HeldLock writer = lock(StateLock::writer, deadline);
  const std::shared_ptr<Mapping> mapping = inner_->mapping_now();
  if (mapping) sync_file(mapping->descriptor(), options_.path);
}

void State::remove(const Deadline& deadline) const {
  const HeldLock install = lock(StateLock::install, deadline);
  const HeldLock writer = lock(StateLock::writer, deadline);
  if (const FileDescriptor file = open_file_if_there(options_.path, O_RDWR)) supersede(file, options_.path);
  if (::unlink(options_.path.c_str()) != 0 && errno != ENOENT)
    throw system_error("cannot remove state file", options_.path, errno);
}

std::vector<std::string> State::check(const Deadline& deadline,
                                      const std::function<void(std::uint64_t, std::uint64_t)>& progress) const {
  const std::unique_ptr<StateWriter> writer = begin_write(deadline);  // mends what a dead writer left
  const std::shared_ptr<Mapping> mapping = inner_->mapping_now();
  mapping->refresh_usable_bytes();
  return verify(*mapping, true, progress);
}

StateInsides State::insides() const {
  const std::shared_ptr<Mapping> mapping = inner_->mapping_now();
  if (!mapping) throw Error(ErrorKind::invalid, "no usable state: " + why_unusable());
  mapping->refresh_usable_bytes();
  StateInsides insides = look_inside(*mapping);
  insides.reader_slots = inner_->lock_file->slot_count();
  insides.slots_taken = inner_->lock_file->slots_taken();
  insides.processes = inner_->lock_file->processes();
  return insides;
}

}  // namespace whycache
