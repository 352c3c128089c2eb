// Two machines that share a log of one's own (own_log.h).
#include "own_log.h"

#include <stdlib.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include <whycache/cache.h>

int main() {
  char folder[] = "/tmp/own_log_XXXXXX";
  if (::mkdtemp(folder) == nullptr) return 1;
  const auto shelf = std::make_shared<SharedStore>();
  bool right = false;
  {
    whycache::Cache here(std::make_unique<OwnLog>(shelf),
                         {.state_path = std::string(folder) + "/here.state"});
    whycache::Cache there(std::make_unique<OwnLog>(shelf),
                          {.state_path = std::string(folder) + "/there.state"});

    here.set("colour", "green");
    there.update();
    std::printf("there: colour = %s\n", there.get("colour").value_or("not there").c_str());

    there.set("colour", "blue");
    there.rewrite_history();
    here.update();
    std::printf("here:  colour = %s\n", here.get("colour").value_or("not there").c_str());
    right = here.get("colour") == "blue" && shelf->updates.empty() && shelf->extent.base == 2;
  }
  std::filesystem::remove_all(folder);
  return right ? 0 : 1;
}
