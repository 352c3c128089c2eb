// TLS to a Redis server. hiredis_ssl encrypts and decrypts; it does not compare the certificate of
// the server with its host, which OpenSSL is therefore told to do.
#pragma once

#include <memory>

#include "log/redis_server.h"
#include "log/redis_transport.h"

namespace whycache {

// Initializes what all connections share, before a thread connects.
void prepare_redis_tls();

// Returns TLS over a connected socket, which outlives it. Throws RedisFailure, or Error(invalid) if
// a file of the server's options cannot be used.
std::unique_ptr<RedisTransport> make_redis_tls(const RedisServer& server, int socket);

}  // namespace whycache
