#include "log/memcached_store.h"

#include <cstddef>
#include <cstdint>

namespace whycache {
namespace {

constexpr std::uint32_t flag_too_large = 1;

std::string update_key(const std::string& prefix, UpdateId id) {
  return prefix + "u:" + std::to_string(id);
}

}  // namespace

std::optional<TierStore::HeadAndLease> MemcachedStore::get_head(const std::string& prefix) {
  auto items = memcached_.get({prefix + "head", prefix + "ask"});
  if (!items) return std::nullopt;
  HeadAndLease found;
  if (auto& head = (*items)[0]) found.head = StoredHead{std::move(head->bytes), head->cas_version};
  if (auto& lease = (*items)[1]) found.poll_lease = std::move(lease->bytes);
  return found;
}

std::optional<std::vector<std::optional<TierStore::StoredUpdate>>> MemcachedStore::get_updates(
    const std::string& prefix, UpdateId first, UpdateId last) {
  std::vector<std::string> keys;
  for (UpdateId id = first; id <= last; ++id) keys.push_back(update_key(prefix, id));
  auto items = memcached_.get(keys);
  if (!items) return std::nullopt;
  std::vector<std::optional<StoredUpdate>> updates(items->size());
  for (std::size_t i = 0; i < items->size(); ++i) {
    std::optional<Memcached::CachedItem>& item = (*items)[i];
    if (!item) continue;
    updates[i].emplace();
    if ((item->flags & flag_too_large) == 0) updates[i]->bytes = std::move(item->bytes);
  }
  return updates;
}

TierStore::Published MemcachedStore::publish(const std::string& prefix,
                                             std::span<const UpdateView> updates,
                                             const std::optional<HeadChange>& change) {
  for (const UpdateView& update : updates) {
    const std::string key = update_key(prefix, update.id);
    const bool stored =
        update.bytes.size() <= tier_update_bytes_max &&
        memcached_.set(key, update.bytes, 0, tier_item_lifetime) == Memcached::StoreResult::stored;
    if (!stored) memcached_.set(key, "", flag_too_large, tier_item_lifetime);
  }
  if (!change) return {true, HeadResult::not_stored};
  const std::string key = prefix + "head";
  const std::optional<std::string> record = change->make_record();
  if (!record) return {true, HeadResult::failed};
  const Memcached::StoreResult result =
      change->found
          ? memcached_.compare_and_swap(key, *record, change->found->version, tier_item_lifetime)
          : memcached_.add(key, *record, tier_item_lifetime);
  switch (result) {
    case Memcached::StoreResult::stored: return {true, HeadResult::stored};
    case Memcached::StoreResult::not_stored: return {true, HeadResult::not_stored};
    default: return {true, HeadResult::failed};
  }
}

bool MemcachedStore::set_poll_lease(const std::string& prefix, std::string_view lease,
                                    std::chrono::seconds duration) {
  return memcached_.set(prefix + "ask", lease, 0, duration) == Memcached::StoreResult::stored;
}

bool MemcachedStore::add_poll_lease(const std::string& prefix, std::string_view lease,
                                    std::chrono::seconds duration) {
  return memcached_.add(prefix + "ask", lease, duration) == Memcached::StoreResult::stored;
}

bool MemcachedStore::add_fill_lease(const std::string& prefix, UpdateId id,
                                    std::chrono::seconds duration) {
  return memcached_.add(prefix + "fill:" + std::to_string(id), "", duration) ==
         Memcached::StoreResult::stored;
}

}  // namespace whycache
