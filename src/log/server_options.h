// What the URLs of logs in database servers have in common: addresses, TLS and secrets.
#pragma once

#include <string>
#include <string_view>

#include "base/url.h"

namespace whycache {

// Whether packets for `host` stay on this machine.
bool is_loopback(std::string_view host) noexcept;

// The options tls, tls_ca, tls_cert and tls_key.
struct TlsOptions {
  bool is_off = false;  // tls=off
  bool always = false;  // tls=verify, or a file is given
  std::string ca;       // empty: the authorities that this system trusts
  std::string certificate;
  std::string key;
};
// Takes them from the URL, with `prefix` before their names. Throws Error(invalid).
TlsOptions take_tls_options(Url& url, const std::string& prefix = "");

// The next step if a database server has no connection left for this process.
inline constexpr char too_many_connections_hint[] =
    " (raise max_connections at the server, or end connections there)";
// The next step if another host does not answer, and none says why.
inline constexpr char unreachable_host_hint[] =
    " (check the network and the firewalls between this machine and the server)";
inline constexpr char closed_socket_hint[] =
    " (let this user enter the socket and its directory, or run as a user that may)";

// Reads a file with a secret. `what` is the option that names it. Throws Error(invalid), without
// any of the contents.
std::string read_secret(const std::string& what, const std::string& path);
// The same for a file that holds a password, and line ends after it.
std::string read_password_file(const std::string& path);

}  // namespace whycache
