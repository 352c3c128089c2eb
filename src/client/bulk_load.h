// Many items from somewhere, gathered into batches, so that the memory needed does not depend on
// how many they are.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <span>

#include <whycache/types.h>

namespace whycache {

// Hands what comes from `next` to `write`, in order, in batches that have room in an update of
// `update_bytes_max`; an item that is too large for any has a batch to itself. Returns what the
// last write returned, 0 if there was none. An Error leaves it with what was written before in its
// message; one that says nothing was written becomes `uncertain` then.
UpdateId bulk_load(const std::function<std::optional<Item>()>& next, std::size_t update_bytes_max,
                   const std::function<UpdateId(std::span<const Item>)>& write);

}  // namespace whycache
