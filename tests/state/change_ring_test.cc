// The ring of recent changes: what a reader finds, whatever the writer was doing.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "state/read/change_ring_reader.h"
#include "state/test_state.h"
#include "state/walked_writer.h"
#include "state/write/change_ring_writer.h"
#include "support/child_process.h"
#include "support/seed.h"
#include "support/thrown_error.h"
#include "update/update.h"

namespace whycache {
namespace {

using testing::TemporaryDirectory;
using testing::TestState;
using testing::WalkedWriter;
using testing::WalkPlan;

constexpr std::uint64_t small_ring_bytes = change_ring_bytes_min;
constexpr std::uint64_t test_state_id = 77;

StateOptions ring_options(const std::string& path,
                          std::optional<std::uint64_t> bytes = small_ring_bytes) {
  StateOptions options;
  options.path = path;
  options.changes_bytes = bytes;
  return options;
}

// Encoded updates that continue each other, from id 1 on.
class Updates {
 public:
  explicit Updates(std::uint64_t first_chain = chain_start(testing::test_uuid))
      : chains_{first_chain} {}

  // `bytes`: of the value.
  const std::string& add(std::size_t bytes) {
    const UpdateId id = all_.size() + 1;
    Draft draft({});
    std::string value(bytes, '\0');
    for (char& byte : value) byte = static_cast<char>(random_());  // does not compress
    draft.add(Change::set("key" + std::to_string(id), value), std::size_t{1} << 26);
    all_.emplace_back(draft.seal(id, chains_.back()));
    chains_.push_back(draft.chain());
    return all_.back();
  }
  UpdateId last_id() const { return all_.size(); }
  const std::string& operator[](UpdateId id) const { return all_.at(id - 1); }
  // The block of the state after update `id`.
  PublishedBlock block(UpdateId id) const {
    PublishedBlock block{};
    block.id = id;
    block.chain = chains_.at(id);
    return block;
  }
  void append(ChangeRingWriter& ring, UpdateId id, std::uint64_t state_id = test_state_id) const {
    ring.append(state_id, block(id - 1), id, (*this)[id]);
  }

 private:
  std::vector<std::string> all_;
  std::vector<std::uint64_t> chains_;
  std::mt19937_64 random_{testing::test_seed()};
};

class ChangeRing : public ::testing::Test {
 protected:
  ChangeRing() { std::ofstream(path_) << "stands for a state"; }

  std::unique_ptr<ChangeRingWriter> open(
      std::optional<std::uint64_t> bytes = small_ring_bytes) const {
    const FileDescriptor state = open_file(path_, O_RDONLY);
    return std::make_unique<ChangeRingWriter>(ring_options(path_, bytes), state.number());
  }
  std::string ring_path() const { return path_ + change_ring_suffix; }

  // Returns the ids that a new reader finds, and fails if one has other bytes than it should.
  static std::vector<UpdateId> ids_in(const std::string& state_path, const Updates& updates,
                                      std::uint64_t state_id = test_state_id) {
    std::vector<UpdateId> ids;
    ChangeRingReader reader(ring_options(state_path));
    for (UpdateId id = 1; id <= updates.last_id(); ++id) {
      const std::optional<std::string_view> found = reader.find(state_id, id);
      if (!found) continue;
      EXPECT_EQ(*found, updates[id]) << id;
      ids.push_back(id);
    }
    return ids;
  }
  // Whether the ids are consecutive and end with `last`, or there are none.
  static bool is_run_up_to(const std::vector<UpdateId>& ids, UpdateId last) {
    return ids.empty() || (ids.back() == last && last - ids.front() + 1 == ids.size());
  }

  const TemporaryDirectory directory_{"/dev/shm"};
  const std::string path_ = directory_.file("test.state");
};

TEST_F(ChangeRing, has_the_last_updates_and_no_others) {
  Updates updates;
  const std::unique_ptr<ChangeRingWriter> ring = open();
  ChangeRingReader follower(ring_options(path_));
  for (UpdateId id = 1; id <= 1000; ++id) {
    updates.add(id % 7 == 0 ? 5000 : id % 300);
    EXPECT_EQ(follower.find(test_state_id, id), std::nullopt);
    updates.append(*ring, id);
    ASSERT_EQ(follower.find(test_state_id, id), updates[id]) << id;
  }
  const std::vector<UpdateId> ids = ids_in(path_, updates);
  ASSERT_FALSE(ids.empty());
  EXPECT_TRUE(is_run_up_to(ids, 1000));
  std::uint64_t kept = 0;
  for (const UpdateId id : ids) kept += change_record_bytes(updates[id].size());
  EXPECT_LE(kept, small_ring_bytes);
  EXPECT_GT(kept, small_ring_bytes - 6000);
  EXPECT_EQ(std::filesystem::file_size(ring_path()), change_ring_page_bytes + small_ring_bytes);
}

TEST_F(ChangeRing, file_grows_as_it_is_filled) {
  Updates updates;
  const std::unique_ptr<ChangeRingWriter> ring = open(change_ring_bytes_default);
  updates.add(10);
  updates.append(*ring, 1);
  EXPECT_LE(std::filesystem::file_size(ring_path()), 128U << 10);
  for (UpdateId id = 2; id <= 200; ++id) {
    updates.add(100'000);
    updates.append(*ring, id);
  }
  EXPECT_EQ(std::filesystem::file_size(ring_path()),
            change_ring_page_bytes + change_ring_bytes_default);
  EXPECT_TRUE(is_run_up_to(ids_in(path_, updates), 200));
}

TEST_F(ChangeRing, update_larger_than_the_ring_leaves_no_hidden_gap) {
  Updates updates;
  const std::unique_ptr<ChangeRingWriter> ring = open();
  for (UpdateId id = 1; id <= 6; ++id) {
    updates.add(id == 4 ? small_ring_bytes : 100);
    updates.append(*ring, id);
  }
  EXPECT_EQ(ids_in(path_, updates), (std::vector<UpdateId>{5, 6}));
}

TEST_F(ChangeRing, begins_again_after_an_update_that_it_missed) {
  Updates updates;
  for (UpdateId id = 1; id <= 9; ++id) updates.add(100);
  const std::unique_ptr<ChangeRingWriter> ring = open();
  for (const UpdateId id : {1, 2, 3, 5, 6}) updates.append(*ring, id);
  EXPECT_EQ(ids_in(path_, updates), (std::vector<UpdateId>{5, 6}));

  // The same ids in another history.
  Updates other(1);
  for (UpdateId id = 1; id <= 8; ++id) other.add(100);
  other.append(*ring, 7);
  EXPECT_EQ(ids_in(path_, other), (std::vector<UpdateId>{7}));
}

TEST_F(ChangeRing, belongs_to_one_state_file) {
  Updates updates;
  for (UpdateId id = 1; id <= 4; ++id) updates.add(100);
  const std::unique_ptr<ChangeRingWriter> ring = open();
  updates.append(*ring, 1);
  updates.append(*ring, 2);
  EXPECT_EQ(ids_in(path_, updates, test_state_id + 1), std::vector<UpdateId>{});
  updates.append(*ring, 3, test_state_id + 1);
  EXPECT_EQ(ids_in(path_, updates), std::vector<UpdateId>{});
  EXPECT_EQ(ids_in(path_, updates, test_state_id + 1), std::vector<UpdateId>{3});
}

TEST_F(ChangeRing, keeps_its_size_unless_another_one_is_asked_for) {
  Updates updates;
  for (UpdateId id = 1; id <= 4; ++id) updates.add(100);
  updates.append(*open(), 1);
  ChangeRingReader reader(ring_options(path_));
  EXPECT_EQ(reader.find(test_state_id, 1), updates[1]);
  updates.append(*open(std::nullopt), 2);
  EXPECT_EQ(ids_in(path_, updates), (std::vector<UpdateId>{1, 2}));
  updates.append(*open(2 * small_ring_bytes), 3);
  EXPECT_EQ(ids_in(path_, updates), std::vector<UpdateId>{3});
  EXPECT_EQ(reader.find(test_state_id, 3), updates[3]);  // has the other file open
}

TEST_F(ChangeRing, repeated_update_is_kept_once) {
  Updates updates;
  for (UpdateId id = 1; id <= 3; ++id) updates.add(100);
  const std::unique_ptr<ChangeRingWriter> ring = open();
  updates.append(*ring, 1);
  updates.append(*ring, 2);
  updates.append(*ring, 2);  // the writer died before the state had it
  updates.append(*ring, 3);
  EXPECT_EQ(ids_in(path_, updates), (std::vector<UpdateId>{1, 2, 3}));
}

TEST_F(ChangeRing, has_the_permissions_of_the_state) {
  ASSERT_EQ(::chmod(path_.c_str(), 0640), 0);
  open();
  struct stat status;
  ASSERT_EQ(::stat(ring_path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640U);
  ASSERT_EQ(::chmod(path_.c_str(), 0600), 0);
  open();
  ASSERT_EQ(::stat(ring_path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
}

TEST_F(ChangeRing, what_is_no_ring_is_replaced_or_refused) {
  Updates updates;
  updates.add(100);
  for (const std::string& content : {std::string("short"), std::string(100'000, 'x')}) {
    std::ofstream(ring_path()) << content;
    EXPECT_EQ(ChangeRingReader(ring_options(path_)).find(test_state_id, 1), std::nullopt);
    EXPECT_THROW(open(), Error);
    EXPECT_EQ(read_whole_file(ring_path(), 1 << 20), content);
  }
  for (const std::string& content :
       {std::string(), std::string(100'000, '\0'), "whyfeed9" + std::string(5000, 'x')}) {
    std::ofstream(ring_path()) << content;
    EXPECT_EQ(ChangeRingReader(ring_options(path_)).find(test_state_id, 1), std::nullopt);
    updates.append(*open(), 1);
    EXPECT_EQ(ids_in(path_, updates), std::vector<UpdateId>{1});
  }
  std::filesystem::remove(ring_path());
  std::filesystem::create_directory(ring_path());
  EXPECT_EQ(ChangeRingReader(ring_options(path_)).find(test_state_id, 1), std::nullopt);
  EXPECT_THROW(open(), Error);
  std::filesystem::remove(ring_path());
  ASSERT_EQ(::mkfifo(ring_path().c_str(), 0600), 0);
  EXPECT_EQ(ChangeRingReader(ring_options(path_)).find(test_state_id, 1), std::nullopt);
  EXPECT_THROW(open(), Error);
}

// Readers map nothing, so that a file that becomes shorter ends no process.
TEST_F(ChangeRing, reader_survives_a_ring_that_is_cut_short) {
  Updates updates;
  const std::unique_ptr<ChangeRingWriter> ring = open();
  for (UpdateId id = 1; id <= 50; ++id) {
    updates.add(1000);
    updates.append(*ring, id);
  }
  for (const std::uint64_t bytes : {60'000, 10'000, 4096, 90, 0}) {
    ASSERT_EQ(::truncate(ring_path().c_str(), static_cast<off_t>(bytes)), 0);
    static_cast<void>(ids_in(path_, updates));
  }
  EXPECT_FALSE(ring->is_in_place());
  updates.append(*open(), 50);
  EXPECT_EQ(ids_in(path_, updates), std::vector<UpdateId>{50});
}

TEST_F(ChangeRing, damaged_byte_hides_updates_and_yields_no_wrong_one) {
  std::printf("%s\n", testing::seed_note().c_str());
  Updates updates;
  {
    const std::unique_ptr<ChangeRingWriter> ring = open();
    for (UpdateId id = 1; id <= 120; ++id) {
      updates.add(900);
      updates.append(*ring, id);
    }
  }
  updates.add(900);
  const std::string whole = read_whole_file(ring_path(), 1 << 20);
  std::mt19937_64 random(testing::test_seed());
  const auto write_ring = [&](const std::string& bytes) {
    std::ofstream(ring_path(), std::ios::binary) << bytes;
  };
  std::vector<std::size_t> places;
  // A file with another magic is not whycache's.
  for (std::size_t i = 7; i < sizeof(ChangeRingHeader); ++i) places.push_back(i);
  for (int i = 0; i < 150; ++i)
    places.push_back(change_ring_page_bytes + random() % (whole.size() - change_ring_page_bytes));
  for (const std::size_t place : places) {
    std::string damaged = whole;
    damaged[place] = static_cast<char>(damaged[place] ^ (1 << random() % 8));
    write_ring(damaged);
    static_cast<void>(ids_in(path_, updates));  // compares the bytes
    updates.append(*open(), 121);
    const std::vector<UpdateId> after = ids_in(path_, updates);
    ASSERT_FALSE(after.empty()) << place;
    EXPECT_EQ(after.back(), 121U) << place;
  }
}

// Readers beside a writer that laps them all the time.
TEST_F(ChangeRing, readers_beside_a_fast_writer_get_no_torn_update) {
  Updates updates;
  for (UpdateId id = 1; id <= 30'000; ++id) updates.add(id % 13 == 0 ? 3000 : id % 200);
  testing::ChildProcess writer([&]() -> std::string {
    const std::unique_ptr<ChangeRingWriter> ring = open();
    for (UpdateId id = 1; id <= updates.last_id(); ++id) updates.append(*ring, id);
    return "";
  });
  ChangeRingReader reader(ring_options(path_));
  std::uint64_t found_count = 0;
  for (UpdateId id = 1; id <= updates.last_id();) {
    const std::optional<std::string_view> found = reader.find(test_state_id, id);
    if (found) {
      ASSERT_EQ(*found, updates[id]) << id;
      ++found_count;
      ++id;
    } else if (id == updates.last_id() || reader.find(test_state_id, id + 1)) {
      ++id;
    } else {
      id += 50;  // behind the ring, or beyond its head
      if (id > updates.last_id() - 100 && found_count == 0) id = 1;
    }
  }
  EXPECT_EQ(writer.wait(), "");
  EXPECT_GT(found_count, 0U);
  EXPECT_TRUE(is_run_up_to(ids_in(path_, updates), updates.last_id()));
}

std::string from_hex(const std::string& digits) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
    bytes.push_back(static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16)));
  return bytes;
}

// docs/formats/changes.md, by its own numbers.
TEST_F(ChangeRing, written_file_equals_the_vector) {
  const auto vector = nlohmann::json::parse(
      read_whole_file(WHYCACHE_SOURCE_FOLDER "/docs/formats/vectors/changes.json", 1 << 20));
  const std::uint64_t state_id = std::stoull(std::string(vector["state_id"]), nullptr, 16);
  PublishedBlock applied{};
  applied.chain = std::stoull(std::string(vector["previous_chain"]), nullptr, 16);
  const std::unique_ptr<ChangeRingWriter> ring = open(vector["data_bytes"]);
  for (const auto& update : vector["updates"]) {
    const std::string bytes = from_hex(update["bytes"]);
    ring->append(state_id, applied, update["id"], bytes);
    applied.id = update["id"];
    applied.chain = peek_header(bytes)->chain;
  }
  const std::string file = read_whole_file(ring_path(), 1 << 20);
  const std::string header = from_hex(vector["header"]);
  EXPECT_EQ(file.substr(0, header.size()), header);
  EXPECT_EQ(file.find_first_not_of('\0', header.size()), 4096U);
  for (const auto& record : vector["records"]) {
    const std::string bytes = from_hex(record["bytes"]);
    EXPECT_EQ(file.substr(4096 + std::size_t{record["position"]}, bytes.size()), bytes);
  }
}

class ChangeRingStepLong : public ChangeRing {
 protected:
  void SetUp() override {
    if (WalkedWriter::unsupported_reason() != nullptr)
      GTEST_SKIP() << "NOT TESTED: " << WalkedWriter::unsupported_reason();
  }

  // Kills a writer before each of its stores to the ring, while it appends updates
  // `first`..`last`. A reader must find a run of updates then, and the next writer must go on.
  void walk(const Updates& updates, UpdateId first, UpdateId last, std::uint64_t state_id,
            std::uint64_t ring_state_id) {
    WalkPlan plan;
    plan.every_store = true;
    WalkedWriter writer(plan, change_ring_page_bytes + small_ring_bytes, [&](const auto& ready) {
      ready();
      const std::unique_ptr<ChangeRingWriter> ring = open();
      for (UpdateId id = first; id <= last; ++id) updates.append(*ring, id, state_id);
    });
    const std::string copy = directory_.file("copy.state");
    std::ofstream(copy) << "stands for a state";
    const FileDescriptor copied_state = open_file(copy, O_RDONLY);
    int stops = 0;
    bool done = false;
    while (!done) {
      done = !writer.walk();
      ++stops;
      std::filesystem::copy_file(ring_path(), copy + change_ring_suffix,
                                 std::filesystem::copy_options::overwrite_existing);
      const std::vector<UpdateId> old_ids = ids_in(copy, updates, ring_state_id);
      const std::vector<UpdateId> ids = ids_in(copy, updates, state_id);
      ASSERT_TRUE(old_ids.empty() || is_run_up_to(old_ids, old_ids.back())) << stops;
      ASSERT_TRUE(ids.empty() || is_run_up_to(ids, ids.back())) << stops;
      // The state has applied the update before the last in the ring, or the last itself.
      const UpdateId reached = ids.empty() ? first : ids.back();
      for (const UpdateId next : {reached, reached + 1}) {
        if (next > last || next < first) continue;
        ChangeRingWriter successor(ring_options(copy), copied_state.number());
        updates.append(successor, next, state_id);
        const std::vector<UpdateId> after = ids_in(copy, updates, state_id);
        ASSERT_FALSE(after.empty()) << stops;
        ASSERT_TRUE(is_run_up_to(after, next)) << stops;
      }
    }
    std::printf("stops=%d\n", stops);
    EXPECT_GT(stops, 10);
    EXPECT_TRUE(is_run_up_to(ids_in(path_, updates, state_id), last));
  }
};

TEST_F(ChangeRingStepLong, each_death_of_a_writer_leaves_a_run_of_updates) {
  Updates updates;
  for (UpdateId id = 1; id <= 70; ++id) updates.add(1000 + id % 5);
  {
    const std::unique_ptr<ChangeRingWriter> ring = open();
    for (UpdateId id = 1; id <= 60; ++id) updates.append(*ring, id);
  }
  walk(updates, 61, 63, test_state_id, test_state_id);      // overwrites, and wraps around
  walk(updates, 66, 67, test_state_id, test_state_id);      // after a gap
  walk(updates, 68, 70, test_state_id + 1, test_state_id);  // of another state
}

TEST_F(ChangeRingStepLong, each_death_while_a_ring_is_new_leaves_a_run_of_updates) {
  Updates updates;
  for (UpdateId id = 1; id <= 3; ++id) updates.add(100);
  open();
  walk(updates, 1, 3, test_state_id, test_state_id);
}

}  // namespace
}  // namespace whycache
