// A writer may be killed between any two instructions. These tests walk a writer through its work
// store by store (walked_writer.h) and copy the file in between. The next writer has to recover
// each copy.
//
// The tests examine the file before and after each store that publishes something, before the first
// stores of each instruction, and before a sample of all stores. WHYCACHE_STEPS is the size of the
// sample. WHYCACHE_STEPS=all examines the file before every store.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <random>
#include <string_view>

#include "base/file.h"
#include "base/hash.h"
#include "state/colliding_keys.h"
#include "state/file/layout.h"
#include "state/file/lock_file.h"
#include "state/file/state_change.h"
#include "state/test_state.h"
#include "state/walked_writer.h"
#include "support/child_process.h"
#include "support/seed.h"

namespace whycache {
namespace {

using testing::TemporaryDirectory;
using testing::TestChange;
using testing::TestState;
using testing::WalkedWriter;
using testing::WalkPlan;
using Contents = std::map<std::string, std::string>;
using Changes = std::vector<TestChange>;

constexpr std::uint64_t walked_bytes_max = std::uint64_t{16} << 20;

StateOptions small_state_options() {
  StateOptions options;
  options.bytes_max = walked_bytes_max;
  return options;
}

// A mapping of a whole file, to read or change it while others use it.
class WholeFile {
 public:
  explicit WholeFile(const std::string& path) : file_(open_file(path, O_RDWR)) {
    memory_ =
        ::mmap(nullptr, walked_bytes_max, PROT_READ | PROT_WRITE, MAP_SHARED, file_.number(), 0);
    if (memory_ == MAP_FAILED) throw system_error("cannot map", path, errno);
  }
  ~WholeFile() { ::munmap(memory_, walked_bytes_max); }
  WholeFile(const WholeFile&) = delete;
  WholeFile& operator=(const WholeFile&) = delete;

  std::size_t bytes() const {
    struct stat status;
    if (::fstat(file_.number(), &status) != 0)
      throw system_error("cannot stat", "test file", errno);
    return static_cast<std::size_t>(status.st_size);
  }
  int descriptor() const { return file_.number(); }
  char* data() const { return static_cast<char*>(memory_); }
  Header& header() const { return *static_cast<Header*>(memory_); }
  std::uint64_t hash_of(std::string_view key) const {
    return KeyHash(header().fixed.hash_seed)(key);
  }

 private:
  FileDescriptor file_;
  void* memory_;
};

// Returns changes whose keys all have the same home bucket, and hashes that begin with `top` (of
// `top_bits` bits).
Changes colliding_changes(const std::string& path, std::size_t count, std::uint64_t top,
                          unsigned top_bits, const std::string& name) {
  const WholeFile file(path);
  Changes changes;
  for (std::uint64_t number = 0; changes.size() < count; ++number) {
    const std::string key = name + std::to_string(number);
    const std::uint64_t hash = file.hash_of(key);
    if (home_bucket(hash) != 77 || (top_bits > 0 && hash >> (64 - top_bits) != top)) continue;
    changes.push_back({key, "v" + std::to_string(number)});
  }
  return changes;
}

// An update that a writer is walked through, and the state before it.
struct Scenario {
  std::string name;
  std::function<void(TestState&, const std::string&)> prepare;
  std::function<Changes(const std::string& path)> changes;
  bool erases_all = false;
  std::uint64_t sample = 2000;  // of all stores, unless WHYCACHE_STEPS is set
};

// The update that a writer is walked through, and the contents of the state before and after it.
struct WalkedUpdate {
  UpdateId id = 0;
  Changes changes;
  bool erases_all = false;
  Contents before;
  Contents after;

  const Contents& contents_at(UpdateId applied_id) const {
    return applied_id >= id ? after : before;
  }
};

struct RecoveryCounts {
  std::uint64_t stores = 0;
  std::uint64_t states = 0;
  std::uint64_t failures = 0;
  std::uint64_t rolled_back = 0;
};

class StepLong : public ::testing::Test {
 protected:
  void SetUp() override {
    if (WalkedWriter::unsupported_reason() != nullptr)
      GTEST_SKIP() << "NOT TESTED: " << WalkedWriter::unsupported_reason();
    std::printf("%s\n", testing::seed_note().c_str());
  }

  static auto writer_work(const std::string& path, const WalkedUpdate& update) {
    return [path, changes = update.changes, erases_all = update.erases_all](const auto& ready) {
      const std::unique_ptr<State> state = [&] {
        StateOptions options = small_state_options();
        options.path = path;
        return State::open(options);
      }();
      ready();
      const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
      TestState::apply(*writer, changes, erases_all);
    };
  }

  static Contents contents_after(Contents contents, const Changes& changes, bool erases_all) {
    if (erases_all) contents.clear();
    for (const TestChange& change : changes) {
      if (change.value) {
        contents[change.key] = *change.value;
      } else {
        contents.erase(change.key);
      }
    }
    return contents;
  }

  // A copy of the file under test, which is updated repeatedly, and a state that is open on it.
  class StateCopy {
   public:
    StateCopy(const WholeFile& source, const std::string& path) : source_(source) {
      FileDescriptor created = open_file(path, O_RDWR | O_CREAT | O_EXCL, 0600);
      if (::posix_fallocate(created.number(), 0, static_cast<off_t>(source.bytes())) != 0)
        throw std::runtime_error("no space for a test");
      file_.emplace(path);
      lock_file_.emplace(path + ".lock", 0600, FileOwner::self_or_root, State::default_deadline());
      refresh();
      StateOptions options = small_state_options();
      options.path = path;
      state_ = State::open(options);
      if (!state_->usable())
        throw std::runtime_error("the copy cannot be used: " + state_->unusable_reason());
      if (state_->adopted()) throw std::runtime_error("the copy was adopted as a foreign file");
    }

    State& state() const { return *state_; }

    // Copies the file again.
    void refresh() {
      const std::size_t bytes = source_.bytes();
      if (file_->bytes() < bytes &&
          ::posix_fallocate(file_->descriptor(), 0, static_cast<off_t>(bytes)) != 0) {
        throw std::runtime_error("no space for a test");
      }
      std::memcpy(file_->data() + sizeof(HeaderFixed), source_.data() + sizeof(HeaderFixed),
                  bytes - sizeof(HeaderFixed));
      // The header names the copy's own inode, as that of the original does.
      HeaderFixed fixed = source_.header().fixed;
      set_file_identity(fixed);
      std::memcpy(&file_->header().fixed, &fixed, sizeof fixed);
      note_own_changes(*lock_file_, file_->descriptor());
    }

   private:
    void set_file_identity(HeaderFixed& fixed) const {
      struct statx status;
      if (::statx(file_->descriptor(), "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &status) != 0)
        throw std::runtime_error("cannot stat");
      fixed.inode = status.stx_ino;
      fixed.device = makedev(status.stx_dev_major, status.stx_dev_minor);
      fixed.birth_time_ns = status.stx_btime.tv_sec * 1'000'000'000 + status.stx_btime.tv_nsec;
      fixed.checksum =
          hash64({reinterpret_cast<const char*>(&fixed), offsetof(HeaderFixed, checksum)});
    }

    const WholeFile& source_;
    std::optional<WholeFile> file_;
    std::optional<LockFile> lock_file_;
    std::unique_ptr<State> state_;
  };

  // Recovers the copy as the next writer would, and applies the update if it was rolled back.
  // `number` selects which further checks are made. Returns the fault, or "".
  static std::string recover_and_check(const State& state, const WalkedUpdate& update,
                                       std::uint64_t number, RecoveryCounts& counts) {
    try {
      std::optional<View> before;
      if (number % 2 == 0) before.emplace(state.pin());
      const auto before_changed = [&] {
        return before && TestState::contents(*before) != update.contents_at(before->id());
      };

      const std::vector<std::string> faults = state.check(TestState::deadline(), {});
      if (!faults.empty()) return "check after recovery: " + faults.front();
      const UpdateId found = state.applied_id();
      if (found != update.id && found != update.id - 1)
        return "applied id is " + std::to_string(found);
      if (TestState::contents(View(state.pin())) != update.contents_at(found))
        return "contents after recovery, at " + std::to_string(found);
      if (found == update.id - 1) {
        ++counts.rolled_back;
        const std::unique_ptr<StateWriter> writer = state.begin_write(TestState::deadline());
        TestState::apply(*writer, update.changes, update.erases_all);
      }
      const View after(state.pin());
      if (TestState::contents(after) != update.after) return "contents after applying again";
      std::string value;
      for (const auto& [key, expected] : update.after) {
        if (!state.get(key, value) || value != expected)
          return "key not found after applying again: " + key;
      }
      if (before_changed()) return "previous view changed, at " + std::to_string(before->id());
      if (number % 4 >= 2) return "";

      reuse_space(state, update.changes);
      if (before_changed())
        return "previous view changed later, at " + std::to_string(before->id());
      if (TestState::contents(after) != update.after)
        return "view changed, at " + std::to_string(after.id());
      const std::vector<std::string> later_faults = state.check(TestState::deadline(), {});
      if (!later_faults.empty()) return "check at the end: " + later_faults.front();
    } catch (const std::exception& error) {
      return std::string("threw: ") + error.what();
    }
    return "";
  }

  // Applies two more updates, which reuse the space that recovery freed.
  static void reuse_space(const State& state, const Changes& changes) {
    for (int round = 0; round < 2; ++round) {
      const std::unique_ptr<StateWriter> writer = state.begin_write(TestState::deadline());
      Changes later = changes;
      for (TestChange& change : later) change.value = "later" + std::to_string(round);
      later.push_back({"additional", "1"});
      TestState::apply(*writer, later);
    }
  }

  // Creates the state of the scenario.
  static WalkedUpdate prepare(const Scenario& scenario, const std::string& path) {
    {
      TestState state(path, small_state_options());
      scenario.prepare(state, path);
    }
    WalkedUpdate update;
    update.changes = scenario.changes(path);
    update.erases_all = scenario.erases_all;
    const TestState state(path, small_state_options());
    update.id = state->applied_id() + 1;
    update.before = state.contents();
    update.after = contents_after(update.before, update.changes, update.erases_all);
    return update;
  }

  // Walks a writer through one update and recovers from its death at each stop. If
  // `die_at_permille` is not 0, a first writer dies at that share of its stores, so that the walked
  // writer begins with recovery.
  void walk(const Scenario& scenario, std::uint64_t die_at_permille = 0) {
    const TemporaryDirectory directory("/dev/shm");
    const std::string path = directory.file("walked.state");
    const WalkedUpdate update = prepare(scenario, path);
    ASSERT_EQ(TestState(path, small_state_options()).check(), std::vector<std::string>{})
        << scenario.name;
    const auto work = writer_work(path, update);
    if (die_at_permille != 0) {
      const std::uint64_t stores = stores_on_copy(path, directory.file("dying.state"), update);
      WalkedWriter first(
          {.stop_at_store = std::max<std::uint64_t>(stores * die_at_permille / 1000, 1)},
          walked_bytes_max, work);
      ASSERT_TRUE(first.walk());
    }

    const std::uint64_t stores = stores_on_copy(path, directory.file("counted.state"), update);
    const WholeFile source(path);
    StateCopy copy(source, directory.file("copy.state"));
    RecoveryCounts counts;
    const auto began = std::chrono::steady_clock::now();
    WalkedWriter writer(walk_plan(source, update.changes, stores, scenario.sample),
                        walked_bytes_max, work);
    const auto examine = [&] {
      copy.refresh();
      const std::string fault = recover_and_check(copy.state(), update, random_(), counts);
      ++counts.states;
      if (fault.empty()) return;
      ++counts.failures;
      if (counts.failures <= 5) {
        ADD_FAILURE() << scenario.name << " stores=" << writer.stores()
                      << " die_at=" << die_at_permille << ' ' << testing::seed_note() << ": "
                      << fault;
      }
    };
    examine();
    while (writer.walk()) examine();
    examine();
    counts.stores = writer.stores();
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    std::printf("%-34s stores=%-8lu states=%-6lu rolled_back=%-6lu bad=%lu seconds=%.1f\n",
                (scenario.name +
                 (die_at_permille != 0 ? " again at " + std::to_string(die_at_permille) : ""))
                    .c_str(),
                counts.stores, counts.states, counts.rolled_back, counts.failures, seconds);
    total_.stores += counts.stores;
    total_.states += counts.states;
    total_.failures += counts.failures;
  }

  // Returns the number of stores of the update, counted on a copy.
  static std::uint64_t stores_on_copy(const std::string& path, const std::string& copy_path,
                                      const WalkedUpdate& update) {
    const WholeFile source(path);
    const StateCopy copy(source, copy_path);
    WalkedWriter writer({}, walked_bytes_max, writer_work(copy_path, update));
    while (writer.walk()) {
    }
    return writer.stores();
  }

  // The stores before which the file is examined.
  WalkPlan walk_plan(const WholeFile& source, const Changes& changes, std::uint64_t stores,
                     std::uint64_t default_sample) {
    WalkPlan plan;
    const char* const steps = std::getenv("WHYCACHE_STEPS");
    plan.every_store = steps != nullptr && steps == std::string_view("all");
    const std::uint64_t sample =
        plan.every_store ? 0 : testing::number_from_environment("WHYCACHE_STEPS", default_sample);
    plan.stride = sample == 0 ? 0 : stores / sample + 1;
    plan.seed = random_();
    plan.stores_per_instruction = 2;
    plan.watched_ranges = publication_ranges(source, changes);
    return plan;
  }

  // The bytes whose change publishes something to readers.
  static std::vector<WalkPlan::FileRange> publication_ranges(const WholeFile& source,
                                                             const Changes& changes) {
    std::vector<WalkPlan::FileRange> all;
    all.push_back({offsetof(Header, reclaim_generation),
                   offsetof(Header, published) - offsetof(Header, reclaim_generation)});
    const std::uint64_t word = source.header().index_directory.load();
    const std::uint64_t directory = index_directory_offset(word);
    const unsigned depth = global_depth(word);
    all.push_back({directory, sizeof(IndexWord) << (depth + 1)});  // twice its size: it may double
    for (std::size_t i = 0; i < std::min<std::size_t>(changes.size(), 8); ++i) {
      const std::uint64_t hash = source.hash_of(changes[i].key);
      std::uint64_t slot;
      std::memcpy(&slot,
                  source.data() + directory + index_directory_slot(hash, depth) * sizeof slot,
                  sizeof slot);
      const std::uint64_t bucket = std::min(home_bucket(hash), index_page_buckets - 2);
      all.push_back({index_page_offset(slot) + bucket * bucket_words * sizeof(IndexWord),
                     2 * bucket_words * sizeof(IndexWord)});
    }
    return all;
  }

  void TearDown() override {
    if (total_.states == 0) return;
    std::printf("states=%lu bad=%lu stores=%lu\n", total_.states, total_.failures, total_.stores);
  }

  std::mt19937_64 random_{testing::test_seed()};
  RecoveryCounts total_;
};

// Inserts keys. With the default count, the key index has a few leaves below its root.
void insert_keys(TestState& state, int count = 150) {
  Changes changes;
  for (int i = 0; i < count; ++i)
    changes.push_back({"key/" + std::to_string(1000 + i), "value" + std::to_string(i)});
  state.apply(changes);
}

Scenario update_scenario(const std::string& name, const Changes& changes, bool erases_all = false) {
  return {name, [](TestState& state, const std::string&) { insert_keys(state); },
          [=](const std::string&) { return changes; }, erases_all};
}

TEST_F(StepLong, each_death_in_a_small_update_is_recovered) {
  walk(update_scenario("a new key", {{"new", "1"}}));
  walk(update_scenario("a key overwritten", {{"key/1007", "2"}}));
  walk(update_scenario("a key erased", {{"key/1007", std::nullopt}}));
  walk(update_scenario("a key changed twice", {{"key/1007", "2"},
                                               {"new", "1"},
                                               {"new", std::nullopt},
                                               {"key/1007", std::nullopt},
                                               {"new", "2"}}));
  walk({"an erased key is set again",
        [](TestState& state, const std::string&) {
          insert_keys(state);
          state.apply({{"key/1007", std::nullopt}});
        },
        [](const std::string&) {
          return Changes{{"key/1007", "back"}, {"key/1008", std::nullopt}};
        }});
  walk({"the first key", [](TestState&, const std::string&) {},
        [](const std::string&) {
          return Changes{{"first", "1"}};
        }});
  walk({"the last key is erased",
        [](TestState& state, const std::string&) {
          state.apply({{"last", "1"}});
        },
        [](const std::string&) {
          return Changes{{"last", std::nullopt}};
        }});
}

TEST_F(StepLong, each_death_while_key_index_changes_is_recovered) {
  Changes many;
  for (int i = 0; i < 60; ++i) many.push_back({"key/1050/" + std::to_string(i), "v"});
  walk(update_scenario("leaves split", many));
  Changes erased;
  for (int i = 20; i < 130; ++i)
    erased.push_back({"key/" + std::to_string(1000 + i), std::nullopt});
  walk(update_scenario("leaves merge", erased));
  walk(update_scenario("everything erased", {{"key/1003", "again"}, {"new", "1"}}, true));
}

TEST_F(StepLong, each_death_while_point_index_splits_is_recovered) {
  const auto crowd = [](TestState& state, const std::string& path, std::uint64_t top, unsigned bits,
                        const std::string& name) {
    Changes changes = colliding_changes(path, 64, top, bits, name);
    state.apply(changes);
  };
  const auto one_more = [](std::uint64_t top, unsigned bits, const std::string& name) {
    return [=](const std::string& path) {
      return Changes{colliding_changes(path, 65, top, bits, name).back(), {"key/1001", "2"}};
    };
  };
  walk({"directory doubles, page splits",
        [&](TestState& state, const std::string& path) {
          insert_keys(state, 20);
          crowd(state, path, 0, 0, "a");
        },
        one_more(0, 0, "a")});
  walk({"page of four slots splits",
        [&](TestState& state, const std::string& path) {
          insert_keys(state, 20);
          crowd(state, path, 7, 3, "a");
          state.apply({colliding_changes(path, 65, 7, 3, "a")
                           .back()});  // all in one eighth, so that the directory doubles thrice
          crowd(state, path, 0, 1, "b");
        },
        one_more(0, 1, "b")});
  walk({"page is purged of tombstones",
        [&](TestState& state, const std::string& path) {
          insert_keys(state, 20);
          // Fill the page with tombstones, as if many keys had been inserted and erased.
          const WholeFile file(path);
          std::uint64_t slot;
          std::memcpy(&slot,
                      file.data() + index_directory_offset(file.header().index_directory.load()),
                      sizeof slot);
          auto* const words =
              reinterpret_cast<std::uint64_t*>(file.data() + index_page_offset(slot));
          std::uint32_t tombstones = 0;
          for (std::uint64_t i = 0; i < index_page_words; ++i) {
            if (words[i] != empty_word || i % 16 == 15)
              continue;  // the empty words of a bucket are its last
            words[i] = tombstone_word;
            ++tombstones;
          }
          reinterpret_cast<SegmentDescriptor*>(
              file.data() + descriptor_offset(index_page_offset(slot) / segment_bytes))
              ->page.tombstones = tombstones;
        },
        [](const std::string&) {
          return Changes{{"one more", "1"}, {"key/1001", "2"}};
        }});
}

// Keys with one hash: 64 of them have index words, the others have records in the overflow tree.
std::vector<std::string> crowded_keys(const std::string& path, std::uint64_t count) {
  const testing::CollidingKeys maker(testing::hash_seed_of(path));
  std::vector<std::string> keys;
  for (std::uint64_t i = 0; i < count; ++i) keys.push_back(maker.with_hash_zero(i));
  return keys;
}
Changes crowded_changes(const std::string& path, std::uint64_t count) {
  Changes changes;
  for (const std::string& key : crowded_keys(path, count)) changes.push_back({key, "crowded"});
  return changes;
}

TEST_F(StepLong, each_death_while_overflow_tree_changes_is_recovered) {
  const auto crowd = [](TestState& state, const std::string& path) {
    insert_keys(state, 20);
    state.apply(crowded_changes(path, 300));
  };
  const auto change_crowd = [](const std::string& path) {
    const std::vector<std::string> keys = crowded_keys(path, 305);
    Changes changes{{"key/1001", "2"}};
    for (std::size_t i = 60; i < 70; ++i) changes.push_back({keys[i], "again"});
    for (std::size_t i = 200; i < 230; ++i) changes.push_back({keys[i], std::nullopt});
    for (std::size_t i = 300; i < 305; ++i) changes.push_back({keys[i], "new"});
    return changes;
  };
  walk({"overflow records change", crowd, change_crowd});
  walk({"crowded keys erased", crowd,
        [](const std::string&) {
          return Changes{{"key/1001", "2"}};
        },
        true});
  for (const std::uint64_t permille : {500, 985, 999})
    walk({"overflow records change", crowd, change_crowd, false, 300}, permille);
}

// A page that is split gives room to crowded keys, whose records are removed.
TEST_F(StepLong, each_death_while_overflow_records_move_to_pages_is_recovered) {
  constexpr std::uint64_t five = std::uint64_t{5} << 60;
  const auto crowded = [](const std::string& path, std::uint64_t i) {
    const testing::CollidingKeys maker(testing::hash_seed_of(path));
    return maker.with_tag_and_home(five >> 40 | (i * 0x3371) % (1 << 20), 7, i);
  };
  const Scenario scenario{"overflow records move to pages",
                          [&](TestState& state, const std::string& path) {
                            const testing::CollidingKeys maker(testing::hash_seed_of(path));
                            Changes changes;
                            for (std::uint64_t i = 0; i < 90; ++i)
                              changes.push_back({crowded(path, i), "crowded"});
                            state.apply(changes);
                            changes.clear();
                            for (std::uint64_t i = 0; i < index_page_words * 4 / 10; ++i)
                              changes.push_back({maker.with_hash(five | random_() >> 4), "v"});
                            state.apply(changes);
                          },
                          [&](const std::string& path) {
                            return Changes{{crowded(path, 80), "again"},
                                           {crowded(path, 70), std::nullopt},
                                           {crowded(path, 95), "new"},
                                           {crowded(path, 81), "again"}};
                          },
                          false, 100};
  walk(scenario);
  walk(scenario, 985);
}

TEST_F(StepLong, each_death_while_segments_change_is_recovered) {
  walk(update_scenario("large entry", {{"large", std::string(300'000, 'l')}, {"key/1001", "2"}}));
  walk({"large entry is replaced",
        [](TestState& state, const std::string&) {
          insert_keys(state);
          state.apply({{"large", std::string(300'000, 'l')}});
        },
        [](const std::string&) {
          return Changes{{"large", "small"}, {"key/1001", "2"}};
        }});
  walk({"file grows",
        [](TestState& state, const std::string&) {
          insert_keys(state);
          // The active segment is nearly full, and no segment is free.
          const std::uint64_t before = state->inspect().file_bytes;
          for (int i = 0; state->inspect().file_bytes == before; ++i)
            state.apply({{"filling" + std::to_string(i), std::string(60'000, 'f')}});
          state.apply({{"rest", std::string(60'000, 'f')}});
          state.apply({{"rest2", std::string(60'000, 'f')}});
        },
        [](const std::string&) {
          return Changes{{"more", std::string(100'000, 'm')}, {"key/1001", "2"}};
        }});
  walk({"segment of low utilization is cleaned",
        [](TestState& state, const std::string&) {
          Changes changes;
          for (int i = 0; i < 36; ++i)
            changes.push_back({"filling" + std::to_string(i), std::string(50'000, 'f')});
          for (int i = 0; i < 40; ++i) changes.push_back({"small" + std::to_string(i), "s"});
          state.apply(changes);
          state.apply({{"small3", std::nullopt}, {"small4", std::nullopt}});
          Changes erased;
          for (int i = 0; i < 36; i += 2)
            erased.push_back({"filling" + std::to_string(i), std::nullopt});
          state.apply(erased);
        },
        [](const std::string&) {
          return Changes{{"more", std::string(150'000, 'm')},
                         {"more2", std::string(150'000, 'm')},
                         {"small5", "2"},
                         {"filling1", "2"}};
        }});
}

TEST_F(StepLong, each_death_during_recovery_is_recovered) {
  for (const std::uint64_t permille : {500, 900, 985}) {
    walk(update_scenario("leaves split", {{"key/1007", "2"},
                                          {"key/1050/1", std::string(500, 'x')},
                                          {"new", "1"},
                                          {"key/1009", std::nullopt}}),
         permille);
    walk({"page of two slots splits",
          [&](TestState& state, const std::string& path) {
            insert_keys(state, 20);
            state.apply(colliding_changes(path, 65, 3, 2, "a"));  // the directory doubles twice
            state.apply(colliding_changes(path, 64, 0, 1, "b"));
          },
          [](const std::string& path) {
            return Changes{{"key/1001", "2"},
                           colliding_changes(path, 65, 0, 1, "b").back(),
                           {"key/1002", std::nullopt}};
          }},
         permille);
  }
}

}  // namespace
}  // namespace whycache
