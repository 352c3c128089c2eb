// Scripts that complete command lines in shells, made from the tree of commands.
#pragma once

#include <string>

namespace whycache::cli {

std::string bash_completion();
std::string zsh_completion();
std::string fish_completion();

}  // namespace whycache::cli
