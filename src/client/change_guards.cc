#include "client/change_guards.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/guards.h"
#include "client/transact.h"

namespace whycache {

UpdateId change_log_guards(Session& session, Appender& appender,
                           const std::function<void(LogGuards&)>& change,
                           const WriteOptions& options) {
  std::string text;
  UpdateId seen = 0;
  const std::optional<UpdateId> changed = write_unguarded(
      session, appender,
      [&](const View& view) -> std::vector<Change> {
        seen = view.id();
        LogGuards guards;
        const std::optional<std::string_view> present = view.get(log_guards_key);
        // Guards that this version does not know are replaced as a whole.
        try {
          if (present) guards = decode_log_guards(*present);
        } catch (const Error&) {
        }
        change(guards);
        check_log_guards_are_valid(guards);
        if (guards == LogGuards{}) {
          if (!present) return {};
          return {Change::erase(log_guards_key)};
        }
        text = encode_log_guards(guards);
        if (present == text) return {};
        return {Change::set(log_guards_key, text)};
      },
      options);
  return changed.value_or(seen);
}

}  // namespace whycache
