#include "support/tcp_proxy.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace whycache::testing {
namespace {

using Clock = std::chrono::steady_clock;

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

// Returns -1 if no server listens.
int connect_to(std::uint16_t port) {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_in address = loopback(port);
  if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    ::close(socket);
    return -1;
  }
  return socket;
}

void prepare_socket(int socket) {
  constexpr int yes = 1;
  ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  ::fcntl(socket, F_SETFL, O_NONBLOCK);
}

// Forked children may have copies of the descriptor, so closing this one would not end the
// connection.
void close_socket(int socket, bool by_reset) {
  if (by_reset) {
    sockaddr nowhere{};
    nowhere.sa_family = AF_UNSPEC;
    ::connect(socket, &nowhere, sizeof nowhere);
  } else {
    ::shutdown(socket, SHUT_RDWR);
  }
  ::close(socket);
}

}  // namespace

// One direction of a connection.
struct TcpProxy::Pipe {
  bool wants_bytes() const { return !ended && pending.empty(); }
  bool has_bytes() const { return !pending.empty(); }

  int from;
  int to;
  Direction faults;
  std::string pending{};  // received, not forwarded yet
  std::uint64_t forwarded_bytes = 0;
  Clock::time_point ready_at{};
  bool ended = false;  // the sender closed it, or it was cut
  bool end_forwarded = false;
};

struct TcpProxy::Connection {
  int client;
  int server;
  Pipe to_server;
  Pipe to_client;
  bool cut_by_reset;
  bool is_closed = false;
};

TcpProxy::TcpProxy(std::uint16_t server_port) : owner_pid_(::getpid()), server_port_(server_port) {
  listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_in address = loopback(0);
  socklen_t size = sizeof address;
  if (::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::listen(listener_, 128) != 0 ||
      ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    ::close(listener_);
    throw std::runtime_error("proxy cannot listen");
  }
  port_ = ntohs(address.sin_port);
  wake_descriptor_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  thread_ = std::thread([this] { run(); });
}

TcpProxy::~TcpProxy() {
  if (::getpid() != owner_pid_) {  // a forked child's copy has no such thread
    thread_.detach();
    return;
  }
  {
    const std::lock_guard guard(mutex_);
    stopping_ = true;
  }
  wake();
  thread_.join();
  for (const auto& connection : open_connections_) close_connection(*connection, false);
  ::close(listener_);
  ::close(wake_descriptor_);
}

void TcpProxy::set_fault_chooser(ChooseFaults choose) {
  const std::lock_guard guard(mutex_);
  choose_faults_ = std::move(choose);
}

void TcpProxy::set_faults(const ConnectionFaults& faults) {
  const std::lock_guard guard(mutex_);
  choose_faults_ = [faults](std::uint64_t) { return faults; };
  for (const auto& connection : open_connections_) {
    connection->to_server.faults = faults.to_server;
    connection->to_client.faults = faults.to_client;
    connection->cut_by_reset = faults.cut_by_reset;
    for (Pipe* pipe : {&connection->to_server, &connection->to_client}) pipe->ready_at = {};
  }
  wake();
}

void TcpProxy::point_to(std::uint16_t server_port) {
  const std::lock_guard guard(mutex_);
  server_port_ = server_port;
  for (const auto& connection : open_connections_) close_connection(*connection, false);
  wake();
}

void TcpProxy::cut_all() {
  const std::lock_guard guard(mutex_);
  for (const auto& connection : open_connections_)
    close_connection(*connection, connection->cut_by_reset);
  wake();
}

std::uint64_t TcpProxy::connections() const {
  const std::lock_guard guard(mutex_);
  return connections_;
}

std::uint64_t TcpProxy::cuts() const {
  const std::lock_guard guard(mutex_);
  return cuts_;
}

void TcpProxy::wake() const {
  constexpr std::uint64_t one = 1;
  static_cast<void>(!::write(wake_descriptor_, &one, sizeof one));  // if full, it wakes anyway
}

// --- The thread. It holds the mutex except while it waits. ---

void TcpProxy::run() {
  std::vector<pollfd> polled;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    std::erase_if(open_connections_, [](const auto& connection) { return connection->is_closed; });
    polled.assign({{listener_, POLLIN, 0}, {wake_descriptor_, POLLIN, 0}});
    const Clock::time_point now = Clock::now();
    Clock::time_point wake_at = now + std::chrono::hours(1);
    for (const auto& connection : open_connections_) {
      for (const Pipe* pipe : {&connection->to_server, &connection->to_client}) {
        if (pipe->wants_bytes()) polled.push_back({pipe->from, POLLIN, 0});
        if (!pipe->has_bytes()) continue;
        if (pipe->ready_at > now) {
          wake_at = std::min(wake_at, pipe->ready_at);
        } else {
          polled.push_back({pipe->to, POLLOUT, 0});
        }
      }
    }
    lock.unlock();
    const std::chrono::nanoseconds timeout = wake_at - now;
    const timespec wait{timeout.count() / 1'000'000'000, timeout.count() % 1'000'000'000};
    ::ppoll(polled.data(), polled.size(), &wait, nullptr);
    lock.lock();

    std::uint64_t ignored = 0;
    static_cast<void>(!::read(wake_descriptor_, &ignored, sizeof ignored));
    for (int client; (client = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC)) >= 0;)
      accept_connection(client);
    for (const auto& connection : open_connections_) {
      if (!connection->is_closed) serve(*connection);
    }
  }
}

void TcpProxy::accept_connection(int client) {
  const int server = connect_to(server_port_);
  if (server < 0) return close_socket(client, true);
  prepare_socket(client);
  prepare_socket(server);
  const ConnectionFaults faults =
      choose_faults_ ? choose_faults_(connections_ + 1) : ConnectionFaults{};
  ++connections_;
  open_connections_.push_back(std::make_unique<Connection>(Connection{
      .client = client,
      .server = server,
      .to_server = {.from = client, .to = server, .faults = faults.to_server},
      .to_client = {.from = server, .to = client, .faults = faults.to_client},
      .cut_by_reset = faults.cut_by_reset,
  }));
}

void TcpProxy::serve(Connection& connection) {
  for (Pipe* pipe : {&connection.to_server, &connection.to_client}) {
    if (pipe->wants_bytes()) receive(*pipe);
    forward_bytes(connection, *pipe);
    if (connection.is_closed) return;
  }
  if (connection.to_server.end_forwarded && connection.to_client.end_forwarded)
    close_connection(connection, false);
}

void TcpProxy::receive(Pipe& pipe) {
  char bytes[1 << 16];
  const ssize_t count = ::recv(pipe.from, bytes, sizeof bytes, 0);
  if (count > 0) {
    pipe.pending.assign(bytes, static_cast<std::size_t>(count));
    pipe.ready_at = Clock::now() + pipe.faults.delay;
  } else if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
    pipe.ended = true;
  }
}

void TcpProxy::forward_bytes(Connection& connection, Pipe& pipe) {
  const Direction& faults = pipe.faults;
  const auto left_until = [&](const std::optional<std::uint64_t>& bytes) {
    return bytes ? *bytes - std::min(*bytes, pipe.forwarded_bytes) : ~std::uint64_t{0};
  };
  while (pipe.has_bytes() && pipe.ready_at <= Clock::now()) {
    if (left_until(faults.half_close_after) == 0) {
      pipe.pending.clear();
      pipe.ended = true;
    } else if (left_until(faults.drop_after) == 0) {
      pipe.pending.clear();
    } else {
      const std::uint64_t size = std::min<std::uint64_t>(
          {pipe.pending.size(), faults.chunk_bytes_max, left_until(faults.cut_after),
           left_until(faults.half_close_after), left_until(faults.drop_after)});
      const ssize_t sent = ::send(pipe.to, pipe.pending.data(), size, MSG_NOSIGNAL);
      if (sent < 0 && (errno == EAGAIN || errno == EINTR)) break;
      if (sent < 0) return close_connection(connection, true);  // the receiver closed it
      pipe.forwarded_bytes += static_cast<std::uint64_t>(sent);
      pipe.pending.erase(0, static_cast<std::size_t>(sent));
      pipe.ready_at = Clock::now() + faults.delay;
      if (left_until(faults.cut_after) == 0) {
        ++cuts_;
        return close_connection(connection, connection.cut_by_reset);
      }
    }
  }
  if (left_until(faults.half_close_after) == 0) pipe.ended = true;
  if (pipe.ended && !pipe.has_bytes() && !pipe.end_forwarded) {
    ::shutdown(pipe.to, SHUT_WR);
    pipe.end_forwarded = true;
  }
}

void TcpProxy::close_connection(Connection& connection, bool by_reset) {
  if (connection.is_closed) return;
  connection.is_closed = true;
  close_socket(connection.client, by_reset);
  close_socket(connection.server, by_reset);
}

}  // namespace whycache::testing
