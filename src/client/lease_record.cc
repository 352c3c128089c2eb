#include "client/lease_record.h"

#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <system_error>

namespace whycache {
namespace {

// The year 10889. A later time is not one that encode_lease() wrote.
constexpr std::int64_t granted_ms_max = std::int64_t{1} << 48;

// Takes `name` and the number after it, up to a space, off the front of `text`.
template <typename Number>
bool take_number(std::string_view& text, std::string_view name, int base, Number& number) {
  if (!text.starts_with(name)) return false;
  const char* const begin = text.data() + name.size();
  const char* const end = text.data() + text.size();
  const auto [after, failure] = std::from_chars(begin, end, number, base);
  if (failure != std::errc() || after == end || *after != ' ') return false;
  text.remove_prefix(static_cast<std::size_t>(after - text.data()));
  return true;
}

}  // namespace

std::string encode_lease(const LeaseRecord& record) {
  char text[160];
  std::snprintf(text, sizeof text,
                "lease token=%" PRIu64 " nonce=%016" PRIx64 " granted_ms=%" PRId64
                " ttl_ms=%" PRId64 " holder=",
                record.token, record.nonce, record.granted_ms, record.ttl_ms);
  return text + record.holder;
}

std::optional<LeaseRecord> decode_lease(std::string_view value) {
  constexpr std::string_view holder_name = " holder=";
  LeaseRecord record;
  if (!take_number(value, "lease token=", 10, record.token) ||
      !take_number(value, " nonce=", 16, record.nonce) ||
      !take_number(value, " granted_ms=", 10, record.granted_ms) ||
      !take_number(value, " ttl_ms=", 10, record.ttl_ms) || !value.starts_with(holder_name) ||
      record.granted_ms < 0 || record.granted_ms > granted_ms_max || record.ttl_ms < 1 ||
      record.ttl_ms > lease_ttl_ms_max) {
    return std::nullopt;
  }
  record.holder = value.substr(holder_name.size());
  return record;
}

bool has_expired(const LeaseRecord& record, std::int64_t now_ms,
                 std::chrono::milliseconds clock_skew_max) {
  return now_ms - record.granted_ms > record.ttl_ms + clock_skew_max.count();
}

}  // namespace whycache
