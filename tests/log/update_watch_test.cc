// Logs in files that cannot be watched: their followers poll.
#include "log/update_watch.h"

#include <gtest/gtest.h>
#include <sys/inotify.h>
#include <sys/resource.h>

#include <chrono>
#include <string>

#include <whycache/error.h>

#include "log/file_log.h"
#include "log/stores.h"
#include "support/child_process.h"
#include "support/sanitizers.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

TEST(UpdateWatch, log_without_descriptors_for_a_watch_reports_once_and_polls) {
  SKIP_WITHOUT_SPARE_DESCRIPTOR();
  FileStore store;
  const std::unique_ptr<FileLog> log = store.open("default");
  EXPECT_EQ(run_in_child([&]() -> std::string {
              const struct rlimit none = {3, 3};
              ::setrlimit(RLIMIT_NOFILE, &none);
              if (!log->notifies()) return "it has not been tried yet";
              try {
                log->wait(0, seconds(60));
                return "no error";
              } catch (const Error& error) {
                if (error.kind() != ErrorKind::limit) return error.what();
              }
              if (log->notifies()) return "it still says that it notifies";
              const auto began = steady_clock::now();
              if (log->wait(0, milliseconds(30))) return "was woken";
              return steady_clock::now() - began >= milliseconds(30) ? "" : "did not sleep";
            }),
            "");
}

// As on a network file system, which another machine writes to.
TEST(UpdateWatch, wait_without_events_ends_early_so_that_the_caller_polls) {
  StoreDirectory directory;
  UpdateWatch watch("log", {{directory.file("missing"), IN_CREATE}});
  const auto began = steady_clock::now();
  EXPECT_FALSE(watch.wait(seconds(60), [] { return false; }));
  EXPECT_LT(steady_clock::now() - began, seconds(30));
}

}  // namespace
}  // namespace whycache::testing
