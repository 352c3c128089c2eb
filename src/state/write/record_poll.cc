#include "state/write/record_poll.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <optional>

#include "base/boot.h"
#include "base/file.h"
#include "state/file/poll_record.h"
#include "state/file/state_change.h"

namespace whycache {
namespace {

// A PollTime, or all of a PollRecord, as plain bytes.
struct PollTimeBytes {
  std::int64_t time_ns;
  std::uint64_t seal;
};
struct PollRecordBytes {
  PollTimeBytes last;
  PollTimeBytes last_of_store;
  std::uint64_t known_head;
};
static_assert(sizeof(PollRecordBytes) == sizeof(PollRecord));
static_assert(offsetof(PollRecordBytes, last_of_store) == offsetof(PollRecord, last_of_store));
static_assert(offsetof(PollRecordBytes, known_head) == offsetof(PollRecord, known_head));

// Whether writing there would kill the process by SIGXFSZ.
bool exceeds_file_size_limit(std::size_t end) {
  struct rlimit limit;
  return ::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur < end;
}

// Returns no descriptor if the record cannot be written.
FileDescriptor open_to_record(const Mapping& mapping) noexcept {
  constexpr std::size_t end = offsetof(Header, poll_record) + sizeof(PollRecordBytes);
  if (exceeds_file_size_limit(end)) return {};
  FileDescriptor file(open_at_path(mapping.path().c_str(), O_WRONLY | O_NONBLOCK | O_NOFOLLOW));
  struct stat status;
  if (!file || ::fstat(file.number(), &status) != 0 || status.st_ino != mapping.inode() ||
      status.st_dev != mapping.device())
    return {};
  return file;
}

}  // namespace

void record_poll(const Mapping& mapping, const LockFile& locks, std::int64_t at_ns, UpdateId head,
                 bool by_store) noexcept {
  const std::optional<std::uint64_t> clock = boot_clock_id();
  const FileDescriptor file = open_to_record(mapping);
  if (!clock || !file) return;
  const PollTimeBytes now{at_ns, poll_time_seal(at_ns, mapping.state_id(), *clock)};
  const PollRecord& present = mapping.header().poll_record;
  PollRecordBytes record{now, now, head};
  if (!by_store) {
    // Only holders of the lock store them.
    record.last_of_store.time_ns = present.last_of_store.time_ns.load(std::memory_order_relaxed);
    record.last_of_store.seal = present.last_of_store.seal.load(std::memory_order_relaxed);
  }
  const OwnChange change(&locks, file.number());
  // The kernel copies the bytes in some order, in which other processes see them: a time whose seal
  // is not there yet counts for nothing, also if this process dies here. The fence pairs with the
  // acquire of read_poll_time(): a process that sees the time sees what was applied before.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  // A failure leaves the times as they were, or without their seals: then each process polls.
  static_cast<void>(::pwrite(file.number(), &record, sizeof record,
                             static_cast<off_t>(offsetof(Header, poll_record))));
}

void record_known_head(const Mapping& mapping, const LockFile& locks, UpdateId head) noexcept {
  const FileDescriptor file = open_to_record(mapping);
  if (!file) return;
  constexpr std::size_t offset =
      offsetof(Header, poll_record) + offsetof(PollRecordBytes, known_head);
  const OwnChange change(&locks, file.number());
  // A failure leaves the head of the last poll.
  static_cast<void>(::pwrite(file.number(), &head, sizeof head, static_cast<off_t>(offset)));
}

}  // namespace whycache
