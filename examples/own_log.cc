// Two machines that share the log of own_log.h.
#include "own_log.h"

#include <stdlib.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include <whycache/cache.h>

int main() {
  char directory[] = "/tmp/own_log_XXXXXX";
  if (::mkdtemp(directory) == nullptr) return 1;
  const auto store = std::make_shared<SharedStore>();
  bool passed = false;
  {
    whycache::Cache here(std::make_unique<OwnLog>(store),
                         {.state_path = std::string(directory) + "/here.state"});
    whycache::Cache there(std::make_unique<OwnLog>(store),
                          {.state_path = std::string(directory) + "/there.state"});

    here.set("colour", "green");
    there.update();
    std::printf("there: colour = %s\n", there.get("colour").value_or("absent").c_str());

    there.set("colour", "blue");
    there.rewrite_history();
    here.update();
    std::printf("here:  colour = %s\n", here.get("colour").value_or("absent").c_str());
    passed = here.get("colour") == "blue" && store->updates.empty() && store->extent.base == 2;
  }
  std::filesystem::remove_all(directory);
  return passed ? 0 : 1;
}
