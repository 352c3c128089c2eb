#include "client/write_queue.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <memory>
#include <new>
#include <system_error>
#include <utility>

#include "base/hash.h"
#include "base/signals.h"
#include "client/follow.h"
#include "client/guards.h"
#include "client/write_outcome.h"
#include "update/format.h"
#include "update/last_changes.h"

namespace whycache {
namespace {

// How long closing lets an append finish before it stops the call: an append that is cut is
// uncertain. Stopping takes some milliseconds more (Deadline::next_wait).
constexpr std::chrono::milliseconds closing_patience{25};

// Returns the last change of each key, in their order; nullopt if each key is changed once.
std::optional<std::vector<Change>> without_superseded_changes(std::span<const Change> changes) {
  if (changes.size() < 2) return std::nullopt;
  std::vector<std::uint64_t> hashes;
  hashes.reserve(changes.size());
  for (const Change& change : changes) hashes.push_back(hash64(change.key));
  LastChanges last_changes;
  last_changes.find(changes, hashes);
  if (last_changes.count() == changes.size()) return std::nullopt;
  std::vector<Change> kept;
  kept.reserve(last_changes.count());
  for (std::size_t i = 0; i < changes.size(); ++i) {
    if (last_changes.is_last(i)) kept.push_back(changes[i]);
  }
  return kept;
}

std::size_t byte_count(std::span<const Change> changes) {
  std::size_t bytes = 0;
  for (const Change& change : changes) bytes += change.key.size() + change.value.size();
  return bytes;
}

// The error of a split batch whose first updates are written. The caller must learn how far it got.
Error partial_write_error(const Error& error, std::size_t written, std::size_t all,
                          UpdateId last_id) {
  return Error(ErrorKind::uncertain,
               "stopped midway, the first changes of the batch are written: changes_written=" +
                   std::to_string(written) + " of=" + std::to_string(all) +
                   " last_id=" + std::to_string(last_id) + ": " + to_string(error.kind()) + ": " +
                   message_of_later_update(error),
               error.system_error());
}

}  // namespace

UpdateId WriteQueue::write(std::span<const Change> changes, const WriteOptions& options) {
  if (changes.empty()) return session_.state.applied_id();
  const std::optional<std::vector<Change>> kept = without_superseded_changes(changes);
  if (kept) changes = *kept;
  enforce_guards(changes, options);

  std::uint64_t erased = 0;
  std::vector<QueuedBatch> batches = split_into_batches(changes, options, erased);
  std::size_t written = 0;
  UpdateId id = 0;
  for (QueuedBatch& batch : batches) {
    batch.backoff.reset();
    try {
      session_.throw_if_stopped(batch.backoff);
      enqueue_and_wait(batch);
    } catch (...) {
      if (written == 0) throw;
      std::rethrow_exception(
          partial_failure(std::current_exception(), written, changes.size(), id));
    }
    id = batch.id;
    written += batch.changes.size();
  }
  return id;
}

void WriteQueue::enforce_guards(std::span<const Change> changes,
                                const WriteOptions& options) const {
  check_guards_stay(changes);
  if (!has_guards(session_.options.guards)) {
    // Without a state that can be read, the check before the append is the first to know.
    const bool erases = std::any_of(changes.begin(), changes.end(), is_erase);
    if (!erases || !session_.state.usable()) return;
    try {
      if (!has_log_guards(session_.state)) return;
    } catch (const Error&) {
      return;
    }
  }
  Backoff backoff = session_.backoff_for(options);
  build_missing_state(session_, backoff);
  check_guards(session_, changes, View(session_.state.pin()));
}

// Finds everything that can be wrong with the changes before any of them is written. Throws
// Error(limit) or Error(invalid). The batches of a call that needs several count in
// `erased_by_call` what they erase.
std::vector<WriteQueue::QueuedBatch> WriteQueue::split_into_batches(std::span<const Change> changes,
                                                                    const WriteOptions& options,
                                                                    std::uint64_t& erased_by_call) {
  const std::size_t bytes_max = session_.options.update_bytes_max;
  const auto new_batch = [&] {
    return QueuedBatch{.draft = Draft(session_.authorship(options.note)),
                       .changes = {},
                       .note = options.note,
                       .backoff = session_.backoff_for(options),
                       .can_be_stopped = options.stop.stop_possible(),
                       .failure = nullptr};
  };
  std::vector<QueuedBatch> batches;
  batches.push_back(new_batch());
  if (byte_count(changes) < bytes_max) batches.back().draft.reserve(changes);
  std::size_t first = 0;
  const auto close_batch = [&](std::size_t end) {
    QueuedBatch& batch = batches.back();
    batch.changes = changes.subspan(first, end - first);
    batch.erases = std::any_of(batch.changes.begin(), batch.changes.end(), is_erase);
    first = end;
  };
  for (std::size_t i = 0; i < changes.size(); ++i) {
    if (batches.back().draft.add(changes[i], bytes_max)) continue;
    if (batches.back().draft.change_count() > 0 && session_.options.split_updates) {
      close_batch(i);
      batches.push_back(new_batch());
      if (batches.back().draft.add(changes[i], bytes_max)) continue;
    }
    if (batches.back().draft.change_count() > 0) {
      throw Error(ErrorKind::limit,
                  "batch too large for one update: changes=" + std::to_string(changes.size()) +
                      " update_bytes_max=" + std::to_string(bytes_max) +
                      " (raise update_bytes_max, or set split_updates)");
    }
    throw Error(
        ErrorKind::limit,
        "value too large for an update: key_bytes=" + std::to_string(changes[i].key.size()) +
            " value_bytes=" + std::to_string(changes[i].value.size()) +
            " update_bytes_max=" + std::to_string(bytes_max) + " (raise update_bytes_max)");
  }
  close_batch(changes.size());
  if (batches.size() > 1) {
    for (QueuedBatch& batch : batches)
      batch.erased_before = batch.erases ? &erased_by_call : nullptr;
  }
  return batches;
}

// --- Asynchronous writes ---

WriteQueue::AsyncWrite WriteQueue::AsyncWrite::copy_of(std::span<const Change> changes,
                                                       const WriteOptions& options) {
  AsyncWrite write;
  write.options = options;
  write.bytes.reserve(byte_count(changes));
  const auto copy = [&](std::string_view from) {
    const std::size_t offset = write.bytes.size();
    write.bytes.insert(write.bytes.end(), from.begin(), from.end());
    return std::string_view(write.bytes.data() + offset, from.size());
  };
  write.changes.assign(changes.begin(), changes.end());
  for (Change& change : write.changes) {
    change.key = copy(change.key);
    change.value = copy(change.value);
  }
  if (std::optional<std::vector<Change>> kept = without_superseded_changes(write.changes))
    write.changes = std::move(*kept);
  return write;
}

namespace {

// Gives the outcome to a future, which wakes its waiter by itself.
class FutureCompletion : public WriteCompletion {
 public:
  FutureCompletion() : WriteCompletion(nullptr) {}
  std::future<UpdateId> future() { return promise_.get_future(); }
  void finish(UpdateId id, const std::exception_ptr& failure) noexcept override {
    if (failure) {
      promise_.set_exception(failure);
    } else {
      promise_.set_value(id);
    }
  }

 private:
  std::promise<UpdateId> promise_;
};

}  // namespace

std::future<UpdateId> WriteQueue::write_async(std::span<const Change> changes,
                                              const WriteOptions& options) {
  const auto completion = std::make_shared<FutureCompletion>();
  std::future<UpdateId> future = completion->future();
  write_async(changes, options, completion);
  return future;
}

void WriteQueue::write_async(std::span<const Change> changes, const WriteOptions& options,
                             std::shared_ptr<WriteCompletion> completion) {
  if (changes.empty()) {
    completion->finish(session_.state.applied_id(), nullptr);
    if (completion->waker()) completion->waker()->wake();
    return;
  }
  const std::size_t bytes = byte_count(changes);
  reserve_async_bytes(bytes);
  try {
    std::list<AsyncWrite> one_write;  // a list, so that enqueue_async() need not move it
    AsyncWrite& write = one_write.emplace_back(AsyncWrite::copy_of(changes, options));
    write.completion = std::move(completion);
    enforce_guards(write.changes, options);
    write.batches = split_into_batches(write.changes, write.options, write.keys_erased);
    for (QueuedBatch& batch : write.batches) batch.async_write = &write;
    enqueue_async(one_write);
  } catch (...) {
    const MutexLock lock(mutex_);
    async_bytes_ -= bytes;
    throw;
  }
}

// Counts the bytes as waiting. Throws Error(limit) if that exceeds Options::queue_bytes_max.
void WriteQueue::reserve_async_bytes(std::size_t bytes) {
  const std::size_t bytes_max = session_.options.queue_bytes_max;
  const MutexLock lock(mutex_);
  if (bytes > bytes_max - std::min(async_bytes_, bytes_max)) {
    throw Error(ErrorKind::limit,
                "write queue is full, nothing was queued: bytes=" + std::to_string(bytes) +
                    " waiting=" + std::to_string(async_bytes_) +
                    " queue_bytes_max=" + std::to_string(bytes_max) +
                    " (wait for some of the futures, or raise queue_bytes_max)");
  }
  async_bytes_ += bytes;
}

// Queues the batches of a list of one write, and takes the write out of the list.
void WriteQueue::enqueue_async(std::list<AsyncWrite>& one_write) {
  AsyncWrite& write = one_write.front();
  const MutexLock lock(mutex_);
  if (stopping_)
    throw Error(ErrorKind::invalid,
                "cache is closed: its state was closed or deleted through this object");
  if (!async_thread_.joinable()) start_async_thread();
  const std::size_t queued_before = queue_.size();
  try {
    for (QueuedBatch& batch : write.batches) queue_.push_back(&batch);
  } catch (...) {  // std::bad_alloc: a write must be queued whole
    queue_.resize(queued_before);
    throw;
  }
  async_writes_.splice(async_writes_.end(), one_write);
  async_ready_.notify_one();
}

void WriteQueue::start_async_thread() {
  try {
    const BlockedSignals blocked;
    async_thread_ = std::thread([this] { run_async_writer(); });
  } catch (const std::system_error& error) {
    throw Error(ErrorKind::limit,
                std::string("cannot start the thread for asynchronous writes, nothing was queued: "
                            "reason=\"") +
                    error.code().message() +
                    "\" (raise the limits on threads and memory, see ulimit -u and -v)",
                error.code().value());
  }
}

void WriteQueue::run_async_writer() {
  NotifyingLock lock(mutex_);
  for (;;) {
    if (stopping_) fail_unwritten(lock);
    remove_finished_async_writes();
    if (!has_leader_ && !queue_.empty() && queue_.front()->async_write != nullptr) {
      QueuedBatch& batch = *queue_.front();
      has_leader_ = true;
      const std::stop_token stop_of_caller = batch.backoff.deadline().stop();
      let_stop_end_call_of(batch);
      const std::stop_callback forward(stop_of_caller, [to = leader_stop_]() mutable {
        if (to) to->request_stop();
      });
      lock.release();
      commit_as_leader(batch);
      lock.reacquire();
    } else if (stopping_ && async_writes_.empty()) {
      return;
    } else {
      lock.wait(async_ready_);
    }
  }
}

// Fails the asynchronous writes of which no batch is in a group.
void WriteQueue::fail_unwritten(NotifyingLock& lock) {
  for (AsyncWrite& write : async_writes_) {
    const auto in_group = [](const QueuedBatch& batch) { return batch.in_group; };
    if (std::any_of(write.batches.begin(), write.batches.end(), in_group)) continue;
    const auto unfinished = [](const QueuedBatch& batch) { return !batch.done; };
    const auto first = std::find_if(write.batches.begin(), write.batches.end(), unfinished);
    if (first == write.batches.end()) continue;
    finish(lock, *first, 0,
           std::make_exception_ptr(
               Error(ErrorKind::unavailable,
                     "cache was closed before this was written, nothing was written")));
  }
  wake_next_leader(lock);
}

void WriteQueue::remove_finished_async_writes() {
  for (auto write = async_writes_.begin(); write != async_writes_.end();) {
    if (write->batches_finished < write->batches.size()) {
      ++write;
      continue;
    }
    assert(async_bytes_ >= write->bytes.size());
    async_bytes_ -= write->bytes.size();
    write = async_writes_.erase(write);
  }
  if (stopping_ && async_writes_.empty()) async_finished_.notify_all();
}

void WriteQueue::stop() {
  std::thread thread;
  {
    MutexLock lock(mutex_);
    stopping_ = true;  // write_async() starts no other thread after this
    thread.swap(async_thread_);
    async_ready_.notify_one();
    const Deadline patience(closing_patience);
    while (!async_writes_.empty() && !patience.passed())
      async_finished_.wait_for(lock.native(), patience.remaining());
    if (!async_writes_.empty() && leader_stop_) leader_stop_->request_stop();
  }
  if (thread.joinable()) thread.join();
}

// From now on, stop() can end the leader's call of the log.
void WriteQueue::let_stop_end_call_of(QueuedBatch& leader) {
  try {
    leader.backoff.replace_stop(leader_stop_.emplace().get_token());
  } catch (const std::bad_alloc&) {
    leader_stop_.reset();  // the call then ends at its deadline
  }
}

void WriteQueue::restart() {
  const MutexLock lock(mutex_);
  stopping_ = false;
}

// --- The lock ---

// The analysis does not follow a lock that is a member of another.

WriteQueue::NotifyingLock::NotifyingLock(Mutex& mutex) WHYCACHE_NO_THREAD_SAFETY_ANALYSIS
    : lock_(mutex) {}

WriteQueue::NotifyingLock::~NotifyingLock() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
  if (lock_.native().owns_lock()) lock_.unlock();
  notify_pending();
}

void WriteQueue::NotifyingLock::release() noexcept WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
  lock_.unlock();
  notify_pending();
}

void WriteQueue::NotifyingLock::reacquire() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { lock_.lock(); }

void WriteQueue::NotifyingLock::wait(std::condition_variable& condition) {
  notify_pending();
  condition.wait(lock_.native());
}

void WriteQueue::NotifyingLock::wait(std::condition_variable& condition,
                                     std::chrono::nanoseconds timeout) {
  notify_pending();
  condition.wait_for(lock_.native(), timeout);
}

void WriteQueue::NotifyingLock::notify_on_release(const QueuedBatch& batch, bool first) noexcept {
  if (!batch.condition) return;
  try {
    pending_notifications_.insert(
        first ? pending_notifications_.begin() : pending_notifications_.end(), batch.condition);
  } catch (const std::bad_alloc&) {
    batch.condition->notify_one();
  }
}

void WriteQueue::NotifyingLock::notify_pending() noexcept {
  for (const std::shared_ptr<std::condition_variable>& condition : pending_notifications_)
    condition->notify_one();
  pending_notifications_.clear();
  for (const std::shared_ptr<WriteWaker>& waker : pending_wakers_) waker->wake();
  pending_wakers_.clear();
}

void WriteQueue::NotifyingLock::wake_on_release(const std::shared_ptr<WriteWaker>& waker) noexcept {
  if (!waker ||
      std::find(pending_wakers_.begin(), pending_wakers_.end(), waker) != pending_wakers_.end())
    return;
  try {
    pending_wakers_.push_back(waker);
  } catch (const std::bad_alloc&) {
    waker->wake();
  }
}

// --- The queue ---

// If there is no leader, wakes the writer at the head, before the others: it can begin while they
// are woken.
void WriteQueue::wake_next_leader(NotifyingLock& lock) noexcept {
  if (has_leader_ || queue_.empty()) return;
  lock.notify_on_release(*queue_.front(), /*first=*/true);
  if (queue_.front()->async_write != nullptr) async_ready_.notify_one();
}

void WriteQueue::enqueue_and_wait(QueuedBatch& batch) {
  NotifyingLock lock(mutex_);
  // A writer that leads at once waits for no other.
  if (has_leader_ || !queue_.empty()) batch.condition = std::make_shared<std::condition_variable>();
  queue_.push_back(&batch);
  while (!batch.done) {
    if (!has_leader_ && queue_.front() == &batch) {
      has_leader_ = true;
      batch.condition = nullptr;  // its batch is done when it has led
      lock.release();
      commit_as_leader(batch);
      lock.reacquire();
    } else if (batch.in_group) {
      lock.wait(*batch.condition);  // the leader's deadline is not after ours
    } else if (const std::chrono::nanoseconds left = batch.backoff.deadline().next_wait();
               left.count() > 0) {
      lock.wait(*batch.condition, left);
    } else {
      remove_from_queue(batch);
      throw Error(ErrorKind::unavailable,
                  session_.why_gave_up(batch.backoff) +
                      ", other writers of this process were first, nothing was written: log=" +
                      session_.log.name() +
                      " deadline_ms=" + std::to_string(batch.backoff.timeout().count()));
    }
  }
  if (batch.failure) std::rethrow_exception(batch.failure);
}

// Appends the leader's batch, which is at the head, with those behind it that fit. Gives each of
// them the id or the failure.
void WriteQueue::commit_as_leader(QueuedBatch& leader) {
  std::vector<QueuedBatch*> followers;
  UpdateId id = 0;
  std::exception_ptr failure;
  bool nothing_written = false;
  try {
    session_.throw_if_stopped(leader.backoff);
    const HeldLock appending = appender_.lock_and_follow(leader.backoff);
    // The writers of the previous group are ready to run, and most return with their next write.
    // Let them queue before the group is built.
    if (previous_group_had_followers_) std::this_thread::yield();
    followers = build_group(leader);
    previous_group_had_followers_ = !followers.empty();
    id = followers.empty() ? appender_.append(leader.draft, leader.backoff, check_erased(leader))
                           : append_group(leader, followers);
    if (leader.erased_before != nullptr) *leader.erased_before += leader.erased;
  } catch (const Error& error) {
    failure = std::current_exception();
    nothing_written = error.kind() != ErrorKind::uncertain;
  } catch (...) {
    failure = std::current_exception();
  }

  NotifyingLock lock(mutex_);
  assert(has_leader_);
  has_leader_ = false;
  leader_stop_.reset();
  finish(lock, leader, id, failure);
  for (QueuedBatch* follower : followers) {
    follower->in_group = false;
    // A follower whose deadline is later than the leader's stays in the queue, and leads next.
    if (!follower->done && (!nothing_written || follower->backoff.deadline().passed())) {
      finish(lock, *follower, id, failure);
    } else {
      lock.notify_on_release(*follower);
    }
  }
  if (stopping_) async_ready_.notify_one();  // to fail those that stay
  wake_next_leader(lock);
}

void WriteQueue::finish(NotifyingLock& lock, QueuedBatch& batch, UpdateId id,
                        const std::exception_ptr& failure) {
  assert(!batch.done);
  remove_from_queue(batch);
  lock.notify_on_release(batch);
  batch.done = true;
  batch.id = id;
  batch.failure = failure;
  if (batch.async_write != nullptr) finish_async(lock, batch);
}

void WriteQueue::finish_async(NotifyingLock& lock, QueuedBatch& batch) {
  AsyncWrite& write = *batch.async_write;
  async_ready_.notify_one();
  ++write.batches_finished;
  if (!batch.failure) {
    write.changes_written += batch.changes.size();
    write.last_id = batch.id;
    if (write.batches_finished < write.batches.size()) return;
    write.completion->finish(batch.id, nullptr);
    lock.wake_on_release(write.completion->waker());
    return;
  }
  // The later batches of this write are behind it in the queue, so none is written yet. None may be
  // written without it.
  for (QueuedBatch& after : write.batches) {
    if (after.done) continue;
    remove_from_queue(after);
    after.done = true;
    ++write.batches_finished;
  }
  write.completion->finish(0, write.changes_written == 0
                                  ? batch.failure
                                  : partial_failure(batch.failure, write.changes_written,
                                                    write.changes.size(), write.last_id));
  lock.wake_on_release(write.completion->waker());
}

std::exception_ptr WriteQueue::partial_failure(const std::exception_ptr& failure,
                                               std::size_t written, std::size_t all,
                                               UpdateId last_id) const noexcept {
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    try {
      return std::make_exception_ptr(partial_write_error(error, written, all, last_id));
    } catch (const std::bad_alloc&) {
      return std::make_exception_ptr(appender_.memory_ran_out());
    }
  } catch (...) {  // std::bad_alloc
    return std::make_exception_ptr(appender_.memory_ran_out());
  }
}

// Returns the batches behind the leader that go into its update. They have the same note, and a
// deadline that is not before the leader's: a batch in a group cannot give up. Therefore a batch
// whose caller may request a stop is appended alone. So does one that counts the keys that its call
// erases.
std::vector<WriteQueue::QueuedBatch*> WriteQueue::build_group(QueuedBatch& leader) {
  const MutexLock lock(mutex_);
  std::vector<QueuedBatch*> followers;
  std::size_t bytes = leader.draft.uncompressed_bytes();
  std::size_t changes = leader.draft.change_count();
  if (leader.can_be_stopped || leader.erased_before != nullptr) return followers;
  for (QueuedBatch* batch : queue_) {
    if (batch == &leader) continue;
    if (stopping_ && batch->async_write != nullptr) break;  // fails soon, as fail_unwritten() says
    bytes += batch->draft.uncompressed_bytes();
    changes += batch->draft.change_count();
    if (bytes > session_.options.update_bytes_max || changes > element_count_max ||
        batch->note != leader.note || batch->can_be_stopped || batch->erased_before != nullptr ||
        batch->backoff.deadline().remaining() < leader.backoff.deadline().remaining()) {
      break;
    }
    followers.push_back(batch);
  }
  bool has_async_write = false;
  for (QueuedBatch* batch : followers) {
    batch->in_group = true;
    has_async_write = has_async_write || batch->async_write != nullptr;
  }
  if (has_async_write && !leader_stop_) let_stop_end_call_of(leader);
  return followers;
}

// Returns the check of the log's guards for an update that has this batch alone; none if it erases
// nothing.
Appender::Check WriteQueue::check_erased(QueuedBatch& batch) {
  if (!batch.erases) return {};
  return [&batch](const View& view) {
    batch.erased = count_erased_keys(batch.changes, view);
    check_log_guards(view, batch.erased, batch.erased_before != nullptr ? *batch.erased_before : 0);
  };
}

// Appends the batches as one update. If the log or its guards refuse that update, releases the
// followers and appends the leader's batch alone. The caller holds StateLock::append.
UpdateId WriteQueue::append_group(QueuedBatch& leader, std::vector<QueuedBatch*>& followers) {
  Draft together(session_.authorship(std::string(leader.note)));
  bool fits = true;  // build_group() made sure of it
  const auto add = [&](const QueuedBatch& batch) {
    for (const Change& change : batch.changes)
      fits = fits && together.add(change, session_.options.update_bytes_max);
  };
  add(leader);
  for (const QueuedBatch* follower : followers) add(*follower);
  bool erases = leader.erases;
  for (const QueuedBatch* follower : followers) erases = erases || follower->erases;
  const auto check = [&](const View& view) {
    std::uint64_t erased = count_erased_keys(leader.changes, view);
    for (const QueuedBatch* follower : followers)
      erased += count_erased_keys(follower->changes, view);
    check_log_guards(view, erased);
  };
  try {
    if (fits) return appender_.append(together, leader.backoff, erases ? check : Appender::Check());
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::limit && error.kind() != ErrorKind::invalid &&
        error.kind() != ErrorKind::refused)
      throw;
  }
  // Each batch is now appended alone. Only the batch that the log refuses then fails.
  {
    NotifyingLock lock(mutex_);
    for (QueuedBatch* follower : followers) {
      follower->in_group = false;
      lock.notify_on_release(*follower);
    }
    followers.clear();
  }
  return appender_.append(leader.draft, leader.backoff, check_erased(leader));
}

}  // namespace whycache
