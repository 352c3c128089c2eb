// How people recognise a process: its user, machine, id and program.
#pragma once

#include <string>
#include <string_view>

namespace whycache {

// Returns the name of the effective user in /etc/passwd, or its number. Asks no other directory of
// users: that could block, and is not safe in the child of a process with threads.
std::string user_name();
// Returns the name that the program was started by, without its directory.
std::string program_name();
// Returns "user@host:pid (program)", at most 255 bytes.
std::string describe_this_process(std::string_view program);

}  // namespace whycache
