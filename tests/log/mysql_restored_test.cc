// The log in MySQL on servers that lost updates: restored, truncated, failed over.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <string>

#include "log/mysql_test_support.h"

namespace whycache {
namespace {

using MysqlLogRestored = MysqlTest;

// --- Logs that were restored. ---

TEST_F(MysqlLogRestored, all_machines_detect_truncated_updates_table) {
  MysqlStore store;
  const TemporaryDirectory directory;
  const std::string url = store.server().url(store.database());
  Options accepting = options_for(directory, "writer");
  accepting.accept_replaced_log = true;
  Cache writer(url, accepting);
  accepting.state_path = options_for(directory, "other").state_path;
  Cache other(url, accepting);
  Cache careful(url, options_for(directory, "careful"));
  for (int i = 0; i < 10; ++i) writer.set("key" + std::to_string(i), "value");
  other.update();
  ASSERT_TRUE(other.get("key9"));
  careful.update();

  store.run("TRUNCATE TABLE whycache_updates");
  testing::expect_error(
      ErrorKind::corrupt, [&] { careful.update(); }, "log is empty, in place of one");
  EXPECT_EQ(careful.get("key9"), "value");
  other.update();
  EXPECT_FALSE(other.get("key9"));
  EXPECT_EQ(other.counters().rebuilds_diverged, 1U);
  EXPECT_EQ(writer.set("new", "value"), 1U);
  EXPECT_FALSE(writer.get("key9"));
  other.update();
  EXPECT_EQ(other.get("new"), "value");
}

TEST_F(MysqlLogRestored, all_machines_detect_restored_old_dump) {
  MysqlStore store;
  const TemporaryDirectory directory;
  const std::string url = store.server().url(store.database());
  Cache writer(url, options_for(directory, "writer"));
  Cache other(url, options_for(directory, "other"));
  Cache late(url, options_for(directory, "late"));
  for (int i = 0; i < 5; ++i) writer.set("key", std::to_string(i));
  store.run("CREATE TABLE dump AS SELECT * FROM whycache_updates");
  for (int i = 5; i < 10; ++i) writer.set("key", std::to_string(i));
  other.update();
  late.update();
  EXPECT_EQ(other.get("key"), "9");

  store.run("TRUNCATE TABLE whycache_updates; INSERT INTO whycache_updates SELECT * FROM dump");
  other.update();
  EXPECT_EQ(other.get("key"), "4");
  EXPECT_EQ(other.counters().rebuilds_diverged, 1U);
  // The log grows to its former length. A machine that missed all of it detects the change by the
  // chain.
  for (int i = 0; i < 5; ++i) other.set("key", "again " + std::to_string(i));
  late.update();
  EXPECT_EQ(late.get("key"), "again 4");
  EXPECT_EQ(late.counters().rebuilds_diverged, 1U);
}

}  // namespace
}  // namespace whycache

#endif
