// Appends applied updates to the ring of recent changes (state/file/change_ring.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <whycache/types.h>

#include "base/file.h"
#include "state/file/change_ring.h"
#include "state/file/layout.h"
#include "state/file/state_info.h"

namespace whycache {

// The ring, mapped writable. Used only by the holder of the writer lock.
class ChangeRingWriter {
 public:
  // Opens the ring of the state that `state_descriptor` names, or creates it. Replaces one of
  // another size than `options` ask for, and one that cannot be used. Throws Error.
  ChangeRingWriter(const StateOptions& options, int state_descriptor);
  ~ChangeRingWriter();
  ChangeRingWriter(const ChangeRingWriter&) = delete;
  ChangeRingWriter& operator=(const ChangeRingWriter&) = delete;

  // Whether the file is still the one at its path, and as large as this process has made it.
  bool is_in_place() const;
  // Unmaps the next `bytes`, a multiple of the page size. Returns whether everything is unmapped.
  // The first call ends all use but this and destruction.
  bool unmap_front(std::uint64_t bytes) noexcept;
  // Appends update `id`, which follows the update of `applied` in the state. If the ring does not
  // end with that one, it begins again with this one. An update that is larger than the ring
  // leaves it empty. Throws Error(limit) if the disk is full; the ring is then empty.
  void append(std::uint64_t state_id, const PublishedBlock& applied, UpdateId id,
              std::string_view update);

 private:
  void open_or_create(const StateOptions& options, int state_descriptor);
  bool try_open(const StateOptions& options, int state_descriptor);
  void create(std::uint64_t data_bytes, int state_descriptor);
  void map();

  ChangeRingHeader& header() const { return *reinterpret_cast<ChangeRingHeader*>(base_); }
  // Drops all records.
  void begin_again(std::uint64_t state_id) const;
  bool is_sound(std::uint64_t tail, std::uint64_t head) const;
  // Returns the bytes of the record at `position`, with a size that lies before `head`; nullopt if
  // there is none.
  std::optional<std::uint64_t> record_bytes_at(std::uint64_t position, std::uint64_t head) const;
  enum class Continuation : std::uint8_t { follows, is_there, breaks };
  Continuation find_continuation(std::uint64_t tail, std::uint64_t head,
                                 const PublishedBlock& applied, UpdateId id,
                                 std::string_view update) const;
  void drop_oldest_records(std::uint64_t bytes_needed) const;
  void allocate_up_to(std::uint64_t end);
  void copy_in(std::uint64_t position, std::string_view bytes) const;
  void copy_out(std::uint64_t position, void* to, std::size_t bytes) const;

  const std::string path_;
  FileDescriptor file_;
  std::byte* base_ = nullptr;
  std::uint64_t data_bytes_ = 0;
  std::uint64_t unmapped_bytes_ = 0;   // of the front
  std::uint64_t allocated_bytes_ = 0;  // of the file
  std::uint64_t device_ = 0;
  std::uint64_t inode_ = 0;
  const std::uint64_t fork_count_;
};

// Removes the ring beside a state, but no other file of that name.
void remove_change_ring(const std::string& state_path);

// The ring of one State object, under its writer lock: opened when the first update is applied, and
// kept with the writable mapping. A ring that cannot be written stops no update: feeds then read
// the log.
class ChangeRingKeeper {
 public:
  // Called before the update is applied, so that a feed which finds it applied finds it in the
  // ring. `is_first`: of the updates that are applied under one hold of the writer lock.
  void keep(std::unique_ptr<ChangeRingWriter>& ring, const StateOptions& options,
            int state_descriptor, std::uint64_t state_id, const PublishedBlock& applied,
            UpdateId id, std::string_view update, bool is_first) noexcept;
  // Returns why the ring cannot be written, once for each time that this begins.
  std::optional<std::string> take_fault() noexcept {
    return std::exchange(unreported_fault_, std::nullopt);
  }

 private:
  void note_fault(const std::string& state_path, const char* why) noexcept;

  bool is_failing_ = false;
  bool is_removed_ = false;
  std::optional<std::string> unreported_fault_;
};

}  // namespace whycache
