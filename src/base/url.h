// The URL that names a log: where it is, and options for the log that opens it.
//
//   file:///var/lib/flags?instance=blue        scheme, absolute path, option
//   sqlite:///var/lib/flags.db
//   memory:    memory:name                     no authority; the path follows the colon
//   mysql://user:password@host:3306/db?tls=verify
//   postgres://user@host,host:5433/db          several hosts, tried in order
//
// Components are percent-decoded. A URL may hold secrets, and people put them in the wrong place.
// No message therefore repeats the text of a URL; messages print redacted().
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/error.h>

namespace whycache {

// Whether `name` can be an instance: 1 to 48 of A-Z a-z 0-9 _.
bool is_instance_name(std::string_view name) noexcept;

class Url {
 public:
  struct HostAndPort {
    std::string host;  // an IPv6 address has no brackets
    std::optional<std::uint16_t> port;
    // NOLINTNEXTLINE(modernize-use-nullptr): the check takes the 0 of a comparison for a pointer
    friend auto operator<=>(const HostAndPort&, const HostAndPort&) = default;
  };

  // Throws Error(invalid) if the text is no URL of a log: no scheme, a character that must be
  // percent-encoded, an invalid port, an option without value or given twice. The message says what
  // to write instead.
  explicit Url(std::string_view text);

  const std::string& scheme() const { return scheme_; }  // lower case
  const std::string& user() const { return user_; }
  const std::optional<std::string>& password() const { return password_; }
  const std::string& host() const { return host_; }  // an IPv6 address has no brackets
  std::optional<std::uint16_t> port() const { return port_; }
  // The hosts after the first one; only postgres: has several.
  const std::vector<HostAndPort>& more_hosts() const { return more_hosts_; }
  const std::string& path() const { return path_; }

  // Returns the path, for logs in the file system. Throws Error(invalid) if it is not absolute, or
  // if there is a host.
  const std::string& file_path() const;

  // Returns the value of an option and marks it as known. Returns nullopt if it is not given.
  std::optional<std::string> take_option(std::string_view key);
  // Takes option `instance`; "default" if not given. Throws Error(invalid).
  std::string take_instance();
  // Throws Error(invalid) if any option was not taken; the message names those options.
  void reject_unknown_options() const;

  // Returns the URL in the one spelling that stands for all that lead to the same place:
  // - a path in the file system (schemes file and sqlite) has no symbolic links, no `.`, `..`, `//`
  //   or trailing `/`; what does not exist yet keeps its name
  // - a host name is in lower case, and an address of this machine is 127.0.0.1
  // - several hosts are in order, each once
  // - the default port of mysql or postgres is left out
  // - scheme postgresql is postgres
  // Looks at the file system. Works for any scheme, also with a tier before it.
  Url canonical() const;

  // Returns the URL for messages: without the password, and without the value of any option except
  // `instance`.
  std::string redacted() const;

 private:
  struct Option {
    std::string key;
    std::string value;
    bool is_taken;
  };

  void parse_authority(std::string_view authority);
  void parse_options(std::string_view query);

  std::string scheme_;
  bool has_authority_ = false;
  std::string user_;
  std::optional<std::string> password_;
  std::string host_;
  std::optional<std::uint16_t> port_;
  std::vector<HostAndPort> more_hosts_;
  std::string path_;
  std::vector<Option> options_;
};

}  // namespace whycache
