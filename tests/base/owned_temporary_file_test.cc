#include "base/owned_temporary_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "support/temporary_directory.h"

namespace whycache {
namespace {

class OwnedTemporaryFileTest : public ::testing::Test {
 protected:
  std::string prefix() const { return directory_.file("file-"); }

  testing::TemporaryDirectory directory_;
};

TEST_F(OwnedTemporaryFileTest, file_is_removed_by_its_destructor) {
  std::string path;
  {
    OwnedTemporaryFile file(prefix());
    path = file.path();
    EXPECT_EQ(path, prefix() + to_string(file.token()));
    file.write_durably("text");
    EXPECT_EQ(read_whole_file(path, 100), "text");
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(OwnedTemporaryFileTest, renamed_file_stays) {
  {
    OwnedTemporaryFile file(prefix());
    ASSERT_EQ(::rename(file.path().c_str(), directory_.file("kept").c_str()), 0);
  }
  EXPECT_TRUE(std::filesystem::exists(directory_.file("kept")));
}

TEST_F(OwnedTemporaryFileTest, file_is_no_orphan_while_a_descriptor_is_open) {
  std::optional<OwnedTemporaryFile> file(std::in_place, prefix());
  const std::string path = file->path();
  EXPECT_FALSE(OrphanLock(path));
  ASSERT_EQ(::link(path.c_str(), directory_.file("kept").c_str()), 0);
  {
    const FileDescriptor duplicate = file->duplicate_descriptor();
    file.reset();
    EXPECT_FALSE(OrphanLock(directory_.file("kept")));
  }
  EXPECT_TRUE(OrphanLock(directory_.file("kept")));
  EXPECT_TRUE(OrphanLock(path)) << "there is no such file";
}

TEST_F(OwnedTemporaryFileTest, file_of_killed_process_is_an_orphan) {
  const pid_t child = ::fork();
  if (child == 0) {
    const OwnedTemporaryFile file(prefix());
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
    ++found;
    const OrphanLock orphan(entry.path());
    EXPECT_TRUE(orphan);
    EXPECT_FALSE(OrphanLock(entry.path())) << "another process is removing it";
  }
  EXPECT_EQ(found, 1);
}

TEST_F(OwnedTemporaryFileTest, only_files_of_dead_owners_are_removed_as_orphans) {
  const OwnedTemporaryFile living(prefix());
  const pid_t child = ::fork();
  if (child == 0) {
    const OwnedTemporaryFile dead(prefix());
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  const std::string other = directory_.file("of-others");
  open_file(other, O_RDWR | O_CREAT, 0600);

  remove_orphans(prefix());

  std::set<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(directory_.path()))
    left.insert(entry.path());
  EXPECT_EQ(left, (std::set<std::string>{living.path(), other}));
}

TEST_F(OwnedTemporaryFileTest, file_without_its_lock_counts_as_an_orphan) {
  const OwnedTemporaryFile file(prefix());
  file.unlock();
  remove_orphans(prefix());
  EXPECT_FALSE(std::filesystem::exists(file.path()));
}

TEST_F(OwnedTemporaryFileTest, forked_child_does_not_remove_the_file) {
  std::optional<OwnedTemporaryFile> file(std::in_place, prefix());
  const pid_t child = ::fork();
  if (child == 0) {
    file.reset();
    ::_exit(0);
  }
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  EXPECT_TRUE(std::filesystem::exists(file->path()));
  EXPECT_FALSE(OrphanLock(file->path()));
}

TEST_F(OwnedTemporaryFileTest, moved_file_has_one_owner) {
  std::optional<OwnedTemporaryFile> file(std::in_place, prefix());
  const std::string path = file->path();
  {
    const OwnedTemporaryFile moved(*std::move(file));
    file.reset();
    EXPECT_TRUE(std::filesystem::exists(path));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace whycache
