// States of other formats: versions of the library that write different formats can share a
// machine.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace whycache {

// Returns the format of the file if it is a state of another format than this version's.
std::optional<std::uint16_t> find_other_format(const std::string& path);

// Returns what the name of a state ends with if a state of another format is in its place.
std::string format_suffix();

// Returns why the name of `path`, where no state is, has that suffix: a message that names the
// state of another format beside it. Returns nullopt if there is none.
std::optional<std::string> find_state_of_other_format(const std::string& path);

}  // namespace whycache
