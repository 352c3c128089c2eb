// Prints the path of a cache's state, or why there is none. The test gives a copy of this program a
// setuid bit. Usage: setuid_main
#include <cstdio>
#include <exception>

#include "client/state_location.h"

int main() {
  try {
    const whycache::StateLocation location = whycache::find_state_location(
        {}, "sqlite:///var/lib/flags.db", whycache::MissingDirectory::leave);
    std::puts(location.path.c_str());
  } catch (const std::exception& error) {
    std::puts(error.what());
  }
  return 0;
}
