// Loads a plugin, runs it, and unloads it while a thread of whycache is at work. That thread must
// find its code when its call returns.
//
//   host PLUGIN DIRECTORY
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

int main(int argc, char** argv) {
  if (argc != 3) return 64;
  // A server that accepts connections and is silent.
  const int server = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof address;
  if (::bind(server, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(server, 16) != 0 ||
      ::getsockname(server, reinterpret_cast<sockaddr*>(&address), &bytes) != 0) {
    std::perror("cannot listen");
    return 1;
  }
  const std::string url =
      "mysql://flags@127.0.0.1:" + std::to_string(ntohs(address.sin_port)) + "/flags";
  const std::string state = std::string(argv[2]) + "/host." + std::to_string(::getpid()) + ".state";

  void* const plugin = ::dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (plugin == nullptr) {
    std::fprintf(stderr, "%s\n", ::dlerror());
    return 1;
  }
  using RunPlugin = int(const char*, const char*);
  auto* const run = reinterpret_cast<RunPlugin*>(::dlsym(plugin, "run_plugin"));
  const int result = run != nullptr ? run(url.c_str(), state.c_str()) : 3;
  ::dlclose(plugin);
  ::unlink((state + ".lock").c_str());

  ::close(server);  // the thread's call fails now
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  std::printf("plugin returned %d\n", result);
  return result;
}
