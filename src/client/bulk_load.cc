#include "client/bulk_load.h"

#include <cstdint>
#include <string>
#include <vector>

#include <whycache/error.h>

#include "client/write_outcome.h"

namespace whycache {
namespace {

// Upper bounds of the bytes that an update has besides its items, and an item besides key and
// value.
constexpr std::size_t update_overhead_bytes = 1024;
constexpr std::size_t item_overhead_bytes = 16;

// Copies of items.
class ItemBatch {
 public:
  bool empty() const { return sizes_.empty(); }
  std::size_t count() const { return sizes_.size(); }
  std::size_t bytes() const { return bytes_.size() + sizes_.size() * item_overhead_bytes; }
  void add(const Item& item) {
    bytes_.append(item.key).append(item.value);
    sizes_.push_back({item.key.size(), item.value.size()});
  }
  std::vector<Item> items() const {
    std::vector<Item> items;
    items.reserve(sizes_.size());
    const char* at = bytes_.data();
    for (const ItemSizes& sizes : sizes_) {
      items.push_back({{at, sizes.key}, {at + sizes.key, sizes.value}});
      at += sizes.key + sizes.value;
    }
    return items;
  }
  void clear() {
    bytes_.clear();
    sizes_.clear();
  }

 private:
  struct ItemSizes {
    std::size_t key;
    std::size_t value;
  };
  std::string bytes_;
  std::vector<ItemSizes> sizes_;
};

}  // namespace

UpdateId bulk_load(const std::function<std::optional<Item>()>& next, std::size_t update_bytes_max,
                   const std::function<UpdateId(std::span<const Item>)>& write) {
  const std::size_t room =
      update_bytes_max > update_overhead_bytes ? update_bytes_max - update_overhead_bytes : 0;
  ItemBatch batch;
  std::uint64_t written = 0;
  UpdateId last_id = 0;
  const auto write_batch = [&] {
    try {
      last_id = write(batch.items());
    } catch (const Error& error) {
      if (written == 0) throw;
      const bool says_nothing_was_written =
          error.kind() == ErrorKind::unavailable || error.kind() == ErrorKind::conflict;
      throw Error(says_nothing_was_written ? ErrorKind::uncertain : error.kind(),
                  "filling stopped midway: items_written=" + std::to_string(written) +
                      " last_id=" + std::to_string(last_id) + ": " + message_of_later_update(error),
                  error.system_error());
    }
    written += batch.count();
    batch.clear();
  };
  while (const std::optional<Item> item = next()) {
    const std::size_t bytes = item->key.size() + item->value.size() + item_overhead_bytes;
    if (!batch.empty() && batch.bytes() + bytes > room) write_batch();
    batch.add(*item);
  }
  if (!batch.empty()) write_batch();
  return last_id;
}

}  // namespace whycache
