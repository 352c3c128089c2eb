// absl::flat_hash_map in private memory: the choice for a single process without whycache.
#include <absl/container/flat_hash_map.h>
#include <absl/strings/string_view.h>

#include "bench/subject.h"
#include "bench/subject_kinds.h"

namespace bench {
namespace {

// Distributions build Abseil with its own string_view.
absl::string_view to_absl(std::string_view bytes) { return {bytes.data(), bytes.size()}; }

class Absl {
 public:
  Absl(const std::string&, std::uint64_t) {}

  void set(std::span<const Item> items) {
    for (const Item& item : items) {
      map_.try_emplace(to_absl(item.key)).first->second.assign(item.value);
    }
  }
  bool get(std::string_view key, std::string& value) const {
    const auto found = map_.find(to_absl(key));
    if (found == map_.end()) return false;
    value.assign(found->second);
    return true;
  }
  std::optional<std::string> get(std::string_view key) const {
    const auto found = map_.find(to_absl(key));
    if (found == map_.end()) return std::nullopt;
    return found->second;
  }
  std::optional<std::string_view> view(std::string_view key) const {
    const auto found = map_.find(to_absl(key));
    if (found == map_.end()) return std::nullopt;
    return found->second;
  }
  std::size_t get_multi(std::span<const std::string_view> keys,
                        std::span<std::optional<std::string>> values) const {
    return get_each(*this, keys, values);
  }

 private:
  absl::flat_hash_map<std::string, std::string> map_;
};

}  // namespace

std::unique_ptr<Subject> make_absl(const std::string& directory, std::uint64_t items_max) {
  return std::make_unique<StoreSubject<Absl>>(directory, items_max);
}

}  // namespace bench
