// A program that has more rights than its caller, who chooses its environment (log_setuid_main.cc).
#pragma once

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/program.h"
#include "support/temporary_directory.h"

namespace whycache {

class SetuidProgram {
 public:
  SetuidProgram() {
    if (!is_possible()) return;
    std::filesystem::copy_file(WHYCACHE_TEST_BIN "/log_setuid_main", program_);
    if (::chmod(directory_.path().c_str(), 0755) != 0 ||
        ::chown(program_.c_str(), owner, owner) != 0)
      throw std::runtime_error("cannot prepare a setuid program");
  }

  // Whether this process may make such a program, and it would run with the rights of its owner.
  bool is_possible() const {
    struct statvfs mount;
    return ::geteuid() == 0 && ::statvfs(directory_.path().c_str(), &mount) == 0 &&
           (mount.f_flag & ST_NOSUID) == 0;
  }

  // Runs the program as another user than its owner, and returns what it prints. `variables`:
  // "NAME=value".
  std::string run(bool is_setuid, const std::vector<std::string>& variables,
                  const std::string& url) const {
    if (::chmod(program_.c_str(), is_setuid ? 04755 : 0755) != 0)
      throw std::runtime_error("cannot change the mode of a program");
    std::vector<std::string> words = {"/usr/bin/env"};
    words.insert(words.end(), variables.begin(), variables.end());
    words.insert(words.end(), {"setpriv", "--reuid=65534", "--clear-groups", program_, url});
    const std::string output = directory_.file("output");
    if (testing::wait_for(testing::run_program(words, output)) != 0)
      throw std::runtime_error("program failed: " + testing::read_file(output));
    return testing::read_file(output);
  }

 private:
  static constexpr uid_t owner = 23456;

  testing::TemporaryDirectory directory_;
  const std::string program_ = directory_.file("program");
};

}  // namespace whycache
