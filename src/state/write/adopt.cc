#include "state/write/adopt.h"

#include <fcntl.h>

#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/file_system.h"
#include "state/file/use_locks.h"
#include "state/verify.h"
#include "state/write/applier.h"
#include "state/write/recovery.h"

namespace whycache {
namespace {

constexpr const char* replaced_meanwhile = "it was replaced while it was verified";

bool is_same_file(const Mapping& a, const Mapping& b) {
  return a.inode() == b.inode() && a.device() == b.device();
}

// A copy may have holes, or share blocks with the original. On a full disk, writing to one would
// kill the process by SIGBUS.
void own_blocks(const Mapping& mapping) {
  if (const int error = unshare_blocks(mapping.descriptor(), mapping.usable_bytes()))
    throw system_error("cannot give the state file blocks of its own", mapping.path(), error);
  if (const int error = allocate_in_file(mapping.descriptor(), 0, mapping.usable_bytes()))
    throw system_error("cannot allocate the state file's blocks", mapping.path(), error);
}

// Verifies a file from elsewhere, and makes it a file of this boot. Returns the reason if it cannot
// be trusted, or an empty string.
std::string adopt(const StateOptions& options, const Mapping& foreign, const Deadline& deadline) {
  if (is_disowned(foreign.header().fixed))
    return "another program has changed it, and it did not verify";
  // Acquire: pairs with the release store of clear_writer_active().
  if (foreign.header().writer_active.load(std::memory_order_acquire) != 0) {
    return "it was being written when it was copied, or when the machine went down";
  }
  Mapping mapping(open_file(options.path, O_RDWR), options.path, options.bytes_max,
                  Mapping::Access::write);
  if (!is_same_file(mapping, foreign)) return replaced_meanwhile;
  // The rest of the time is for building a new state, if a reader does not come to an end.
  const auto half = std::chrono::duration_cast<std::chrono::milliseconds>(deadline.remaining()) / 2;
  switch (exclude_users(mapping.descriptor(), deadline.at_most(half))) {
    case Exclusion::in_use:
      return "other processes use it, for which it is of another boot (a container's boot id?)";
    case Exclusion::being_verified:
      return "another process, which may only read it, was still verifying it";
    case Exclusion::complete: break;
  }
  // A child that another thread forks meanwhile shares the open file, and would keep the lock.
  struct AdmitOnExit {
    ~AdmitOnExit() { admit_users(descriptor); }
    int descriptor;
  } const admitting{mapping.descriptor()};
  if (turn_off_copy_on_write(mapping.descriptor()) && !options.any_file_system)
    throw copies_on_write(parent_directory(options.path), "btrfs, or an overlay on it");
  own_blocks(mapping);
  const std::vector<std::string> faults = verify(foreign, false, {});
  if (!faults.empty()) return "it does not verify: " + faults.front();

  Header& header = mapping.writable_header();
  mark_writer_active(header);
  // Processes that have verified it for themselves may hold views of it.
  Applier applier(mapping, Readers::any, options.bytes_max);
  try {
    recover(applier.allocator(), applier.point_index());
  } catch (const Error& error) {
    return std::string("it does not verify: ") + error.what();
  }
  const std::string log_name(header.fixed.log_name, header.fixed.log_name_bytes);
  write_fixed_header(header, header.fixed.log_uuid, log_name, mapping.descriptor(), mapping.path());
  // No time counts from now on, since the state id is another: their seals are wrong.
  header.poll_record.last.time_ns.store(0, std::memory_order_relaxed);
  header.poll_record.last_of_store.time_ns.store(0, std::memory_order_relaxed);
  header.poll_record.known_head.store(0, std::memory_order_relaxed);
  for (std::atomic<std::uint64_t>& counter : header.machine_counters)
    counter.store(0, std::memory_order_relaxed);
  clear_writer_active(header);
  return {};
}

}  // namespace

StateFileResult open_or_adopt_state_file(const StateOptions& options, const Deadline& deadline) {
  StateFileResult found = open_state_file(options, true);
  if (!found.foreign) return found;
  const std::string fault = adopt(options, *found.foreign, deadline);
  if (!fault.empty()) return {nullptr, fault + ": path=" + options.path, true, nullptr};
  // adopt() has rewritten the header, so map the file again.
  found.foreign.reset();
  found = open_state_file(options, true);
  found.adopted = true;
  return found;
}

std::optional<std::string> verify_changed_state_file(const StateOptions& options,
                                                     const Mapping& changed) {
  constexpr const char* reason = "another program has changed it, and it does not verify: ";
  try {
    Mapping mapping(open_file(options.path, O_RDWR), options.path, options.bytes_max,
                    Mapping::Access::write);
    if (!is_same_file(mapping, changed)) return replaced_meanwhile;
    own_blocks(mapping);
    Header& header = mapping.writable_header();
    // A writer may have died at work, so recovery comes first. It trusts nothing that it reads.
    mark_writer_active(header);
    std::string fault;
    try {
      // Processes that may only read can have the file open.
      Applier applier(mapping, Readers::any, options.bytes_max);
      recover(applier.allocator(), applier.point_index());
      const std::vector<std::string> faults = verify(mapping, false, {});
      if (!faults.empty()) fault = faults.front();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::corrupt) throw;
      fault = error.what();
    }
    if (!fault.empty()) {
      disown(header);
      return reason + fault;
    }
    clear_writer_active(header);
    return std::string();
  } catch (const Error&) {  // it may not write to the file, or lacks memory or space
    // Acquire: pairs with the release store of clear_writer_active().
    if (changed.header().writer_active.load(std::memory_order_acquire) != 0) return std::nullopt;
    const std::vector<std::string> faults = verify(changed, false, {});
    return faults.empty() ? std::nullopt : std::optional(reason + faults.front());
  }
}

}  // namespace whycache
