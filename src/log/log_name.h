// The name of a log in messages and in the states built from it.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "base/file.h"
#include "base/url.h"

namespace whycache {

// Returns the URL of a log without the tier in front of it: both are the same log.
inline std::string_view without_tier(std::string_view url) {
  for (const std::string_view tier : {"memcached+", "redis+"}) {
    if (url.starts_with(tier)) return url.substr(tier.size());
  }
  return url;
}

// Returns a name that identifies the log and has no secrets: with the instance, even the default
// one; without user, password, and options of the connection. Readers and writers derive
// the same name, and so does each spelling of one place (Url::canonical()).
inline std::string log_name(const Url& url, const std::string& instance,
                            const std::optional<std::string>& socket = std::nullopt) {
  std::string text(without_tier(url.canonical().redacted()));
  text.resize(std::min(text.find('?'), text.size()));
  if (const std::size_t at = text.find('@'); at != std::string::npos) {
    const std::size_t authority = text.find("//") + 2;
    text.erase(authority, at + 1 - authority);
  }
  text += "?instance=" + instance;
  if (socket) text += "&socket=" + canonical_path(*socket);
  return text;
}

// The same for a URL whose options were not taken yet.
inline std::string log_name(Url url) {
  const std::string instance = url.take_instance();
  const std::optional<std::string> socket = url.take_option("socket");
  const std::optional<std::string> schema = url.take_option("schema");
  std::string name = log_name(url, instance, socket);
  if (schema && *schema != "public") name += "&schema=" + *schema;
  return name;
}

}  // namespace whycache
