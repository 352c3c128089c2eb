// The address of a server: host and port, or a unix socket.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace whycache {

struct ServerAddress {
  std::string host;
  std::uint16_t port = 0;
  std::string socket;  // if not empty, in place of the others

  std::string text() const;
};

// Parses "10.0.0.5:11211", "[::1]:11211", "host" or "/run/server.sock". Returns nullopt if the text
// is none of these.
std::optional<ServerAddress> parse_server_address(std::string_view text,
                                                  std::uint16_t default_port);

}  // namespace whycache
