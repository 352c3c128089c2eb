#include "state/read/change_ring_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "state/file/state_file.h"

namespace whycache {
namespace {

constexpr std::uint64_t chunk_bytes = std::uint64_t{256} << 10;
constexpr int searches_max = 3;

// Reads as many bytes as there are, up to `bytes`. Returns whether that is all of them.
bool read_fully(int descriptor, char* to, std::size_t bytes, std::uint64_t offset) {
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor, to, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    to += got;
    bytes -= static_cast<std::size_t>(got);
    offset += static_cast<std::uint64_t>(got);
  }
  return true;
}

}  // namespace

std::optional<std::string_view> ChangeRingReader::find(std::uint64_t state_id, UpdateId id) {
  if (id == next_id_ && file_) {
    if (const std::optional<std::string_view> update = read_next(state_id, id)) return update;
  }
  if (!open_newest()) return std::nullopt;
  for (int tries = 0; tries < searches_max; ++tries) {
    if (const std::optional<std::string_view> update = search(state_id, id)) return update;
    // The writer may have overwritten what the search was reading.
    const std::optional<Positions> now = read_positions();
    if (!now || now->state_id != state_id || now->tail <= next_position_) break;
  }
  next_id_ = 0;
  return std::nullopt;
}

// Opens the file at the path, unless it is the one that is open.
bool ChangeRingReader::open_newest() {
  struct stat status;
  if (file_ && ::fstat(file_.number(), &status) == 0 && status.st_nlink == 1) return true;
  buffer_end_ = buffer_position_;
  file_ = FileDescriptor(open_at_path(path_.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW));
  ChangeRingFixed fixed;
  if (file_ && ::fstat(file_.number(), &status) == 0 && S_ISREG(status.st_mode) &&
      may_trust(status) &&
      read_fully(file_.number(), reinterpret_cast<char*>(&fixed), sizeof fixed, 0) &&
      is_usable(fixed)) {
    data_bytes_ = fixed.data_bytes;
    return true;
  }
  file_.close();
  return false;
}

// In a directory where any user can create files, the ring may be of a user who must not decide
// what a feed returns.
bool ChangeRingReader::may_trust(const struct stat& ring) const {
  if (is_trusted_owner(ring, path_, trusted_owner(options_))) return true;
  struct stat state;
  return options_.any_owner && ::lstat(options_.path.c_str(), &state) == 0 &&
         state.st_uid == ring.st_uid;
}

std::optional<ChangeRingReader::Positions> ChangeRingReader::read_positions() const {
  constexpr std::uint64_t position_max = std::uint64_t{1} << 62;
  Positions positions;
  static_assert(offsetof(ChangeRingHeader, tail) == offsetof(ChangeRingHeader, state_id) + 8 &&
                sizeof positions == 24);
  if (!read_fully(file_.number(), reinterpret_cast<char*>(&positions), sizeof positions,
                  offsetof(ChangeRingHeader, state_id)))
    return std::nullopt;
  // Acquire: the records that are read next are at least as new as `head`.
  std::atomic_thread_fence(std::memory_order_acquire);
  if (positions.tail > positions.head || positions.head - positions.tail > data_bytes_ ||
      positions.head > position_max || positions.tail % 8 != 0 || positions.head % 8 != 0)
    return std::nullopt;
  return positions;
}

bool ChangeRingReader::read_data(std::uint64_t position, char* to, std::size_t bytes) const {
  const std::uint64_t place = position % data_bytes_;
  const std::size_t first = std::min<std::size_t>(bytes, data_bytes_ - place);
  return read_fully(file_.number(), to, first, change_ring_page_bytes + place) &&
         (first == bytes ||
          read_fully(file_.number(), to + first, bytes - first, change_ring_page_bytes));
}

bool ChangeRingReader::fill(std::uint64_t position, std::uint64_t bytes, std::uint64_t head) {
  if (position >= buffer_position_ && position <= buffer_end_ && bytes <= buffer_end_ - position)
    return true;
  if (bytes > head - position || bytes > data_bytes_) return false;
  const std::size_t wanted = std::min(std::max(bytes, chunk_bytes), head - position);
  buffer_end_ = buffer_position_;
  if (buffer_.size() < wanted) buffer_.resize(wanted);
  // A large update must not keep its memory for good.
  if (buffer_.size() > 2 * std::max<std::size_t>(wanted, chunk_bytes)) {
    buffer_.resize(std::max<std::size_t>(wanted, chunk_bytes));
    buffer_.shrink_to_fit();
  }
  if (!read_data(position, buffer_.data(), wanted) || is_overwritten(position)) return false;
  buffer_position_ = position;
  buffer_end_ = position + wanted;
  return true;
}

std::optional<ChangeRecord> ChangeRingReader::record_at(std::uint64_t position,
                                                        std::uint64_t head) {
  if (position > head || !fill(position, sizeof(ChangeRecord), head)) return std::nullopt;
  ChangeRecord record;
  std::memcpy(&record, buffered(position), sizeof record);
  if (record.update_bytes > data_bytes_ ||
      change_record_bytes(record.update_bytes) > head - position)
    return std::nullopt;
  return record;
}

std::optional<std::string_view> ChangeRingReader::update_at(std::uint64_t position,
                                                            const ChangeRecord& record,
                                                            const Positions& at) {
  if (!fill(position, change_record_bytes(record.update_bytes), at.head)) return std::nullopt;
  const std::string_view update(buffered(position) + sizeof record, record.update_bytes);
  if (record.checksum != change_record_checksum(at.state_id, position, record.id, update))
    return std::nullopt;
  next_position_ = position + change_record_bytes(record.update_bytes);
  next_id_ = record.id + 1;
  return update;
}

// Whether the bytes that were copied from `position` on may have been replaced meanwhile.
bool ChangeRingReader::is_overwritten(std::uint64_t position) const {
  // Pairs with the release fence of the writer, between its store of the tail and the bytes.
  std::atomic_thread_fence(std::memory_order_acquire);
  const std::optional<Positions> now = read_positions();
  return !now || now->tail > position;
}

// Reads the record after the one that was returned last.
std::optional<std::string_view> ChangeRingReader::read_next(std::uint64_t state_id, UpdateId id) {
  Positions at{state_id, buffer_position_, buffer_end_};  // what is copied already
  const auto record_in = [&](const Positions& positions) -> std::optional<ChangeRecord> {
    if (next_position_ < positions.tail) return std::nullopt;
    return record_at(next_position_, positions.head);
  };
  std::optional<ChangeRecord> record = record_in(at);
  if (!record) {
    const std::optional<Positions> now = read_positions();
    if (!now || now->state_id != state_id) return std::nullopt;
    at = *now;
    record = record_in(at);
  }
  if (!record || record->id != id) return std::nullopt;
  return update_at(next_position_, *record, at);
}

// Returns the position of the last record.
std::optional<std::uint64_t> ChangeRingReader::last_position(const Positions& at) const {
  if (at.head - at.tail < change_record_bytes(0)) return std::nullopt;
  ChangeRecordEnd position;
  if (!read_data(at.head - sizeof position, reinterpret_cast<char*>(&position), sizeof position) ||
      position < at.tail || position > at.head - change_record_bytes(0) || position % 8 != 0)
    return std::nullopt;
  return position;
}

// Walks the ring from its tail. Leaves next_position_ where it ended.
std::optional<std::string_view> ChangeRingReader::search(std::uint64_t state_id, UpdateId id) {
  const std::optional<Positions> at = read_positions();
  if (!at || at->state_id != state_id) return std::nullopt;
  buffer_end_ = buffer_position_;
  if (const std::optional<std::uint64_t> last = last_position(*at)) {
    const std::optional<ChangeRecord> record = record_at(*last, at->head);
    if (record && record->id == id) return update_at(*last, *record, *at);
    if (record && record->id < id) return std::nullopt;
  }
  for (next_position_ = at->tail; next_position_ < at->head;) {
    const std::optional<ChangeRecord> record = record_at(next_position_, at->head);
    if (!record || record->id > id) return std::nullopt;
    if (record->id == id) return update_at(next_position_, *record, *at);
    next_position_ += change_record_bytes(record->update_bytes);
  }
  return std::nullopt;
}

}  // namespace whycache
