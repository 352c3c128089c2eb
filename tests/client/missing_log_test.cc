// A log that is missing, or empty in place of one that was applied: where its disk is not mounted,
// or its name is mistyped. It is not created by accident, and does not empty the machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "client/fleet.h"
#include "state/file/layout.h"

namespace whycache::testing {
namespace {

namespace fs = std::filesystem;

// The place of the log of a Fleet of this kind.
std::string place_of_log(const Fleet& fleet) {
  const std::string& url = fleet.url();
  return url.substr(url.find("//") + 2);
}

class MissingLog : public ::testing::TestWithParam<const char*> {
 protected:
  Options impatient() const {
    Options options;
    options.deadline = std::chrono::milliseconds(100);
    return options;
  }
  void lose_log() const { fs::rename(place_of_log(fleet_), place_of_log(fleet_) + ".elsewhere"); }
  void bring_log_back() const {
    fs::remove_all(place_of_log(fleet_));
    fs::rename(place_of_log(fleet_) + ".elsewhere", place_of_log(fleet_));
  }

  const Fleet fleet_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Kinds, MissingLog, ::testing::Values("sqlite", "file"));

TEST_P(MissingLog, is_not_created_while_the_machine_has_a_state_of_it) {
  fleet_.open("berlin").set("a", "1");
  lose_log();
  Cache cache = fleet_.open("berlin", impatient());

  EXPECT_EQ(cache.get("a"), "1");
  expect_error(
      ErrorKind::unavailable, [&] { cache.update(); }, "log does not exist",
      fleet_.state_path("berlin"));
  expect_error(
      ErrorKind::unavailable, [&] { cache.set("b", "2"); }, "log does not exist");
  EXPECT_FALSE(fs::exists(place_of_log(fleet_)));

  bring_log_back();
  EXPECT_EQ(cache.set("b", "2"), 2U) << "the same object goes on";
}

TEST_P(MissingLog, is_not_created_while_a_state_of_another_format_is_there) {
  fleet_.open("berlin").set("a", "1");
  lose_log();
  const std::string path = fleet_.state_path("berlin");
  HeaderFixed header;
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.read(reinterpret_cast<char*>(&header), sizeof header);
  header.format_major = state_format_major + 1;
  header.checksum = header.expected_checksum();
  file.seekp(0).write(reinterpret_cast<const char*>(&header), sizeof header);
  file.close();
  expect_error(
      ErrorKind::unavailable, [&] { fleet_.open("berlin", impatient()); }, "log does not exist");
  EXPECT_FALSE(fs::exists(place_of_log(fleet_)));
}

TEST_P(MissingLog, is_not_created_if_option_or_url_forbids_it) {
  if (GetParam() == std::string("file")) fs::remove(place_of_log(fleet_));
  Options options;
  options.create_log = false;
  expect_error(
      ErrorKind::invalid, [&] { fleet_.open("berlin", options); }, "log does not exist");
  options = fleet_.options("berlin");
  expect_error(
      ErrorKind::invalid, [&] { Cache(fleet_.url() + "?create=off", options); },
      "log does not exist");
  EXPECT_FALSE(fs::exists(place_of_log(fleet_)));
  EXPECT_FALSE(fs::exists(fleet_.state_path("berlin")));

  Cache(fleet_.url() + "?create=on", options).set("a", "1");
  options.create_log = false;
  EXPECT_EQ(Cache(fleet_.url() + "?create=off", options).get("a"), "1") << "it exists now";
}

TEST_P(MissingLog, empty_log_in_its_place_is_refused_until_it_is_accepted) {
  {
    Cache cache = fleet_.open("berlin");
    cache.set_multi({{"a", "1"}, {"b", "2"}});
  }
  lose_log();
  fleet_.open("tokyo");  // a machine without a state creates a log by mistake
  Cache cache = fleet_.open("berlin");

  expect_error(
      ErrorKind::corrupt, [&] { cache.update(); }, "log is empty", "accept-replaced-log");
  expect_error(
      ErrorKind::corrupt, [&] { cache.set("c", "3"); }, "log is empty");
  EXPECT_EQ(contents(cache), (Contents{{"a", "1"}, {"b", "2"}}));
  EXPECT_EQ(fleet_.log()->extent().head, 0U) << "nothing was written";

  Options options;
  options.accept_replaced_log = true;
  Cache accepting = fleet_.open("berlin", options);
  EXPECT_EQ(accepting.update(), 0U);
  EXPECT_EQ(cache.update(), 0U) << "the state is of that log now";
  EXPECT_EQ(contents(cache), Contents{});
}

TEST_P(MissingLog, that_comes_back_is_followed) {
  {
    Cache cache = fleet_.open("berlin");
    cache.set("a", "1");
  }
  lose_log();
  fleet_.open("tokyo");
  Cache cache = fleet_.open("berlin");
  expect_error(ErrorKind::corrupt, [&] { cache.update(); });
  bring_log_back();
  EXPECT_EQ(cache.set("b", "2"), 2U);
}

// The same log, whose updates were deleted by hand.
TEST(EmptiedLog, is_refused_though_it_has_the_same_uuid) {
  const Fleet fleet("file");
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  for (const auto& update : fs::directory_iterator(place_of_log(fleet) + "/default/updates"))
    fs::remove(update);
  expect_error(
      ErrorKind::corrupt, [&] { cache.update(); }, "log is empty");
  EXPECT_EQ(cache.get("a"), "1");
}

// What was cleared on purpose is not empty: its base says so.
TEST(EmptiedLog, that_was_cleared_is_applied) {
  const Fleet fleet("sqlite");
  Cache berlin = fleet.open("berlin");
  berlin.set("a", "1");
  Cache tokyo = fleet.open("tokyo");
  berlin.delete_all_history();
  tokyo.update();
  EXPECT_EQ(contents(tokyo), Contents{});
}

}  // namespace
}  // namespace whycache::testing
