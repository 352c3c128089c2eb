// Scenarios for fault_injection.py: what a process does with a cache while system calls or
// allocations fail, or until it is killed.
//
//   environment_scenario list
//   environment_scenario run NAME LOG-URL DIRECTORY [--wait] [--fail N | --fail-from N]
//   environment_scenario verify NAME LOG-URL DIRECTORY
//
// `run` prepares the directory in a child process, so that the scenario itself begins in a process
// that has used nothing of the library. With --wait it then writes "ready", and begins once the
// report's `go` is set. --fail makes the N-th allocation of the scenario fail, --fail-from all from
// the N-th on. `verify` is another process, in which nothing fails: it compares the machine's state
// and another machine's, built from the log, with what the report says was written.
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <whycache/cache.h>

#include "environment/report.h"
#include "state/file/state_file.h"
#include "state/inspect.h"
#include "state/verify.h"

// Allocations of the whole program, those of C libraries included.
namespace {
std::atomic<bool> allocations_count{false};
std::atomic<std::uint64_t> allocation_number{0};
std::uint64_t fail_first = 0;  // 0: none
std::uint64_t fail_last = 0;

bool allocation_fails() {
  if (!allocations_count.load(std::memory_order_relaxed)) return false;
  const std::uint64_t number = allocation_number.fetch_add(1, std::memory_order_relaxed) + 1;
  if (fail_first == 0 || number < fail_first || number > fail_last) return false;
  errno = ENOMEM;
  return true;
}
}  // namespace

// NOLINTBEGIN: the names are those of the C library.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t bytes) { return allocation_fails() ? nullptr : __libc_malloc(bytes); }
void* calloc(std::size_t count, std::size_t bytes) {
  return allocation_fails() ? nullptr : __libc_calloc(count, bytes);
}
void* realloc(void* memory, std::size_t bytes) {
  return allocation_fails() ? nullptr : __libc_realloc(memory, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) {
  return allocation_fails() ? nullptr : __libc_memalign(alignment, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) {
  *memory = memalign(alignment, bytes);
  return *memory == nullptr ? ENOMEM : 0;
}
}
// NOLINTEND

namespace whycache::testing {
namespace {

using namespace std::chrono_literals;

constexpr int initial_keys = 50;
constexpr int round_keys = 100;  // changed together by one update of a writer that is killed
constexpr int attempts_max = 3;

std::string initial_key(int i) { return "initial." + std::to_string(100 + i); }
std::string initial_value(int i) {
  return std::string(static_cast<std::size_t>(i == 7 ? 3000 : 20 + i),
                     static_cast<char>('a' + i % 26));
}
std::string round_key(int i) { return "round." + std::to_string(1000 + i); }
std::string incompressible(std::size_t bytes, unsigned seed) {
  std::mt19937_64 random(seed);
  std::string text(bytes, '\0');
  for (std::size_t at = 0; at < bytes; at += 8) {
    const std::uint64_t word = random();
    std::memcpy(&text[at], &word, std::min<std::size_t>(8, bytes - at));
  }
  return text;
}
std::string round_value(std::uint64_t round) {
  return std::to_string(round) + ":" + incompressible(6000, static_cast<unsigned>(round));
}
std::uint64_t round_of(std::string_view value) {
  return std::strtoull(std::string(value.substr(0, value.find(':'))).c_str(), nullptr, 10);
}

// Keys and values of a step's attempt, made before the scenario begins.
using Items = std::vector<std::pair<std::string, std::string>>;
Items items_of(const std::string& step, int attempt) {
  const std::string key = step + "." + std::to_string(attempt);
  if (step.starts_with("set_many")) {
    Items items;
    for (int i = 0; i < 20; ++i)
      items.emplace_back(key + "." + std::to_string(i), "value of " + key);
    return items;
  }
  if (step.starts_with("set_large")) {
    Items items;
    for (int i = 0; i < 8; ++i)
      items.emplace_back(key + "." + std::to_string(i),
                         incompressible(80'000, static_cast<unsigned>(attempt * 10 + i)));
    return items;
  }
  return {{key, "value of " + key}};
}

// What one scenario uses: the machine's cache, and the attempts at each step.
class World {
 public:
  World(std::string log, const std::string& directory, const Report& report)
      : log_(std::move(log)), directory_(directory), report_(report) {
    for (const char* step :
         {"set", "set_again", "set_many", "set_large", "set_async", "set_in_child"})
      for (int attempt = 1; attempt <= attempts_max; ++attempt)
        items_[{step, attempt}] = items_of(step, attempt);
    for (int i = 0; i < initial_keys; ++i) initial_.emplace_back(initial_key(i), initial_value(i));
    value_.reserve(8192);
  }

  const Report& report() const { return report_; }
  std::string state_path(const char* machine = "a") const {
    return directory_ + "/" + machine + ".state";
  }
  Options options(const char* machine = "a") const {
    Options options;
    options.state_path = state_path(machine);
    options.deadline = deadline;
    options.writer_name = "scenario";
    options.state_bytes_max = std::uint64_t{1} << 30;
    return options;
  }
  const std::string& log() const { return log_; }
  const std::string& directory() const { return directory_; }
  const Items& items(const char* step, int attempt) const { return items_.at({step, attempt}); }
  const Items& initial() const { return initial_; }

  // Attempts a step until it succeeds, three times at most. Returns whether it did.
  bool step(const char* name, const std::function<void(int)>& body) {
    for (int attempt = 1; attempt <= attempts_max; ++attempt)
      if (attempt_once(name, attempt, body)) return true;
    return false;
  }
  bool open() {
    return step("open", [this](int) { cache = std::make_unique<Cache>(log_, options()); });
  }
  void set(const char* name) {
    step(name, [this, name](int attempt) {
      const auto& [key, value] = items(name, attempt).front();
      cache->set(key, value);
      expect(key, value);
    });
  }
  void set_multi(const char* name) {
    step(name, [this, name](int attempt) { cache->set_multi(items(name, attempt)); });
  }
  // A read that succeeds must return what was written.
  void expect(const std::string& key, const std::string& value) {
    if (!cache->get(key, value_)) {
      report_.add("wrong\tget found no %s", key.c_str());
    } else if (value_ != value) {
      report_.add("wrong\tget of %s has %zu bytes", key.c_str(), value_.size());
    }
  }
  void read() {
    step("get", [this](int) {
      for (const auto& [key, value] : initial_) expect(key, value);
      if (cache->get("absent", value_)) report_.add("wrong\tget found the absent key");
    });
  }
  void read_view() {
    step("view", [this](int) {
      const View view = cache->view();
      std::size_t next = 0;
      for (const auto [key, value] : view.items(KeyRange::prefix("initial."))) {
        if (next >= initial_.size() || initial_[next].first != key ||
            initial_[next].second != value)
          report_.add("wrong\tview differs at item %zu", next);
        ++next;
      }
      if (next != initial_.size()) report_.add("wrong\tview has %zu initial items", next);
      if (view.get("initial.101") != std::string_view(initial_[1].second))
        report_.add("wrong\tview.get");
    });
  }

  std::unique_ptr<Cache> cache;
  std::chrono::milliseconds deadline = 30s;

 private:
  bool attempt_once(const char* name, int attempt, const std::function<void(int)>& body) {
    report_.add("try\t%s\t%d", name, attempt);
    try {
      body(attempt);
      report_.add("ok\t%s\t%d", name, attempt);
      return true;
    } catch (const Error& error) {
      report_.add("failed\t%s\t%d\t%s\t%d\t%s", name, attempt, to_string(error.kind()),
                  error.system_error(), error.what());
    } catch (const std::bad_alloc&) {
      report_.add("failed\t%s\t%d\tno_memory\t%d\tstd::bad_alloc", name, attempt, ENOMEM);
    } catch (const std::exception& error) {
      report_.add("failed\t%s\t%d\tunexpected\t0\t%s", name, attempt, error.what());
    }
    return false;
  }

  std::string log_;
  std::string directory_;
  const Report& report_;
  std::map<std::pair<std::string, int>, Items, std::less<>> items_;
  Items initial_;
  std::string value_;
};

void write_initial_items(World& world) {
  world.cache = std::make_unique<Cache>(world.log(), world.options());
  const Items& all = world.initial();
  for (std::size_t first = 0; first < all.size(); first += 10)
    world.cache->set_multi(
        Items(all.begin() + static_cast<long>(first), all.begin() + static_cast<long>(first) + 10));
  world.cache.reset();
}

// What another machine did since this one last asked the log.
void write_elsewhere(World& world, bool rewrites) {
  Cache other(world.log(), world.options("other"));
  for (int i = 0; i < 10; ++i) other.set("elsewhere." + std::to_string(i), "there");
  if (rewrites) other.rewrite_history();
}

void leave_a_machine_behind(World& world) {
  write_initial_items(world);
  write_elsewhere(world, false);
}

void leave_a_machine_behind_the_base(World& world) {
  write_initial_items(world);
  write_elsewhere(world, true);
}

void remove_state(World& world) {
  write_initial_items(world);
  std::filesystem::remove(world.state_path());
  std::filesystem::remove(world.state_path() + ".lock");
}

void copy_state(World& world) {
  write_initial_items(world);
  const std::string path = world.state_path();
  std::filesystem::rename(path, path + ".original");
  std::filesystem::copy_file(path + ".original", path);
  std::filesystem::remove(path + ".original");
}

// Writes rounds until it is killed.
[[noreturn]] void write_rounds(World& world) {
  Cache cache(world.log(), world.options());
  for (std::uint64_t round = world.report().memory().child_acked + 1;; ++round) {
    const std::string value = round_value(round);
    Items items;
    for (int i = 0; i < round_keys; ++i) items.emplace_back(round_key(i), value);
    cache.set_multi(items);
    world.report().memory().child_acked = round;
  }
}

// Kills writers in the middle of an update until one has left it half-applied.
void kill_writer_in_update(World& world) {
  write_initial_items(world);
  const StateFileResult state = open_state_file_read_only(world.state_path());
  if (!state.mapping) throw std::runtime_error(state.unusable_reason);
  const auto& writer_active = state.mapping->header().writer_active;
  std::minstd_rand random(static_cast<unsigned>(::getpid()));
  for (int tries = 0; tries < 100; ++tries) {
    const pid_t writer = ::fork();
    if (writer == 0) write_rounds(world);
    const auto deadline = std::chrono::steady_clock::now() + 10s;
    while (writer_active == 0 && std::chrono::steady_clock::now() < deadline) {
    }
    const auto later = std::chrono::steady_clock::now() + random() % 200 * 1us;
    while (std::chrono::steady_clock::now() < later) {
    }
    ::kill(writer, SIGKILL);
    ::waitpid(writer, nullptr, 0);
    if (writer_active != 0) return;
  }
  throw std::runtime_error("no writer died while it wrote");
}

struct Scenario {
  const char* name;
  void (*prepare)(World&);
  bool opens_first;  // the cache is open when faults begin
  void (*run)(World&);
};

void set_in_child(World& world) {
  world.step("set_in_child", [&world](int attempt) {
    const pid_t child = ::fork();
    if (child < 0) throw Error(ErrorKind::unavailable, "cannot fork", errno);
    if (child == 0) {
      try {
        const auto& [key, value] = world.items("set_in_child", attempt).front();
        world.cache->set(key, value);
        world.expect(key, value);
        ::_exit(0);
      } catch (const Error& error) {
        world.report().add("in_child\t%s\t%d\t%s", to_string(error.kind()), error.system_error(),
                           error.what());
        ::_exit(error.kind() == ErrorKind::uncertain ? 2 : 1);
      } catch (const std::bad_alloc&) {
        ::_exit(1);
      }
    }
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFEXITED(status)) world.report().add("died\tstatus=%d", status);
    if (status != 0) {
      throw Error(WEXITSTATUS(status) == 2 ? ErrorKind::uncertain : ErrorKind::unavailable,
                  "the child failed", 0);
    }
  });
}

const Scenario scenarios[] = {
    {"open_new", remove_state, false,
     [](World& world) {
       if (world.open()) world.read();
     }},
    {"open", write_initial_items, false,
     [](World& world) {
       if (!world.open()) return;
       world.read();
       world.read_view();
     }},
    {"first_set", [](World&) {}, false,
     [](World& world) {
       if (world.open()) world.set("set");
     }},
    {"open_and_set", write_initial_items, false,
     [](World& world) {
       if (world.open()) world.set("set");
     }},
    {"set", write_initial_items, true,
     [](World& world) {
       world.set("set");
       world.set_multi("set_many");
       world.set("set_again");
       world.read();
     }},
    {"set_async", write_initial_items, true,
     [](World& world) {
       world.step("set_async", [&world](int attempt) {
         const auto& [key, value] = world.items("set_async", attempt).front();
         world.cache->set_async(key, value).get();
         world.expect(key, value);
       });
     }},
    {"grow", write_initial_items, true,
     [](World& world) {
       world.set_multi("set_large");
       world.read();
     }},
    {"update", leave_a_machine_behind, true,
     [](World& world) {
       world.step("update", [&world](int) {
         world.cache->update();
         world.expect("elsewhere.9", "there");
       });
       world.read();
     }},
    {"rebuild", leave_a_machine_behind_the_base, true,
     [](World& world) {
       world.step("update", [&world](int) {
         world.cache->update();
         world.expect("elsewhere.9", "there");
       });
       world.read();
     }},
    {"rewrite", leave_a_machine_behind, true,
     [](World& world) {
       world.step("rewrite", [&world](int) { world.cache->rewrite_history(); });
       world.read();
       world.set("set");
     }},
    {"recover", kill_writer_in_update, false,
     [](World& world) {
       if (!world.open()) return;
       world.read();
       world.set("set");
       world.read();
     }},
    {"adopt", copy_state, false,
     [](World& world) {
       if (!world.open()) return;
       world.read();
       world.read_view();
     }},
    {"view", write_initial_items, true, [](World& world) { world.read_view(); }},
    {"close", write_initial_items, true,
     [](World& world) {
       world.step("close", [&world](int) { world.cache->close_shared_state(); });
       world.read();
       world.set("set");
     }},
    {"delete", write_initial_items, true,
     [](World& world) {
       world.step("delete", [&world](int) {
         if (world.cache->valid()) world.cache->delete_shared_state();
       });
       if (world.open()) world.read();
     }},
    {"transact", write_initial_items, true,
     [](World& world) {
       world.step("transact", [&world](int) {
         world.cache->transact([](Transaction& t) { t.add("counter", 1); });
       });
       world.step("lease", [&world](int) {
         const auto lease = world.cache->acquire("lease", 1ms);
         if (lease) world.cache->release(*lease);
       });
     }},
    {"fork", write_initial_items, true, set_in_child},
};

const Scenario& scenario_named(const std::string& name) {
  for (const Scenario& scenario : scenarios)
    if (name == scenario.name) return scenario;
  throw std::runtime_error("no such scenario: " + name);
}

void prepare_in_child(const Scenario& scenario, World& world) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      scenario.prepare(world);
      std::exit(0);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "cannot prepare: %s\n", error.what());
      ::_exit(1);
    }
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (status != 0) throw std::runtime_error("cannot prepare the scenario");
}

int run(const Scenario& scenario, World& world, bool waits) {
  prepare_in_child(scenario, world);
  if (waits || fail_first != 0) world.deadline = 1s;  // a fault that lasts
  if (scenario.opens_first) world.cache = std::make_unique<Cache>(world.log(), world.options());
  if (waits) {
    std::puts("ready");
    std::fflush(stdout);
    while (world.report().memory().go == 0) ::poll(nullptr, 0, 1);
  }
  allocations_count = true;
  scenario.run(world);
  world.report().add("end");
  world.cache.reset();
  allocations_count = false;
  world.report().memory().allocations = allocation_number.load();
  return 0;
}

// What the report says of an attempt: whether its items must be there.
enum class Expected { present, absent, either };

class Verifier {
 public:
  Verifier(const std::string& scenario, World& world) : scenario_(scenario), world_(world) {
    std::istringstream lines{std::string(world.report().text())};
    for (std::string line; std::getline(lines, line);) read_event(line);
  }

  int run() {
    try {
      Cache cache(world_.log(), options("a"));
      cache.update();
      check_items(cache);
      check_rounds(cache);
      check_counter(cache);
      const auto before = std::chrono::steady_clock::now();
      cache.set("after", "the faults");
      if (std::chrono::steady_clock::now() - before > 3s) fault("the next write took 3 s");
      check_view(cache);
      Cache other(world_.log(), options("b"));
      if (other.applied_id() != cache.applied_id()) fault("another machine has another id");
      if (other.digest() != cache.digest()) fault("another machine has another digest");
    } catch (const std::exception& error) {
      fault(std::string("the next process failed: ") + error.what());
    }
    check_structure();
    return faults_ == 0 ? 0 : 1;
  }

 private:
  Options options(const char* machine) const { return world_.options(machine); }
  void fault(const std::string& text) {
    ++faults_;
    std::printf("%s\n", text.c_str());
  }
  void read_event(const std::string& line) {
    std::istringstream words(line);
    std::string event, step, attempt, kind;
    std::getline(words, event, '\t');
    std::getline(words, step, '\t');
    std::getline(words, attempt, '\t');
    std::getline(words, kind, '\t');
    if (event == "wrong") fault(line);
    if (event != "try" && event != "ok" && event != "failed") return;
    Expected& expected = attempts_[{step, std::atoi(attempt.c_str())}];
    expected = Expected::either;
    if (event == "ok") expected = Expected::present;
    // Reads that fail after the write leave it open what failed.
    const bool nothing_written = kind == "unavailable" || kind == "limit" || kind == "invalid" ||
                                 kind == "conflict" || kind == "refused" || kind == "no_memory";
    if (event == "failed" && nothing_written && !read_back(step)) expected = Expected::absent;
  }
  static bool read_back(const std::string& step) {
    return step == "set" || step == "set_again" || step == "set_async" || step == "set_in_child";
  }
  void check_items(const Cache& cache) {
    if (scenario_ != "first_set") {
      for (const auto& [key, value] : world_.initial())
        if (cache.get(key) != value) fault("lost or changed: " + key);
    }
    for (const auto& [step_and_attempt, expected] : attempts_) {
      const auto& [step, attempt] = step_and_attempt;
      if (!step.starts_with("set")) continue;
      std::size_t present = 0;
      const Items items = items_of(step, attempt);
      for (const auto& [key, value] : items) {
        const auto found = cache.get(key);
        if (found && *found != value) fault("changed: " + key);
        present += found.has_value();
      }
      const std::string name = step + " attempt " + std::to_string(attempt);
      if (present != 0 && present != items.size()) fault("half of an update: " + name);
      if (expected == Expected::present && present == 0) fault("acknowledged and lost: " + name);
      if (expected == Expected::absent && present != 0) fault("reported as not written: " + name);
    }
    if (scenario_ == "update" || scenario_ == "rebuild" || scenario_ == "rewrite")
      if (cache.get("elsewhere.9") != "there") fault("an update of another machine is missing");
  }
  void check_rounds(const Cache& cache) {
    std::set<std::optional<std::string>> values;
    if (scenario_ != "recover") return;
    for (int i = 0; i < round_keys; ++i) values.insert(cache.get(round_key(i)));
    if (values.size() != 1) return fault("half of an update of the killed writer");
    const std::uint64_t round = *values.begin() ? round_of(**values.begin()) : 0;
    const std::uint64_t acked = world_.report().memory().child_acked;
    if (round != acked && round != acked + 1)
      fault("round " + std::to_string(round) + ", acknowledged " + std::to_string(acked));
  }
  void check_counter(const Cache& cache) {
    std::int64_t done = 0;
    std::int64_t open = 0;
    for (const auto& [step_and_attempt, expected] : attempts_) {
      if (step_and_attempt.first != "transact") continue;
      done += expected == Expected::present;
      open += expected == Expected::either;
    }
    const std::int64_t counter = cache.get_as<std::int64_t>("counter").value_or(0);
    if (counter < done || counter > done + open)
      fault("counter is " + std::to_string(counter) + ", acknowledged " + std::to_string(done));
  }
  void check_view(const Cache& cache) {
    const View view = cache.view();
    std::size_t count = 0;
    for (const auto [key, value] : view) {
      ++count;
      if (cache.get(key) != value) fault("get and view differ: " + std::string(key));
    }
    if (count != cache.size()) fault("the view and size() differ");
  }
  void check_structure() {
    const StateFileResult found = open_state_file_read_only(world_.state_path());
    if (!found.mapping) return fault("state cannot be used: " + found.unusable_reason);
    for (const std::string& text : verify(*found.mapping, true, {})) fault("state: " + text);
  }

  std::string scenario_;
  World& world_;
  std::map<std::pair<std::string, int>, Expected> attempts_;
  int faults_ = 0;
};

int main_of_scenarios(const std::vector<std::string>& words) {
  if (words.size() == 1 && words[0] == "list") {
    for (const Scenario& scenario : scenarios) std::puts(scenario.name);
    return 0;
  }
  if (words.size() < 4 || (words[0] != "run" && words[0] != "verify")) {
    std::fputs("usage: environment_scenario list | run|verify NAME LOG-URL DIRECTORY [OPTION]...\n",
               stderr);
    return 2;
  }
  const Report report(words[3] + "/report");
  World world(words[2], words[3], report);
  if (words[0] == "verify") return Verifier(words[1], world).run();
  bool waits = false;
  for (std::size_t i = 4; i < words.size(); ++i) {
    if (words[i] == "--wait") {
      waits = true;
    } else {
      fail_first = std::strtoull(words.at(i + 1).c_str(), nullptr, 10);
      fail_last = words[i] == "--fail" ? fail_first : ~std::uint64_t{0};
      ++i;
    }
  }
  return run(scenario_named(words[1]), world, waits);
}

}  // namespace
}  // namespace whycache::testing

int main(int argc, char** argv) {
  try {
    return whycache::testing::main_of_scenarios({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "environment_scenario: %s\n", error.what());
    return 3;
  }
}
