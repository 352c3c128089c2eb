// A TCP proxy of a test in front of a server. It injects faults of networks at chosen bytes. It
// listens on a free port of loopback and has its own thread.
//
//   TcpProxy proxy(server.port());
//   proxy.set_fault_chooser([&](std::uint64_t) {         // called for each connection
//     TcpProxy::ConnectionFaults faults;
//     faults.to_client.cut_after = 700;                  // 700 bytes of answers, then the end
//     return faults;
//   });
//
// Threads: any thread may call any function at any time. Processes: the proxy runs in the process
// that created it. A forked child may only connect to it.
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
  // Faults of one direction. Bytes are counted from the beginning of the connection.
  struct Direction {
    // After this many forwarded bytes the connection ends, on both sides and in both directions.
    std::optional<std::uint64_t> cut_after{};
    // After this many forwarded bytes this direction ends as if the sender had closed it. The other
    // direction continues.
    std::optional<std::uint64_t> half_close_after{};
    // After this many forwarded bytes the rest is received and discarded.
    std::optional<std::uint64_t> drop_after{};
    std::chrono::microseconds delay{0};                  // before each forwarded chunk
    std::size_t chunk_bytes_max = std::size_t{1} << 16;  // 1: byte by byte
  };
  struct ConnectionFaults {
    Direction to_server{};
    Direction to_client{};
    // How cut_after ends a connection. True: both sides get a reset, which overtakes unread bytes.
    // False: both sides can read all forwarded bytes first.
    bool cut_by_reset = false;
  };
  using ChooseFaults = std::function<ConnectionFaults(std::uint64_t connection)>;

  // Throws std::runtime_error if it cannot listen.
  explicit TcpProxy(std::uint16_t server_port);
  TcpProxy(const TcpProxy&) = delete;
  TcpProxy& operator=(const TcpProxy&) = delete;
  ~TcpProxy();

  // The port on which the proxy listens.
  std::uint16_t port() const { return port_; }

  // Chooses the faults of each new connection. `choose` runs on the proxy's thread, with connection
  // numbers from 1.
  void set_fault_chooser(ChooseFaults choose);
  // Sets the faults of all open and new connections.
  void set_faults(const ConnectionFaults& faults);
  // Ends all connections. New ones lead to the given server.
  void point_to(std::uint16_t server_port);
  // Ends all connections.
  void cut_all();

  // The number of accepted connections, and how many of them cut_after ended.
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
  mutable std::mutex mutex_;  // guards the members below
  std::uint16_t server_port_;
  ChooseFaults choose_faults_;
  std::list<std::unique_ptr<Connection>> open_connections_;
  std::uint64_t connections_ = 0;
  std::uint64_t cuts_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace whycache::testing
