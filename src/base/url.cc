#include "base/url.h"

#include <arpa/inet.h>

#include <algorithm>
#include <utility>

#include "base/file.h"
#include "base/hex.h"

namespace whycache {
namespace {

constexpr std::size_t url_bytes_max = 8192;
constexpr std::size_t scheme_bytes_max = 32;
constexpr std::size_t option_key_bytes_max = 48;
constexpr std::size_t instance_bytes_max = 48;
constexpr std::uint16_t mysql_port = 3306;
constexpr std::uint16_t postgres_port = 5432;

constexpr bool is_between(char c, char first, char last) { return c >= first && c <= last; }
constexpr bool is_digit(char c) { return is_between(c, '0', '9'); }
constexpr bool is_lower(char c) { return is_between(c, 'a', 'z'); }
constexpr bool is_letter(char c) { return is_lower(c) || is_between(c, 'A', 'Z'); }
constexpr char to_lower(char c) {
  return is_between(c, 'A', 'Z') ? static_cast<char>(c - 'A' + 'a') : c;
}
constexpr bool is_control(char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }

Error invalid(const std::string& message) { return Error(ErrorKind::invalid, message); }

// `part` names the component for messages, which must not show its text.
std::string percent_decode(std::string_view text, const char* part) {
  std::string decoded;
  decoded.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded += text[i];
      continue;
    }
    const int high = i + 1 < text.size() ? hex_value(text[i + 1]) : -1;
    const int low = i + 2 < text.size() ? hex_value(text[i + 2]) : -1;
    if (high < 0 || low < 0) {
      throw invalid(std::string("log url has a '%' without two hexadecimal digits: part=") + part +
                    " (write %25 for the character '%')");
    }
    if (high == 0 && low == 0) throw invalid(std::string("log url has a zero byte: part=") + part);
    decoded += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return decoded;
}

// Leaves characters that are valid in every component of a URL as they are, and '/' in a path.
enum class UrlComponent { path, other };
std::string percent_encode(std::string_view text, UrlComponent component) {
  const std::string_view kept = component == UrlComponent::path ? "-._~/" : "-._~";
  constexpr char digits[] = "0123456789ABCDEF";
  std::string encoded;
  for (const char c : text) {
    if (is_letter(c) || is_digit(c) || kept.find(c) != std::string_view::npos) {
      encoded += c;
    } else {
      const auto byte = static_cast<unsigned char>(c);
      encoded += '%';
      encoded += digits[byte >> 4];
      encoded += digits[byte & 15];
    }
  }
  return encoded;
}

bool is_host(std::string_view host) {
  return std::all_of(host.begin(), host.end(), [](char c) {
    return is_letter(c) || is_digit(c) || c == '-' || c == '.' || c == '_';
  });
}

bool is_ipv6_address(std::string_view host) {
  return !host.empty() && std::all_of(host.begin(), host.end(), [](char c) {
    return hex_value(c) >= 0 || c == ':' || c == '.';
  });
}

std::uint16_t parse_port(std::string_view digits) {
  std::uint32_t port = 0;
  const bool plausible =
      !digits.empty() && digits.size() <= 5 && std::all_of(digits.begin(), digits.end(), is_digit);
  if (plausible) {
    for (const char digit : digits) port = port * 10 + static_cast<std::uint32_t>(digit - '0');
  }
  if (port == 0 || port > 65535) {
    throw invalid(
        "log url has a port that is not a number from 1 to 65535"
        " (in a password, write '/' as %2F, '?' as %3F, '#' as %23, '@' as %40)");
  }
  return static_cast<std::uint16_t>(port);
}

std::string parse_scheme(std::string_view text) {
  const std::size_t colon = text.find(':');
  std::string scheme(text.substr(0, std::min(colon, text.size())));
  std::transform(scheme.begin(), scheme.end(), scheme.begin(), to_lower);
  const bool good = colon != std::string_view::npos && !scheme.empty() &&
                    scheme.size() <= scheme_bytes_max && is_lower(scheme[0]) &&
                    std::all_of(scheme.begin(), scheme.end(), [](char c) {
                      return is_lower(c) || is_digit(c) || c == '+' || c == '-' || c == '.';
                    });
  if (!good) {
    throw invalid(
        "log url does not begin with a scheme (write file:///dir, sqlite:///file.db, "
        "mysql://user@host/database, postgres://user@host/database or memory:name)");
  }
  return scheme;
}

bool is_option_key(std::string_view key) {
  return !key.empty() && key.size() <= option_key_bytes_max &&
         std::all_of(key.begin(), key.end(),
                     [](char c) { return is_lower(c) || is_digit(c) || c == '_' || c == '-'; });
}

// Returns the address as inet_ntop(3) writes it.
std::string canonical_ipv6_address(const std::string& address) {
  in6_addr bytes{};
  char text[INET6_ADDRSTRLEN];
  if (::inet_pton(AF_INET6, address.c_str(), &bytes) != 1 ||
      ::inet_ntop(AF_INET6, &bytes, text, sizeof text) == nullptr)
    return address;
  return text;
}

std::string canonical_host(std::string host) {
  std::transform(host.begin(), host.end(), host.begin(), to_lower);
  if (host.find(':') != std::string::npos) host = canonical_ipv6_address(host);
  return host == "localhost" || host == "::1" ? "127.0.0.1" : host;
}

// Returns the scheme of the log behind the tiers: "mysql" in "memcached+mysql".
std::string_view scheme_of_log(std::string_view scheme) {
  return scheme.substr(scheme.rfind('+') + 1);
}

bool is_postgres(std::string_view scheme) {
  const std::string_view of_log = scheme_of_log(scheme);
  return of_log == "postgres" || of_log == "postgresql";
}

// "host", "host:port", "[address]:port".
Url::HostAndPort parse_host(std::string_view text) {
  const bool in_brackets = text.substr(0, 1) == "[";
  const std::size_t host_end = in_brackets ? text.find(']') : text.find(':');
  const std::string_view host =
      in_brackets ? text.substr(1, host_end - 1) : text.substr(0, host_end);
  if (in_brackets && host_end == std::string_view::npos)
    throw invalid("log url has a '[' without a ']' in its host");
  if (in_brackets ? !is_ipv6_address(host) : !is_host(host)) {
    throw invalid("log url has a host with characters that no host name or address has");
  }
  Url::HostAndPort parsed{std::string(host), std::nullopt};
  if (host_end == std::string_view::npos) return parsed;
  const std::string_view after_host = text.substr(host_end + (in_brackets ? 1 : 0));
  if (after_host.empty()) return parsed;
  if (after_host[0] != ':') throw invalid("log url has something other than a port after its host");
  parsed.port = parse_port(after_host.substr(1));
  return parsed;
}

std::string to_text(const Url::HostAndPort& host) {
  return (host.host.find(':') == std::string::npos ? host.host : '[' + host.host + ']') +
         (host.port ? ':' + std::to_string(*host.port) : "");
}

}  // namespace

bool is_instance_name(std::string_view name) noexcept {
  return !name.empty() && name.size() <= instance_bytes_max &&
         std::all_of(name.begin(), name.end(),
                     [](char c) { return is_letter(c) || is_digit(c) || c == '_'; });
}

Url::Url(std::string_view text) {
  if (text.size() > url_bytes_max) {
    throw invalid("log url is too long: bytes=" + std::to_string(text.size()) +
                  " bytes_max=" + std::to_string(url_bytes_max));
  }
  if (std::any_of(text.begin(), text.end(), is_control)) {
    throw invalid("log url has a control character (write it as %, then two hexadecimal digits)");
  }
  scheme_ = parse_scheme(text);
  // As what a configuration file leaves behind the end. It would name another log.
  if (text.find(' ') != std::string_view::npos)
    throw invalid("log url has a blank (remove it; in a name, write it as %20)");
  std::string_view rest = text.substr(scheme_.size() + 1);

  if (rest.find('#') != std::string_view::npos) {
    throw invalid("log url has a '#', which means nothing here (write it as %23)");
  }
  const std::size_t question_mark = rest.find('?');
  if (question_mark != std::string_view::npos) {
    parse_options(rest.substr(question_mark + 1));
    rest = rest.substr(0, question_mark);
  }

  std::string_view authority;
  has_authority_ = rest.substr(0, 2) == "//";
  if (has_authority_) {
    rest.remove_prefix(2);
    authority = rest.substr(0, rest.find('/'));
    parse_authority(authority);
    rest.remove_prefix(authority.size());
  }
  // Without "//", or with a '/' in a password, part of the password would be taken for a path and
  // shown.
  const std::size_t at = rest.rfind('@');
  const bool is_local_path =
      has_authority_ && authority.empty() && rest.substr(0, at).find(':') == std::string_view::npos;
  if (at != std::string_view::npos && !is_local_path) {
    throw invalid(
        "log url has an '@' in its path (write '@' as %40, '/' in a password as %2F, and \"//\" "
        "before user and host)");
  }
  path_ = percent_decode(rest, "path");
}

void Url::parse_authority(std::string_view authority) {
  const std::size_t at = authority.rfind('@');
  if (at != std::string_view::npos) {
    const std::string_view user = authority.substr(0, at);
    const std::size_t colon = user.find(':');
    user_ = percent_decode(user.substr(0, colon), "user");
    if (colon != std::string_view::npos)
      password_ = percent_decode(user.substr(colon + 1), "password");
    authority.remove_prefix(at + 1);
  }

  const bool has_several = is_postgres(scheme_);
  const std::size_t first_end = has_several ? authority.find(',') : std::string_view::npos;
  HostAndPort first = parse_host(authority.substr(0, first_end));
  host_ = std::move(first.host);
  port_ = first.port;
  for (std::size_t end = first_end; end != std::string_view::npos;) {
    authority.remove_prefix(end + 1);
    end = authority.find(',');
    more_hosts_.push_back(parse_host(authority.substr(0, end)));
    if (host_.empty() || more_hosts_.back().host.empty())
      throw invalid("log url has an empty host among several");
  }
}

void Url::parse_options(std::string_view query) {
  if (query.find('@') != std::string_view::npos) {
    throw invalid(
        "log url has an '@' after a '?' (write '@' as %40, and '?' in a password as %3F)");
  }
  while (!query.empty()) {
    const std::string_view option = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(option.size() + 1, query.size()));

    const std::size_t equals = option.find('=');
    const std::string_view key = option.substr(0, equals);
    // Such a key may be part of a secret, so the message does not show it.
    if (equals == std::string_view::npos || !is_option_key(key)) {
      throw invalid(
          "log url has an option that is not of the form key=value (keys have a-z 0-9 _ -): "
          "number=" +
          std::to_string(options_.size() + 1));
    }
    for (const Option& other : options_) {
      if (other.key == key) throw invalid("log url has an option twice: option=" + other.key);
    }
    options_.push_back(
        {std::string(key), percent_decode(option.substr(equals + 1), "option"), false});
  }
}

const std::string& Url::file_path() const {
  if (!user_.empty() || password_ || !host_.empty() || port_) {
    throw invalid("log url has a host, but names a file of this machine: url=" + redacted() +
                  " (write " + scheme_ + ":///path, with three slashes)");
  }
  if (path_.empty() || path_[0] != '/') {
    throw invalid("log url has no absolute path: url=" + redacted() + " (write " + scheme_ +
                  ":///path)");
  }
  return path_;
}

std::optional<std::string> Url::take_option(std::string_view key) {
  for (Option& option : options_) {
    if (option.key != key) continue;
    option.is_taken = true;
    return option.value;
  }
  return std::nullopt;
}

std::string Url::take_instance() {
  std::string instance = take_option("instance").value_or("default");
  if (!is_instance_name(instance)) {
    throw invalid("instance name cannot be used: bytes=" + std::to_string(instance.size()) +
                  " (use 1 to " + std::to_string(instance_bytes_max) + " of A-Z a-z 0-9 _)");
  }
  return instance;
}

void Url::reject_unknown_options() const {
  std::string unknown;
  for (const Option& option : options_) {
    if (option.is_taken) continue;
    if (!unknown.empty()) unknown += ',';
    unknown += option.key;
  }
  if (!unknown.empty()) {
    throw invalid("log url has options this log does not know: options=" + unknown +
                  " scheme=" + scheme_);
  }
}

Url Url::canonical() const {
  Url url = *this;
  const std::string_view scheme = scheme_of_log(scheme_);
  if ((scheme == "file" || scheme == "sqlite") && path_.starts_with('/')) {
    url.path_ = canonical_path(path_);
    url.has_authority_ = true;
  }
  url.host_ = canonical_host(host_);
  if (scheme == "mysql" && port_ == mysql_port) url.port_.reset();
  if (!is_postgres(scheme_)) return url;
  url.scheme_ = scheme_.substr(0, scheme_.size() - scheme.size()) + "postgres";
  std::vector<HostAndPort> hosts = more_hosts_;
  hosts.push_back({host_, port_});
  for (HostAndPort& host : hosts) {
    host.host = canonical_host(host.host);
    if (host.port == postgres_port) host.port.reset();
  }
  std::sort(hosts.begin(), hosts.end());
  hosts.erase(std::unique(hosts.begin(), hosts.end()), hosts.end());
  url.host_ = hosts[0].host;
  url.port_ = hosts[0].port;
  url.more_hosts_.assign(hosts.begin() + 1, hosts.end());
  return url;
}

std::string Url::redacted() const {
  std::string text = scheme_ + ':';
  // Without "//" a path that begins with two slashes would look like an authority.
  if (has_authority_ || path_.substr(0, 2) == "//") text += "//";
  if (has_authority_) {
    if (!user_.empty() || password_)
      text += percent_encode(user_, UrlComponent::other) + (password_ ? ":***@" : "@");
    text += to_text({host_, port_});
    for (const HostAndPort& host : more_hosts_) text += ',' + to_text(host);
  }
  text += percent_encode(path_, UrlComponent::path);
  char separator = '?';
  for (const Option& option : options_) {
    text += std::exchange(separator, '&') + option.key + '=';
    text += option.key == "instance" ? percent_encode(option.value, UrlComponent::other) : "***";
  }
  return text;
}

}  // namespace whycache
