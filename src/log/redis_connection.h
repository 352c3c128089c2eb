// A connection to a Redis or Valkey server. hiredis writes commands and parses answers; the socket
// is ours, does not block, and raises no SIGPIPE. TLS is that of hiredis_ssl.
//
// Answers come in the order of the commands. A caller that gives up leaves its answer behind, and
// the next one skips it.
//
// One thread at a time may use a connection. A forked child may only destroy it.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "log/connection_attempt.h"
#include "log/redis_server.h"
#include "log/redis_transport.h"

struct redisReader;

namespace whycache {

struct RedisReplyFunctions;

struct RedisReply {
  enum class Kind { nil, number, text, list, error };

  Kind kind = Kind::nil;
  std::int64_t number = 0;
  std::string text;  // of an error: "NOAUTH Authentication required."
  std::vector<RedisReply> items;

  // The text of element `index` of a list; nullptr if it is something else.
  const std::string* text_at(std::size_t index) const {
    if (index >= items.size() || items[index].kind != Kind::text) return nullptr;
    return &items[index].text;
  }
};

class RedisConnection {
 public:
  // Connects, logs in, and asks the server who it is. Throws RedisFailure, or Error(invalid) if a
  // file that the server's options name cannot be used.
  RedisConnection(const RedisServer& server, const Deadline& deadline);
  RedisConnection(const RedisConnection&) = delete;
  RedisConnection& operator=(const RedisConnection&) = delete;
  ~RedisConnection();
  // For a forked child: closes the sockets, and leaks everything else, which a thread of the
  // parent may have been changing.
  static void abandon(std::unique_ptr<RedisConnection> connection) noexcept;

  // Initializes what all connections to such a server share. Call it before a thread connects,
  // which a fork may cut off.
  static void prepare(const RedisServer& server);

  // Tells the data of this server from all other data, earlier data of the same server included:
  // another number after each restart, and after each failover.
  std::uint64_t data_id() const { return data_id_; }
  // Returns what the keys of a log begin with there.
  std::string keys_of(const std::string& prefix) const;
  // Queues a question: whether the server still has that data. It may have become a replica of
  // another one without closing the connection. Returns its number.
  std::uint64_t send_data_check();
  // Returns the answer, as await() does. Throws RedisFailure.
  std::optional<bool> await_data_check(std::uint64_t number, const Deadline& deadline);
  // Whether the server has not closed the connection. Takes no round trip.
  bool is_alive() noexcept { return transport_->is_alive(); }
  // Since when an answer is awaited; 0: none is.
  std::int64_t waits_since_ns() const { return waits_since_ns_; }
  // Returns when the certificate of the server expires, as RedisTransport says.
  std::string certificate_end() const { return transport_->certificate_end(); }

  // Queues a command. Returns its number.
  std::uint64_t send(std::span<const std::string_view> words);
  // Drops the answers that have arrived, without waiting. Throws RedisFailure.
  void skip_received();
  // Returns the answer to a command, and drops those to commands before it: several that were sent
  // have to be awaited in their order. Returns nullopt if the deadline passes first; the caller may
  // ask again. Throws RedisFailure if the connection is lost.
  std::optional<RedisReply> await(std::uint64_t number, const Deadline& deadline);

 private:
  void connect(const ServerAddress& address, const Deadline& deadline);
  void start_tls(const RedisServer& server, const Deadline& deadline);
  bool answers_without_tls(const ServerAddress& address, const Deadline& deadline);
  void run(std::span<const std::string_view> words, const Deadline& deadline);
  void log_in(const RedisServer& server, const Deadline& deadline);
  void read_data_id(const Deadline& deadline);
  std::uint64_t data_id_in(const RedisReply& replication) const;
  // Returns false if the deadline passes first.
  bool wait_for_socket(short events, const Deadline& deadline);
  void receive();
  std::optional<RedisReply> next_reply();

  struct FreeReader {
    void operator()(redisReader* reader) const;
  };

  FileDescriptor socket_;
  std::unique_ptr<RedisTransport> transport_;
  // Wakes a wait whose stop is requested.
  FileDescriptor stop_event_;
  std::unique_ptr<RedisReplyFunctions> reply_functions_;  // of the reader
  std::unique_ptr<redisReader, FreeReader> reader_;
  std::string run_id_;  // of the server process, which is the same as long as the connection
  std::uint64_t data_id_ = 0;
  std::string queued_;
  std::uint64_t sent_count_ = 0;
  std::uint64_t answered_count_ = 0;
  std::int64_t waits_since_ns_ = 0;
  // Bytes received since the last complete answer.
  std::size_t unparsed_bytes_ = 0;
};

using RedisConnectionAttempt = ConnectionAttempt<RedisConnection>;

// Returns a new connection, or nullptr if there is none when the deadline passes; `attempt` is then
// an attempt that continues. Otherwise as the constructor.
std::unique_ptr<RedisConnection> connect_redis(const RedisServer& server,
                                               std::chrono::milliseconds timeout,
                                               const Deadline& deadline,
                                               std::optional<RedisConnectionAttempt>& attempt);

// Returns a message of the server in the form that an error or event takes.
std::string shortened(std::string text);
// Whether an error of the server may pass by itself soon, so that it is not worth a report.
bool is_passing_redis_error(std::string_view error);
// Whether the server does not have the script that EVALSHA names.
bool is_missing_script(std::string_view error);
// Whether the server still answers requests that store nothing.
bool is_redis_write_refused(std::string_view error);
// Returns what an operator does about an error of the server, or a failure of TLS:
// " (redis_user= ...)"; or nothing.
std::string redis_hint(std::string_view error);

}  // namespace whycache
