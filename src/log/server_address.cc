#include "log/server_address.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <system_error>

namespace whycache {

std::string ServerAddress::text() const {
  if (!socket.empty()) return socket;
  const bool is_ipv6 = host.find(':') != std::string::npos;
  return (is_ipv6 ? '[' + host + ']' : host) + ':' + std::to_string(port);
}

std::optional<ServerAddress> parse_server_address(std::string_view text,
                                                  std::uint16_t default_port) {
  ServerAddress address;
  if (text.starts_with('/')) {
    address.socket = text;
    return address;
  }
  address.port = default_port;
  const bool in_brackets = text.starts_with('[');
  const std::size_t host_end = text.find(in_brackets ? ']' : ':');
  if (in_brackets && host_end == std::string_view::npos) return std::nullopt;
  address.host = text.substr(in_brackets ? 1 : 0, in_brackets ? host_end - 1 : host_end);
  if (address.host.empty()) return std::nullopt;
  const std::string_view rest =
      text.substr(std::min(text.size(), host_end + (in_brackets ? 1 : 0)));
  if (host_end == std::string_view::npos || rest.empty()) return address;
  const auto [end, error] =
      std::from_chars(rest.data() + 1, rest.data() + rest.size(), address.port);
  if (rest[0] != ':' || error != std::errc() || end != rest.data() + rest.size() ||
      address.port == 0) {
    return std::nullopt;
  }
  return address;
}

}  // namespace whycache
