// Bulk loading: collects items from a source into batches, with memory for one batch, however many
// items there are.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <span>

#include <whycache/types.h>

namespace whycache {

// Passes the items that `next` returns to `write`, in order, in batches that fit into an update of
// `update_bytes_max`. An item that is too large for any update gets a batch to itself. Returns what
// the last `write` returned, or 0 if there was no item.
//
// If a `write` after the first throws Error, adds to the message how many items are written. A kind
// that means that nothing was written becomes `uncertain`.
UpdateId bulk_load(const std::function<std::optional<Item>()>& next, std::size_t update_bytes_max,
                   const std::function<UpdateId(std::span<const Item>)>& write);

}  // namespace whycache
