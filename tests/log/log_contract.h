// The contract of whycache/log.h as tests that every log has to pass.
//
// To test your own log, derive a store from LogStore (log_store.h). Write in exactly one source
// file of a test program that links GoogleTest:
//
//   #include "log_contract.h"
//   const whycache::LogUnderTest mine{"mine", [] { return std::make_unique<MyStore>(); }};
//   INSTANTIATE_TEST_SUITE_P(Mine, LogContract, testing::Values(mine));
//
// They compile in any namespace.
// This header needs only whycache's public headers, the headers beside it, GoogleTest and POSIX.
// Random tests print their seed when they fail. WHYCACHE_TEST_SEED repeats a run.
#pragma once

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <ostream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <whycache/log.h>

#include "child.h"
#include "flaky_log.h"
#include "log_store.h"

namespace whycache {

// --- Helpers. ---

namespace log_contract {

inline constexpr UpdateId no_end = std::numeric_limits<UpdateId>::max();

struct StoredUpdate {
  UpdateId id;
  std::string bytes;
  friend bool operator==(const StoredUpdate&, const StoredUpdate&) = default;
  friend std::ostream& operator<<(std::ostream& out, const StoredUpdate& update) {
    return out << update.id << ":" << update.bytes.substr(0, 40);
  }
};

// Returns the updates in first..last that a follower would apply.
inline std::vector<StoredUpdate> updates_of(Log& log, UpdateId first = 1, UpdateId last = no_end) {
  std::vector<StoredUpdate> updates;
  const Extent extent = log.read(first, last, [&](UpdateId id, std::string_view bytes) {
    updates.push_back({id, std::string(bytes)});
    return true;
  });
  std::erase_if(updates, [&](const StoredUpdate& update) { return update.id <= extent.base; });
  return updates;
}

inline std::vector<std::string> parts_of(Log& log) {
  std::vector<std::string> parts;
  log.read_base([&](std::string_view part) {
    parts.emplace_back(part);
    return true;
  });
  return parts;
}

// Returns parts one after another. Each call overwrites the bytes of the previous part, as the
// contract allows.
class PartList {
 public:
  explicit PartList(std::vector<std::string> parts) : parts_(std::move(parts)) {}
  Log::NextPart next() {
    return [this, number = std::size_t{0}]() mutable -> std::optional<std::string_view> {
      std::fill(current_part_.begin(), current_part_.end(), '!');
      if (number == parts_.size()) return std::nullopt;
      current_part_ = parts_[number++];
      return current_part_;
    };
  }

 private:
  std::vector<std::string> parts_;
  std::string current_part_;
};

inline std::uint64_t chain_of(UpdateId base) { return base * 0x9e3779b97f4a7c15; }

inline bool rewrite(Log& log, UpdateId base, std::vector<std::string> parts) {
  PartList list(std::move(parts));
  return log.rewrite(base, chain_of(base), list.next());
}

// Returns the content of update `id`, for tests that do not depend on it.
inline std::string bytes_of(UpdateId id) { return "update " + std::to_string(id); }

inline void append_up_to(Log& log, UpdateId last) {
  for (UpdateId id = log.extent().head + 1; id <= last; ++id)
    ASSERT_EQ(log.append(id, bytes_of(id)), Log::Appended::yes) << id;
}

inline std::vector<StoredUpdate> expected_updates(UpdateId first, UpdateId last) {
  std::vector<StoredUpdate> updates;
  for (UpdateId id = first; id <= last; ++id) updates.push_back({id, bytes_of(id)});
  return updates;
}

template <typename Call>
std::optional<ErrorKind> error_kind_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.kind();
  }
  return std::nullopt;
}

inline std::uint64_t new_seed() {
  if (const char* seed = std::getenv("WHYCACHE_TEST_SEED")) return std::strtoull(seed, nullptr, 10);
  return std::random_device{}();
}

// Runs bodies concurrently: in processes if processes can share the log, else in threads.
class WorkerGroup {
 public:
  explicit WorkerGroup(bool of_processes) : uses_processes_(of_processes) {}
  ~WorkerGroup() { wait(); }

  void add(std::function<void()> body) {
    if (uses_processes_) {
      children_.emplace_back(std::move(body));
      return;
    }
    threads_.emplace_back([body = std::move(body)] {
      try {
        body();
      } catch (const std::exception& error) {
        ADD_FAILURE() << error.what();
      }
    });
  }
  void wait() {
    for (Child& child : std::exchange(children_, {})) EXPECT_EQ(child.wait(), 0);
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  bool uses_processes_;
  std::vector<Child> children_;
  std::vector<std::thread> threads_;
};

// A minimal replica. It follows a log in which each update says "writer sequence", and checks that
// each writer's sequence counts 1, 2, 3 ... Its base has one part per writer: the last sequence of
// that writer. It throws std::runtime_error on any inconsistency.
class Machine {
 public:
  explicit Machine(std::unique_ptr<Log> log) : log_(std::move(log)) {}

  Log& log() { return *log_; }
  UpdateId applied_id() const { return applied_id_; }
  std::uint64_t sequence_of(unsigned writer) const {
    const auto found = sequences_.find(writer);
    return found == sequences_.end() ? 0 : found->second;
  }
  std::uint64_t sum() const {
    std::uint64_t sum = 0;
    for (const auto& [writer, sequence] : sequences_) sum += sequence;
    return sum;
  }

  static std::string update_of(unsigned writer, std::uint64_t sequence) {
    return std::to_string(writer) + ' ' + std::to_string(sequence) + ' ' +
           std::string((sequence * 37 + writer) % 300, '.');
  }

  // Applies new updates. If the log is unavailable, the next call asks again.
  void follow() {
    try {
      std::vector<StoredUpdate> updates;
      const Extent extent =
          log_->read(applied_id_ + 1, no_end, [&](UpdateId id, std::string_view bytes) {
            updates.push_back({id, std::string(bytes)});
            return updates.size() < 100;
          });
      if (uuid_ && *uuid_ != extent.uuid) throw std::runtime_error("the log was replaced");
      uuid_ = extent.uuid;
      if (extent.base > applied_id_) return rebuild();
      for (const StoredUpdate& update : updates) apply(update);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::unavailable) throw;
    }
  }

  // Appends until the update is in the log, exactly once.
  void write(unsigned writer, std::uint64_t sequence) {
    while (sequence_of(writer) < sequence) {
      follow();
      if (sequence_of(writer) >= sequence) return;
      try {
        const UpdateId id = applied_id_ + 1;
        if (log_->append(id, update_of(writer, sequence)) == Log::Appended::yes) return;
      } catch (const Error& error) {
        if (error.kind() == ErrorKind::unavailable) continue;
        if (error.kind() != ErrorKind::uncertain) throw;
        settle();  // the next iteration checks whether the update is there
      }
    }
  }

  // Rewrites everything up to the applied id into a base.
  void rewrite() {
    follow();
    std::vector<std::string> parts{std::to_string(applied_id_)};
    for (const auto& [writer, sequence] : sequences_)
      parts.push_back(std::to_string(writer) + ' ' + std::to_string(sequence));
    try {
      log_contract::rewrite(*log_, applied_id_, parts);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::unavailable && error.kind() != ErrorKind::uncertain) throw;
    }
  }

  // Follows until the log answers that there are no more updates.
  void settle() {
    for (;;) {
      follow();
      try {
        if (log_->extent().head <= applied_id_) return;
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::unavailable) throw;
      }
    }
  }

 private:
  void apply(const StoredUpdate& update) {
    if (update.id != applied_id_ + 1) {
      throw std::runtime_error("update " + std::to_string(update.id) + " follows " +
                               std::to_string(applied_id_));
    }
    std::istringstream words(update.bytes);
    unsigned writer = 0;
    std::uint64_t sequence = 0;
    words >> writer >> sequence;
    if (!words || update.bytes != update_of(writer, sequence))
      throw std::runtime_error("damaged: " + update.bytes);
    if (sequence != sequences_[writer] + 1) {
      throw std::runtime_error("update " + std::to_string(update.id) + ": sequence " +
                               std::to_string(sequence) + " of writer " + std::to_string(writer) +
                               " follows " + std::to_string(sequences_[writer]));
    }
    sequences_[writer] = sequence;
    applied_id_ = update.id;
  }

  void rebuild() {
    std::map<unsigned, std::uint64_t> sequences;
    std::optional<UpdateId> base;
    log_->read_base([&](std::string_view part) {
      std::istringstream words{std::string(part)};
      std::uint64_t first = 0;
      words >> first;
      if (base) {
        words >> sequences[static_cast<unsigned>(first)];
      } else {
        base = first;
      }
      if (!words) throw std::runtime_error("damaged part: " + std::string(part));
      return true;
    });
    if (!base) throw std::runtime_error("a base without parts");
    for (const auto& [writer, sequence] : sequences_) {
      if (sequences[writer] < sequence)
        throw std::runtime_error("the base lost updates of writer " + std::to_string(writer));
    }
    sequences_ = std::move(sequences);
    applied_id_ = *base;
    if (sum() != applied_id_)
      throw std::runtime_error("the base does not contain all updates up to its id");
  }

  std::unique_ptr<Log> log_;
  std::optional<Uuid> uuid_;
  UpdateId applied_id_ = 0;
  std::map<unsigned, std::uint64_t> sequences_;
};

}  // namespace log_contract

class LogContract : public ::testing::TestWithParam<LogUnderTest> {
 protected:
  using Appended = Log::Appended;

  void SetUp() override {
    store = GetParam().make_store();
    log = store->open();
  }

  // Checks the number of updates in the store, if the store can report it.
  void expect_stored_updates(std::uint64_t count) {
    EXPECT_EQ(store->stored_updates().value_or(count), count);
  }

  // Runs writers, rewriters and readers concurrently, each with its own log from `open`.
  template <typename Open>
  void run_concurrently(unsigned writers, std::uint64_t appends_each, unsigned rewriters,
                        unsigned readers, const Open& open) {
    using log_contract::Machine;
    const std::uint64_t all = writers * appends_each;
    log_contract::WorkerGroup workers(store->is_shared_by_processes());
    for (unsigned writer = 0; writer < writers; ++writer) {
      workers.add([=] {
        Machine machine(open());
        for (std::uint64_t sequence = 1; sequence <= appends_each; ++sequence)
          machine.write(writer, sequence);
      });
    }
    for (unsigned rewriter = 0; rewriter < rewriters; ++rewriter) {
      workers.add([=] {
        Machine machine(open());
        while (machine.sum() < all) {
          machine.rewrite();
          std::this_thread::sleep_for(std::chrono::milliseconds(5 + 7 * rewriter));
        }
      });
    }
    for (unsigned reader = 0; reader < readers; ++reader) {
      workers.add([=] {
        Machine machine(open());
        while (machine.sum() < all) machine.follow();
      });
    }
    workers.wait();

    Machine machine(store->open());
    machine.settle();
    EXPECT_EQ(machine.applied_id(), all);
    for (unsigned writer = 0; writer < writers; ++writer)
      EXPECT_EQ(machine.sequence_of(writer), appends_each) << writer;
    machine.rewrite();
    expect_stored_updates(0);
  }

  std::unique_ptr<LogStore> store;
  std::unique_ptr<Log> log;
};

// --- Updates. ---

TEST_P(LogContract, new_log_is_empty) {
  const Extent extent = log->extent();

  EXPECT_NE(extent.uuid, Uuid{});
  EXPECT_EQ(extent.base, 0);
  EXPECT_EQ(extent.base_chain, 0);
  EXPECT_EQ(extent.head, 0);
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(1, 0));
  EXPECT_TRUE(log_contract::parts_of(*log).empty());
  EXPECT_FALSE(log->name().empty());
}

TEST_P(LogContract, ids_are_dense_from_one_and_read_in_order) {
  for (UpdateId id = 1; id <= 50; ++id) {
    ASSERT_EQ(log->append(id, log_contract::bytes_of(id)), Appended::yes);
    ASSERT_EQ(log->extent().head, id);
  }
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(1, 50));
}

TEST_P(LogContract, first_of_two_appends_at_same_id_wins) {
  const auto other = store->open();
  ASSERT_EQ(log->append(1, "first"), Appended::yes);

  EXPECT_EQ(other->append(1, "second"), Appended::taken);
  EXPECT_EQ(log->append(1, "first"), Appended::taken);

  EXPECT_EQ(log_contract::updates_of(*log),
            (std::vector<log_contract::StoredUpdate>{{1, "first"}}));
}

TEST_P(LogContract, exactly_one_of_concurrent_appends_at_same_id_wins) {
  constexpr unsigned writers = 8;
  constexpr UpdateId ids = 25;
  std::atomic<unsigned> winners{0};
  std::vector<std::thread> threads;
  for (unsigned writer = 0; writer < writers; ++writer) {
    threads.emplace_back([&, writer] {
      const auto own = store->open();
      for (UpdateId id = 1; id <= ids; ++id) {
        if (own->append(id, "by " + std::to_string(writer)) == Appended::yes) ++winners;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();

  EXPECT_EQ(winners, ids);
  EXPECT_EQ(log->extent().head, ids);
}

TEST_P(LogContract, log_object_serves_concurrent_threads) {
  constexpr unsigned writers = 4;
  constexpr std::uint64_t appends_each = 30;
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  const auto append_next = [&](const std::string& bytes) {
    try {
      return log->append(log->extent().head + 1, bytes) == Appended::yes;
    } catch (const Error& error) {
      // A log may drop its connection between two calls, and then requires a read before the next
      // append.
      EXPECT_EQ(error.kind(), ErrorKind::unavailable) << error.what();
      log_contract::updates_of(*log, 1);
      return false;
    }
  };
  for (unsigned writer = 0; writer < writers; ++writer) {
    threads.emplace_back([&, writer] {
      for (std::uint64_t sequence = 1; sequence <= appends_each; ++sequence) {
        const std::string bytes = std::to_string(writer) + ' ' + std::to_string(sequence);
        while (!append_next(bytes)) {
        }
      }
    });
  }
  std::thread reader([&] {
    UpdateId seen = 0;
    while (!done) {
      const auto updates = log_contract::updates_of(*log, seen + 1);
      for (const auto& update : updates) EXPECT_EQ(update.id, ++seen);
    }
  });
  for (std::thread& thread : threads) thread.join();
  done = true;
  reader.join();

  EXPECT_EQ(log->extent().head, writers * appends_each);
}

TEST_P(LogContract, update_is_visible_to_all_when_append_returns) {
  const auto other = store->open();
  for (UpdateId id = 1; id <= 20; ++id) {
    ASSERT_EQ((id % 2 ? log : other)->append(id, log_contract::bytes_of(id)), Appended::yes);
    EXPECT_EQ(other->extent().head, id);
    EXPECT_EQ(log->extent().head, id);
    EXPECT_EQ(log_contract::updates_of(*(id % 2 ? other : log), id),
              log_contract::expected_updates(id, id));
  }
}

TEST_P(LogContract, read_visits_given_range_and_stops_on_false) {
  log_contract::append_up_to(*log, 30);
  EXPECT_EQ(log_contract::updates_of(*log, 11, 20), log_contract::expected_updates(11, 20));
  EXPECT_EQ(log_contract::updates_of(*log, 30, 30), log_contract::expected_updates(30, 30));
  EXPECT_EQ(log_contract::updates_of(*log, 25, 1000), log_contract::expected_updates(25, 30));
  EXPECT_EQ(log_contract::updates_of(*log, 31), log_contract::expected_updates(1, 0));
  EXPECT_EQ(log_contract::updates_of(*log, 20, 10), log_contract::expected_updates(1, 0));
  EXPECT_EQ(log_contract::updates_of(*log, 0), log_contract::expected_updates(1, 30));

  std::vector<UpdateId> visited;
  const Extent extent = log->read(5, log_contract::no_end, [&](UpdateId id, std::string_view) {
    visited.push_back(id);
    return id < 8;
  });
  EXPECT_EQ(visited, (std::vector<UpdateId>{5, 6, 7, 8}));
  EXPECT_EQ(extent.head, 30);
}

TEST_P(LogContract, exception_of_visit_propagates_from_read) {
  log_contract::append_up_to(*log, 5);
  const auto refuse = [](UpdateId id, std::string_view) -> bool {
    if (id == 3) throw std::runtime_error("enough");
    return true;
  };
  EXPECT_THROW(log->read(1, log_contract::no_end, refuse), std::runtime_error);
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(1, 5));
}

TEST_P(LogContract, append_during_read_succeeds) {
  log_contract::append_up_to(*log, 5);
  log->read(1, 5, [&](UpdateId id, std::string_view) {
    EXPECT_EQ(log->append(5 + id, log_contract::bytes_of(5 + id)), Appended::yes);
    return true;
  });
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(1, 10));
}

TEST_P(LogContract, arbitrary_bytes_round_trip) {
  std::string every_byte;
  for (int byte = 0; byte < 256; ++byte) every_byte += static_cast<char>(byte);
  std::vector<std::string> samples{std::string(1, '\0'), "x", every_byte, std::string("\0\0\0", 3),
                                   "'; DROP TABLE logs; --\n\xff\xfe"};
  std::mt19937_64 random(1);
  for (const std::size_t size : {std::size_t{1} << 20, std::size_t{16} << 20}) {
    std::string& bytes = samples.emplace_back(size, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
  }
  for (std::size_t i = 0; i < samples.size(); ++i)
    ASSERT_EQ(log->append(i + 1, samples[i]), Appended::yes);

  const auto updates = log_contract::updates_of(*store->open());
  ASSERT_EQ(updates.size(), samples.size());
  for (std::size_t i = 0; i < samples.size(); ++i)
    EXPECT_TRUE(updates[i].bytes == samples[i]) << "update " << i + 1;
}

TEST_P(LogContract, one_read_visits_many_updates) {
  constexpr UpdateId count = 300;
  const auto bytes = [](UpdateId id) {
    return std::to_string(id) + std::string(id % 7 * 5'000, 'x');
  };
  for (UpdateId id = 1; id <= count; ++id) ASSERT_EQ(log->append(id, bytes(id)), Appended::yes);

  const auto updates = log_contract::updates_of(*log);
  ASSERT_EQ(updates.size(), count);
  for (UpdateId id = 1; id <= count; ++id)
    ASSERT_TRUE(updates[id - 1].id == id && updates[id - 1].bytes == bytes(id)) << id;
}

TEST_P(LogContract, reopened_log_is_unchanged) {
  log_contract::append_up_to(*log, 10);
  ASSERT_TRUE(log_contract::rewrite(*log, 4, {"a", "b"}));
  const Extent before = log->extent();

  log.reset();
  log = store->open();

  const Extent after = log->extent();
  EXPECT_EQ(after.uuid, before.uuid);
  EXPECT_EQ(after.base, 4);
  EXPECT_EQ(after.base_chain, log_contract::chain_of(4));
  EXPECT_EQ(after.head, 10);
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(5, 10));
  EXPECT_EQ(log_contract::parts_of(*log), (std::vector<std::string>{"a", "b"}));
}

TEST_P(LogContract, two_logs_have_different_uuids) {
  const auto other_store = GetParam().make_store();
  EXPECT_NE(other_store->open()->extent().uuid, log->extent().uuid);
}

TEST_P(LogContract, instances_are_isolated) {
  const auto other = store->open_other_instance();
  if (!other) GTEST_SKIP() << "this store holds one log";
  log_contract::append_up_to(*log, 10);
  ASSERT_EQ(other->append(1, "other"), Appended::yes);
  ASSERT_TRUE(log_contract::rewrite(*log, 8, {"part"}));

  EXPECT_NE(other->extent().uuid, log->extent().uuid);
  EXPECT_EQ(other->extent().base, 0);
  EXPECT_EQ(log_contract::updates_of(*other),
            (std::vector<log_contract::StoredUpdate>{{1, "other"}}));
  EXPECT_TRUE(log_contract::parts_of(*other).empty());
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(9, 10));
}

TEST_P(LogContract, concurrent_opens_of_new_log_agree_on_uuid) {
  for (int round = 0; round < 5; ++round) {
    store = GetParam().make_store();
    std::vector<Uuid> uuids(4);
    std::vector<std::thread> threads;
    for (Uuid& uuid : uuids) threads.emplace_back([&] { uuid = store->open()->extent().uuid; });
    for (std::thread& thread : threads) thread.join();
    for (const Uuid& uuid : uuids) EXPECT_EQ(uuid, uuids[0]);
  }
}

TEST_P(LogContract, externally_deleted_log_is_unavailable_until_created_again) {
  log_contract::append_up_to(*log, 10);
  const Uuid before = log->extent().uuid;
  if (!store->delete_externally()) GTEST_SKIP() << "this store cannot delete its log";

  EXPECT_EQ(log_contract::error_kind_of([&] { log->extent(); }), ErrorKind::unavailable);
  EXPECT_EQ(log_contract::error_kind_of([&] { log->append(11, "lost"); }), ErrorKind::unavailable);
  EXPECT_EQ(log_contract::error_kind_of([&] { log_contract::updates_of(*log); }),
            ErrorKind::unavailable);

  const auto recreated = store->open();
  ASSERT_EQ(recreated->append(1, "new"), Appended::yes);
  EXPECT_EQ(log->append(2, "by a writer of the old log"), Appended::taken);
  EXPECT_NE(log->extent().uuid, before);
  EXPECT_EQ(log->extent().uuid, recreated->extent().uuid);
  EXPECT_EQ(log_contract::updates_of(*log), (std::vector<log_contract::StoredUpdate>{{1, "new"}}));
  EXPECT_EQ(log->append(2, "by a writer that has read again"), Appended::yes);
}

// --- Base. ---

TEST_P(LogContract, base_replaces_updates_up_to_its_id) {
  log_contract::append_up_to(*log, 10);

  EXPECT_TRUE(log_contract::rewrite(*log, 7, {"part 0", std::string("part\0 1", 7), "part 2"}));

  const auto other = store->open();
  for (Log* each : {log.get(), other.get()}) {
    const Extent extent = each->extent();
    EXPECT_EQ(extent.base, 7);
    EXPECT_EQ(extent.base_chain, log_contract::chain_of(7));
    EXPECT_EQ(extent.head, 10);
    EXPECT_EQ(log_contract::parts_of(*each),
              (std::vector<std::string>{"part 0", std::string("part\0 1", 7), "part 2"}));
    EXPECT_EQ(log_contract::updates_of(*each, 8), log_contract::expected_updates(8, 10));
    EXPECT_EQ(log_contract::updates_of(*each, 1), log_contract::expected_updates(8, 10));
  }
  expect_stored_updates(3);
  EXPECT_EQ(log->append(11, log_contract::bytes_of(11)), Appended::yes);
}

TEST_P(LogContract, read_base_stops_on_false) {
  log_contract::append_up_to(*log, 3);
  log_contract::rewrite(*log, 3, {"a", "b", "c"});
  std::vector<std::string> parts;
  log->read_base([&](std::string_view part) {
    parts.emplace_back(part);
    return parts.size() < 2;
  });
  EXPECT_EQ(parts, (std::vector<std::string>{"a", "b"}));
}

TEST_P(LogContract, ids_continue_after_rewrite_up_to_head) {
  log_contract::append_up_to(*log, 20);
  ASSERT_TRUE(log_contract::rewrite(*log, 20, {"all"}));
  EXPECT_EQ(log->extent().head, 20);
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(1, 0));

  EXPECT_EQ(log->append(20, "again"), Appended::below_base);
  EXPECT_EQ(log->append(21, log_contract::bytes_of(21)), Appended::yes);
  EXPECT_EQ(log->extent().head, 21);
  EXPECT_EQ(log_contract::updates_of(*store->open()), log_contract::expected_updates(21, 21));
}

TEST_P(LogContract, rewrite_to_same_or_lower_base_changes_nothing) {
  log_contract::append_up_to(*log, 10);
  EXPECT_FALSE(log_contract::rewrite(*log, 0, {"nothing"}));
  EXPECT_EQ(log->extent().base, 0);
  ASSERT_TRUE(log_contract::rewrite(*log, 5, {"five"}));

  EXPECT_FALSE(log_contract::rewrite(*log, 5, {"other five"}));
  EXPECT_FALSE(log_contract::rewrite(*log, 3, {"three"}));
  EXPECT_EQ(log->extent().base, 5);
  EXPECT_EQ(log_contract::parts_of(*log), (std::vector<std::string>{"five"}));

  EXPECT_TRUE(log_contract::rewrite(*log, 6, {"six"}));
  EXPECT_EQ(log->extent().base, 6);
  EXPECT_EQ(log_contract::parts_of(*log), (std::vector<std::string>{"six"}));
}

TEST_P(LogContract, rewrite_beyond_head_is_invalid) {
  log_contract::append_up_to(*log, 5);
  EXPECT_EQ(log_contract::error_kind_of([&] { log_contract::rewrite(*log, 6, {"six"}); }),
            ErrorKind::invalid);
  EXPECT_EQ(log->extent().base, 0);
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(1, 5));
}

TEST_P(LogContract, base_of_many_and_large_parts_round_trips) {
  log_contract::append_up_to(*log, 3);
  std::vector<std::string> parts;
  for (int i = 0; i < 100; ++i) parts.push_back("part " + std::to_string(i));
  parts.push_back(std::string(std::size_t{4} << 20, 'x'));
  parts.push_back("last");
  ASSERT_TRUE(log_contract::rewrite(*log, 2, parts));
  EXPECT_TRUE(log_contract::parts_of(*store->open()) == parts);
}

TEST_P(LogContract, stale_append_below_base_is_refused) {
  // Given a writer that has applied update 5 and then pauses.
  const auto stale = store->open();
  log_contract::append_up_to(*log, 5);
  ASSERT_EQ(stale->extent().head, 5);

  // When a rewrite passes it, so that the slots up to 8 are empty again,
  log_contract::append_up_to(*log, 10);
  ASSERT_TRUE(log_contract::rewrite(*log, 8, {"base"}));

  // then its append is refused at every id below the base,
  for (const UpdateId id : {6, 7, 8, 1})
    EXPECT_EQ(stale->append(id, "stray"), Appended::below_base) << id;

  // and no process ever sees the update.
  const auto newcomer = store->open();
  for (Log* each : {log.get(), stale.get(), newcomer.get()}) {
    EXPECT_EQ(log_contract::updates_of(*each), log_contract::expected_updates(9, 10));
    EXPECT_EQ(each->extent().head, 10);
  }
  EXPECT_EQ(stale->append(10, "late"), Appended::taken);
  ASSERT_TRUE(log_contract::rewrite(*log, 10, {"base"}));
  EXPECT_EQ(log->extent().head, 10);
  expect_stored_updates(0);
}

TEST_P(LogContract, stale_append_at_base_equal_to_head_is_refused) {
  const auto stale = store->open();
  log_contract::append_up_to(*log, 5);
  ASSERT_EQ(stale->extent().head, 5);
  log_contract::append_up_to(*log, 6);
  ASSERT_TRUE(log_contract::rewrite(*log, 6, {"base"}));

  EXPECT_EQ(stale->append(6, "stray"), Appended::below_base);
  EXPECT_EQ(log->extent().head, 6);
  EXPECT_EQ(stale->append(7, log_contract::bytes_of(7)), Appended::yes);
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(7, 7));
}

TEST_P(LogContract, stray_update_below_base_is_hidden_and_deleted_by_rewrite) {
  log_contract::append_up_to(*log, 10);
  ASSERT_TRUE(log_contract::rewrite(*log, 10, {"base"}));
  if (!store->put_stray(6, "stray") || !store->put_stray(10, "stray"))
    GTEST_SKIP() << "this store cannot have strays";

  const auto newcomer = store->open();
  for (Log* each : {log.get(), newcomer.get()}) {
    EXPECT_EQ(each->extent().head, 10);
    EXPECT_EQ(log_contract::updates_of(*each), log_contract::expected_updates(1, 0));
    EXPECT_EQ(each->append(6, "another"), Appended::below_base);
  }
  EXPECT_EQ(log->append(11, log_contract::bytes_of(11)), Appended::yes);
  ASSERT_TRUE(log_contract::rewrite(*log, 11, {"base"}));
  EXPECT_EQ(log->extent().head, 11);
  expect_stored_updates(0);
}

TEST_P(LogContract, stale_follower_reads_base_and_no_replaced_update) {
  // Given a follower that has applied update 3.
  const auto stale = store->open();
  log_contract::append_up_to(*log, 10);
  ASSERT_TRUE(log_contract::rewrite(*log, 7, {"base"}));

  // When it reads on from its last update, it gets the new base and no update that the base
  // replaced.
  std::vector<UpdateId> visited;
  const Extent extent = stale->read(3, log_contract::no_end, [&](UpdateId id, std::string_view) {
    visited.push_back(id);
    return true;
  });
  EXPECT_EQ(extent.base, 7);
  EXPECT_EQ(extent.head, 10);
  for (const UpdateId id : visited) EXPECT_GT(id, 7);
}

TEST_P(LogContract, rewrite_during_read_leaves_no_gap) {
  log_contract::append_up_to(*log, 40);
  const auto other = store->open();
  for (const UpdateId overtaken_at : {1, 10, 20}) {
    const UpdateId first = log->extent().base + 1;
    std::vector<UpdateId> visited;
    const Extent extent =
        log->read(first, log_contract::no_end, [&](UpdateId id, std::string_view) {
          if (id == first) {
            EXPECT_TRUE(log_contract::rewrite(*other, first + overtaken_at, {"base"}));
          }
          visited.push_back(id);
          return true;
        });
    for (std::size_t i = 0; i < visited.size(); ++i) EXPECT_EQ(visited[i], first + i);
    EXPECT_TRUE(extent.base > first || visited.size() == extent.head - first + 1)
        << "a gap that the extent does not report";
  }
}

TEST_P(LogContract, base_replaced_during_read_base_is_not_mixed) {
  log_contract::append_up_to(*log, 10);
  ASSERT_TRUE(log_contract::rewrite(*log, 5, {"old 0", "old 1", "old 2"}));
  const auto other = store->open();
  std::vector<std::string> parts;
  const auto error = log_contract::error_kind_of([&] {
    log->read_base([&](std::string_view part) {
      if (parts.empty()) {
        EXPECT_TRUE(log_contract::rewrite(*other, 8, {"new 0", "new 1"}));
      }
      parts.emplace_back(part);
      return true;
    });
  });
  if (error) {
    EXPECT_EQ(error, ErrorKind::unavailable);
  } else {
    EXPECT_EQ(parts, (std::vector<std::string>{"old 0", "old 1", "old 2"}));
  }
  EXPECT_EQ(log_contract::parts_of(*log), (std::vector<std::string>{"new 0", "new 1"}));
}

// --- Concurrent and killed rewriters. ---

TEST_P(LogContract, rewrite_overtaken_by_higher_base_changes_nothing) {
  log_contract::append_up_to(*log, 10);
  const auto other = store->open();
  log_contract::PartList slow({"slow 0", "slow 1"});
  auto next = slow.next();
  int calls = 0;
  const bool switched = log->rewrite(5, log_contract::chain_of(5), [&] {
    if (++calls == 2) {
      EXPECT_TRUE(log_contract::rewrite(*other, 7, {"fast"}));
    }
    return next();
  });
  EXPECT_FALSE(switched);
  EXPECT_EQ(log->extent().base, 7);
  EXPECT_EQ(log_contract::parts_of(*log), (std::vector<std::string>{"fast"}));
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(8, 10));
}

TEST_P(LogContract, rewrite_replaces_lower_base_switched_concurrently) {
  log_contract::append_up_to(*log, 10);
  const auto other = store->open();
  log_contract::PartList slow({"slow 0", "slow 1"});
  auto next = slow.next();
  int calls = 0;
  const bool switched = log->rewrite(9, log_contract::chain_of(9), [&] {
    if (++calls == 2) {
      EXPECT_TRUE(log_contract::rewrite(*other, 7, {"fast"}));
    }
    return next();
  });
  EXPECT_TRUE(switched);
  EXPECT_EQ(log->extent().base, 9);
  EXPECT_EQ(log_contract::parts_of(*log), (std::vector<std::string>{"slow 0", "slow 1"}));
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(10, 10));
}

TEST_P(LogContract, second_of_concurrent_rewrites_at_same_base_changes_nothing) {
  log_contract::append_up_to(*log, 10);
  const auto other = store->open();
  log_contract::PartList slow({"slow 0", "slow 1", "slow 2"});
  auto next = slow.next();
  int calls = 0;
  const bool switched = log->rewrite(6, log_contract::chain_of(6), [&] {
    if (++calls == 2) {
      EXPECT_TRUE(log_contract::rewrite(*other, 6, {"fast 0", "fast 1"}));
    }
    return next();
  });
  EXPECT_FALSE(switched);
  EXPECT_EQ(log_contract::parts_of(*log), (std::vector<std::string>{"fast 0", "fast 1"}));
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(7, 10));
}

TEST_P(LogContract, concurrent_rewriters_leave_highest_base_intact) {
  log_contract::append_up_to(*log, 40);
  std::vector<std::thread> threads;
  std::atomic<int> switches{0};
  for (UpdateId rewriter = 0; rewriter < 4; ++rewriter) {
    threads.emplace_back([&, rewriter] {
      const auto own = store->open();
      for (UpdateId base = 10 + rewriter; base <= 36; base += 3) {
        const std::string part = "as of " + std::to_string(base);
        try {
          if (log_contract::rewrite(*own, base, {part, part, part})) ++switches;
        } catch (const Error& error) {
          ADD_FAILURE() << error.what();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();

  const Extent extent = log->extent();
  EXPECT_EQ(extent.base, 36);
  EXPECT_GE(switches, 1);
  const std::string part = "as of " + std::to_string(extent.base);
  EXPECT_EQ(log_contract::parts_of(*log), (std::vector<std::string>{part, part, part}));
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(37, 40));
}

TEST_P(LogContract, failed_rewrite_changes_nothing_and_next_one_succeeds) {
  log_contract::append_up_to(*log, 10);
  for (int failing = 0; failing < 4; ++failing) {
    log_contract::PartList list({"a", "b", "c", "d"});
    auto next = list.next();
    int part = 0;
    const auto fails = [&]() -> std::optional<std::string_view> {
      if (part++ == failing) throw std::runtime_error("state is damaged");
      return next();
    };
    EXPECT_THROW(log->rewrite(6, log_contract::chain_of(6), fails), std::runtime_error);
    EXPECT_EQ(log->extent().base, 0);
    EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(1, 10));
  }
  EXPECT_TRUE(log_contract::rewrite(*log, 6, {"good"}));
  EXPECT_EQ(log_contract::parts_of(*log), (std::vector<std::string>{"good"}));
}

TEST_P(LogContract, rewriter_killed_at_any_part_leaves_log_unchanged) {
  if (!store->is_shared_by_processes()) GTEST_SKIP() << "this log lives in one process";
  log_contract::append_up_to(*log, 10);
  constexpr int parts = 5;
  for (int killed_at = 0; killed_at <= parts; ++killed_at) {
    Child rewriter([&] {
      int part = 0;
      store->open()->rewrite(
          8, log_contract::chain_of(8), [&]() -> std::optional<std::string_view> {
            if (part == killed_at) ::raise(SIGKILL);
            return part++ < parts ? std::optional<std::string_view>("part of a killed rewriter")
                                  : std::nullopt;
          });
    });
    ASSERT_EQ(rewriter.wait(), -SIGKILL);
    EXPECT_EQ(log->extent().base, 0);
    EXPECT_TRUE(log_contract::parts_of(*log).empty());
    EXPECT_EQ(log_contract::updates_of(*store->open()), log_contract::expected_updates(1, 10));
  }
  EXPECT_TRUE(log_contract::rewrite(*log, 8, {"good 0", "good 1"}));
  EXPECT_EQ(log_contract::parts_of(*log), (std::vector<std::string>{"good 0", "good 1"}));
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(9, 10));
}

TEST_P(LogContract, rewriter_killed_at_random_time_leaves_old_or_new_base) {
  if (!store->is_shared_by_processes()) GTEST_SKIP() << "this log lives in one process";
  const std::uint64_t seed = log_contract::new_seed();
  SCOPED_TRACE("WHYCACHE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  const auto part_of = [](UpdateId base, int part) {
    return "as of " + std::to_string(base) + " part " + std::to_string(part);
  };
  std::uint64_t delay_us_max = 2'000;  // adapts to the duration of a rewrite
  int killed = 0;
  for (int round = 0; round < 200 && killed < 20; ++round) {
    log_contract::append_up_to(*log, log->extent().head + 10);
    const Extent before = log->extent();
    const UpdateId base = before.head - 3;
    Child rewriter([&] {
      log_contract::rewrite(*store->open(), base,
                            {part_of(base, 0), part_of(base, 1), part_of(base, 2)});
    });
    std::this_thread::sleep_for(std::chrono::microseconds(random() % delay_us_max));
    rewriter.kill();
    if (rewriter.wait() == 0) {
      delay_us_max = std::max<std::uint64_t>(delay_us_max * 3 / 4, 50);
    } else {
      delay_us_max = std::min<std::uint64_t>(delay_us_max * 5 / 4, 200'000);
      ++killed;
    }

    // A server may still be running the switch that the killed process requested.
    std::this_thread::sleep_for(
        std::chrono::milliseconds(store->outlives_killed_clients() ? 50 : 0));
    const Extent after = log->extent();
    ASSERT_TRUE(after.base == before.base || after.base == base) << after.base;
    EXPECT_EQ(after.head, before.head);
    EXPECT_EQ(log_contract::updates_of(*log, after.base + 1),
              log_contract::expected_updates(after.base + 1, after.head));
    const auto parts = log_contract::parts_of(*log);
    ASSERT_EQ(parts.size(), after.base == 0 ? 0 : 3);
    for (int part = 0; part < static_cast<int>(parts.size()); ++part)
      EXPECT_EQ(parts[static_cast<std::size_t>(part)], part_of(after.base, part));
  }
  EXPECT_GT(killed, 0);
  const UpdateId head = log->extent().head;
  EXPECT_TRUE(log_contract::rewrite(*log, head, {"end"}));
  expect_stored_updates(0);
}

// --- Concurrent processes. ---

TEST_P(LogContract, concurrent_writers_rewriters_and_readers_lose_and_duplicate_nothing) {
  constexpr unsigned writers = 8;
  log.reset();
  run_concurrently(writers, GetParam().concurrent_append_count / writers, 2, 2,
                   [this] { return store->open(); });
}

TEST_P(LogContract, concurrent_writers_resolve_uncertain_appends_of_flaky_log) {
  const std::uint64_t seed = log_contract::new_seed();
  SCOPED_TRACE("WHYCACHE_TEST_SEED=" + std::to_string(seed));
  constexpr unsigned writers = 4;
  log.reset();
  std::atomic<std::uint64_t> opened{0};
  // A child inherits the counter of its parent, so the seed includes the process id.
  const auto open = [&]() -> std::unique_ptr<Log> {
    const std::uint64_t own =
        seed + ++opened +
        (store->is_shared_by_processes() ? static_cast<std::uint64_t>(::getpid()) : 0);
    return std::make_unique<FlakyLog>(store->open(), own);
  };
  run_concurrently(writers, GetParam().concurrent_append_count / 4 / writers, 1, 1, open);
}

TEST_P(LogContract, acknowledged_updates_survive_killed_writer) {
  if (!store->is_shared_by_processes()) GTEST_SKIP() << "this log lives in one process";
  const std::uint64_t seed = log_contract::new_seed();
  SCOPED_TRACE("WHYCACHE_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 30; ++round) {
    // Given two writers that report each acknowledged update,
    int pipe_ends[2];
    ASSERT_EQ(::pipe(pipe_ends), 0);
    std::vector<Child> writers;
    for (int writer = 0; writer < 2; ++writer) {
      writers.emplace_back([&] {
        const auto own = store->open();
        for (UpdateId id = own->extent().head + 1;;) {
          if (own->append(id, log_contract::bytes_of(id)) == Appended::yes) {
            if (::write(pipe_ends[1], &id, sizeof id) != sizeof id) return;
          }
          ++id;
        }
      });
    }
    // when they are killed,
    std::this_thread::sleep_for(std::chrono::microseconds(2'000 + random() % 10'000));
    for (Child& writer : writers) writer.kill();
    for (Child& writer : writers) EXPECT_EQ(writer.wait(), -SIGKILL);
    ::close(pipe_ends[1]);

    // then every acknowledged update and all before it are intact.
    UpdateId acknowledged = 0;
    for (UpdateId id; ::read(pipe_ends[0], &id, sizeof id) == sizeof id;)
      acknowledged = std::max(acknowledged, id);
    ::close(pipe_ends[0]);
    const UpdateId head = log->extent().head;
    EXPECT_GE(head, acknowledged);
    // A server may still be running the last request of a killed process, which comes after the
    // head.
    ASSERT_EQ(log_contract::updates_of(*log, 1, head), log_contract::expected_updates(1, head));
  }
}

// --- Waiting. ---

TEST_P(LogContract, wait_without_an_update_ends_after_its_time) {
  log_contract::append_up_to(*log, 1);
  const auto began = std::chrono::steady_clock::now();
  // A log may wake a waiter for nothing, until it reads.
  while (log->wait(1, std::chrono::milliseconds(50))) {
    EXPECT_EQ(log->extent().head, 1U);
    ASSERT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
  EXPECT_FALSE(log->wait(1, std::chrono::nanoseconds(0)) && !log->notifies());
}

TEST_P(LogContract, wait_for_existing_update_returns_at_once_if_log_notifies) {
  log_contract::append_up_to(*log, 2);
  log->wait(2, std::chrono::milliseconds(1));
  ASSERT_TRUE(log->notifies() || !store->must_notify());
  if (!log->notifies()) GTEST_SKIP() << "this log does not notify";
  const auto began = std::chrono::steady_clock::now();
  EXPECT_TRUE(log->wait(1, std::chrono::seconds(60)));
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
}

// Several threads wait, since one object serves all threads of a process.
TEST_P(LogContract, append_wakes_all_waiters_if_the_log_notifies) {
  log->wait(0, std::chrono::milliseconds(1));
  ASSERT_TRUE(log->notifies() || !store->must_notify());
  if (!log->notifies()) GTEST_SKIP() << "this log does not notify";
  const std::unique_ptr<Log> writer = store->open();
  constexpr UpdateId rounds = 20;
  std::atomic<UpdateId> seen[3] = {};
  std::vector<std::thread> waiters;
  for (std::atomic<UpdateId>& head : seen) {
    waiters.emplace_back([&] {
      while (head < rounds) {
        log->wait(head, std::chrono::seconds(60));
        head = log->extent().head;
      }
    });
  }
  const auto began = std::chrono::steady_clock::now();
  for (UpdateId id = 1; id <= rounds; ++id) {
    log_contract::append_up_to(*writer, id);
    for (const std::atomic<UpdateId>& head : seen) {
      while (head < id && std::chrono::steady_clock::now() - began < std::chrono::seconds(50))
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      EXPECT_EQ(head, id);
    }
  }
  // A lost wake-up would have cost a minute.
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(50));
  for (std::thread& waiter : waiters) waiter.join();
}

TEST_P(LogContract, child_may_destroy_log_that_threads_of_parent_wait_for) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "NOT TESTED: ThreadSanitizer takes the parent's threads for the child's";
#endif
  std::atomic<int> waiting = 0;
  std::vector<std::thread> waiters;
  for (int i = 0; i < 2; ++i) {
    waiters.emplace_back([&] {
      ++waiting;
      log->wait(0, std::chrono::milliseconds(800));
      log->wait(0, std::chrono::milliseconds(800));  // the first one may only have connected
    });
  }
  while (waiting < 2) std::this_thread::yield();
  for (int round = 0; round < 4; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    Child child([&] {
      ::alarm(20);
      log.reset();
    });
    EXPECT_EQ(child.wait(), 0);
  }
  for (std::thread& waiter : waiters) waiter.join();
}

TEST_P(LogContract, parent_and_child_append_after_fork) {
  if (!store->is_shared_by_processes()) GTEST_SKIP() << "this log lives in one process";
  log_contract::append_up_to(*log, 3);
  const Uuid uuid = log->extent().uuid;
  for (int round = 0; round < 3; ++round) {
    Child child([&] {
      const std::unique_ptr<Log> fresh = log->reopen();
      Log& own = fresh ? *fresh : *log;
      const Extent extent = own.extent();
      if (extent.uuid != uuid) throw std::runtime_error("the child sees another log");
      const UpdateId id = extent.head + 1;
      if (own.append(id, log_contract::bytes_of(id)) != Appended::yes)
        throw std::runtime_error("the child cannot append");
      log.reset();  // as when the child exits
    });
    ASSERT_EQ(child.wait(), 0);
    log_contract::append_up_to(*log, log->extent().head + 1);
  }
  EXPECT_EQ(log_contract::updates_of(*log), log_contract::expected_updates(1, 9));
}

}  // namespace whycache

// INSTANTIATE_TEST_SUITE_P takes no qualified name.
using whycache::LogContract;
