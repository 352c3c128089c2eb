#include "state/key_node.h"

#include <string>

#include <whycache/error.h>

namespace whycache {

namespace {

KeyChild child_number(NodeOffset child) {
  if (child % key_child_unit != 0 || child / key_child_unit > UINT32_MAX) throw_damaged_keys(child, "node out of place");
  return static_cast<KeyChild>(child / key_child_unit);
}

void write_header(char* to, const KeyNodeHeader& header) { std::memcpy(to + sizeof(NodeHeader), &header, sizeof header); }

// Moves ends, each raised by `by`.
void move_ends(char* to, const char* from, std::size_t count, std::ptrdiff_t by) {
  std::memmove(to, from, count * sizeof(KeyEnd));
  for (std::size_t i = 0; i < count; ++i) {
    const auto end = load_little_endian<KeyEnd>(to + i * sizeof(KeyEnd));
    store_little_endian(to + i * sizeof(KeyEnd), static_cast<KeyEnd>(end + by));
  }
}

}  // namespace

void throw_damaged_keys(NodeOffset node, const char* what) {
  throw Error(ErrorKind::corrupt, "key index is damaged: " + std::string(what) + " node=" + std::to_string(node));
}

void write_key_node(char* to, unsigned level, std::span<const std::string_view> keys,
                    std::span<const NodeOffset> children, std::size_t prefix_bytes, std::uint16_t last_inserted) {
  write_header(to, {.level = static_cast<std::uint8_t>(level),
                    .reserved = 0,
                    .count = static_cast<std::uint16_t>(keys.size()),
                    .prefix_bytes = static_cast<std::uint16_t>(prefix_bytes),
                    .last_inserted = last_inserted});
  char* ends = to + key_node_header_bytes;
  for (std::size_t i = 0; i < children.size(); ++i) write_child(to, keys.size(), i, children[i]);
  char* prefix = to + key_node_bytes(level, keys.size(), 0, 0);
  if (!keys.empty()) std::memcpy(prefix, keys[0].data(), prefix_bytes);
  char* const suffixes = prefix + prefix_bytes;
  std::size_t end = 0;
  for (const std::string_view key : keys) {
    const std::string_view suffix = key.substr(prefix_bytes);
    std::memcpy(suffixes + end, suffix.data(), suffix.size());
    end += suffix.size();
    store_little_endian(ends, static_cast<KeyEnd>(end));
    ends += sizeof(KeyEnd);
  }
}

void write_with_key(const KeyNode& from, char* to, std::size_t index, std::string_view suffix, NodeOffset child) {
  const std::size_t count = from.count();
  const std::size_t suffix_bytes = from.suffix_bytes();
  const std::size_t begin = index == 0 ? 0 : from.range(index - 1).end;
  if (begin > suffix_bytes) from.damaged("suffixes out of order");
  const char* const data = from.data();
  const std::size_t prefix_at = from.prefix_at();
  const std::size_t children_at = from.children_at();
  const std::size_t prefix_bytes = from.prefix().size();
  const std::size_t new_prefix_at = key_node_bytes(from.level(), count + 1, 0, 0);

  // From back to front, since everything moves towards the end.
  char* const new_suffixes = to + new_prefix_at + prefix_bytes;
  std::memmove(new_suffixes + begin + suffix.size(), from.suffixes() + begin, suffix_bytes - begin);
  std::memmove(to + new_prefix_at, data + prefix_at, prefix_bytes + begin);
  std::memcpy(new_suffixes + begin, suffix.data(), suffix.size());
  if (!from.is_leaf()) {
    char* const new_children = to + children_at + sizeof(KeyEnd);
    const std::size_t before = (index + 1) * sizeof(KeyChild);
    std::memmove(new_children + before + sizeof(KeyChild), data + children_at + before,
                 (count + 1) * sizeof(KeyChild) - before);
    std::memmove(new_children, data + children_at, before);
    store_little_endian(new_children + before, child_number(child));
  }
  char* const ends = to + key_node_header_bytes;
  const char* const old_ends = data + key_node_header_bytes;
  move_ends(ends + (index + 1) * sizeof(KeyEnd), old_ends + index * sizeof(KeyEnd), count - index,
            static_cast<std::ptrdiff_t>(suffix.size()));
  store_little_endian(ends + index * sizeof(KeyEnd), static_cast<KeyEnd>(begin + suffix.size()));
  if (to != data) std::memcpy(ends, old_ends, index * sizeof(KeyEnd));
  write_header(to, {.level = static_cast<std::uint8_t>(from.level()),
                    .reserved = 0,
                    .count = static_cast<std::uint16_t>(count + 1),
                    .prefix_bytes = static_cast<std::uint16_t>(prefix_bytes),
                    .last_inserted = static_cast<std::uint16_t>(index)});
}

void write_without_key(const KeyNode& from, char* to, std::size_t index) {
  const std::size_t count = from.count();
  const std::size_t suffix_bytes = from.suffix_bytes();
  const KeyNode::Range gone = from.range(index);
  if (gone.end > suffix_bytes) from.damaged("suffixes out of order");
  const char* const data = from.data();
  const std::size_t prefix_at = from.prefix_at();
  const std::size_t prefix_bytes = from.prefix().size();
  const std::size_t new_prefix_at = key_node_bytes(0, count - 1, 0, 0);

  // From front to back, since everything moves towards the front.
  char* const ends = to + key_node_header_bytes;
  const char* const old_ends = data + key_node_header_bytes;
  if (to != data) std::memcpy(ends, old_ends, index * sizeof(KeyEnd));
  move_ends(ends + index * sizeof(KeyEnd), old_ends + (index + 1) * sizeof(KeyEnd), count - 1 - index,
            -static_cast<std::ptrdiff_t>(gone.size()));
  std::memmove(to + new_prefix_at, data + prefix_at, prefix_bytes + gone.begin);
  std::memmove(to + new_prefix_at + prefix_bytes + gone.begin, from.suffixes() + gone.end, suffix_bytes - gone.end);
  write_header(to, {.level = 0,
                    .reserved = 0,
                    .count = static_cast<std::uint16_t>(count - 1),
                    .prefix_bytes = static_cast<std::uint16_t>(prefix_bytes),
                    .last_inserted = no_key_inserted});
}

void write_child(char* to, std::size_t count, std::size_t index, NodeOffset child) {
  store_little_endian(to + key_node_header_bytes + count * sizeof(KeyEnd) + index * sizeof(KeyChild),
                      child_number(child));
}

}  // namespace whycache
