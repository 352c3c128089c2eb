// Guards: limits that an application sets to its own writes (Options::guards), and limits that live
// in the log and concern every write (Cache::set_log_guards).
//
// The guards of the log are an item, so they are part of every state, base and rebuild, and a
// writer knows them as of the very update that its own one follows. check_log_guards() runs on the
// state at id n before update n+1 is appended. If another writer has set guards by update n+1, the
// append finds the id taken, and the check runs again. (docs/decisions/guards-in-the-log.md)
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <whycache/cache.h>
#include <whycache/view.h>

#include "state/state.h"
#include "update/update.h"

namespace whycache {

class Session;

// Throws Error(refused) if the changes, applied to the items of `view`, violate a guard of the
// application or of the log. Runs Guards::validate within a CallbackScope of the session.
void check_guards(const Session& session, std::span<const Change> changes, const View& view);
inline bool has_guards(const Guards& guards) {
  return guards.validate || guards.erased_keys_max || guards.erased_share_max;
}

// --- The guards of the log ---

// Throws Error(refused) if the changes erase the guards of the log, Error(invalid) if they replace
// them by something else.
void check_guards_stay(std::span<const Change> changes);
// Whether the state has guards of the log. Costs a lookup.
bool has_log_guards(const State& state);
// Returns the number of keys that the changes erase in the view.
std::uint64_t count_erased_keys(std::span<const Change> changes, const View& view);
// Throws Error(refused) if a call that has erased `erased_before` keys may not erase `erased` ones
// of the view, by the guards of the log that the view has.
void check_log_guards(const View& view, std::uint64_t erased, std::uint64_t erased_before = 0);
// The same for a call that erases everything, and for the guards of the application.
void check_may_erase_all(const Guards& guards, const View& view);
// The same for a rewrite that erases `erased` keys.
void check_may_erase(const Guards& guards, const View& view, std::uint64_t erased);

// The text of guards in the item, as docs/formats/guards.md describes it.
std::string encode_log_guards(const LogGuards& guards);
// Throws Error(refused) if the text is not one of guards that this version knows.
LogGuards decode_log_guards(std::string_view text);
LogGuards log_guards_of(const View& view);
// Throws Error(invalid) if the share is not within 0 to 1.
void check_log_guards_are_valid(const LogGuards& guards);

}  // namespace whycache
