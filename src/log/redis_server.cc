#include "log/redis_server.h"

#include <cstdint>
#include <optional>

#include <whycache/error.h>

#include "log/server_options.h"

namespace whycache {
namespace {

constexpr std::uint16_t default_redis_port = 6379;
#if WHYCACHE_WITH_REDIS_TLS
constexpr bool has_redis_tls = true;
#else
constexpr bool has_redis_tls = false;
#endif

ServerAddress take_redis_address(Url& url) {
  const std::optional<std::string> where = url.take_option("redis");
  if (!where) {
    throw Error(ErrorKind::invalid,
                "log url does not say where Redis is (option redis=host:port, or the path of a "
                "socket)");
  }
  std::optional<ServerAddress> address = parse_server_address(*where, default_redis_port);
  if (!address) {
    throw Error(ErrorKind::invalid,
                "option redis is no address of a server (write host:port, [address]:port or "
                "/path/of/socket)");
  }
  return *std::move(address);
}

}  // namespace

RedisServer take_redis_server(Url& url) {
  RedisServer server;
  server.address = take_redis_address(url);
  server.user = url.take_option("redis_user").value_or("");
  server.password_file = url.take_option("redis_password_file").value_or("");

  const TlsOptions tls = take_tls_options(url, "redis_");
  const bool is_socket = !server.address.socket.empty();
  if (is_socket && tls.always) {
    throw Error(ErrorKind::invalid,
                "option redis names a unix socket, which has no TLS (leave out redis_tls, or name "
                "host and port)");
  }
  server.verifies_tls =
      !is_socket && !tls.is_off && (tls.always || !is_loopback(server.address.host));
  if (server.verifies_tls && !has_redis_tls) {
    throw Error(ErrorKind::invalid,
                "this build of whycache has no TLS for Redis, which a server that is not on this "
                "machine needs (install hiredis 1.0 or later with hiredis_ssl and the development "
                "files of OpenSSL, and build it again; or install stunnel and name its socket in "
                "redis=; or write redis_tls=off for a network that you trust)");
  }
  if (tls.certificate.empty() != tls.key.empty()) {
    throw Error(ErrorKind::invalid,
                "options redis_tls_cert and redis_tls_key are used together only");
  }
  server.tls_ca = tls.ca;
  server.tls_certificate = tls.certificate;
  server.tls_key = tls.key;
  return server;
}

}  // namespace whycache
