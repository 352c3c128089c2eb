#include "log/head_record.h"

#include <algorithm>
#include <cstddef>

#include "base/bytes.h"
#include "base/hash.h"
#include "update/update.h"

namespace whycache {
namespace {

constexpr std::size_t head_record_bytes = 48;
constexpr std::int64_t publish_delay_ns_max = std::int64_t{3600} * 1'000'000'000;
constexpr std::size_t poll_lease_bytes = 12;
constexpr std::uint32_t lease_seconds_max = 3'600;

}  // namespace

std::string encode_head_record(const HeadRecord& record) {
  std::string bytes;
  append_little_endian(bytes, record.record_id);
  append_little_endian(bytes, record.head);
  append_little_endian(bytes, record.head_chain);
  append_little_endian(bytes, record.lease_id);
  append_little_endian(bytes, record.publish_delay_ns);
  append_little_endian(bytes, hash64(bytes));
  return bytes;
}

HeadRecord decode_head_record(std::string_view bytes) {
  HeadRecord record;
  if (bytes.size() != head_record_bytes) return record;
  if (load_little_endian<std::uint64_t>(bytes.data() + 40) != hash64(bytes.substr(0, 40)))
    return record;
  record.record_id = load_little_endian<std::uint64_t>(bytes.data());
  record.head = load_little_endian<std::uint64_t>(bytes.data() + 8);
  record.head_chain = load_little_endian<std::uint64_t>(bytes.data() + 16);
  record.lease_id = load_little_endian<std::uint64_t>(bytes.data() + 24);
  record.publish_delay_ns = std::clamp<std::int64_t>(
      load_little_endian<std::int64_t>(bytes.data() + 32), 0, publish_delay_ns_max);
  return record;
}

std::uint64_t head_chain_of(std::string_view update) {
  const std::optional<UpdateHeader> header = peek_header(update);
  return header ? header->chain : hash64(update);
}

std::string encode_poll_lease(const PollLease& lease) {
  std::string bytes;
  append_little_endian(bytes, lease.lease_id);
  append_little_endian(bytes, lease.duration_seconds);
  return bytes;
}

std::optional<PollLease> decode_poll_lease(std::string_view bytes) {
  if (bytes.size() != poll_lease_bytes) return std::nullopt;
  const PollLease lease{load_little_endian<std::uint64_t>(bytes.data()),
                        load_little_endian<std::uint32_t>(bytes.data() + 8)};
  if (lease.duration_seconds > lease_seconds_max) return std::nullopt;
  return lease;
}

}  // namespace whycache
