// A base has to end with the update that the log has at that id. A rewrite from a history that the
// log has lost, as after a failover or a restore, would delete updates of others. Every log that
// can decode a cache's updates refuses such a base when it switches.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "log/chained_updates.h"
#include "log/stores.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::append_chained;
using testing::expect_error;

struct StoreKind {
  const char* name;
  std::function<std::unique_ptr<LogStore>()> make_store;
};

class RewriteCheck : public ::testing::TestWithParam<StoreKind> {};

TEST_P(RewriteCheck, base_ending_with_other_update_is_refused) {
  const std::unique_ptr<LogStore> store = GetParam().make_store();
  const std::unique_ptr<Log> log = store->open();
  append_chained(*log, 3);
  const std::uint64_t chain = testing::last_update(*log).chain;
  append_chained(*log, 5);
  const auto rewrite = [&](std::uint64_t base_chain) {
    bool given = false;
    return log->rewrite(3, base_chain, [&]() -> std::optional<std::string_view> {
      if (std::exchange(given, true)) return std::nullopt;
      return "part";
    });
  };
  expect_error(
      ErrorKind::unavailable, [&] { rewrite(chain + 1); }, "another update", "base=3");
  EXPECT_EQ(log->extent().base, 0U);
  EXPECT_EQ(testing::last_update(*log).id, 5U);
  log->read_base([](std::string_view) {
    ADD_FAILURE() << "there is a base";
    return true;
  });

  EXPECT_TRUE(rewrite(chain));
  EXPECT_EQ(log->extent().base, 3U);
  EXPECT_EQ(log->extent().base_chain, chain);
  // Below the base the log knows only the chain of the base.
  EXPECT_FALSE(rewrite(chain + 1));
}

template <typename Store>
std::unique_ptr<LogStore> make_store() {
  return std::make_unique<Store>();
}

const StoreKind kinds[] = {
    {"memory", make_store<MemoryStore>},
    {"file", make_store<FileStore>},
#if WHYCACHE_WITH_SQLITE
    {"sqlite", make_store<SqliteStore>},
#endif
#if WHYCACHE_WITH_MYSQL
    {"mysql", make_store<MysqlStore>},
#endif
};

INSTANTIATE_TEST_SUITE_P(Log, RewriteCheck, ::testing::ValuesIn(kinds),
                         [](const auto& kind) { return std::string(kind.param.name); });

}  // namespace
}  // namespace whycache
