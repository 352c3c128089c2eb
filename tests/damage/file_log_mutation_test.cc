// The files of a file log, damaged in every way of mutations.h: what is read is right or an error.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "damage/mutations.h"
#include "log/file_log.h"
#include "log/log_helpers.h"
#include "log/stores.h"
#include "support/program.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

namespace fs = std::filesystem;
using testing::for_each_mutation;
using testing::Mutation;
using testing::read_file;
using testing::Sample;
using testing::Tally;
using testing::thrown_error;

struct LogContents {
  Extent extent;
  Updates updates;
  std::vector<std::string> parts;

  static LogContents of(FileStore& store) {
    const auto log = store.open();
    LogContents contents;
    contents.updates = updates_of(*log);
    contents.parts = parts_of(*log);
    contents.extent = log->extent();
    return contents;
  }
  bool operator==(const LogContents& other) const {
    return extent.uuid == other.extent.uuid && extent.base == other.extent.base &&
           extent.base_chain == other.extent.base_chain && extent.head == other.extent.head &&
           updates == other.updates && parts == other.parts;
  }
};

// A log with a base in two parts, and updates of several sizes.
void fill_file_log(FileStore& store) {
  const auto log = store.open();
  append_up_to(*log, 3);
  ASSERT_TRUE(rewrite(*log, 2, {"the first part", std::string(90, 'p')}));
  for (UpdateId id = 4; id <= 7; ++id)
    ASSERT_EQ(log->append(id, std::string(id * id, static_cast<char>('a' + id))), Appended::yes);
}

std::map<std::string, std::string> files_of(const std::string& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory))
    if (entry.is_regular_file()) files[entry.path()] = read_file(entry.path());
  return files;
}

TEST(FileLogMutation, damaged_file_is_an_error_and_stays_as_it_is) {
  FileStore store;
  fill_file_log(store);
  const LogContents expected = LogContents::of(store);
  const std::map<std::string, std::string> files = files_of(store.root());
  std::vector<std::string> others;
  for (const auto& [path, bytes] : files) others.push_back(bytes);
  ASSERT_GE(files.size(), 8U);

  Tally tally("a file log");
  Sample sample(40);
  const auto damage = [&](const std::string& path, const std::string& bytes) {
    write_file(path, bytes);
    LogContents found;
    const std::optional<Error> error = thrown_error([&] { found = LogContents::of(store); });
    if (error) {
      ASSERT_EQ(error->kind(), ErrorKind::corrupt) << error->what();
      ASSERT_NE(std::string(error->what()).find(path), std::string::npos) << error->what();
    } else {
      ASSERT_TRUE(found == expected) << "damage is not noticed";
    }
    ASSERT_EQ(read_file(path), bytes) << "damage is overwritten";
    tally.add(error ? "corrupt" : "right");
  };
  for (const auto& file : files) {
    const std::string& path = file.first;
    const std::string& whole = file.second;
    SCOPED_TRACE(path);
    if (fs::path(path).filename() == "lock") {
      // Its bytes have no meaning.
      for (const std::string& other : others) damage(path, other);
    } else {
      for_each_mutation(whole, others, [&](const Mutation& mutation) {
        if (sample.takes_next() && !HasFatalFailure()) damage(path, mutation.bytes);
      });
    }
    ASSERT_FALSE(HasFatalFailure());
    write_file(path, whole);
  }
  EXPECT_TRUE(LogContents::of(store) == expected);
}

}  // namespace
}  // namespace whycache
