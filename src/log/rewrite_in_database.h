// How a log in a database gets a new base. First its parts are written, under a random token, so
// that no reader finds them. Then one statement makes them the base. Then everything that the base
// replaces is deleted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/error.h>
#include <whycache/log.h>
#include <whycache/types.h>

#include "base/random.h"
#include "log/log_checks.h"

namespace whycache {

// The row of whycache_logs of one log: the base that it has, or is about to get.
struct LogMetadata {
  Uuid uuid{};
  UpdateId base = 0;
  std::uint64_t base_chain = 0;
  Uuid token{};
  std::uint64_t part_count = 0;
};

// `Database` has extent() and these:
//   write_part(row, bytes)      writes part number row.part_count of the base
//   switch_base(row)            returns false if the base of the log is already at or beyond it
//   delete_unused_parts(row)    does nothing if they are the base, even if that is in doubt
//   delete_below_base()         deletes what the base replaces, whichever rewrite left it behind
template <typename Database>
bool rewrite_in_database(Database& database, UpdateId base, std::uint64_t base_chain,
                         const Log::NextPart& next_part) {
  const Extent before = database.extent();
  if (base > before.head) throw rewrite_beyond_head_error(base, before.head);

  bool switched = false;
  if (base > before.base) {
    LogMetadata next;
    next.uuid = before.uuid;
    next.base = base;
    next.base_chain = base_chain;
    next.token = random_uuid();
    try {
      while (const std::optional<std::string_view> part = next_part()) {
        database.write_part(next, *part);
        ++next.part_count;
      }
      switched = database.switch_base(next);
    } catch (...) {
      try {
        database.delete_unused_parts(next);
      } catch (const Error&) {
        // A later rewrite deletes them. The first error matters more.
      }
      throw;
    }
    if (!switched) database.delete_unused_parts(next);
  }
  try {
    database.delete_below_base();
  } catch (const Error& error) {
    throw Error(
        ErrorKind::uncertain,
        std::string("history was rewritten, but what it replaced was not deleted: ") + error.what(),
        error.system_error());
  }
  return switched;
}

}  // namespace whycache
