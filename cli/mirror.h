// Finds the keys with a prefix that an input does not have, which --mirror erases.
#pragma once

#include <string>
#include <vector>

#include <whycache/view.h>

#include "cli/change_reader.h"
#include "cli/input.h"

namespace whycache::cli {

class MirrorPlan {
 public:
  // Reads the whole input and returns to where it was. Remembers a hash of 16 bytes of each key.
  // Throws Failure if the input is malformed, has a key without the prefix, or has no item at all:
  // it then is more likely to be the output of something that failed.
  void plan(Input& input, ChangeReader& reader, const std::string& prefix, const View& view);

  const std::vector<std::string>& keys_to_erase() const { return keys_to_erase_; }

 private:
  std::vector<std::string> keys_to_erase_;
};

}  // namespace whycache::cli
