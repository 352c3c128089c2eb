#include "support/pgbouncer.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pwd.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <stdexcept>
#include <thread>
#include <vector>

#include "support/program.h"

namespace whycache::testing {
namespace {

bool accepts_connections(std::uint16_t port) {
  const int descriptor = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool accepted =
      ::connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  ::close(descriptor);
  return accepted;
}

}  // namespace

bool Pgbouncer::is_installed() {
  return !find_program("pgbouncer").empty() && !find_program("setpriv").empty() &&
         (::geteuid() != 0 || ::getpwnam("postgres") != nullptr);
}

Pgbouncer::Pgbouncer(std::uint16_t server_port) : owner_pid_(::getpid()) {
  // Another process may have taken the port, so try others.
  for (int attempt = 0; attempt < 3; ++attempt) {
    launch(server_port);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (std::chrono::steady_clock::now() < end && ::waitpid(pid_, nullptr, WNOHANG) == 0) {
      if (accepts_connections(port_)) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ::kill(pid_, SIGKILL);
    wait_for(pid_);
  }
  throw std::runtime_error("pgbouncer does not start: " + read_file(directory_.file("log")));
}

void Pgbouncer::launch(std::uint16_t server_port) {
  port_ = free_port();
  std::ofstream(directory_.file("users")) << "\"postgres\" \"\"\n";
  std::ofstream(directory_.file("pgbouncer.ini"))
      << "[databases]\n* = host=127.0.0.1 port=" << server_port
      << "\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = " << port_
      << "\nunix_socket_dir =\nauth_type = trust\nauth_file = " << directory_.file("users")
      << "\npool_mode = transaction\ndefault_pool_size = 3\nserver_round_robin = 1\n"
         "server_login_retry = 0.1\n";
  std::vector<std::string> words;
  if (::geteuid() == 0) {  // it refuses to run as root
    const passwd* const user = ::getpwnam("postgres");
    for (const std::string& path :
         {directory_.path(), directory_.file("users"), directory_.file("pgbouncer.ini")}) {
      if (::chown(path.c_str(), user->pw_uid, user->pw_gid) != 0)
        throw std::runtime_error("cannot give " + path + " to the user postgres");
    }
    words = {find_program("setpriv"), "--reuid=postgres", "--regid=postgres", "--init-groups",
             "--pdeathsig=KILL"};
  }
  words.push_back(find_program("pgbouncer"));
  words.push_back(directory_.file("pgbouncer.ini"));
  pid_ = run_program(words, directory_.file("log"));
}

Pgbouncer::~Pgbouncer() {
  if (::getpid() != owner_pid_ || pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  wait_for(pid_);
}

}  // namespace whycache::testing
