// A program that reacts to changes: it keeps parsed limits up to date, resumes where it was, and
// starts over when the feed says so.
#include <stdlib.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <stop_token>
#include <string>
#include <thread>

#include <whycache/cache.h>
#include <whycache/memo.h>

namespace {

// The limits of all regions, as the last update that was handled left them.
class Limits {
 public:
  explicit Limits(const whycache::Cache& cache) : cache_(cache) { load(); }

  // Handles changes until a stop is requested.
  void watch(const std::stop_token& stop) {
    using Kind = whycache::FeedChange::Kind;
    for (const whycache::FeedChange& change : cache_.changes(handled_, range_, {.stop = stop})) {
      switch (change.kind) {
        case Kind::set:
          limits_[std::string(change.key)] = std::stoi(std::string(change.value));
          break;
        case Kind::erase: limits_.erase(std::string(change.key)); break;
        case Kind::erase_all: limits_.clear(); break;
        case Kind::reset: load(); break;
      }
      if (change.ends_update) handled_ = change.id;  // a real program may store it
      std::printf("update %llu: %zu limits\n", static_cast<unsigned long long>(change.id),
                  limits_.size());
    }
  }
  const std::map<std::string, int>& limits() const { return limits_; }

 private:
  void load() {
    const whycache::View view = cache_.view();
    limits_.clear();
    for (auto [key, value] : view.items(range_))
      limits_.emplace(key, std::stoi(std::string(value)));
    handled_ = view.id();
  }

  const whycache::Cache& cache_;
  const whycache::KeyRange range_ = whycache::KeyRange::prefix("limit.");
  std::map<std::string, int> limits_;
  whycache::UpdateId handled_ = 0;
};

}  // namespace

int main() {
  char directory[] = "/tmp/watch_XXXXXX";
  if (::mkdtemp(directory) == nullptr) return 1;
  bool passed = false;
  {
    const std::string log = "sqlite://" + std::string(directory) + "/log.db";
    whycache::Cache cache(log, {.state_path = std::string(directory) + "/here.state"});
    cache.set_multi({{"limit.eu", "10"}, {"limit.us", "20"}});

    Limits limits(cache);
    std::jthread watcher([&](const std::stop_token& stop) { limits.watch(stop); });
    cache.set("limit.eu", "11");
    cache.set("other", "not watched");
    cache.erase("limit.us");
    std::this_thread::sleep_for(std::chrono::seconds(1));
    watcher.request_stop();
    watcher.join();

    // One parsed value: decoded once for each time that its key is set.
    whycache::Memo<int> memo(cache,
                             [](std::string_view value) { return std::stoi(std::string(value)); });
    passed = limits.limits() == std::map<std::string, int>{{"limit.eu", 11}} &&
             *memo.get("limit.eu") == 11 && memo.get("limit.eu") == memo.get("limit.eu");
  }
  std::filesystem::remove_all(directory);
  return passed ? 0 : 1;
}
