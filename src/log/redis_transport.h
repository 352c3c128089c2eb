// How the bytes of a connection to Redis reach the server: over its socket, or by TLS over its
// socket. The socket does not block.
#pragma once

#include <cstddef>
#include <string>

namespace whycache {

// Why a server could not be used.
struct RedisFailure {
  bool is_refusal = false;  // the server has answered
  std::string reason;
};

// Functions throw RedisFailure if the connection is lost.
class RedisTransport {
 public:
  RedisTransport() = default;
  RedisTransport(const RedisTransport&) = delete;
  RedisTransport& operator=(const RedisTransport&) = delete;
  virtual ~RedisTransport() = default;

  // Begins or continues a handshake with the server. Returns the events of poll() to wait for
  // before the next call, or 0 at its end; bytes may be exchanged then.
  virtual short shake_hands() { return 0; }
  // Takes bytes from the front of `bytes`, and sends what the socket takes now.
  virtual void send(std::string& bytes) = 0;
  // Whether bytes were taken that are not sent yet: the caller calls send() again.
  virtual bool has_unsent() const noexcept { return false; }
  // Returns how many bytes were received; 0: none have arrived.
  virtual std::size_t receive(char* to, std::size_t size) = 0;
  // Whether receive() has bytes although the socket has none.
  virtual bool has_received() const noexcept { return false; }
  // Whether the server has not closed the connection, on which no answer is awaited.
  virtual bool is_alive() noexcept = 0;
  // Returns when the certificate of the server expires, "Dec  1 00:00:00 2026 GMT"; "" if it has
  // none.
  virtual std::string certificate_end() const { return {}; }
};

}  // namespace whycache
