// Group commit. Callers queue; the one in front leads: it takes those behind it along into its
// update as far as they fit, appends for all, and tells each the id. Whoever waits meanwhile leads
// next. Each caller's batch stays atomic. Writes whose caller did not wait stand in the same queue;
// a thread leads when one of these is in front.
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
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/backoff.h"
#include "base/mutex.h"
#include "client/appender.h"
#include "client/session.h"

namespace whycache {

class WriteQueue {
 public:
  WriteQueue(Session& session, Appender& appender) : session_(session), appender_(appender) {}
  ~WriteQueue() { stop(); }
  WriteQueue(const WriteQueue&) = delete;
  WriteQueue& operator=(const WriteQueue&) = delete;

  // Appends and applies the changes, in several updates if one does not hold them. Returns the id
  // of the last.
  UpdateId write(std::span<const Change> changes, const WriteOptions& options);

  // The same by a thread of its own. Throws Error at once for what is wrong with the changes, or
  // limit.
  std::future<UpdateId> write_async(std::span<const Change> changes, const WriteOptions& options);
  // Ends that thread; what it has not begun to write fails.
  void stop() WHYCACHE_EXCLUDES(mutex_);

 private:
  struct AsyncWrite;
  // What one caller wants to have in one update.
  struct QueuedBatch {
    Draft draft;
    std::span<const Change> changes;
    std::string_view note;
    Backoff backoff;
    bool in_group = false;
    bool done = false;
    UpdateId id = 0;
    std::exception_ptr failure;
    AsyncWrite* async_write = nullptr;  // whom it belongs to, if nobody waits for it here
    // Its caller's, to wait on: shared, as whoever wakes him may come to it when he has gone.
    std::shared_ptr<std::condition_variable> condition;
  };
  // A write that nobody waits for.
  struct AsyncWrite {
    // Copies keys and values. If a key is changed more than once, keeps the last change.
    static AsyncWrite copy_of(std::span<const Change> changes, const WriteOptions& options);

    std::vector<char> bytes;  // keys and values; a vector, since a move leaves them in place
    std::vector<Change> changes;
    WriteOptions options;
    std::vector<QueuedBatch> batches;
    std::size_t batches_finished = 0;
    std::size_t changes_written = 0;
    UpdateId last_id = 0;
    std::promise<UpdateId> promise;
  };

  // Holds the queue's mutex, and notifies waiting writers only after it has released it. A writer
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
    // Releases the mutex while it waits, as std::condition_variable does.
    void wait(std::condition_variable& condition);
    void wait(std::condition_variable& condition, std::chrono::nanoseconds timeout);
    void release() noexcept WHYCACHE_RELEASE();
    void reacquire() WHYCACHE_ACQUIRE();

   private:
    void notify_pending() noexcept;

    MutexLock lock_;
    std::vector<std::shared_ptr<std::condition_variable>> pending_notifications_;
  };

  void enforce_guards(std::span<const Change> changes) const;
  std::vector<QueuedBatch> split_into_batches(std::span<const Change> changes,
                                              const WriteOptions& options);
  void reserve_async_bytes(std::size_t bytes) WHYCACHE_EXCLUDES(mutex_);
  std::future<UpdateId> enqueue_async(std::list<AsyncWrite>& one_write) WHYCACHE_EXCLUDES(mutex_);
  void run_async_writer() WHYCACHE_EXCLUDES(mutex_);
  void fail_unwritten(NotifyingLock& lock, QueuedBatch& batch) WHYCACHE_REQUIRES(mutex_);
  void remove_finished_async_writes() WHYCACHE_REQUIRES(mutex_);

  void enqueue_and_wait(QueuedBatch& batch) WHYCACHE_EXCLUDES(mutex_);
  void commit_as_leader(QueuedBatch& leader) WHYCACHE_EXCLUDES(mutex_);
  std::vector<QueuedBatch*> build_group(const QueuedBatch& leader) WHYCACHE_EXCLUDES(mutex_);
  UpdateId append_group(QueuedBatch& leader, std::vector<QueuedBatch*>& followers)
      WHYCACHE_EXCLUDES(mutex_);
  void finish(NotifyingLock& lock, QueuedBatch& batch, UpdateId id,
              const std::exception_ptr& failure) WHYCACHE_REQUIRES(mutex_);
  void finish_async(QueuedBatch& batch) WHYCACHE_REQUIRES(mutex_);
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
  // Only the thread removes a write from the list, after the write has finished.
  std::list<AsyncWrite> async_writes_ WHYCACHE_GUARDED_BY(mutex_);
  std::size_t async_bytes_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  std::thread async_thread_ WHYCACHE_GUARDED_BY(mutex_);
  // Wakes the thread: an asynchronous write has finished, one of its batches is at the head, or the
  // queue is stopping.
  std::condition_variable async_ready_;
};

}  // namespace whycache
