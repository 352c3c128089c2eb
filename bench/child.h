// Child processes of a benchmark, and the memory that they share with it.
#pragma once

#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>

namespace bench {

// An object in shared memory, at the same address in all children forked after its construction.
template <typename T>
class SharedWithChildren {
 public:
  SharedWithChildren() {
    void* const memory =
        ::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("cannot share memory with children");
    shared_ = new (memory) T();
  }
  ~SharedWithChildren() { ::munmap(shared_, sizeof(T)); }
  SharedWithChildren(const SharedWithChildren&) = delete;
  SharedWithChildren& operator=(const SharedWithChildren&) = delete;

  T* operator->() const { return shared_; }
  T& operator*() const { return *shared_; }

 private:
  T* shared_;
};

// Runs `work` in a child process, which is killed by the destructor and when the parent dies.
class Child {
 public:
  template <typename Work>
  explicit Child(const Work& work) {
    std::fflush(stdout);
    process_id_ = ::fork();
    if (process_id_ < 0) throw std::runtime_error("cannot fork");
    if (process_id_ > 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    try {
      work();
    } catch (const std::exception& error) {
      fmt::print(stderr, "in a child: {}\n", error.what());
      ::_exit(1);
    }
    ::_exit(0);
  }
  ~Child() {
    if (exited_) return;
    ::kill(process_id_, SIGKILL);
    ::waitpid(process_id_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // Waits until the child ends. Throws std::runtime_error if it failed.
  void wait() { record_exit(::waitpid(process_id_, &status_, 0)); }
  // Throws std::runtime_error if the child has failed. Does not wait.
  void throw_if_failed() { record_exit(::waitpid(process_id_, &status_, WNOHANG)); }

 private:
  void record_exit(pid_t ended) {
    if (ended != process_id_) return;
    exited_ = true;
    if (status_ != 0) throw std::runtime_error("a child failed");
  }

  pid_t process_id_ = -1;
  int status_ = 0;
  bool exited_ = false;
};

}  // namespace bench
