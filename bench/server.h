// A server that a benchmark starts. It ends with its object, and with the program.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace bench {

// Runs a program silently, and waits for it. Throws std::runtime_error if it fails.
inline void run_command(std::vector<std::string> command, const std::string& debian_package) {
  std::vector<char*> arguments;
  for (std::string& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t silent;
  posix_spawn_file_actions_init(&silent);
  for (const int stream : {STDOUT_FILENO, STDERR_FILENO})
    posix_spawn_file_actions_addopen(&silent, stream, "/dev/null", O_WRONLY, 0);
  pid_t process = -1;
  int status = -1;
  const bool began =
      ::posix_spawnp(&process, arguments.front(), &silent, nullptr, arguments.data(), environ) == 0;
  if (began) ::waitpid(process, &status, 0);
  posix_spawn_file_actions_destroy(&silent);
  if (status != 0)
    throw std::runtime_error(command.front() + " failed (Debian: " + debian_package + ')');
}

// Whether a server listens on a unix socket.
inline bool accepts_connections(const std::string& socket_path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_path.copy(address.sun_path, sizeof address.sun_path - 1);
  const int probe = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool is_accepted =
      ::connect(probe, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  ::close(probe);
  return is_accepted;
}

class Server {
 public:
  explicit Server(std::vector<std::string> command) : name_(command.front()) {
    std::vector<char*> arguments;
    for (std::string& argument : command) arguments.push_back(argument.data());
    arguments.push_back(nullptr);
    process_ = ::fork();
    if (process_ < 0) throw std::runtime_error("cannot fork");
    if (process_ > 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // it ends even if this process is killed
    const int null_device = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
      ::dup2(null_device, stream);
    ::execvp(arguments.front(), arguments.data());
    ::_exit(127);
  }
  ~Server() {
    if (exited_) return;
    ::kill(process_, SIGKILL);  // its data is not needed any more
    ::waitpid(process_, nullptr, 0);
  }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Calls `answers` until it returns true.
  template <typename Answers>
  void wait_until(const Answers& answers) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!answers()) {
      exited_ = ::waitpid(process_, nullptr, WNOHANG) == process_;
      if (exited_ || std::chrono::steady_clock::now() > end)
        throw std::runtime_error(name_ + " does not start");
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    initial_resident_bytes_ = resident_bytes();
  }

  // Returns how much its memory has grown since it first answered.
  std::uint64_t resident_growth_bytes() const {
    return resident_bytes() - std::min(initial_resident_bytes_, resident_bytes());
  }

 private:
  std::uint64_t resident_bytes() const {
    std::ifstream file("/proc/" + std::to_string(process_) + "/statm");
    std::uint64_t total_pages = 0;
    std::uint64_t resident_pages = 0;
    file >> total_pages >> resident_pages;
    return resident_pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  }

  std::string name_;
  pid_t process_ = -1;
  bool exited_ = false;
  std::uint64_t initial_resident_bytes_ = 0;
};

}  // namespace bench
