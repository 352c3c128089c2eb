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
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/backoff.h"
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
  void stop();

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

  // Holds the mutex. Callers who were named meanwhile are woken when it lets go of it, each of them
  // by itself: who is woken while it is held would wait for it, and who is woken without need takes
  // a processor from those that write.
  class NotifyingLock {
   public:
    explicit NotifyingLock(WriteQueue& commit) : lock_(commit.mutex_) {}
    ~NotifyingLock() { release(); }
    NotifyingLock(const NotifyingLock&) = delete;
    NotifyingLock& operator=(const NotifyingLock&) = delete;

    void notify_on_release(const QueuedBatch& batch, bool first = false) noexcept;
    void wait(std::condition_variable& turn) {
      notify_pending();
      turn.wait(lock_);
    }
    void wait(std::condition_variable& turn, std::chrono::nanoseconds at_most) {
      notify_pending();
      turn.wait_for(lock_, at_most);
    }
    void release() noexcept {
      if (lock_.owns_lock()) lock_.unlock();
      notify_pending();
    }
    void reacquire() { lock_.lock(); }

   private:
    void notify_pending() noexcept;

    std::unique_lock<std::mutex> lock_;
    std::vector<std::shared_ptr<std::condition_variable>> pending_notifications_;
  };

  void enforce_guards(std::span<const Change> changes) const;
  std::vector<QueuedBatch> split_into_batches(std::span<const Change> changes,
                                              const WriteOptions& options);
  void reserve_async_bytes(std::size_t bytes);
  std::future<UpdateId> enqueue_async(std::list<AsyncWrite>& one_write);
  void enqueue_and_wait(QueuedBatch& batch);
  void commit_as_leader(QueuedBatch& batch);
  std::vector<QueuedBatch*> build_group(const QueuedBatch& leader);
  void remove_from_queue(QueuedBatch& batch) { std::erase(queue_, &batch); }
  void finish(NotifyingLock& locked, QueuedBatch& batch, UpdateId id,
              const std::exception_ptr& failure);
  void finish_async(QueuedBatch& batch);
  void wake_next_leader(NotifyingLock& locked) noexcept;
  void run_async_writer();

  UpdateId append_group(QueuedBatch& leader, std::vector<QueuedBatch*>& others);

  Session& session_;
  Appender& appender_;
  std::mutex mutex_;  // of what follows
  std::deque<QueuedBatch*> queue_;
  bool has_leader_ = false;
  bool previous_group_had_followers_ =
      false;  // who led last; used by who leads, without the mutex, which lies between two of them
  bool stopping_ = false;
  std::list<AsyncWrite> async_writes_;  // one that has ended is removed by the thread, nobody else
  std::size_t async_bytes_ = 0;
  std::thread async_thread_;
  std::condition_variable
      async_ready_;  // one of its writes has ended, or is in front, or it is to stop
};

}  // namespace whycache
