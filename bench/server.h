// The server of a subject, on a unix socket in the subject's directory. It ends with the subject.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
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
