// boost::unordered_flat_map in private memory, with XXH3 and lookups that do not copy the key. The
// fastest of the hash tables that whycache is compared with.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <boost/unordered/unordered_flat_map.hpp>
#include <cstddef>
#include <functional>

#include "bench/subject.h"
#include "bench/subject_kinds.h"

namespace bench {
namespace {

struct BoostFlatHash {
  using is_transparent = void;
  using is_avalanching = void;  // the map then does not mix the bits once more
  std::size_t operator()(std::string_view key) const { return XXH3_64bits(key.data(), key.size()); }
};

class BoostFlat {
 public:
  BoostFlat(const std::string&, std::uint64_t) {}

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
  boost::unordered_flat_map<std::string, std::string, BoostFlatHash, std::equal_to<>> map_;
};

}  // namespace

std::unique_ptr<Subject> make_boost_flat(const std::string& directory, std::uint64_t items_max) {
  return std::make_unique<StoreSubject<BoostFlat>>(directory, items_max);
}

}  // namespace bench
