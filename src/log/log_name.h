// What a log is called in messages and in the state that was made from it.
#pragma once

#include <string>

#include "base/url.h"

namespace whycache {

// What tells this log from others, without secrets: with the instance, even if it goes without saying, and without the
// options that say how to talk to it.
inline std::string log_name(const Url& url, const std::string& instance) {
  const std::string text = url.redacted();
  return text.substr(0, text.find('?')) + "?instance=" + instance;
}

// The same of a URL whose options were not taken yet.
inline std::string log_name(Url url) {
  const std::string instance = url.take_instance();
  return log_name(url, instance);
}

}  // namespace whycache
