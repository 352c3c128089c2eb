// A TCP proxy of the test's own, in front of a server: what networks do to connections it does on
// demand, at the byte it is told. It listens on a free port of loopback and runs in a thread of its
// own.
//
//   TcpProxy proxy(server.port());
//   proxy.treat([&](std::uint64_t) {                     // asked for each connection
//     TcpProxy::Treatment treatment;
//     treatment.to_client.cut_after = 700;               // 700 bytes of answers, and then no more
//     return treatment;
//   });
//
// Threads: everything may be called from any thread, at any time. Processes: it lives in the
// process that made it; a forked child may connect to it, and nothing else.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

namespace whycache::testing {

class TcpProxy {
 public:
  // What becomes of the bytes that go one way. Bytes are counted from the beginning of the
  // connection.
  struct Direction {
    // When so many have been passed on, the connection ends, on both sides and in both directions.
    std::optional<std::uint64_t> cut_after{};
    // When so many have been passed on, this direction ends as if the sender had closed it; the
    // other one goes on.
    std::optional<std::uint64_t> half_close_after{};
    // When so many have been passed on, the rest is taken and thrown away.
    std::optional<std::uint64_t> drop_after{};
    std::chrono::microseconds delay{0};                  // before each piece that is passed on
    std::size_t chunk_bytes_max = std::size_t{1} << 16;  // 1: byte by byte
  };
  struct ConnectionFaults {
    Direction to_server{};
    Direction to_client{};
    // How cut_after ends a connection: both sides get a reset, which overtakes bytes they have not
    // read yet; or both read to the end of what was passed on.
    bool cut_by_reset = false;
  };
  using ChooseFaults = std::function<ConnectionFaults(std::uint64_t connection)>;

  // Throws std::runtime_error when it cannot listen.
  explicit TcpProxy(std::uint16_t server_port);
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;
  ~TcpProxy();

  // Where it listens.
  std::uint16_t port() const { return port_; }

  // From now on each new connection is treated as `choose` says; it is called on the proxy's
  // thread, with numbers from 1.
  void set_fault_chooser(ChooseFaults choose);
  // From now on all connections are treated like this, those there are and new ones.
  void set_faults(const ConnectionFaults& faults);
  // New connections lead to another server; those there are end.
  void point_to(std::uint16_t server_port);
  // Ends all connections there are.
  void cut_all();

  // How many connections there were, and how many were ended by cut_after.
  std::uint64_t connections() const;
  std::uint64_t cuts() const;

 private:
  struct Pipe;
  struct Connection;

  void run();
  void accept_connection(int client);
  void serve(Connection& connection);
  void receive(Pipe& pipe);
  void forward_bytes(Connection& connection, Pipe& pipe);
  void close_connection(Connection& connection, bool by_reset);
  void wake() const;

  int listener_ = -1;
  int wake_descriptor_ = -1;
  std::uint16_t port_ = 0;
  pid_t owner_pid_;
  mutable std::mutex mutex_;  // of what follows
  std::uint16_t server_port_;
  ChooseFaults choose_faults_;
  std::list<std::unique_ptr<Connection>> open_connections_;
  std::uint64_t connections_ = 0;
  std::uint64_t cuts_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace whycache::testing
