// A program that uses a cache in the way its arguments say, for environment_test.py.
//
//   environment_host REPORT LOG-URL STATE [mode=OCTAL] [any_file_system] STEP...
//
// Appends one line for each step to the report (report.h), which needs no descriptor:
//   STEP <tab> ok <tab> RESULT, or STEP <tab> error <tab> KIND <tab> ERRNO <tab> MESSAGE
//
//   open             opens the cache
//   attach           attaches to the state, without the log
//   await=ID         waits until others have applied this update; RESULT is the applied id
//   get=KEY          reads; RESULT is the value, or "(absent)"
//   view=KEY         reads from a new view
//   hold             opens a view, and keeps it; held=KEY reads from it
//   set=KEY:VALUE    writes; RESULT is the id. A VALUE of *N is N bytes
//   set_async=KEY:VALUE
//   update, rewrite, close
//   fork             the rest runs in a child; RESULT is how the child ended
//   daemonise        the rest runs in a grandchild without descriptors; this process waits for it
//   close_range      closes all descriptors from 3 on
//   occupy=PATH      opens PATH for writing until 40 descriptors are taken
//   noise            writes text to the standard descriptors
//   setuid=UID       changes user and group for good
//   limit=NAME:N     sets the soft limit on NOFILE, AS, DATA, FSIZE, NPROC, STACK or CORE;
//                    N may be "used": what is in use (NOFILE, AS, DATA)
//   unlimit=NAME     sets it to the hard limit
//   pause            waits until the report's `go` is raised
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <whycache/cache.h>

#include "environment/report.h"

namespace whycache::testing {
namespace {

using namespace std::chrono_literals;

const std::map<std::string, int> limits = {{"NOFILE", RLIMIT_NOFILE}, {"AS", RLIMIT_AS},
                                           {"DATA", RLIMIT_DATA},     {"FSIZE", RLIMIT_FSIZE},
                                           {"NPROC", RLIMIT_NPROC},   {"STACK", RLIMIT_STACK},
                                           {"CORE", RLIMIT_CORE}};

// Kilobytes of a line of /proc/self/status, as bytes.
rlim_t bytes_in_status(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(name + ":"))
      return std::strtoull(line.c_str() + name.size() + 1, nullptr, 10) << 10;
  return 0;
}

rlim_t used(const std::string& name) {
  if (name == "AS") return bytes_in_status("VmSize");
  if (name == "DATA") return bytes_in_status("VmData");
  const int next = ::dup(0);  // the lowest free number
  ::close(next);
  return static_cast<rlim_t>(next);
}

void set_limit(const std::string& name, const std::string& value) {
  struct rlimit limit;
  ::getrlimit(static_cast<__rlimit_resource>(limits.at(name)), &limit);
  limit.rlim_cur = value.empty()     ? limit.rlim_max
                   : value == "used" ? used(name)
                                     : std::strtoull(value.c_str(), nullptr, 10);
  if (::setrlimit(static_cast<__rlimit_resource>(limits.at(name)), &limit) != 0)
    throw Error(ErrorKind::invalid, "setrlimit", errno);
}

std::string describe(int status) {
  if (WIFSIGNALED(status)) return "died of signal " + std::to_string(WTERMSIG(status));
  return "exited with " + std::to_string(WEXITSTATUS(status));
}

class Host {
 public:
  Host(const Report& report, std::string log, Options options)
      : report_(report), log_(std::move(log)), options_(std::move(options)) {}

  // Returns the exit status.
  int run(const std::vector<std::string>& steps) {
    for (const std::string& step : steps) {
      const std::size_t equals = std::min(step.find('='), step.size());
      const std::string argument = equals < step.size() ? step.substr(equals + 1) : "";
      try {
        const std::string result = run_step(step.substr(0, equals), argument);
        report_.add("%s\tok\t%s", step.c_str(), result.c_str());
        if (is_parent_) return 0;
      } catch (const Error& error) {
        report_.add("%s\terror\t%s\t%d\t%s", step.c_str(), to_string(error.kind()),
                    error.system_error(), error.what());
      } catch (const std::bad_alloc&) {
        report_.add("%s\terror\tno_memory\t%d\tstd::bad_alloc", step.c_str(), ENOMEM);
      } catch (const std::exception& error) {
        report_.add("%s\terror\tunexpected\t0\t%s", step.c_str(), error.what());
      }
    }
    view_.reset();
    cache_.reset();
    report_.add("end\tok\t");
    return 0;
  }

 private:
  Cache& cache() {
    if (!cache_) throw Error(ErrorKind::invalid, "the cache could not be opened");
    return *cache_;
  }

  std::string run_step(const std::string& name, const std::string& argument) {
    const std::size_t colon = std::min(argument.find(':'), argument.size());
    const std::string first = argument.substr(0, colon);
    const std::string second = colon < argument.size() ? argument.substr(colon + 1) : "";
    if (name == "open") {
      cache_ = std::make_unique<Cache>(log_, options_);
    } else if (name == "attach") {
      cache_ = std::make_unique<Cache>(
          Cache::attach(options_.state_path, {.any_file_system = options_.any_file_system}));
    } else if (name == "await") {
      return std::to_string(cache().update({.at_least = std::stoul(argument)}));
    } else if (name == "get") {
      return cache().get(argument).value_or("(absent)");
    } else if (name == "view") {
      const View view = cache().view();
      return std::string(view.get(argument).value_or("(absent)"));
    } else if (name == "hold") {
      view_.emplace(cache().view());
    } else if (name == "held") {
      return std::string(view_.value().get(argument).value_or("(absent)"));
    } else if (name == "set") {
      if (second.starts_with('*'))
        return std::to_string(cache().set(first, std::string(std::stoul(second.substr(1)), 'v')));
      return std::to_string(cache().set(first, second));
    } else if (name == "set_async") {
      return std::to_string(cache().set_async(first, second).get());
    } else if (name == "update") {
      return std::to_string(cache().update());
    } else if (name == "rewrite") {
      return std::to_string(cache().rewrite_history());
    } else if (name == "close") {
      cache().close_shared_state();
    } else {
      return run_step_of_process(name, argument, first, second);
    }
    return "";
  }

  std::string run_step_of_process(const std::string& name, const std::string& argument,
                                  const std::string& first, const std::string& second) {
    if (name == "fork") return run_in_child();
    if (name == "daemonise") return daemonise();
    if (name == "close_range") {
      ::closefrom(3);
    } else if (name == "occupy") {
      while (::open(argument.c_str(), O_RDWR | O_CREAT, 0600) < 40) {
      }
    } else if (name == "noise") {
      for (const int descriptor : {0, 1, 2}) (void)!::write(descriptor, "noise of the host", 17);
    } else if (name == "setuid") {
      const auto id = static_cast<uid_t>(std::stoul(argument));
      if (::setgroups(0, nullptr) != 0 || ::setgid(id) != 0 || ::setuid(id) != 0)
        throw Error(ErrorKind::invalid, "cannot change the user", errno);
    } else if (name == "limit") {
      set_limit(first, second);
    } else if (name == "unlimit") {
      set_limit(first, "");
    } else if (name == "pause") {
      const std::uint32_t wanted = ++pauses_;
      report_.add("pausing\tok\t");
      while (report_.memory().go < wanted) ::poll(nullptr, 0, 1);
    } else {
      throw Error(ErrorKind::invalid, "unknown step: " + name);
    }
    return "";
  }

  std::string run_in_child() {
    const pid_t child = ::fork();
    if (child < 0) throw Error(ErrorKind::unavailable, "cannot fork", errno);
    if (child == 0) return "";
    is_parent_ = true;
    int status = 0;
    ::waitpid(child, &status, 0);
    return describe(status);
  }

  // As daemon(7) describes it, and no process keeps a descriptor for it.
  std::string daemonise() {
    int ended[2];
    if (::pipe(ended) != 0) throw Error(ErrorKind::unavailable, "cannot make a pipe", errno);
    const pid_t child = ::fork();
    if (child != 0) {
      is_parent_ = true;
      ::waitpid(child, nullptr, 0);
      // The grandchild reports its end; it has no parent to tell how it ended.
      for (int i = 0; i < 20'000 && report_.text().find("end\t") == std::string_view::npos; ++i)
        ::poll(nullptr, 0, 1);
      return "";
    }
    ::setsid();
    if (::fork() != 0) ::_exit(0);
    if (::chdir("/") != 0) ::_exit(1);
    ::closefrom(0);
    return "";
  }

  const Report& report_;
  std::string log_;
  Options options_;
  std::unique_ptr<Cache> cache_;
  std::optional<View> view_;
  bool is_parent_ = false;
  std::uint32_t pauses_ = 0;
};

int run_host(std::vector<std::string> words) {
  if (words.size() < 4) {
    std::fputs("usage: environment_host REPORT LOG-URL STATE [OPTION]... STEP...\n", stderr);
    return 2;
  }
  const Report report(words[0]);
  Options options;
  options.state_path = words[2];
  options.deadline = 3s;
  const std::string log = words[1];
  words.erase(words.begin(), words.begin() + 3);
  for (; !words.empty(); words.erase(words.begin())) {
    if (words[0].starts_with("mode=")) {
      options.state_mode = static_cast<std::uint32_t>(std::stoul(words[0].substr(5), nullptr, 8));
    } else if (words[0] == "any_file_system") {
      options.any_file_system = true;
    } else {
      break;
    }
  }
  return Host(report, log, options).run(words);
}

}  // namespace
}  // namespace whycache::testing

int main(int argc, char** argv) {
  try {
    return whycache::testing::run_host({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "environment_host: %s\n", error.what());
    return 3;
  }
}
