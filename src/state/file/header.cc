#include "state/file/header.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "state/errors.h"

namespace whycache {

bool bears_state_magic(int descriptor) {
  char magic[sizeof state_magic];
  errno = 0;
  return ::pread(descriptor, magic, sizeof magic, 0) == sizeof magic &&
         std::memcmp(magic, state_magic, sizeof magic) == 0;
}

namespace {

bool is_damaged(const HeaderFixed& header) {
  return header.checksum != header.expected_checksum() ||
         header.log_name_bytes > sizeof header.log_name;
}

std::string fault_besides_damage(const HeaderFixed& header) {
  if (std::memcmp(header.magic, state_magic, sizeof state_magic) != 0)
    return "it does not begin with the magic of a whycache state";
  if (header.byte_order != byte_order_mark)
    return "it was created on a machine of another byte order";
  if (header.format_major != state_format_major) {
    return "its format is unknown: found=" + std::to_string(header.format_major) +
           " known=" + std::to_string(state_format_major);
  }
  if (header.header_bytes != header_page_bytes || header.segment_size != segment_bytes)
    return "its header has impossible sizes";
  return {};
}

}  // namespace

std::string header_fault(const HeaderFixed& header) {
  if (std::string fault = fault_besides_damage(header); !fault.empty()) return fault;
  if (is_damaged(header)) return "its header is damaged";
  return {};
}

bool is_of_older_format(const HeaderFixed& header) {
  HeaderFixed expected = header;
  expected.format_major = state_format_major;
  return header.format_major >= state_format_major_replaced_min &&
         header.format_major < state_format_major && !is_damaged(header) &&
         fault_besides_damage(expected).empty();
}

PublishedBlock read_published(const Header& header) {
  for (;;) {
    const UpdateId id = header.applied_id.load(std::memory_order_acquire);
    PublishedBlock block;
    std::memcpy(&block, &header.published[id % published_block_count], sizeof block);
    // The copy is consistent unless seven more updates were published meanwhile: only then does
    // the writer overwrite the block. Pairs with the release fence in Applier before that write.
    std::atomic_thread_fence(std::memory_order_acquire);
    if (header.applied_id.load(std::memory_order_relaxed) - id >= published_block_count - 1)
      continue;
    if (block.id != id || block.checksum != block.expected_checksum()) {
      throw corrupt_state("published block of update", id);
    }
    return block;
  }
}

}  // namespace whycache
