// Prints the path of a cache's state, or why there is none. The test gives a copy of this program a
// setuid bit. Usage: setuid_main
#include <unistd.h>

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
  std::fflush(stdout);
  ::_exit(0);  // a leak checker, which cannot trace a setuid program, would fail at exit()
}
