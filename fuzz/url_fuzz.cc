// Any text is refused as invalid or is a URL; and what a URL shows of itself is a URL that shows
// the same.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "base/url.h"

using namespace whycache;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

template <typename Call>
bool try_call(Call&& call) {
  try {
    call();
    return true;
  } catch (const Error& error) {
    require(error.kind() == ErrorKind::invalid);
    return false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::optional<Url> url;
  if (!try_call([&] { url.emplace(text); })) return 0;

  const std::string shown = url->redacted();
  const Url again(shown);
  require(again.redacted() == shown);
  require(again.scheme() == url->scheme() && again.user() == url->user() &&
          again.host() == url->host());
  require(again.port() == url->port() && again.path() == url->path());
  require(again.password().has_value() == url->password().has_value());
  require(!again.password() || *again.password() == "***");
  for (const char c : shown) require(c > ' ' && c < 0x7f);
  require(url->path().find('\0') == std::string::npos);

  try_call([&] { require(url->file_path()[0] == '/'); });
  try_call([&] { require(is_instance_name(url->take_instance())); });
  try_call([&] { url->refuse_unknown_options(); });
  return 0;
}
