// The values of the original program, which stores what pickle.dumps() of Python returns.
#pragma once

#include <string>
#include <string_view>

namespace whycache {

// Returns what a pickled value is stored as: plain bytes, or a typed value. Runs no code of the
// pickle: it only knows None, numbers, str, bytes, containers, dates and times, Decimal and UUID.
// Reads the protocols 3 to 5. Throws Error(invalid), which names what it does not know;
// Error(corrupt) if the bytes are no pickle; Error(limit) if the value is too long, or is nested
// too deeply, or contains itself.
std::string value_of_pickle(std::string_view pickle);

}  // namespace whycache
