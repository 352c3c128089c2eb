// Updates in the format of a cache, for tests that use a log without one.
#pragma once

#include <gtest/gtest.h>
#include <whycache/log.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "update/update.h"

namespace whycache::testing {

struct LastUpdate {
  UpdateId id = 0;
  std::uint64_t chain = 0;
};

inline LastUpdate last_update(Log& log) {
  LastUpdate last{0, chain_start(log.extent().uuid)};
  log.read(1, ~UpdateId{0}, [&](UpdateId id, std::string_view bytes) {
    last = {id, peek_header(bytes)->chain};
    return true;
  });
  return last;
}

// Appends updates up to `id`, each of which continues the previous one and sets a key to `value`.
inline void append_chained(Log& log, UpdateId id, std::string_view value = "value") {
  for (LastUpdate last = last_update(log); last.id < id;) {
    Draft draft(Authorship{});
    ASSERT_TRUE(draft.add(Change::set("key", value), 1000));
    ASSERT_EQ(log.append(last.id + 1, draft.seal(last.id + 1, last.chain)), Log::Appended::yes);
    last = {last.id + 1, draft.chain()};
  }
}

}  // namespace whycache::testing
