// What a URL says of the Redis in front of a log.
#pragma once

#include <string>

#include "base/url.h"
#include "log/server_address.h"

namespace whycache {

struct RedisServer {
  ServerAddress address;
  std::string user;
  // The file is read at each connect. Without one, the password is that of the environment variable
  // WHYCACHE_REDIS_PASSWORD; empty: the server asks for none.
  std::string password_file;
  // The connection is encrypted, and the server must have a certificate for its host. Only builds
  // with TLS for Redis have such servers.
  bool verifies_tls = false;
  std::string tls_ca;  // empty: the authorities that this system trusts
  std::string tls_certificate;
  std::string tls_key;
};

// Takes the options redis, redis_user, redis_password_file, and redis_tls with those that begin
// with it. Throws Error(invalid).
RedisServer take_redis_server(Url& url);

}  // namespace whycache
