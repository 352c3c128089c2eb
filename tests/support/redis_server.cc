#include "support/redis_server.h"

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
#include <utility>

#include "support/program.h"

namespace whycache::testing {

bool RedisTestServer::is_installed() { return !find_program("redis-server").empty(); }

RedisTestServer& RedisTestServer::shared() {
  static RedisTestServer server;
  return server;
}

RedisTestServer::RedisTestServer(std::vector<std::string> options, bool by_socket)
    : options_(std::move(options)), uses_socket_(by_socket), owner_pid_(::getpid()) {
  start();
}

RedisTestServer::~RedisTestServer() {
  if (::getpid() == owner_pid_) kill();
}

std::string RedisTestServer::address() const {
  return uses_socket_ ? directory_.file("socket") : "127.0.0.1:" + std::to_string(port_);
}

void RedisTestServer::start() {
  // Another process may take the port of a new server, so try others. A restarted server keeps its
  // port.
  const int attempts = port_ == 0 ? 3 : 1;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    if (attempts > 1) port_ = free_port();
    std::vector<std::string> words = {find_program("redis-server"), "--bind", "127.0.0.1", "--dir",
                                      directory_.file(""), "--save", "",
                                      // A replica gets its copy now, not after the 5 s in which
                                      // more replicas may ask for one.
                                      "--repl-diskless-sync-delay", "0", "--port",
                                      uses_socket_ ? "0" : std::to_string(port_)};
    if (uses_socket_) words.insert(words.end(), {"--unixsocket", directory_.file("socket")});
    words.insert(words.end(), options_.begin(), options_.end());
    pid_ = run_program(words, directory_.file("output"));
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < end && ::waitpid(pid_, nullptr, WNOHANG) == 0) {
      try {
        RedisClient(*this).run({"PING"});
        return;
      } catch (const std::runtime_error& error) {
        if (std::string(error.what()).find("NOAUTH") != std::string::npos) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    }
    kill();
  }
  throw std::runtime_error("redis-server does not start: " + read_file(directory_.file("output")));
}

void RedisTestServer::kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  wait_for(pid_);
  pid_ = -1;
}

// Returns when the process has stopped.
void RedisTestServer::pause() {
  ::kill(pid_, SIGSTOP);
  ::waitpid(pid_, nullptr, WUNTRACED);
}
void RedisTestServer::resume() { ::kill(pid_, SIGCONT); }

RedisClient::RedisClient(const RedisTestServer& server) {
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
    throw std::runtime_error("cannot connect to Redis: address=" + text);
  }
}

RedisClient::~RedisClient() { ::close(socket_); }

std::vector<std::string> RedisClient::run(const std::vector<std::string>& words) {
  std::string command = '*' + std::to_string(words.size()) + "\r\n";
  for (const std::string& word : words)
    command += '$' + std::to_string(word.size()) + "\r\n" + word + "\r\n";
  for (std::size_t sent = 0; sent < command.size();) {
    const ssize_t more =
        ::send(socket_, command.data() + sent, command.size() - sent, MSG_NOSIGNAL);
    if (more <= 0) throw std::runtime_error("cannot send to Redis");
    sent += static_cast<std::size_t>(more);
  }
  std::vector<std::string> texts;
  read_reply(texts);
  return texts;
}

void RedisClient::read_reply(std::vector<std::string>& texts) {
  const std::string head = read_line();
  const std::string rest = head.substr(1);
  switch (head[0]) {
    case '-': throw std::runtime_error("Redis: " + rest);
    case '$':
      if (rest == "-1") return;
      texts.push_back(read_bytes(std::stoull(rest)));
      read_line();
      return;
    case '*':
      for (long i = 0; i < std::stol(rest); ++i) read_reply(texts);
      return;
    default: texts.push_back(rest);
  }
}

std::string RedisClient::read_bytes(std::size_t size) {
  while (received_.size() < size) {
    char buffer[4096];
    const ssize_t more = ::recv(socket_, buffer, sizeof buffer, 0);
    if (more <= 0) throw std::runtime_error("Redis closed the connection");
    received_.append(buffer, static_cast<std::size_t>(more));
  }
  std::string taken = received_.substr(0, size);
  received_.erase(0, size);
  return taken;
}

std::string RedisClient::read_line() {
  std::string text;
  while (!text.ends_with("\r\n")) text += read_bytes(1);
  text.resize(text.size() - 2);
  return text;
}

std::optional<std::string> RedisClient::get(const std::string& key) {
  const std::vector<std::string> found = run({"GET", key});
  return found.empty() ? std::nullopt : std::optional(found[0]);
}

std::string RedisClient::info(const std::string& name) {
  const std::string text = '\n' + run({"INFO"}).at(0);
  const std::size_t at = text.find('\n' + name + ':');
  if (at == std::string::npos) throw std::runtime_error("Redis has no field " + name);
  const std::size_t begin = at + name.size() + 2;
  return text.substr(begin, text.find('\r', begin) - begin);
}

}  // namespace whycache::testing
