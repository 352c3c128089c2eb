// A place for files whose durability is not under test.
#pragma once

#include <filesystem>

namespace whycache::testing {

// Returns /dev/shm if it has room for the data of a few database servers, otherwise the directory
// for temporary files. Syncing a disk takes milliseconds. In a container /dev/shm may hold 64 MB.
std::filesystem::path memory_directory();

}  // namespace whycache::testing
