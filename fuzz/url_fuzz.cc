// Url refuses arbitrary text as invalid or parses it; the redacted form of a URL parses to the same
// redacted form.
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

  const std::string redacted = url->redacted();
  const Url reparsed(redacted);
  require(reparsed.redacted() == redacted);
  require(reparsed.scheme() == url->scheme() && reparsed.user() == url->user() &&
          reparsed.host() == url->host());
  require(reparsed.port() == url->port() && reparsed.path() == url->path());
  require(reparsed.password().has_value() == url->password().has_value());
  require(!reparsed.password() || *reparsed.password() == "***");
  for (const char c : redacted) require(c > ' ' && c < 0x7f);
  require(url->path().find('\0') == std::string::npos);

  try_call([&] { require(url->file_path()[0] == '/'); });
  try_call([&] { require(is_instance_name(url->take_instance())); });
  try_call([&] { url->reject_unknown_options(); });
  return 0;
}
