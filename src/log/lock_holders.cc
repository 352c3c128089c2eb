#include "log/lock_holders.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstdio>
#include <fstream>
#include <set>
#include <sstream>

namespace whycache {

// A line of /proc/locks is "1: POSIX  ADVISORY  READ 4711 08:01:123456 1073741826 1073742335":
// type, process, and the file by its device in hexadecimal and its inode. A lock that a process
// waits for has "->" after the number. A process of another PID namespace is 0.
std::string lock_holders(const std::string& path) {
  struct stat status;
  if (::stat(path.c_str(), &status) != 0) return "";
  char file[64];
  std::snprintf(file, sizeof file, " %02x:%02x:%llu ", major(status.st_dev), minor(status.st_dev),
                static_cast<unsigned long long>(status.st_ino));
  std::ifstream locks("/proc/locks");
  std::set<int> processes;
  for (std::string line; std::getline(locks, line);) {
    if (line.find(file) == std::string::npos) continue;
    std::istringstream fields(line);
    std::string number;
    std::string type;
    std::string mode;
    std::string access;
    int process = 0;
    if (fields >> number >> type >> mode >> access >> process && type == "POSIX" && process > 0)
      processes.insert(process);
  }
  std::string text;
  for (const int process : processes) text += (text.empty() ? "" : ",") + std::to_string(process);
  return text;
}

}  // namespace whycache
