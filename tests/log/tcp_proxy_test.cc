// The proxy that tests put in front of servers (support/tcp_proxy.h) injects each fault at the
// requested byte.
#include "support/tcp_proxy.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// One end of a connection, with blocking calls.
class Socket {
 public:
  explicit Socket(int descriptor) : descriptor_(descriptor) {
    const timeval timeout{10, 0};
    ::setsockopt(descriptor_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  }
  Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  Socket& operator=(Socket&&) = delete;
  ~Socket() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  int descriptor() const { return descriptor_; }
  void send(const std::string& bytes) const {
    ::send(descriptor_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  void end() const { ::shutdown(descriptor_, SHUT_WR); }
  std::string receive(std::size_t size) const {
    std::string bytes(size, '\0');
    std::size_t have = 0;
    while (have < size) {
      const ssize_t count = ::recv(descriptor_, bytes.data() + have, size - have, 0);
      if (count <= 0) break;
      have += static_cast<std::size_t>(count);
    }
    bytes.resize(have);
    return bytes;
  }
  // Returns all bytes before the end, and how the connection ended: " end" or " reset".
  std::string receive_all() const {
    std::string bytes;
    char some[1000];
    for (;;) {
      const ssize_t count = ::recv(descriptor_, some, sizeof some, 0);
      if (count == 0) return bytes + " end";
      if (count < 0)
        return bytes + (errno == ECONNRESET ? " reset" : std::string(" ") + std::strerror(errno));
      bytes.append(some, static_cast<std::size_t>(count));
    }
  }

 private:
  int descriptor_;
};

class Listener {
 public:
  Listener() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(socket_.descriptor(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        ::listen(socket_.descriptor(), 10) != 0) {
      throw std::runtime_error("cannot listen");
    }
    ::getsockname(socket_.descriptor(), reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
  }
  std::uint16_t port() const { return port_; }
  Socket accept() const { return Socket(::accept(socket_.descriptor(), nullptr, nullptr)); }

 private:
  Socket socket_;
  std::uint16_t port_ = 0;
};

Socket connect(std::uint16_t port) {
  Socket socket(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  if (::connect(socket.descriptor(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    throw std::runtime_error("cannot connect");
  }
  return socket;
}

class TcpProxyTest : public ::testing::Test {
 protected:
  // Returns both ends of a connection through the proxy, with these faults.
  std::pair<Socket, Socket> connected(const TcpProxy::ConnectionFaults& faults = {}) {
    proxy.set_fault_chooser([faults](std::uint64_t) { return faults; });
    Socket client = connect(proxy.port());
    return {std::move(client), server.accept()};
  }

  Listener server;
  TcpProxy proxy{server.port()};
};

TEST_F(TcpProxyTest, bytes_and_end_of_stream_are_forwarded_both_ways) {
  auto [client, server_end] = connected();
  const std::string large(3'000'000, 'x');
  std::thread sender([&client = client, &large] {
    client.send(large);
    client.end();
  });
  EXPECT_EQ(server_end.receive(large.size()), large);
  sender.join();
  server_end.send("answer");
  server_end.end();
  EXPECT_EQ(server_end.receive_all(), " end");
  EXPECT_EQ(client.receive_all(), "answer end");
  EXPECT_EQ(proxy.connections(), 1U);
  EXPECT_EQ(proxy.cuts(), 0U);
}

TEST_F(TcpProxyTest, cut_after_ends_both_sides_at_that_byte) {
  for (const std::uint64_t bytes : {0U, 1U, 4U}) {
    TcpProxy::ConnectionFaults faults;
    faults.to_server.cut_after = bytes;
    auto [client, server_end] = connected(faults);
    client.send("question");
    EXPECT_EQ(server_end.receive_all(), std::string("question").substr(0, bytes) + " end");
    EXPECT_EQ(client.receive_all(), " end");
  }
  TcpProxy::ConnectionFaults faults;
  faults.to_client.cut_after = 3;
  auto [client, server_end] = connected(faults);
  server_end.send("ans");
  EXPECT_EQ(client.receive_all(), "ans end");
  EXPECT_EQ(proxy.cuts(), 4U);
}

TEST_F(TcpProxyTest, cut_by_reset_resets_client) {
  TcpProxy::ConnectionFaults faults;
  faults.to_client.cut_after = 0;
  faults.cut_by_reset = true;
  auto [client, server_end] = connected(faults);
  server_end.send("answer");
  EXPECT_EQ(client.receive_all(), " reset");
}

TEST_F(TcpProxyTest, half_close_ends_one_direction_and_keeps_the_other) {
  TcpProxy::ConnectionFaults faults;
  faults.to_server.half_close_after = 5;
  auto [client, server_end] = connected(faults);
  client.send("question");
  EXPECT_EQ(server_end.receive_all(), "quest end");
  server_end.send("answer");
  EXPECT_EQ(client.receive(6), "answer");
}

TEST_F(TcpProxyTest, drop_after_discards_later_bytes) {
  TcpProxy::ConnectionFaults faults;
  faults.to_server.drop_after = 5;
  auto [client, server_end] = connected(faults);
  client.send("question");
  client.send("again");
  client.end();
  EXPECT_EQ(server_end.receive_all(), "quest end");
}

TEST_F(TcpProxyTest, delay_applies_to_each_forwarded_chunk) {
  TcpProxy::ConnectionFaults faults;
  faults.to_client.delay = milliseconds(20);
  faults.to_client.chunk_bytes_max = 1;
  auto [client, server_end] = connected(faults);
  const auto began = steady_clock::now();
  server_end.send("answer");
  EXPECT_EQ(client.receive(6), "answer");
  EXPECT_GE(steady_clock::now() - began, milliseconds(6 * 20));
}

TEST_F(TcpProxyTest, new_faults_apply_to_open_connections) {
  auto [client, server_end] = connected();
  client.send("one");
  EXPECT_EQ(server_end.receive(3), "one");
  TcpProxy::ConnectionFaults faults;
  faults.to_server.cut_after = 5;
  proxy.set_faults(faults);
  client.send("two");
  EXPECT_EQ(server_end.receive_all(), "tw end");

  proxy.set_faults({});
  Socket idle = connect(proxy.port());
  const Socket idle_end = server.accept();
  proxy.cut_all();
  EXPECT_EQ(idle.receive_all(), " end");
  EXPECT_EQ(idle_end.receive_all(), " end");
}

TEST_F(TcpProxyTest, point_to_ends_connections_and_redirects_new_ones) {
  auto [client, server_end] = connected();
  const Listener other;
  proxy.point_to(other.port());
  EXPECT_EQ(client.receive_all(), " end");
  const Socket again = connect(proxy.port());
  const Socket other_end = other.accept();
  again.send("question");
  EXPECT_EQ(other_end.receive(8), "question");
}

}  // namespace
}  // namespace whycache::testing
