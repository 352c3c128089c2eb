#include "log/server_options.h"

#include <cstddef>

#include <whycache/error.h>

#include "base/file.h"

namespace whycache {
namespace {

constexpr std::size_t secret_file_bytes_max = std::size_t{1} << 16;

}  // namespace

bool is_loopback(std::string_view host) noexcept {
  if (host == "localhost" || host == "::1") return true;
  return host.starts_with("127.") &&
         host.find_first_not_of("0123456789.") == std::string_view::npos;
}

TlsOptions take_tls_options(Url& url, const std::string& prefix) {
  TlsOptions options;
  const std::string option = prefix + "tls";
  const std::string tls = url.take_option(option).value_or("");
  if (!tls.empty() && tls != "verify" && tls != "off")
    throw Error(ErrorKind::invalid, "option " + option + " is neither verify nor off");
  options.is_off = tls == "off";
  options.ca = url.take_option(option + "_ca").value_or("");
  options.certificate = url.take_option(option + "_cert").value_or("");
  options.key = url.take_option(option + "_key").value_or("");
  const bool has_files =
      !options.ca.empty() || !options.certificate.empty() || !options.key.empty();
  if (options.is_off && has_files) {
    throw Error(ErrorKind::invalid, "option " + option + "=off contradicts " + option + "_ca, " +
                                        option + "_cert and " + option + "_key");
  }
  options.always = tls == "verify" || has_files;
  return options;
}

std::string read_secret(const std::string& what, const std::string& path) {
  try {
    return read_file_of_operator(path, secret_file_bytes_max);
  } catch (const Error& error) {
    throw Error(error.kind(), what + " of the log cannot be used: " + error.what(),
                error.system_error());
  }
}

std::string read_password_file(const std::string& path) {
  std::string password = read_secret("password_file", path);
  while (!password.empty() && (password.back() == '\n' || password.back() == '\r'))
    password.pop_back();
  return password;
}

}  // namespace whycache
