#include "support/memcached_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "support/program.h"

namespace whycache::testing {

bool MemcachedServer::is_installed() { return !find_program("memcached").empty(); }

MemcachedServer& MemcachedServer::shared() {
  static MemcachedServer server;
  return server;
}

MemcachedServer::MemcachedServer(std::vector<std::string> options, bool by_socket)
    : options_(std::move(options)), uses_socket_(by_socket), owner_pid_(::getpid()) {
  start();
}

MemcachedServer::~MemcachedServer() {
  if (::getpid() == owner_pid_) kill();
}

std::string MemcachedServer::address() const {
  return uses_socket_ ? directory_.file("socket") : "127.0.0.1:" + std::to_string(port_);
}

void MemcachedServer::start() {
  // Another process may take the port of a new server, so try others. A restarted server keeps its
  // port.
  const int attempts = port_ == 0 ? 3 : 1;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    if (attempts > 1) port_ = free_port();
    std::vector<std::string> words = {find_program("memcached"), "-t", "1", "-U", "0"};
    if (::geteuid() == 0) words.insert(words.end(), {"-u", "root"});
    if (uses_socket_) {
      words.insert(words.end(), {"-s", directory_.file("socket")});
    } else {
      words.insert(words.end(), {"-l", "127.0.0.1", "-p", std::to_string(port_)});
    }
    words.insert(words.end(), options_.begin(), options_.end());
    pid_ = run_program(words, directory_.file("output"));
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < end && ::waitpid(pid_, nullptr, WNOHANG) == 0) {
      try {
        MemcachedClient(*this).statistic("pid");
        return;
      } catch (const std::runtime_error&) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    }
    kill();
  }
  throw std::runtime_error("memcached does not start: " + read_file(directory_.file("output")));
}

void MemcachedServer::kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  wait_for(pid_);
  pid_ = -1;
}

// Returns when the process has stopped.
void MemcachedServer::pause() {
  ::kill(pid_, SIGSTOP);
  ::waitpid(pid_, nullptr, WUNTRACED);
}
void MemcachedServer::resume() { ::kill(pid_, SIGCONT); }

MemcachedClient::MemcachedClient(const MemcachedServer& server) {
  const std::string text = server.address();
  sockaddr_storage address{};
  socklen_t size = 0;
  if (text.starts_with('/')) {
    auto& unix_address = reinterpret_cast<sockaddr_un&>(address);
    unix_address.sun_family = AF_UNIX;
    std::strncpy(unix_address.sun_path, text.c_str(), sizeof unix_address.sun_path - 1);
    size = sizeof unix_address;
  } else {
    auto& internet_address = reinterpret_cast<sockaddr_in&>(address);
    internet_address.sin_family = AF_INET;
    internet_address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    internet_address.sin_port = htons(server.port());
    size = sizeof internet_address;
  }
  socket_ = ::socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (::connect(socket_, reinterpret_cast<const sockaddr*>(&address), size) != 0) {
    ::close(socket_);
    throw std::runtime_error("cannot connect to memcached: address=" + text);
  }
}

MemcachedClient::~MemcachedClient() { ::close(socket_); }

void MemcachedClient::send(const std::string& text) {
  for (std::size_t sent = 0; sent < text.size();) {
    const ssize_t more = ::send(socket_, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (more <= 0) throw std::runtime_error("cannot send to memcached");
    sent += static_cast<std::size_t>(more);
  }
}

std::string MemcachedClient::read_bytes(std::size_t size) {
  while (received_.size() < size) {
    char buffer[4096];
    const ssize_t more = ::recv(socket_, buffer, sizeof buffer, 0);
    if (more <= 0) throw std::runtime_error("memcached closed the connection");
    received_.append(buffer, static_cast<std::size_t>(more));
  }
  std::string taken = received_.substr(0, size);
  received_.erase(0, size);
  return taken;
}

std::string MemcachedClient::read_line() {
  std::string text;
  while (!text.ends_with("\r\n")) text += read_bytes(1);
  text.resize(text.size() - 2);
  return text;
}

std::optional<std::string> MemcachedClient::get(const std::string& key) {
  send("get " + key + "\r\n");
  const std::string head = read_line();
  if (head == "END") return std::nullopt;
  std::string value = read_bytes(std::stoull(head.substr(head.rfind(' ') + 1)));
  read_line();
  read_line();
  return value;
}

void MemcachedClient::set(const std::string& key, const std::string& bytes) {
  send("set " + key + " 0 0 " + std::to_string(bytes.size()) + "\r\n" + bytes + "\r\n");
  if (const std::string answer = read_line(); answer != "STORED")
    throw std::runtime_error("memcached: " + answer);
}

void MemcachedClient::remove(const std::string& key) {
  send("delete " + key + "\r\n");
  read_line();
}

void MemcachedClient::flush_all() {
  send("flush_all\r\n");
  read_line();
}

std::uint64_t MemcachedClient::statistic(const std::string& name) {
  send("stats\r\n");
  std::uint64_t found = 0;
  for (std::string text = read_line(); text != "END"; text = read_line()) {
    if (text.starts_with("STAT " + name + ' '))
      found = std::stoull(text.substr(text.rfind(' ') + 1));
  }
  return found;
}

}  // namespace whycache::testing
