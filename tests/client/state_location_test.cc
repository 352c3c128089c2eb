// The default location of the state: private, different for every log, never predictable in /tmp.
#include "client/state_location.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>

#include "client/fleet.h"
#include "support/program.h"

namespace whycache::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// Sets environment variables and restores them at the end of the test.
class ScopedEnvironment {
 public:
  void set(const std::string& name, const std::optional<std::string>& value) {
    const char* const before = std::getenv(name.c_str());
    previous_values_.emplace(name,
                             before != nullptr ? std::optional<std::string>(before) : std::nullopt);
    put_variable(name, value);
  }
  ~ScopedEnvironment() {
    for (const auto& [name, value] : previous_values_) put_variable(name, value);
  }

 private:
  static void put_variable(const std::string& name, const std::optional<std::string>& value) {
    value ? ::setenv(name.c_str(), value->c_str(), 1) : ::unsetenv(name.c_str());
  }
  std::map<std::string, std::optional<std::string>> previous_values_;
};

class StateLocationTest : public ::testing::Test {
 protected:
  StateLocationTest() {
    for (const char* const name : {"WHYCACHE_STATE", "STATE_DIRECTORY", "XDG_STATE_HOME"})
      environment.set(name, std::nullopt);
  }
  std::string path_for(const Options& options,
                       const std::string& log = "sqlite:///var/lib/flags.db?instance=blue") {
    return find_state_location(options, log).path;
  }
  static Options options_named(const std::string& name) {
    Options options;
    options.name = name;
    return options;
  }

  ScopedEnvironment environment;
  TemporaryDirectory directory;
  // Of the log that path_for() uses by default.
  const std::string file_name = fs::path(path_for({.state_path = "/"})).filename();
};

TEST_F(StateLocationTest, state_path_option_is_used_unchanged) {
  Options options = options_named("flags");
  options.state_path = directory.file("mine.state");
  EXPECT_EQ(path_for(options), directory.file("mine.state"));
}

// Otherwise the user that starts the program would choose where its owner creates files.
TEST_F(StateLocationTest, setuid_program_ignores_paths_from_the_environment) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: needs root";
  struct statvfs mount;
  ASSERT_EQ(::statvfs(directory.path().c_str(), &mount), 0);
  if ((mount.f_flag & ST_NOSUID) != 0) GTEST_SKIP() << "NOT TESTED: mounted nosuid";
  constexpr uid_t program_owner = 23456;  // has no home
  const std::string program = directory.file("program");
  fs::copy_file(WHYCACHE_TEST_BIN "/setuid_main", program);
  ASSERT_EQ(::chmod(directory.path().c_str(), 0755), 0);
  ASSERT_EQ(::chown(program.c_str(), program_owner, program_owner), 0);
  for (const char* const variable : {"WHYCACHE_STATE", "STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"})
    environment.set(variable, "/chosen");
  for (const bool is_setuid : {false, true}) {
    ASSERT_EQ(::chmod(program.c_str(), is_setuid ? 04755 : 0755), 0);
    const std::string output = directory.file(is_setuid ? "setuid" : "plain");
    ASSERT_EQ(wait_for(run_program(
                  {"/usr/bin/env", "setpriv", "--reuid=65534", "--clear-groups", program}, output)),
              0)
        << read_file(output);
    EXPECT_EQ(read_file(output).find("/chosen") == std::string::npos, is_setuid)
        << read_file(output);
  }
}

TEST_F(StateLocationTest, state_path_in_directory_depends_on_log_but_not_its_alias) {
  Options options;
  options.state_path = directory.path() + "/";
  const std::string path = path_for(options);
  EXPECT_THAT(path, StartsWith(directory.path() + "/blue-"));
  EXPECT_NE(path, path_for(options, "sqlite:///var/lib/other.db?instance=blue"));
  options.name = "flags";
  EXPECT_EQ(path, path_for(options));
  EXPECT_EQ(path_for(options, "memory:?instance=default"), directory.file("flags.state"));
}

TEST_F(StateLocationTest, caches_with_and_without_name_share_default_state) {
  environment.set("STATE_DIRECTORY", directory.path());
  const std::string url = "sqlite://" + directory.file("flags.db");
  Cache named(url, options_named("flags"));
  Cache unnamed(url);
  EXPECT_EQ(named.state_path(), unnamed.state_path());
  named.set("checkout.enabled", "yes");
  EXPECT_EQ(unnamed.get("checkout.enabled"), "yes");
}

TEST_F(StateLocationTest, environment_variable_overrides_default_location) {
  environment.set("WHYCACHE_STATE", directory.path() + "/");
  EXPECT_EQ(path_for({}), directory.path() + "/" + file_name);
  environment.set("WHYCACHE_STATE", directory.file("other.state"));
  EXPECT_EQ(path_for(options_named("flags")), directory.file("other.state"));
}

TEST_F(StateLocationTest, systemd_state_directory_is_used) {
  environment.set("STATE_DIRECTORY", directory.path() + ":/elsewhere");
  EXPECT_EQ(path_for({}), directory.path() + "/" + file_name);
}

TEST_F(StateLocationTest, default_name_differs_for_each_log) {
  environment.set("STATE_DIRECTORY", directory.path());
  const std::string blue = path_for({}, "sqlite:///var/lib/flags.db?instance=blue");
  const std::string green = path_for({}, "sqlite:///var/lib/flags.db?instance=green");
  const std::string other = path_for({}, "sqlite:///var/lib/other.db?instance=blue");
  EXPECT_THAT(blue, StartsWith(directory.path() + "/blue-"));
  EXPECT_THAT(blue, EndsWith(".state"));
  EXPECT_NE(blue, green);
  EXPECT_NE(blue, other);
  EXPECT_THAT(path_for({}, "my own log: ../../../etc"), Not(HasSubstr("..")));
}

TEST_F(StateLocationTest, unsafe_state_name_throws_invalid) {
  environment.set("STATE_DIRECTORY", directory.path());
  for (const std::string name :
       {"..", ".", ".hidden", "a/b", "/etc/passwd", "a b", "a\nb", "naïve"}) {
    expect_error(
        ErrorKind::invalid, [&] { path_for(options_named(name)); }, "name");
  }
  expect_error(
      ErrorKind::invalid, [&] { path_for(options_named(std::string("a\0b", 3))); }, "name");
  expect_error(
      ErrorKind::invalid, [&] { path_for(options_named(std::string(101, 'a'))); }, "name");
  EXPECT_EQ(path_for(options_named("A-z_0.9")), path_for({}));
}

TEST_F(StateLocationTest, root_uses_var_lib_and_other_users_home) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: needs root";
  EXPECT_EQ(path_for({}), "/var/lib/whycache/" + file_name);
  struct stat status;
  ASSERT_EQ(::stat("/var/lib/whycache", &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700U);

  const std::string home = "/run/whycache_test_home_" + std::to_string(::getpid());
  fs::create_directory(home);
  ASSERT_EQ(::chown(home.c_str(), 65534, 65534), 0);
  expect_success_in_child([&] {
    ASSERT_EQ(::setgid(65534), 0);
    ASSERT_EQ(::setuid(65534), 0);
    environment.set("HOME", home);
    EXPECT_EQ(path_for(options_named("flags")), home + "/.local/state/whycache/" + file_name);
    environment.set("XDG_STATE_HOME", home + "/xdg");
    EXPECT_EQ(path_for(options_named("flags")), home + "/xdg/whycache/" + file_name);
    environment.set("XDG_STATE_HOME", "relative");
    EXPECT_EQ(path_for(options_named("flags")), home + "/.local/state/whycache/" + file_name);
    struct stat created;
    ASSERT_EQ(::stat((home + "/.local/state/whycache").c_str(), &created), 0);
    EXPECT_EQ(created.st_mode & 0777, 0700U);
    Cache cache("memory:", {});
    cache.set("a", "1");
    EXPECT_EQ(cache.get("a"), "1");
    ASSERT_EQ(::chmod(home.c_str(), 0), 0);
    environment.set("XDG_STATE_HOME", home + "/denied");
    expect_error(
        ErrorKind::invalid, [&] { path_for(options_named("flags")); }, "cannot create directory");
  });
  fs::remove_all(home);
}

TEST_F(StateLocationTest, default_location_is_never_in_tmp) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: needs root";
  expect_success_in_child([&] {
    ASSERT_EQ(::setuid(65534), 0);
    for (const char* const home : {"/tmp", "/tmp/me", "/var/tmp/../tmp/me", "/var/tmp"}) {
      environment.set("HOME", home);
      expect_error(
          ErrorKind::invalid, [&] { path_for(options_named("flags")); }, "/tmp", "state_path");
    }
    environment.set("HOME", "/nonexistent");
    expect_error(
        ErrorKind::invalid, [&] { path_for(options_named("flags")); }, "cannot create directory");
  });
}

TEST_F(StateLocationTest, memory_log_state_is_removed_with_cache) {
  std::string path;
  std::string closed_path;
  {
    Cache cache("memory:", {});
    Cache closed("memory:", {});
    path = cache.state_path();
    closed_path = closed.state_path();
    EXPECT_NE(path, closed_path);
    cache.set("a", "1");
    EXPECT_TRUE(fs::exists(path));
    closed.set("a", "1");
    closed.close_shared_state();
    EXPECT_EQ(closed.get("a"), "1") << "the next call opens it again";
    closed.delete_shared_state();
    EXPECT_FALSE(fs::exists(fs::path(closed_path).parent_path()));
    struct stat status;
    ASSERT_EQ(::stat(fs::path(path).parent_path().c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0700U);
  }
  EXPECT_FALSE(fs::exists(fs::path(path).parent_path()));
}

TEST_F(StateLocationTest, forked_child_keeps_memory_log_state_of_parent) {
  auto cache = std::make_unique<Cache>("memory:");
  cache->set("a", "1");
  expect_success_in_child([&] { cache.reset(); });
  expect_success_in_child([&] { cache->close_shared_state(); });
  EXPECT_TRUE(fs::exists(cache->state_path()));
  EXPECT_EQ(cache->set("a", "2"), 2U);
  EXPECT_EQ(cache->get("a"), "2");
}

TEST_F(StateLocationTest, relative_path_is_resolved_when_the_cache_is_opened) {
  const TemporaryDirectory own;
  expect_success_in_child([&] {
    for (const std::string path : {"flags.state", "sub/"}) {
      fs::current_path(own.path());
      fs::create_directory("sub");
      Options options;
      options.state_path = path;
      Cache cache("sqlite://" + own.file("log.db"), options);
      cache.set("a", "1");
      fs::current_path("/");
      EXPECT_EQ(cache.state_path().find(own.path() + "/"), 0U) << cache.state_path();
      cache.close_shared_state();
      EXPECT_EQ(cache.get("a"), "1");
      EXPECT_EQ(Cache::attach(cache.state_path()).get("a"), "1");
      fs::current_path(own.path());
    }
    const Cache attached = Cache::attach("flags.state");
    EXPECT_EQ(attached.state_path(), own.file("flags.state"));
  });
}

TEST_F(StateLocationTest, relative_path_in_a_directory_that_was_removed_throws_invalid) {
  const TemporaryDirectory own;
  expect_success_in_child([&] {
    fs::create_directory(own.file("sub"));
    fs::current_path(own.file("sub"));
    fs::remove(own.file("sub"));
    expect_error(
        ErrorKind::invalid, [] { static_cast<void>(Cache::attach("flags.state")); },
        "no working directory", "flags.state");
  });
}

// --- Refused locations ---

class RefusedStateLocation : public ::testing::Test {
 protected:
  void expect_refused(const std::string& path, const char* word) {
    Options options;
    options.state_path = path;
    expect_error(
        ErrorKind::invalid, [&] { Cache("memory:", options); }, word);
  }
  TemporaryDirectory directory;
};

TEST_F(RefusedStateLocation, missing_directory_throws_invalid) {
  expect_refused(directory.file("missing/flags.state"), "missing");
}

TEST_F(RefusedStateLocation, directory_at_state_path_throws_corrupt) {
  Options options;
  options.state_path = directory.file("flags.state");
  fs::create_directory(options.state_path);
  expect_error(
      ErrorKind::corrupt, [&] { Cache("memory:", options); }, "not a regular file",
      options.state_path);
}

TEST_F(RefusedStateLocation, symbolic_link_at_state_path_throws_invalid) {
  const std::string precious = directory.file("precious");
  std::ofstream(precious) << "precious";
  fs::create_symlink(precious, directory.file("flags.state"));
  expect_refused(directory.file("flags.state"), "symbolic link");
  std::ifstream file(precious);
  std::string content;
  file >> content;
  EXPECT_EQ(content, "precious");
}

TEST_F(RefusedStateLocation, directory_writable_by_others_throws_invalid) {
  const std::string open_directory = directory.file("open");
  fs::create_directory(open_directory);
  ASSERT_EQ(::chmod(open_directory.c_str(), 0777), 0);
  expect_refused(open_directory + "/flags.state", "writable for others");
}

TEST_F(RefusedStateLocation, foreign_file_throws_corrupt_and_is_kept) {
  const std::string path = directory.file("flags.state");
  std::ofstream(path) << std::string(1 << 20, 'x');
  Options options;
  options.state_path = path;
  expect_error(
      ErrorKind::corrupt, [&] { Cache("memory:", options); }, path);
  EXPECT_EQ(fs::file_size(path), 1U << 20);
}

}  // namespace
}  // namespace whycache::testing
