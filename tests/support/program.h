// Programs that tests start, servers for the most part.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace whycache::testing {

// Where a program is that not every user has in the path; empty: nowhere.
std::string find_program(const std::string& name);

// Runs a program with its output in a file. It dies with this process.
pid_t run_program(const std::vector<std::string>& words, const std::string& output);

// Waits for its end; what waitpid() says.
int wait_for(pid_t pid);

// That nobody uses just now, on loopback.
std::uint16_t free_port();

std::string read_file(const std::string& path);

}  // namespace whycache::testing
