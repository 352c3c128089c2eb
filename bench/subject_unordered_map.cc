// std::unordered_map in private memory, with lookups that do not copy the key.
#include <unordered_map>

#include "bench/subject.h"
#include "bench/subject_kinds.h"

namespace bench {
namespace {

struct Hash : std::hash<std::string_view> {
  using is_transparent = void;
};

class UnorderedMap {
 public:
  UnorderedMap(const std::string&, std::uint64_t) {}

  void set(std::span<const Item> items) {
    for (const Item& item : items)
      map_.try_emplace(std::string(item.key)).first->second.assign(item.value);
  }
  bool get(std::string_view key, std::string& value) const {
    const auto found = map_.find(key);
    if (found == map_.end()) return false;
    value.assign(found->second);
    return true;
  }
  std::optional<std::string> get(std::string_view key) const {
    const auto found = map_.find(key);
    if (found == map_.end()) return std::nullopt;
    return found->second;
  }
  std::optional<std::string_view> view(std::string_view key) const {
    const auto found = map_.find(key);
    if (found == map_.end()) return std::nullopt;
    return found->second;
  }
  std::size_t get_multi(std::span<const std::string_view> keys,
                        std::span<std::optional<std::string>> values) const {
    return get_each(*this, keys, values);
  }

 private:
  std::unordered_map<std::string, std::string, Hash, std::equal_to<>> map_;
};

}  // namespace

std::unique_ptr<Subject> make_unordered_map(const std::string& directory, std::uint64_t items_max) {
  return std::make_unique<StoreSubject<UnorderedMap>>(directory, items_max);
}

}  // namespace bench
