#include "workers.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string_view>
#include <thread>
#include <utility>

#include <whycache/cache.h>

#include "base/clock.h"
#include "base/hash.h"

namespace whycache::demo {
namespace {

using namespace std::chrono_literals;

constexpr std::string_view checksum_field = "\nDemo-Check: ";
constexpr std::size_t checksum_bytes = checksum_field.size() + 8 + 1 + 16;
constexpr std::string_view probe_key = "demo:probe";
constexpr int unrecorded_probes = 5;
// The pause before a probe, at random, so that no probe is in step with the polls of a follower.
constexpr int pause_ms_max = 100;

std::uint64_t value_checksum(std::string_view key, std::uint32_t version, std::string_view body) {
  return hash64(body, hash64(key) + version);
}

// Sets `version` to that of a value made by make_value(). Returns false if the value is not valid.
bool verify_value(std::string_view key, std::string_view value, std::uint32_t& version) {
  if (value.size() < checksum_bytes) return false;
  const std::string_view body = value.substr(0, value.size() - checksum_bytes);
  const std::string tail(value.substr(body.size()));
  if (tail.compare(0, checksum_field.size(), checksum_field) != 0) return false;
  version = static_cast<std::uint32_t>(
      std::strtoul(tail.substr(checksum_field.size(), 8).c_str(), nullptr, 16));
  return std::strtoull(tail.substr(checksum_field.size() + 9).c_str(), nullptr, 16) ==
         value_checksum(key, version, body);
}

Cache open_cache(const Machine& machine, Scoreboard& board, bool follow = false) {
  Options options;
  options.follow = follow;
  options.state_path = machine.state_path;
  options.writer_name = "demo on " + machine.name;
  options.deadline = 30s;
  options.on_event = [&board](const Event& event) {
    if (event.kind == Event::Kind::recovered) board.recoveries.fetch_add(1);
  };
  return Cache(machine.log_url, options);
}

}  // namespace

std::string make_value(const Record& record, std::uint32_t version) {
  return fmt::format("{}{}{:08x} {:016x}", record.body, checksum_field, version,
                     value_checksum(record.key, version, record.body));
}

Worker::Worker(Scoreboard& board, const std::function<void()>& work) {
  std::fflush(nullptr);
  process_id_ = ::fork();
  if (process_id_ != 0) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    work();
  } catch (const std::exception& error) {
    board.failures.fetch_add(1);
    fmt::print(stderr, "\ndemo process {} failed: {}\n", ::getpid(), error.what());
  }
  std::fflush(nullptr);
  ::_exit(0);
}

Worker::Worker(Worker&& other) noexcept : process_id_(std::exchange(other.process_id_, -1)) {}

Worker::~Worker() {
  if (process_id_ > 0) kill();
}

void Worker::kill() {
  if (process_id_ <= 0) return;
  ::kill(process_id_, SIGKILL);
  join();
}

void Worker::join() {
  if (process_id_ <= 0) return;
  int status;
  while (::waitpid(process_id_, &status, 0) < 0 && errno == EINTR) {
  }
  process_id_ = -1;
}

void run_reader(const Machine& machine, const std::vector<Record>& records, Scoreboard& board) {
  const Cache cache = open_cache(machine, board);
  std::minstd_rand random(static_cast<unsigned>(::getpid()));
  std::vector<std::uint32_t> seen(records.size(), 0);
  std::string value;
  constexpr std::uint64_t batch_reads = 256;
  while (!board.stop.load(std::memory_order_relaxed)) {
    for (std::uint64_t i = 0; i < batch_reads; ++i) {
      const std::size_t index = random() % records.size();
      const Record& record = records[index];
      bool found;
      if (i % 16 == 0) {
        const auto begin = std::chrono::steady_clock::now();
        found = cache.get(record.key, value);
        board.get_latencies.record(
            static_cast<std::uint64_t>((std::chrono::steady_clock::now() - begin).count()));
      } else {
        found = cache.get(record.key, value);
      }
      std::uint32_t version = 0;
      if (!found) {
        board.missing_reads.fetch_add(1, std::memory_order_relaxed);
      } else if (!verify_value(record.key, value, version)) {
        board.invalid_reads.fetch_add(1, std::memory_order_relaxed);
      } else if (version < seen[index]) {
        board.non_monotonic_reads.fetch_add(1, std::memory_order_relaxed);
      } else {
        seen[index] = version;
      }
    }
    board.reads.fetch_add(batch_reads, std::memory_order_relaxed);
  }
}

void run_writer(const Machine& machine, const std::vector<Record>& records, std::size_t first,
                Scoreboard& board) {
  Cache cache = open_cache(machine, board);
  std::minstd_rand random(static_cast<unsigned>(::getpid()));
  std::vector<std::uint32_t> versions(records.size(), 0);
  while (!board.stop.load(std::memory_order_relaxed)) {
    // Mostly a few keys, sometimes many.
    const std::size_t count = random() % 8 == 0 ? 400 : 1 + random() % 4;
    std::vector<std::string> values;
    std::vector<Item> items;
    values.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t index = (random() % (records.size() / 2)) * 2 + first;
      values.push_back(make_value(records[index], ++versions[index]));
      items.push_back({records[index].key, values.back()});
    }
    cache.set_multi(items);
    board.writes.fetch_add(1, std::memory_order_relaxed);
    board.changes.fetch_add(count, std::memory_order_relaxed);
  }
}

void run_follower(const Machine& machine, std::chrono::milliseconds interval, Scoreboard& board) {
  Cache cache = open_cache(machine, board);
  while (!board.stop.load(std::memory_order_relaxed)) {
    cache.update();
    std::this_thread::sleep_for(interval);
  }
}

void run_notified_follower(const Machine& machine, Scoreboard& board) {
  const Cache cache = open_cache(machine, board, true);
  while (!board.stop.load(std::memory_order_relaxed)) std::this_thread::sleep_for(100ms);
}

void run_probe_writer(const Machine& machine, const ProbeRound& round, Scoreboard& board) {
  Cache cache = open_cache(machine, board);
  std::minstd_rand random(static_cast<unsigned>(::getpid()));
  for (int probe = round.first; probe <= round.last; ++probe) {
    cache.set(probe_key, std::to_string(probe));
    board.set_returned_ns.store(boot_time_ns());
    while (board.probe_seen_by_same_machine.load() < static_cast<std::uint64_t>(probe) ||
           board.probe_seen_by_other_machine.load() < static_cast<std::uint64_t>(probe)) {
      std::this_thread::sleep_for(100us);
    }
    board.set_returned_ns.store(0);
    std::this_thread::sleep_for(std::chrono::milliseconds(random() % pause_ms_max));
  }
  cache.erase(probe_key);
}

void run_probe_reader(const Machine& machine, const ProbeRound& round,
                      std::atomic<std::uint64_t>& seen, LatencyHistogram& latencies,
                      Scoreboard& board) {
  const Cache cache = open_cache(machine, board);
  std::string value;
  for (int probe = round.first; probe <= round.last; ++probe) {
    const std::string wanted = std::to_string(probe);
    for (;;) {
      const UpdateId id = cache.applied_id();
      if (cache.get(probe_key, value) && value == wanted) break;
      cache.wait(id);
    }
    const std::int64_t seen_ns = boot_time_ns();
    std::int64_t returned_ns;
    while ((returned_ns = board.set_returned_ns.load()) == 0) std::this_thread::sleep_for(20us);
    if (probe >= round.first + unrecorded_probes) {
      latencies.record(
          static_cast<std::uint64_t>(std::max<std::int64_t>(seen_ns - returned_ns, 0)));
    }
    seen.store(static_cast<std::uint64_t>(probe));
    // The writer clears the time once both readers have seen the probe.
    while (board.set_returned_ns.load() == returned_ns && probe < round.last)
      std::this_thread::sleep_for(20us);
  }
}

}  // namespace whycache::demo
