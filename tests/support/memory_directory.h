// A place for files whose durability is not under test.
#pragma once

#include <filesystem>

namespace whycache::testing {

// Returns /dev/shm if it has room for the files of tests that run in parallel, otherwise the
// directory for temporary files. The room is 1 GiB, and 150 MB per processor, since each may run a
// test with a database server. Syncing a disk takes milliseconds. In a container /dev/shm may hold
// 64 MB.
std::filesystem::path memory_directory();

}  // namespace whycache::testing
