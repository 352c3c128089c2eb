// A user's first program, which uses only the installed headers and library.
#include <whycache/cache.h>

#include <cstdio>
#include <exception>

int main(int argument_count, char** arguments) {
  if (argument_count != 3) return 2;
  try {
    whycache::Cache cache(arguments[1], {.name = "flags", .state_path = arguments[2]});
    whycache::UpdateId id = cache.set("checkout.enabled", "yes");
    id = cache.set("checkout.enabled", "yes", {.note = "again"});
    if (cache.update({.at_least = id}) < id) return 1;
    if (cache.rewrite_history({.limit = id}) < id) return 1;
    if (cache.get("checkout.enabled") != "yes") return 1;
    for (auto [key, value] : cache.view()) {
      std::printf("%.*s\n", static_cast<int>(key.size()), key.data());
      if (value != "yes") return 1;
    }
    return cache.update() >= id ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
