// Programs that tests start, mostly servers.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace whycache::testing {

// Returns the path of a program that may not be in PATH, or "" if it is not installed.
std::string find_program(const std::string& name);

// Runs a program with its output in a file. The kernel kills it when this process dies.
pid_t run_program(const std::vector<std::string>& words, const std::string& output);

// Waits until the process exits. Returns the status of waitpid().
int wait_for(pid_t pid);

// Returns a port of loopback that is currently free.
std::uint16_t free_port();

std::string read_file(const std::string& path);

}  // namespace whycache::testing
