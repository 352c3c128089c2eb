// Keeps what a tier knows of a log in Redis or Valkey. Format: docs/formats/redis.md.
//
// The keys contain what RedisConnection::data_id() returns. A server that was restarted, or a
// replica that took over, has other keys: what it kept, it kept from another time, and none of it
// may be taken for a record that was published since.
//
// The head record and the updates before it are published by one script, so that a follower that an
// update wakes finds its head record.
//
// Waiting. One thread of the process waits in XREAD, over a connection of its own, and wakes the
// others. The updates that it receives are kept for the next get_updates(). Long ones it does not
// receive: they are in a hash, from which get_updates() requests them.
//
// A server that does not answer is avoided for a while, as memcached is. A server that refuses
// requests is a problem that an operator has to know: the next wait() reports it, and the log is
// polled for a minute.
//
// A thread of the parent may have been changing any member during a fork. The destructor in the
// child therefore leaks what members own, and closes the sockets.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "log/redis_connection.h"
#include "log/tier_store.h"

namespace whycache {

class RedisStore final : public TierStore {
 public:
  RedisStore(RedisServer server, std::chrono::milliseconds timeout);
  ~RedisStore() override;

  bool is_available() const noexcept override;
  std::optional<HeadAndLease> get_head(const std::string& prefix) override;
  std::optional<std::vector<std::optional<StoredUpdate>>> get_updates(const std::string& prefix,
                                                                      UpdateId first,
                                                                      UpdateId last) override;
  Published publish(const std::string& prefix, std::span<const UpdateView> updates,
                    const std::optional<HeadChange>& change) override;
  bool set_poll_lease(const std::string& prefix, std::string_view lease,
                      std::chrono::seconds duration) override;
  bool add_poll_lease(const std::string& prefix, std::string_view lease,
                      std::chrono::seconds duration) override;
  bool add_fill_lease(const std::string& prefix, UpdateId id,
                      std::chrono::seconds duration) override;

  bool notifies() const noexcept override;
  bool wait(const std::string& prefix, UpdateId after, std::chrono::nanoseconds at_most) override;
  UpdateId claimed_head() const noexcept override {
    return claimed_head_.load(std::memory_order_relaxed);
  }
  void note_head(UpdateId head, UpdateId claimed) noexcept override;

 private:
  // An XREAD that the server has not answered yet.
  struct PendingRead {
    std::uint64_t number = 0;
    std::uint64_t key_hash = 0;
    std::int64_t ends_at_ns = 0;
  };

  // Shared by requests and waiting threads.
  struct Waiters {
    Mutex mutex;
    std::condition_variable changed;
    bool is_listening WHYCACHE_GUARDED_BY(mutex) = false;
    // Updates that were received and not handed out yet.
    std::map<UpdateId, std::string> received WHYCACHE_GUARDED_BY(mutex);
    std::size_t received_bytes WHYCACHE_GUARDED_BY(mutex) = 0;
    // The next wait() reports it.
    std::string problem WHYCACHE_GUARDED_BY(mutex);
    bool is_problem_of_writes WHYCACHE_GUARDED_BY(mutex) = false;
  };

  enum class RequestKind { read, write };
  // Returns the answer to a command. `make_words` gets the prefix of the keys. Returns nullopt if
  // the request failed. The only error that it returns is that a script is missing. `data_check`:
  // where to store the number of RedisConnection::send_data_check(), which is sent with it.
  std::optional<RedisReply> request(
      const std::string& prefix, RequestKind kind,
      const std::function<std::vector<std::string>(const std::string&)>& make_words,
      std::optional<std::uint64_t>* data_check = nullptr);
  bool set_if(const std::string& prefix, const std::string& key, std::string_view bytes,
              std::chrono::seconds duration, bool only_if_absent);
  bool is_same_server(std::uint64_t data_check);
  void mark_unavailable();
  void note_no_answer(std::int64_t began_at_ns);
  void note_refusal(const std::string& error);
  void note_problem(std::string problem, bool of_writes_only = false);
  // A problem that was not reported yet is over.
  void note_success(bool is_write);
  void throw_problem();

  bool listen(const std::string& prefix, UpdateId after, const Deadline& deadline);
  void send_read(const std::string& key, UpdateId after, const Deadline& deadline);
  bool note_received(RedisReply& reply);
  void drop_listener() noexcept;
  bool end_failed_wait(const RedisFailure& failure, const Deadline& deadline);

  const RedisServer server_;
  const std::chrono::milliseconds timeout_;
  const std::string script_id_;  // by which EVALSHA finds the script of publish()
  // fork_count() of the process that opened the connections.
  const std::uint64_t owner_fork_count_;

  // These belong to the thread that makes requests.
  std::unique_ptr<RedisConnection> connection_;
  std::optional<RedisConnectionAttempt> attempt_;
  std::optional<Deadline> unavailable_until_;
  std::int64_t last_answer_at_ns_ = 0;
  // Until then the server of `connection_`, a replica, is not asked to store anything; 0: it is no
  // replica.
  std::int64_t read_only_until_ns_ = 0;
  // Hash of the head record that get_head() returned last; 0: there was none.
  std::uint64_t last_head_hash_ = 0;
  // data_id() of `connection_`; 0: there was none yet. Written by the thread that makes requests,
  // read by the one that listens. Relaxed: an older value costs one more wait.
  std::atomic<std::uint64_t> data_id_{0};

  // These belong to the thread that listens.
  std::unique_ptr<RedisConnection> listener_;
  std::optional<RedisConnectionAttempt> listener_attempt_;
  std::optional<PendingRead> pending_read_;

  // The four below are hints, and are relaxed: nothing is published with them. The thread that
  // listens writes the first three; note_head() resets the first, get_head() the third.
  //
  // The greatest id received that no answer of the log has contradicted since.
  std::atomic<UpdateId> claimed_head_{0};
  // The thread that listens reads only updates beyond this one.
  std::atomic<UpdateId> position_{0};
  // Updates were received since get_head() was called last, so that it finds another record.
  std::atomic<bool> expects_new_head_{false};
  // Until then the server cannot wake this process. Written by any thread that waits.
  std::atomic<std::int64_t> refused_until_ns_{0};

  // In a child of a fork, threads of the parent may seem to wait: this is then never destroyed.
  std::unique_ptr<Waiters> waiters_;
};

}  // namespace whycache
