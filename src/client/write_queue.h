// The queue of the writers of one process, with group commit.
//
// Writers queue. The writer at the head becomes the leader: it packs as many queued batches as fit
// into one update, appends it, and gives each writer in the group the id. The next writer in the
// queue then leads. Each caller's batch stays atomic. (docs/decisions/group-commit.md)
//
// Asynchronous writes wait in the same queue. One thread, started with the first of them, leads
// whenever one of their batches is at the head.
#pragma once

#include <whycache/cache.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <future>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/backoff.h"
#include "base/mutex.h"
#include "client/appender.h"
#include "client/session.h"

namespace whycache {

// Wakes whatever waits for asynchronous writes, such as an event loop.
class WriteWaker {
 public:
  virtual ~WriteWaker() = default;
  // Runs once after each group commit that has finished writes of this waker, on the thread that
  // led it. Must return soon.
  virtual void wake() noexcept = 0;
};

// Takes the outcome of one asynchronous write, for callers that cannot wait for a future.
class WriteCompletion {
 public:
  explicit WriteCompletion(std::shared_ptr<WriteWaker> waker) : waker_(std::move(waker)) {}
  virtual ~WriteCompletion() = default;
  WriteCompletion(const WriteCompletion&) = delete;
  WriteCompletion& operator=(const WriteCompletion&) = delete;

  // Runs once, before the waker does. With a failure, `id` is 0. Holds the mutex of the queue: must
  // only take note, and must not call back.
  virtual void finish(UpdateId id, const std::exception_ptr& failure) noexcept = 0;
  const std::shared_ptr<WriteWaker>& waker() const { return waker_; }

 private:
  std::shared_ptr<WriteWaker> waker_;
};

class WriteQueue {
 public:
  WriteQueue(Session& session, Appender& appender) : session_(session), appender_(appender) {}
  ~WriteQueue() { stop(); }
  WriteQueue(const WriteQueue&) = delete;
  WriteQueue& operator=(const WriteQueue&) = delete;

  // Appends and applies the changes, as several updates if one cannot hold them. Returns the id of
  // the last. If a key is changed more than once, only the last change counts. Without changes,
  // returns the applied id.
  //
  // Throws Error(invalid), Error(limit) or Error(refused) before anything is written. Throws
  // Error(unavailable) if nothing was written. Throws Error(uncertain) if the changes may be
  // written in full or in part; the message says what is known.
  UpdateId write(std::span<const Change> changes, const WriteOptions& options);

  // Copies the changes and returns; a thread of the queue writes them. The future has what write()
  // would return or throw. Throws invalid, limit and refused at once, as write() does, and
  // Error(limit) if more than Options::queue_bytes_max would be waiting.
  std::future<UpdateId> write_async(std::span<const Change> changes, const WriteOptions& options);
  // The same, but gives the outcome to `completion`. After it has thrown, it never does.
  void write_async(std::span<const Change> changes, const WriteOptions& options,
                   std::shared_ptr<WriteCompletion> completion);
  // Stops and joins the thread. Asynchronous writes that it has not begun fail with
  // Error(unavailable), and write_async() throws Error(invalid) from now on. A write that is under
  // way gets a moment to finish. Then its call of the log is stopped, and it fails as if its
  // deadline had passed. That ends a blocking write, too, if its update has asynchronous writes.
  void stop() WHYCACHE_EXCLUDES(mutex_);
  // Accepts asynchronous writes again.
  void restart() WHYCACHE_EXCLUDES(mutex_);

 private:
  struct AsyncWrite;
  // The changes of one caller that go into one update. The leader uses the members up to
  // `can_be_stopped` of the batches in its group without the mutex; their callers leave these alone
  // meanwhile. The mutex guards the others while the batch is queued.
  struct QueuedBatch {
    Draft draft;
    std::span<const Change> changes;
    bool erases = false;
    // How many keys the call has erased by updates before this one, as far as the log had guards;
    // null if one update has all of the call.
    std::uint64_t* erased_before = nullptr;
    std::uint64_t erased = 0;  // by this batch, as of the last check_erased()
    std::string_view note;
    Backoff backoff;
    bool can_be_stopped = false;  // by its caller
    bool in_group = false;        // of the current leader
    bool done = false;
    UpdateId id = 0;
    std::exception_ptr failure;
    AsyncWrite* async_write = nullptr;  // the write it is part of; null if its caller waits
    // Its caller waits on it; null for the leader and for an asynchronous write. Shared, since the
    // thread that notifies it may do so after the caller has returned.
    std::shared_ptr<std::condition_variable> condition;
  };
  // A write whose caller does not wait for it. It stays at one address while it is queued.
  struct AsyncWrite {
    // Copies keys and values. If a key is changed more than once, keeps the last change.
    static AsyncWrite copy_of(std::span<const Change> changes, const WriteOptions& options);

    std::vector<char> bytes;  // keys and values; a vector, since a move leaves them in place
    std::vector<Change> changes;
    WriteOptions options;
    std::vector<QueuedBatch> batches;
    std::uint64_t keys_erased = 0;
    std::size_t batches_finished = 0;
    std::size_t changes_written = 0;
    UpdateId last_id = 0;
    // Takes the outcome.
    std::shared_ptr<WriteCompletion> completion;
  };

  // Holds the queue's mutex, and notifies waiting writers only after it has released it (or in
  // wait(), or if memory to remember them is missing). A writer
  // that is woken earlier would block on the mutex; one that is woken without need takes a
  // processor from the writers at work.
  class WHYCACHE_THREAD_ANNOTATION(scoped_lockable) NotifyingLock {
   public:
    explicit NotifyingLock(Mutex& mutex) WHYCACHE_ACQUIRE(mutex);
    ~NotifyingLock() WHYCACHE_RELEASE();
    NotifyingLock(const NotifyingLock&) = delete;
    NotifyingLock& operator=(const NotifyingLock&) = delete;

    // Notifies the caller of the batch, if one waits. `first`: before all others.
    void notify_on_release(const QueuedBatch& batch, bool first = false) noexcept;
    void wake_on_release(const std::shared_ptr<WriteWaker>& waker) noexcept;
    // Releases the mutex while it waits, as std::condition_variable does.
    void wait(std::condition_variable& condition);
    void wait(std::condition_variable& condition, std::chrono::nanoseconds timeout);
    void release() noexcept WHYCACHE_RELEASE();
    void reacquire() WHYCACHE_ACQUIRE();

   private:
    void notify_pending() noexcept;

    MutexLock lock_;
    std::vector<std::shared_ptr<std::condition_variable>> pending_notifications_;
    std::vector<std::shared_ptr<WriteWaker>> pending_wakers_;
  };

  void enforce_guards(std::span<const Change> changes, const WriteOptions& options) const;
  std::vector<QueuedBatch> split_into_batches(std::span<const Change> changes,
                                              const WriteOptions& options,
                                              std::uint64_t& erased_by_call);
  void reserve_async_bytes(std::size_t bytes) WHYCACHE_EXCLUDES(mutex_);
  void enqueue_async(std::list<AsyncWrite>& one_write) WHYCACHE_EXCLUDES(mutex_);
  // Throws Error(limit) if the system cannot start a thread.
  void start_async_thread() WHYCACHE_REQUIRES(mutex_);
  void run_async_writer() WHYCACHE_EXCLUDES(mutex_);
  void fail_unwritten(NotifyingLock& lock) WHYCACHE_REQUIRES(mutex_);
  void remove_finished_async_writes() WHYCACHE_REQUIRES(mutex_);

  void enqueue_and_wait(QueuedBatch& batch) WHYCACHE_EXCLUDES(mutex_);
  void commit_as_leader(QueuedBatch& leader) WHYCACHE_EXCLUDES(mutex_);
  std::vector<QueuedBatch*> build_group(QueuedBatch& leader) WHYCACHE_EXCLUDES(mutex_);
  void let_stop_end_call_of(QueuedBatch& leader) WHYCACHE_REQUIRES(mutex_);
  static Appender::Check check_erased(QueuedBatch& batch);
  UpdateId append_group(QueuedBatch& leader, std::vector<QueuedBatch*>& followers)
      WHYCACHE_EXCLUDES(mutex_);
  void finish(NotifyingLock& lock, QueuedBatch& batch, UpdateId id,
              const std::exception_ptr& failure) WHYCACHE_REQUIRES(mutex_);
  void finish_async(NotifyingLock& lock, QueuedBatch& batch) WHYCACHE_REQUIRES(mutex_);
  // The failure of a split batch whose first updates are written.
  std::exception_ptr partial_failure(const std::exception_ptr& failure, std::size_t written,
                                     std::size_t all, UpdateId last_id) const noexcept;
  void remove_from_queue(QueuedBatch& batch) WHYCACHE_REQUIRES(mutex_) {
    std::erase(queue_, &batch);
  }
  void wake_next_leader(NotifyingLock& lock) noexcept WHYCACHE_REQUIRES(mutex_);

  Session& session_;
  Appender& appender_;

  // Whether the previous leader had followers. Only the present leader uses it, without the mutex:
  // between two leaders, the mutex is released by one and acquired by the other.
  bool previous_group_had_followers_ = false;

  Mutex mutex_;
  std::deque<QueuedBatch*> queue_ WHYCACHE_GUARDED_BY(mutex_);
  bool has_leader_ WHYCACHE_GUARDED_BY(mutex_) = false;
  bool stopping_ WHYCACHE_GUARDED_BY(mutex_) = false;
  // Ends the current leader's call of the log, if stop() has to wait for that leader.
  std::optional<std::stop_source> leader_stop_ WHYCACHE_GUARDED_BY(mutex_);
  // Only the thread removes a write from the list, after the write has finished.
  std::list<AsyncWrite> async_writes_ WHYCACHE_GUARDED_BY(mutex_);
  std::size_t async_bytes_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  std::thread async_thread_ WHYCACHE_GUARDED_BY(mutex_);
  // Wakes the thread: an asynchronous write has finished, one of its batches is at the head, or the
  // queue is stopping.
  std::condition_variable async_ready_;
  // Wakes stop(): no asynchronous write is left.
  std::condition_variable async_finished_;
};

}  // namespace whycache
