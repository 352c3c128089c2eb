#include "base/random.h"

#include <sys/random.h>

#include <cerrno>
#include <cstddef>

#include "base/file.h"

namespace whycache {
namespace {

void fill_with_random_bytes(void* to, std::size_t size) {
  auto* at = static_cast<char*>(to);
  while (size > 0) {
    const ssize_t got = ::getrandom(at, size, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw system_error("cannot get random bytes", "getrandom", errno);
    at += got;
    size -= static_cast<std::size_t>(got);
  }
}

}  // namespace

Uuid random_uuid() {
  Uuid uuid;
  fill_with_random_bytes(uuid.data(), uuid.size());
  uuid[6] = static_cast<std::uint8_t>((uuid[6] & 0x0f) | 0x40);  // version
  uuid[8] = static_cast<std::uint8_t>((uuid[8] & 0x3f) | 0x80);  // variant
  return uuid;
}

std::uint64_t random_u64() {
  std::uint64_t number;
  fill_with_random_bytes(&number, sizeof number);
  return number;
}

}  // namespace whycache
