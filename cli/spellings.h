// Finds the commands and options of this program that stand for words of other programs, which
// people type out of habit.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace whycache::cli {

// Returns how to do what these arguments of a command mean in redis-cli, etcdctl or git. Empty if
// they mean nothing there.
std::string similar_usage(std::string_view command, const std::vector<std::string>& arguments);

// Says on standard error that a prefix or a key is no pattern, if it looks like one. For commands
// that found nothing.
void explain_pattern(std::string_view text);

}  // namespace whycache::cli
