#include "client/guards.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <system_error>

#include "client/session.h"
#include "state/read/pin.h"

namespace whycache {
namespace {

constexpr const char* guards_of_application = "guards of the application";
constexpr const char* guards_of_log = "guards of the log";

bool is_share(double share) { return share >= 0 && share <= 1; }

std::string text_of(double share) {
  std::array<char, 32> digits{};
  const auto [end, failure] = std::to_chars(digits.data(), digits.data() + digits.size(), share);
  return failure == std::errc() ? std::string(digits.data(), end) : std::string();
}

// Throws Error(refused) if erasing `erased` of `all` keys exceeds a limit.
void check_limits(const char* whose, std::optional<std::uint64_t> erased_keys_max,
                  std::optional<double> erased_share_max, std::uint64_t erased, std::uint64_t all) {
  if (erased == 0) return;
  const double share = static_cast<double>(erased) / static_cast<double>(std::max(erased, all));
  const bool too_many = erased_keys_max && erased > *erased_keys_max;
  const bool too_large_a_share = erased_share_max && share > *erased_share_max;
  if (!too_many && !too_large_a_share) return;
  char percent[16];
  std::snprintf(percent, sizeof percent, "%.3g%%", share * 100);
  std::string message = std::string(whose) + " forbid this, nothing was written: it would erase " +
                        percent + " of the keys: erased=" + std::to_string(erased) +
                        " keys=" + std::to_string(all);
  if (too_many) message += " erased_keys_max=" + std::to_string(*erased_keys_max);
  if (too_large_a_share) message += " erased_share_max=" + text_of(*erased_share_max);
  throw Error(ErrorKind::refused,
              message + (whose == guards_of_log ? " (if it is meant: `whycache guard` changes them)"
                                                : " (if it is meant, raise the guard)"));
}

std::uint64_t count_data_keys(const View& view) {
  return view.size() - (view.contains(log_guards_key) ? 1 : 0);
}

[[noreturn]] void refuse_unknown_guards(std::string_view text) {
  throw Error(ErrorKind::refused,
              "guards of the log are not ones that this version knows, nothing is erased: key=" +
                  std::string(log_guards_key) + " value_bytes=" + std::to_string(text.size()) +
                  " (if a newer whycache has set them, upgrade this machine; `whycache guard "
                  "--remove` removes them)");
}

template <typename Number>
std::optional<Number> parse_whole(std::string_view text) {
  Number number{};
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// Sets the guard that `name` and `value` state. Returns false if this version does not know it.
bool parse_guard(std::string_view name, std::string_view value, LogGuards& guards) {
  if (name == "clear" && value == "no") {
    guards.clear_allowed = false;
    return true;
  }
  if (name == "erased_keys_max" && !guards.erased_keys_max) {
    guards.erased_keys_max = parse_whole<std::uint64_t>(value);
    return guards.erased_keys_max.has_value();
  }
  if (name == "erased_share_max" && !guards.erased_share_max) {
    guards.erased_share_max = parse_whole<double>(value);
    return guards.erased_share_max && is_share(*guards.erased_share_max);
  }
  return false;
}

}  // namespace

void check_guards(const Session& session, std::span<const Change> changes, const View& view) {
  const Guards& guards = session.options.guards;
  if (guards.validate) {
    const CallbackScope scope(session, "validator");
    for (const Change& change : changes) {
      if (const std::optional<std::string> why = guards.validate(change)) {
        throw Error(ErrorKind::refused,
                    "validator refused a change, nothing was written: key_bytes=" +
                        std::to_string(change.key.size()) + ": " + *why);
      }
    }
  }
  check_guards_stay(changes);
  const bool is_limited =
      guards.erased_keys_max || guards.erased_share_max || view.contains(log_guards_key);
  if (!is_limited || std::none_of(changes.begin(), changes.end(), is_erase)) return;
  check_may_erase(guards, view, count_erased_keys(changes, view));
}

void check_may_erase(const Guards& guards, const View& view, std::uint64_t erased) {
  check_limits(guards_of_application, guards.erased_keys_max, guards.erased_share_max, erased,
               count_data_keys(view));
  check_log_guards(view, erased);
}

void check_may_erase_all(const Guards& guards, const View& view) {
  if (!log_guards_of(view).clear_allowed) {
    throw Error(ErrorKind::refused, std::string(guards_of_log) +
                                        " forbid to clear it, nothing was written: keys=" +
                                        std::to_string(count_data_keys(view)) +
                                        " (if it is meant: `whycache guard` changes them)");
  }
  check_may_erase(guards, view, count_data_keys(view));
}

std::uint64_t count_erased_keys(std::span<const Change> changes, const View& view) {
  return static_cast<std::uint64_t>(std::count_if(
      changes.begin(), changes.end(),
      [&](const Change& change) { return is_erase(change) && view.contains(change.key); }));
}

void check_guards_stay(std::span<const Change> changes) {
  for (const Change& change : changes) {
    if (change.key != log_guards_key) continue;
    if (is_erase(change)) {
      throw Error(ErrorKind::refused, "key holds the guards of the log, nothing was written: key=" +
                                          std::string(change.key) +
                                          " (`whycache guard --remove` removes them)");
    }
    try {
      decode_log_guards(change.value);
    } catch (const Error&) {
      throw Error(ErrorKind::invalid,
                  "key is reserved for the guards of the log, and the value has none that this "
                  "version knows, nothing was written: key=" +
                      std::string(change.key) + " value_bytes=" +
                      std::to_string(change.value.size()) + " (`whycache guard` sets them)");
    }
  }
}

bool has_log_guards(const State& state) {
  EntryVersion version;
  // No read that asks the owner of the state: writes that were begun before it was closed end here.
  if (const std::optional<bool> found = state.try_find_version(log_guards_key, version))
    return *found;
  return state.pin()->find(log_guards_key).data() != nullptr;
}

void check_log_guards(const View& view, std::uint64_t erased, std::uint64_t erased_before) {
  if (erased == 0) return;
  const LogGuards guards = log_guards_of(view);
  if (guards == LogGuards{}) return;
  const std::uint64_t all = count_data_keys(view) + erased_before;
  erased += erased_before;
  if (!guards.clear_allowed && erased >= all && all > 1) {
    throw Error(ErrorKind::refused,
                std::string(guards_of_log) +
                    " forbid to clear it, nothing was written: this would erase every key: keys=" +
                    std::to_string(all) + " (if it is meant: `whycache guard` changes them)");
  }
  const bool is_single = erased == 1;
  check_limits(guards_of_log, guards.erased_keys_max,
               is_single ? std::nullopt : guards.erased_share_max, erased, all);
}

std::string encode_log_guards(const LogGuards& guards) {
  std::string text;
  const auto append = [&](const std::string& guard) {
    if (!text.empty()) text += ' ';
    text += guard;
  };
  if (!guards.clear_allowed) append("clear=no");
  if (guards.erased_keys_max) append("erased_keys_max=" + std::to_string(*guards.erased_keys_max));
  if (guards.erased_share_max) append("erased_share_max=" + text_of(*guards.erased_share_max));
  return text;
}

LogGuards decode_log_guards(std::string_view text) {
  LogGuards guards;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t space = std::min(rest.find(' '), rest.size());
    const std::string_view guard = rest.substr(0, space);
    const std::size_t equals = std::min(guard.find('='), guard.size());
    if (equals == guard.size() ||
        !parse_guard(guard.substr(0, equals), guard.substr(equals + 1), guards))
      refuse_unknown_guards(text);
    rest.remove_prefix(std::min(space + 1, rest.size()));
  }
  return guards;
}

LogGuards log_guards_of(const View& view) {
  const std::optional<std::string_view> text = view.get(log_guards_key);
  return text ? decode_log_guards(*text) : LogGuards{};
}

void check_log_guards_are_valid(const LogGuards& guards) {
  if (!guards.erased_share_max || is_share(*guards.erased_share_max)) return;
  throw Error(ErrorKind::invalid,
              "erased_share_max out of range, nothing was written: erased_share_max=" +
                  std::to_string(*guards.erased_share_max) + " range=0..1");
}

}  // namespace whycache
