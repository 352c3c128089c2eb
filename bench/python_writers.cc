// What the Python package's writes are compared with: 64 threads that set a key each.
//
//   bench_python_writers URL STATE SECONDS     prints the writes per second
#include <whycache/cache.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

int main(int count, char** arguments) {
  if (count != 4) {
    std::fprintf(stderr, "usage: bench_python_writers URL STATE SECONDS\n");
    return 2;
  }
  try {
    const double seconds = std::strtod(arguments[3], nullptr);
    whycache::Cache cache(arguments[1], {.state_path = arguments[2]});
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    std::atomic<int> written{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 64; ++i) {
      threads.emplace_back([&, key = "task-" + std::to_string(i)] {
        const std::string value(100, 'x');
        for (; std::chrono::steady_clock::now() < end; ++written) cache.set(key, value);
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::printf("%.0f\n", written / seconds);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_python_writers: %s\n", error.what());
    return 1;
  }
}
