// The meaning of a failed TLS connection. TLS libraries, and the libraries of databases above them,
// report the reason in words only, and each in its own.
#pragma once

#include <string>
#include <string_view>

namespace whycache {

// Whether TLS failed because one side refuses the other, as opposed to a connection that broke or a
// side that failed.
bool is_tls_refusal(std::string_view reason);

// Whether time alone made the certificate of the server invalid.
bool is_expired_certificate(std::string_view reason);

// Returns the next step for such a failure, in parentheses. `server_options`: the options of the
// server that turn on TLS there. `prefix`: what the options tls_ca, tls_cert and tls_key of the URL
// begin with.
std::string next_step_for_tls(std::string_view reason, std::string_view server_options,
                              const std::string& prefix = "");

}  // namespace whycache
