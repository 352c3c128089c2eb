// Which waits of a thread count as waits for the network.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <semaphore>
#include <thread>

#include "base/network_wait.h"

namespace whycache {
namespace {

using std::chrono::milliseconds;

// A thread that runs `body` until `end` is called.
class Thread {
 public:
  Thread(std::function<void()> body, std::function<void()> end)
      : end_(std::move(end)), thread_([this, body = std::move(body)] {
          id_ = ::gettid();
          body();
        }) {
    while (id_ == 0) std::this_thread::yield();
  }
  Thread(const Thread&) = delete;
  Thread& operator=(const Thread&) = delete;
  ~Thread() {
    end_();
    thread_.join();
  }
  // Asks again and again, until the thread sleeps.
  bool comes_to_wait_for_network() const {
    for (int i = 0; i < 200; ++i) {
      if (waits_for_network(id_)) return true;
      std::this_thread::sleep_for(milliseconds(1));
    }
    return false;
  }

 private:
  const std::function<void()> end_;
  std::atomic<pid_t> id_{0};
  std::thread thread_;
};

// Expects a thread that waits in `wait(socket)` to count as one.
void expect_network_wait(const std::function<void(int socket)>& wait) {
  int sockets[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
  {
    const Thread waiting([&] { wait(sockets[0]); }, [&] { ::shutdown(sockets[1], SHUT_RDWR); });
    EXPECT_TRUE(waiting.comes_to_wait_for_network());
  }
  ::close(sockets[0]);
  ::close(sockets[1]);
}

TEST(NetworkWait, threads_that_poll_or_receive_wait_for_network) {
  if (::access("/proc/self/syscall", R_OK) != 0) GTEST_SKIP() << "needs /proc/PID/syscall";
  expect_network_wait([](int socket) {
    pollfd polled{socket, POLLIN, 0};
    ::poll(&polled, 1, -1);
  });
  char byte;
  expect_network_wait([&](int socket) { EXPECT_EQ(::recv(socket, &byte, 1, 0), 0); });
  expect_network_wait([&](int socket) { EXPECT_EQ(::read(socket, &byte, 1), 0); });
}

TEST(NetworkWait, threads_that_run_sleep_or_wait_for_a_lock_do_not) {
  std::atomic<bool> ends{false};
  const Thread running(
      [&] {
        while (!ends) {
        }
      },
      [&] { ends = true; });
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  char byte;
  const Thread reading([&] { EXPECT_EQ(::read(pipe[0], &byte, 1), 0); }, [&] { ::close(pipe[1]); });
  std::binary_semaphore released{0};
  const Thread waiting([&] { released.acquire(); }, [&] { released.release(); });
  EXPECT_FALSE(running.comes_to_wait_for_network());
  EXPECT_FALSE(waiting.comes_to_wait_for_network());
  EXPECT_FALSE(reading.comes_to_wait_for_network()) << "a pipe is no socket";
  EXPECT_FALSE(waits_for_network(0x7fffffff)) << "there is no such thread";
}

}  // namespace
}  // namespace whycache
