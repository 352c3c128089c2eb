#include "log/tls_failure.h"

#include <algorithm>
#include <initializer_list>

namespace whycache {
namespace {

std::string in_lower_case(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return 'A' <= c && c <= 'Z' ? static_cast<char>(c | 0x20) : c; });
  return lower;
}

bool contains(std::string_view text, std::string_view words) {
  return text.find(words) != std::string_view::npos;
}

// Whether `words` occur in `text` as whole words. Both are in lower case.
bool contains_words(std::string_view text, std::string_view words) {
  const auto is_letter = [&](std::size_t at) { return 'a' <= text[at] && text[at] <= 'z'; };
  for (std::size_t begin = text.find(words); begin != std::string_view::npos;
       begin = text.find(words, begin + 1)) {
    const std::size_t end = begin + words.size();
    if ((begin == 0 || !is_letter(begin - 1)) && (end == text.size() || !is_letter(end)))
      return true;
  }
  return false;
}

// An alert is what the other side says: "sslv3 alert bad certificate".
bool is_alert(std::string_view reason) { return contains(reason, " alert "); }

bool contains_any(std::string_view reason, std::initializer_list<std::string_view> phrases) {
  return std::any_of(phrases.begin(), phrases.end(),
                     [&](std::string_view phrase) { return contains_words(reason, phrase); });
}

// Whether the sides have no version of the protocol, or no algorithm, in common.
bool has_nothing_in_common(std::string_view reason) {
  return contains_any(
      reason, {"protocol version", "unsupported protocol", "no protocols available",
               "insufficient security", "no shared cipher", "wrong cipher returned",
               "wrong ssl version", "no suitable signature algorithm", "wrong signature type",
               "key too small", "md too weak", "unsafe legacy renegotiation disabled"});
}

}  // namespace

bool is_tls_refusal(std::string_view failure_reason) {
  const std::string reason = in_lower_case(failure_reason);
  // GnuTLS does not say which alert it has received.
  if (is_alert(reason) && !contains(reason, "alert has been received"))
    return !contains(reason, "alert internal error");
  return has_nothing_in_common(reason) ||
         contains_any(reason, {"certificate", "certificates", "validation", "hostname", "host name",
                               "no such file", "ssl is required", "tls is required",
                               "does not support", "private key file"});
}

bool is_expired_certificate(std::string_view failure_reason) {
  const std::string reason = in_lower_case(failure_reason);
  return contains(reason, "expired") && !is_alert(reason);
}

std::string next_step_for_tls(std::string_view failure_reason, std::string_view server_options,
                              const std::string& prefix) {
  const std::string reason = in_lower_case(failure_reason);
  const auto has = [&](std::string_view words) { return contains(reason, words); };
  const std::string ca = prefix + "tls_ca";
  const std::string certificate_and_key = prefix + "tls_cert and " + prefix + "tls_key";
  if (has_nothing_in_common(reason))
    return " (enable TLS 1.2 or 1.3 at the server, with ciphers and keys that OpenSSL here "
           "accepts)";
  // A server that asks for a certificate says this, too, if it gets none by TLS 1.2.
  if (has("alert handshake failure")) {
    return " (name a certificate with " + certificate_and_key +
           " if the server asks for one; otherwise enable ciphers at the server that OpenSSL here "
           "accepts)";
  }
  const bool is_about_certificate = contains_any(
      reason, {"certificate", "unknown ca", "access denied", "decrypt error", "been received"});
  if (is_alert(reason) && !is_about_certificate)
    return " (the server refused the connection: its log says why)";
  if (is_alert(reason)) {
    return " (the server refused the certificate of this machine: correct or renew " +
           certificate_and_key + ")";
  }
  if (has("openssl cannot be used"))
    return " (correct the configuration of OpenSSL: openssl.cnf, or what OPENSSL_CONF names)";
  if (has("expired")) return " (renew the certificate of the server)";
  if (has("not yet valid") || has("not activated"))
    return " (correct the clock of this machine, or the certificate of the server)";
  if (has("hostname") || has("host name") || has("ip address mismatch"))
    return " (the url must name the server as its certificate does)";
  if (has("validation")) {
    return " (the url must name the server as its certificate does, and " + ca +
           " the file of the authority that signed it)";
  }
  if (has("required") || has("does not support"))
    return " (turn on TLS at the server: " + std::string(server_options) + ")";
  if (has("no such file") || has("permission") || has("could not") || has("does not exist") ||
      has("private key file")) {
    return " (correct " + ca + ", " + certificate_and_key +
           " in the url, and the permissions of these files)";
  }
  const std::string name_authority =
      " (name the file of the authority that signed the certificate of the server with " + ca;
  // OpenSSL says no more than this about an expired certificate, either.
  if (has("verify failed"))
    return name_authority + "; if it is that one, the certificate has expired: renew it)";
  return name_authority + ")";
}

}  // namespace whycache
