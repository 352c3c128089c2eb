// Reads the ring of recent changes (state/file/change_ring.h). Needs read access only, takes no
// lock, and trusts no byte: what it returns has the id that was asked for and a valid checksum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <whycache/types.h>

#include "base/file.h"
#include "state/file/change_ring.h"
#include "state/file/state_info.h"

namespace whycache {

class ChangeRingReader {
 public:
  // `options`: those that the state is opened with. The ring is opened when it is first needed.
  explicit ChangeRingReader(StateOptions options)
      : options_(std::move(options)), path_(options_.path + change_ring_suffix) {}

  // Returns update `id` of the history of a state, as it is in the log; nullopt if the ring does
  // not have it, belongs to another state, or cannot be read. The bytes are valid until the next
  // call. Takes some hundred nanoseconds for the update after the one that was returned last, and
  // reads up to the whole ring for any other.
  std::optional<std::string_view> find(std::uint64_t state_id, UpdateId id);

 private:
  struct Positions {
    std::uint64_t state_id;
    std::uint64_t tail;
    std::uint64_t head;
  };
  bool open_newest();
  bool may_trust(const struct stat& ring) const;
  std::optional<Positions> read_positions() const;
  // Makes the bytes of `position`.. available in buffer_, at least `bytes` of them.
  bool fill(std::uint64_t position, std::uint64_t bytes, std::uint64_t head);
  bool read_data(std::uint64_t position, char* to, std::size_t bytes) const;
  // Returns the header of the record at `position`, with a size that lies before `head`.
  std::optional<ChangeRecord> record_at(std::uint64_t position, std::uint64_t head);
  // Returns the bytes of the update if the record is whole and in its place.
  std::optional<std::string_view> update_at(std::uint64_t position, const ChangeRecord& record,
                                            const Positions& at);
  std::optional<std::string_view> read_next(std::uint64_t state_id, UpdateId id);
  std::optional<std::string_view> search(std::uint64_t state_id, UpdateId id);
  std::optional<std::uint64_t> last_position(const Positions& at) const;
  bool is_overwritten(std::uint64_t position) const;
  const char* buffered(std::uint64_t position) const {
    return buffer_.data() + (position - buffer_position_);
  }

  const StateOptions options_;
  const std::string path_;
  FileDescriptor file_;
  std::uint64_t data_bytes_ = 0;
  // Where the update after the one that was returned last is expected.
  std::uint64_t next_position_ = 0;
  UpdateId next_id_ = 0;
  // Copied from buffer_position_ on, up to buffer_end_.
  std::string buffer_;
  std::uint64_t buffer_position_ = 0;
  std::uint64_t buffer_end_ = 0;
};

}  // namespace whycache
