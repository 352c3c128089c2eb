// What a log is called in messages and in the state that was made from it.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "base/url.h"

namespace whycache {

// What tells this log from others, without secrets: with the instance, even if it goes without
// saying, and without user, password, and the options that say how to talk to it. Who reads and who
// writes call it the same.
inline std::string log_name(const Url& url, const std::string& instance,
                            const std::optional<std::string>& socket = std::nullopt) {
  std::string text = url.redacted();
  constexpr std::string_view tier =
      "memcached+";  // something in front of a log does not make it another
  if (text.starts_with(tier)) text.erase(0, tier.size());
  text.resize(std::min(text.find('?'), text.size()));
  if (const std::size_t at = text.find('@'); at != std::string::npos) {
    const std::size_t authority = text.find("//") + 2;
    text.erase(authority, at + 1 - authority);
  }
  text += "?instance=" + instance;
  if (socket) text += "&socket=" + *socket;
  return text;
}

// The same of a URL whose options were not taken yet.
inline std::string log_name(Url url) {
  const std::string instance = url.take_instance();
  const std::optional<std::string> socket = url.take_option("socket");
  return log_name(url, instance, socket);
}

}  // namespace whycache
