// Test conditions that only root can create: file systems that fill up or are read-only, and other
// users. Everything happens in a child process with its own mount namespace, so nothing remains
// afterwards.
#pragma once

#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

#include <gtest/gtest.h>

#include "log/child.h"

namespace whycache {

inline void require(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what + " (errno: " + std::strerror(errno) + ")");
}

// Mounts an empty file system in memory at `directory`, for this process and its children.
inline void mount_small_disk(const std::string& directory, const std::string& size) {
  require(::unshare(CLONE_NEWNS) == 0, "unshare");
  require(::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "make mounts private");
  require(::mount("tmpfs", directory.c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0,
          "mount tmpfs");
}

inline void make_disk_read_only(const std::string& directory) {
  require(::mount("tmpfs", directory.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, nullptr) == 0,
          "remount read-only");
}

inline void drop_privileges() {
  constexpr int nobody_id = 65534;
  require(::setegid(nobody_id) == 0 && ::seteuid(nobody_id) == 0, "switch to user nobody");
}

// Runs `body` in a child process. Returns false and prints a notice if this process is not root.
inline bool run_as_root(const std::function<void()>& body) {
  if (::geteuid() != 0) {
    std::fprintf(stderr,
                 "\n*** SKIPPED: this test needs root, to mount a file system and to become "
                 "another user ***\n\n");
    return false;
  }
  Child child(body);
  EXPECT_EQ(child.wait(), 0);
  return true;
}

}  // namespace whycache
