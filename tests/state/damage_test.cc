// Every damaged file is rejected or read correctly. Nothing in a file may crash or hang a process.
//
// WHYCACHE_DAMAGE_STEP=1 damages every word of the file instead of a sample.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <thread>

#include "base/file.h"
#include "base/hash.h"
#include "state/file/layout.h"
#include "state/test_state.h"
#include "support/child_process.h"
#include "support/seed.h"

namespace whycache {
namespace {

using testing::ChildProcess;
using testing::SharedWithChildren;
using testing::TemporaryDirectory;
using testing::TestChange;
using testing::TestState;
using Contents = std::map<std::string, std::string>;

constexpr std::uint64_t damaged_bytes_max = std::uint64_t{16} << 20;

StateOptions small_options(const std::string& path) {
  StateOptions options;
  options.path = path;
  options.bytes_max = damaged_bytes_max;
  return options;
}

// A change to the file: bytes written at an offset, or truncation to a length.
struct Damage {
  std::string name;
  std::uint64_t offset = 0;
  std::string bytes;
  std::optional<std::uint64_t> truncate_to;
};

// WHYCACHE_DAMAGE_STEP=1: damage every word of the file, not a sample.
bool damages_every_word() {
  return testing::number_from_environment("WHYCACHE_DAMAGE_STEP", 0) != 0;
}

std::string word_bytes(std::uint64_t word) {
  return {reinterpret_cast<const char*>(&word), sizeof word};
}

class DamageTest : public ::testing::Test {
 protected:
  // A small state with a bit of everything: several leaves, versions, an erased key, a large entry,
  // a split index page.
  void SetUp() override {
    TestState state(path_, small_options(path_));
    std::vector<TestChange> changes;
    for (int i = 0; i < 150; ++i)
      changes.push_back({"key/" + std::to_string(1000 + i), "value" + std::to_string(i)});
    state.apply(changes);
    state.apply(
        {{"key/1003", "again"}, {"key/1004", std::nullopt}, {"large", std::string(270'000, 'l')}});
    state.apply({{"key/1003", "and again"}, {"new", "1"}});
    contents_ = state.contents();
    digest_ = state->info().digest;
    ASSERT_EQ(state.check(), std::vector<std::string>{});
    std::ifstream file(path_, std::ios::binary);
    pristine_.assign(std::istreambuf_iterator<char>(file), {});
    ASSERT_EQ(pristine_.size(), header().file_bytes.load());
  }

  // --- The undamaged file ---

  const Header& header() const { return *reinterpret_cast<const Header*>(pristine_.data()); }
  const SegmentDescriptor& descriptor(std::uint64_t segment) const {
    return *reinterpret_cast<const SegmentDescriptor*>(pristine_.data() +
                                                       descriptor_offset(segment));
  }
  std::uint64_t segment_count() const { return pristine_.size() / segment_bytes; }
  std::uint64_t directory_offset() const {
    return index_directory_offset(header().index_directory.load());
  }
  std::string bytes_at(std::uint64_t offset, std::size_t count) const {
    return pristine_.substr(offset, count);
  }
  std::uint64_t word_at(std::uint64_t offset) const {
    std::uint64_t word;
    std::memcpy(&word, pristine_.data() + offset, sizeof word);
    return word;
  }

  // The bytes of a segment that its kind gives a meaning.
  static std::uint64_t meaningful_bytes(const SegmentDescriptor& segment) {
    switch (segment.kind) {
      case SegmentKind::index_page: return segment_bytes;
      case SegmentKind::filters: return filter_bytes * std::bit_width(segment.filters.in_use_bits);
      case SegmentKind::nodes: return segment.nodes.handed_out * std::uint64_t{1024};
      case SegmentKind::entries: return segment.entries.used_bytes;
      case SegmentKind::large: return 64;
      default: return 0;
    }
  }
  // One word in so many is damaged when the words are sampled.
  static std::uint64_t sampling_interval(SegmentKind kind) {
    switch (kind) {
      case SegmentKind::nodes: return 3;
      case SegmentKind::entries: return 2;
      default: return 1;
    }
  }

  // Offsets of 64-bit words of index pages, filters, nodes and entries.
  std::vector<std::uint64_t> words_to_damage() const {
    std::vector<std::uint64_t> words;
    for (std::uint64_t segment = 1; segment < segment_count(); ++segment) {
      const SegmentKind kind = descriptor(segment).kind;
      const bool is_index = kind == SegmentKind::index_page || kind == SegmentKind::filters;
      const std::uint64_t begin = segment * segment_bytes;
      const std::uint64_t end = begin + meaningful_bytes(descriptor(segment));
      std::uint64_t seen = 0;
      for (std::uint64_t offset = begin; offset < end; offset += 8) {
        const bool is_empty = is_index && word_at(offset) == 0;
        if (!damages_every_word() &&
            (is_empty ? offset % 4096 != 0 : seen++ % sampling_interval(kind) != 0))
          continue;
        words.push_back(offset);
      }
    }
    return words;
  }

  // --- Damage of single bytes and words ---

  // First flips bytes that have a meaning, one at a time. Then sets words to the values that could
  // do most harm.
  std::vector<Damage> damages() const {
    const std::vector<std::uint64_t> words = words_to_damage();
    std::vector<Damage> all;
    flip_header(all);
    for (std::uint64_t segment = 0; segment < segment_count(); ++segment) {
      for (std::uint64_t i = 0; i < sizeof(SegmentDescriptor); ++i)
        flip(all, "descriptor", descriptor_offset(segment) + i);
    }
    for (std::uint64_t i = 0; i < 8; ++i) flip(all, "directory", directory_offset() + i);
    for (const std::uint64_t offset : words) {
      for (std::uint64_t i = 0; i < 8; i += damages_every_word() ? 1 : 3)
        flip(all, "word", offset + i);
    }
    for (const std::uint64_t offset : malice_offsets(words)) put_malicious_words(all, offset);
    return all;
  }

  void flip_header(std::vector<Damage>& all) const {
    for (std::uint64_t offset = 0; offset < header_end; ++offset) {
      // The log's name is only text under the checksum: a sample of it is enough.
      if (offset > offsetof(HeaderFixed, log_name) + 8 &&
          offset < offsetof(HeaderFixed, checksum) && offset % 16 != 0)
        continue;
      flip(all, "header", offset);
    }
  }

  void flip(std::vector<Damage>& all, const std::string& name, std::uint64_t offset) const {
    const auto byte = static_cast<unsigned char>(pristine_[offset]);
    for (const unsigned pattern : {0x01U, 0x80U, 0xffU})
      all.push_back({name, offset, std::string(1, static_cast<char>(byte ^ pattern)), {}});
  }

  // Offsets at which put_malicious_words() is applied.
  std::vector<std::uint64_t> malice_offsets(const std::vector<std::uint64_t>& words) const {
    std::vector<std::uint64_t> offsets;
    for (std::uint64_t offset = offsetof(Header, reclaim_generation); offset < header_end;
         offset += 8)
      offsets.push_back(offset);
    for (std::uint64_t i = 0; i < 4; ++i) offsets.push_back(directory_offset() + 8 * i);
    for (std::uint64_t segment = 0; segment < segment_count(); ++segment) {
      for (std::uint64_t i = 0; i < sizeof(SegmentDescriptor); i += 8)
        offsets.push_back(descriptor_offset(segment) + i);
    }
    for (std::size_t i = 0; i < words.size(); i += damages_every_word() ? 1 : 10)
      offsets.push_back(words[i]);
    return offsets;
  }

  void put_malicious_words(std::vector<Damage>& all, std::uint64_t offset) const {
    const std::uint64_t word = word_at(offset);
    for (const std::uint64_t value :
         {std::uint64_t{0}, std::uint64_t{1}, UINT64_MAX, UINT64_MAX >> 1, word + 1, word - 1,
          word << 8, word + 8, word + segment_bytes, pristine_.size() - 8, std::uint64_t{offset},
          offset << 8}) {
      if (value != word) all.push_back({"malice", offset, word_bytes(value), {}});
    }
  }

  // --- Damage of pages, segments and version chains ---

  std::vector<Damage> big_damages() const {
    std::vector<Damage> all;
    for (std::uint64_t offset = 0; offset < pristine_.size(); offset += 4096) {
      for (const char fill : {'\0', '\xff', 'x'}) {
        std::string page(4096, fill);
        if (page != bytes_at(offset, 4096)) all.push_back({"page", offset, page, {}});
      }
    }
    replace_segments(all);
    add_cyclic_versions(all);
    return all;
  }

  void replace_segments(std::vector<Damage>& all) const {
    for (std::uint64_t target = 0; target < segment_count(); ++target) {
      const std::uint64_t offset = target * segment_bytes;
      all.push_back({"zeroed segment", offset, std::string(segment_bytes, '\0'), {}});
      for (std::uint64_t source = 0; source < segment_count(); ++source) {
        if (source == target) continue;
        all.push_back({"segment copied over another",
                       offset,
                       bytes_at(source * segment_bytes, segment_bytes),
                       {}});
      }
    }
  }

  // Entries whose previous version is the entry itself, a nearby offset, or outside the file.
  void add_cyclic_versions(std::vector<Damage>& all) const {
    const std::uint64_t slot = word_at(directory_offset());
    for (std::uint64_t i = 0, found = 0; i < index_page_words && found < 40; ++i) {
      const std::uint64_t word = word_at(index_page_offset(slot) + i * 8);
      if (!holds_entry(word)) continue;
      ++found;
      add_cyclic_versions(all, word_offset(word));
    }
  }

  void add_cyclic_versions(std::vector<Damage>& all, std::uint64_t offset) const {
    const EntryWord entry(word_at(offset));
    const std::uint64_t key_bytes =
        entry.is_wide() ? entry.wide_key_bytes() : entry.narrow_key_bytes();
    const std::uint64_t value_bytes = entry.is_wide() ? 0 : entry.narrow_value_bytes();
    const std::string key_and_value = bytes_at(offset + 8, (key_bytes + value_bytes + 7) / 8 * 8);
    for (const std::uint64_t id : {entry.id(), UpdateId{9}, state_update_id_max}) {
      for (const std::uint64_t previous : {offset, offset + 8, offset + 1, std::uint64_t{8},
                                           std::uint64_t{pristine_.size() - 16}, ~offset}) {
        const EntryWord narrow = EntryWord::narrow(id, key_bytes & 0x7f, value_bytes, true);
        all.push_back({"cyclic narrow version",
                       offset,
                       word_bytes(narrow.word()) + key_and_value + word_bytes(previous),
                       {}});
        const EntryWord wide = EntryWord::wide(id, entry.erased(), key_bytes);
        all.push_back({"cyclic wide version",
                       offset,
                       word_bytes(wide.word()) + word_bytes(WideWord(previous, value_bytes).word()),
                       {}});
      }
    }
  }

  std::vector<Damage> truncations() const {
    std::vector<Damage> all;
    for (std::uint64_t bytes = 0; bytes < pristine_.size(); bytes += bytes < 2048 ? 16 : 4096) {
      for (const std::uint64_t length : {bytes, bytes + 1})
        all.push_back({"truncation", 0, "", length});
    }
    for (const std::uint64_t segment : {1UL, 2UL, 3UL}) {
      for (const std::uint64_t more : {0UL, 1UL, 4095UL})
        all.push_back({"truncation", 0, "", segment * segment_bytes + more});
    }
    return all;
  }

  // A few of the cases, for the short tests. All of them with WHYCACHE_DAMAGE_STEP.
  static std::vector<Damage> sample(std::vector<Damage> all, std::size_t count) {
    if (damages_every_word() || all.size() <= count) return all;
    std::vector<Damage> some;
    for (std::size_t i = 0; i < count; ++i) some.push_back(std::move(all[i * all.size() / count]));
    return some;
  }

  // --- Running cases ---

  // Calls `check` for each case, in a child. If the child dies, that is a failure that names the
  // case, and another child continues with the next case.
  template <typename Check>
  void run(const std::vector<Damage>& cases, const Check& check) {
    struct Progress {
      std::atomic<std::uint64_t> next{0};
      std::atomic<std::uint64_t> rejected{0};
      std::atomic<std::uint64_t> bad{0};
    };
    const SharedWithChildren<Progress> progress;
    const auto began = std::chrono::steady_clock::now();
    int deaths = 0;
    while (progress->next < cases.size() && deaths < 20) {
      ChildProcess child(
          [&]() -> std::string {
            std::string faults;
            while (progress->next < cases.size()) {
              const Damage& damage = cases[progress->next];
              ::alarm(20);
              bool rejected = false;
              const std::string fault = check(damage, rejected);
              progress->rejected += rejected;
              ++progress->next;
              if (fault.empty()) continue;
              if (++progress->bad <= 5) faults += describe(damage) + ": " + fault + "\n";
            }
            return faults;
          },
          600);
      EXPECT_EQ(child.wait(), "");
      if (progress->next < cases.size()) {
        ++deaths;
        ADD_FAILURE() << "killed by case " << describe(cases[progress->next]);
        ++progress->next;
      }
    }
    std::printf("cases=%zu rejected=%lu bad=%lu deaths=%d seconds=%.1f\n", cases.size(),
                progress->rejected.load(), progress->bad.load(), deaths,
                std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
  }

  static std::string describe(const Damage& damage) {
    std::string text = damage.name + " offset=" + std::to_string(damage.offset) +
                       " bytes=" + std::to_string(damage.bytes.size());
    if (damage.bytes.size() <= 16) {
      for (const char byte : damage.bytes)
        text += " " + std::to_string(static_cast<unsigned char>(byte));
    }
    if (damage.truncate_to) text += " truncate_to=" + std::to_string(*damage.truncate_to);
    return text;
  }

  static void put(int file, std::string_view bytes, std::uint64_t offset) {
    if (::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(offset)) !=
        static_cast<ssize_t>(bytes.size())) {
      throw std::runtime_error("cannot write the test file");
    }
  }

  // Opens the damaged file as a foreign one, which is accepted only if it is correct. Returns the
  // fault, or "".
  std::string open_foreign_file(const Damage& damage, bool& rejected) const {
    const std::string path = directory_.file("copy.state");
    {
      // The pages of the last case are used again: allocating them takes longer than the case.
      const FileDescriptor file = open_file(path, O_RDWR | O_CREAT, 0600);
      if (::ftruncate(file.number(), static_cast<off_t>(pristine_.size())) != 0)
        return "cannot truncate";
      put(file.number(), pristine_, 0);
      if (damage.truncate_to) {
        if (::ftruncate(file.number(), static_cast<off_t>(*damage.truncate_to)) != 0)
          return "cannot truncate";
      } else {
        put(file.number(), damage.bytes, damage.offset);
      }
    }
    try {
      const std::unique_ptr<State> state = State::open(small_options(path));
      if (!state->usable()) {
        rejected = true;
        return state->unusable_reason().empty() ? "not usable, without a reason" : "";
      }
      if (state->info().digest != digest_ || TestState::contents(View(state->pin())) != contents_)
        return "opened with other contents";
      std::string value;
      for (const auto& [key, expected] : contents_) {
        if (!state->get(key, value) || value != expected) return "another value of " + key;
      }
      if (state->contains("key/1004")) return "an erased key was found";
      {
        const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
        TestState::apply(*writer, {{"key/1003", "later"}, {"later", "1"}});
      }
      const std::vector<std::string> faults = state->check(TestState::deadline(), {});
      if (!faults.empty()) return "check after writing: " + faults.front();
    } catch (const Error& error) {
      rejected = true;
      if (error.kind() != ErrorKind::corrupt && error.kind() != ErrorKind::invalid)
        return std::string("threw: ") + error.what();
    } catch (const std::exception& error) {
      return std::string("threw: ") + error.what();
    }
    return "";
  }

  // Damages the file while this process has it mapped. Each call has to return or to throw Error.
  // Returns the fault, or "".
  std::string use_while_damaged(const Damage& damage, bool& rejected) const {
    const FileDescriptor file = open_file(path_, O_RDWR);
    if (::ftruncate(file.number(), static_cast<off_t>(pristine_.size())) != 0)
      return "cannot truncate";
    put(file.number(), pristine_, 0);
    const std::unique_ptr<State> state = State::open(small_options(path_));
    if (!state->usable()) return "not usable before the damage";
    std::string fault;
    const auto attempt = [&](const char* what, const auto& call) {
      try {
        call();
      } catch (const Error& error) {
        rejected = true;
        if (error.kind() != ErrorKind::corrupt && error.kind() != ErrorKind::invalid &&
            error.kind() != ErrorKind::limit) {
          fault += std::string(what) + " threw: " + error.what() + "; ";
        }
      } catch (const std::exception& error) {
        fault += std::string(what) + " threw: " + error.what() + "; ";
      }
    };
    std::optional<View> before;
    attempt("view before", [&] { before.emplace(state->pin()); });
    put(file.number(), damage.bytes, damage.offset);

    std::string value;
    std::vector<std::string_view> keys;
    for (const auto& [key, unused] : contents_) keys.push_back(key);
    keys.push_back("key/1004");
    keys.push_back("never set");
    for (const std::string_view key : keys) {
      attempt("get", [&] { state->get(key, value); });
      // An exception would end the process.
      EntryVersion version;
      static_cast<void>(state->try_find_version(key, version));
      attempt("view.get", [&] { static_cast<void>(before->get(key)); });
    }
    attempt("contains", [&] { static_cast<void>(state->contains("large")); });
    attempt("scan", [&] { static_cast<void>(TestState::contents(*before)); });
    attempt("new view", [&] { static_cast<void>(TestState::contents(View(state->pin()))); });
    attempt("range", [&] {
      for (const auto& item : before->items(KeyRange::prefix("key/10"))) value.assign(item.value);
    });
    attempt("get_multi", [&] {
      state->pin()->get_many(
          keys, [&](std::size_t, const LookupResult& found) { value.assign(found.value); });
    });
    attempt("inspect", [&] { static_cast<void>(state->inspect()); });
    attempt("info", [&] { static_cast<void>(state->info()); });
    for (int i = 0; i < 2; ++i) {
      attempt("apply", [&] {
        const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
        TestState::apply(*writer, {{"key/1003", std::string(100, 'x')},
                                   {"key/1005", std::nullopt},
                                   {"later", "1"},
                                   {"large", std::string(270'000, 'm')}});
        TestState::apply(*writer, {{"key/1006", "y"}}, true);
      });
    }
    attempt("check", [&] { static_cast<void>(state->check(TestState::deadline(), {})); });
    attempt("get", [&] { state->get("key/1003", value); });
    return fault;
  }

  void run_on_foreign_file(const std::vector<Damage>& cases) {
    run(cases, [this](const Damage& damage, bool& rejected) {
      return open_foreign_file(damage, rejected);
    });
  }
  void run_on_mapped_file(const std::vector<Damage>& cases) {
    run(cases, [this](const Damage& damage, bool& rejected) {
      return use_while_damaged(damage, rejected);
    });
  }

  // End of the header fields that have a meaning.
  static constexpr std::uint64_t header_end = offsetof(Header, poll_record) + sizeof(PollRecord);

  TemporaryDirectory directory_{"/dev/shm"};
  std::string path_ = directory_.file("whole.state");
  std::string pristine_;
  Contents contents_;
  Digest digest_;
};

using DamageLong = DamageTest;

TEST_F(DamageLong, damaged_foreign_file_is_read_correctly_or_rejected) {
  run_on_foreign_file(damages());
  run_on_foreign_file(big_damages());
}

TEST_F(DamageLong, damage_to_mapped_file_never_crashes_its_users) {
  run_on_mapped_file(damages());
  run_on_mapped_file(big_damages());
}

TEST_F(DamageTest, truncated_foreign_file_is_rejected) {
  run(truncations(), [this](const Damage& damage, bool& rejected) {
    const std::string fault = open_foreign_file(damage, rejected);
    return !fault.empty() || rejected ? fault : "a truncated file was accepted";
  });
}

TEST_F(DamageTest, sampled_damage_to_foreign_file_is_harmless) {
  run_on_foreign_file(sample(damages(), 700));
  run_on_foreign_file(sample(big_damages(), 200));
}

TEST_F(DamageTest, sampled_damage_to_mapped_file_is_harmless) {
  run_on_mapped_file(sample(damages(), 700));
  run_on_mapped_file(sample(big_damages(), 200));
}

TEST_F(DamageTest, check_reports_a_key_that_only_the_key_index_has) {
  const TestState state(path_, small_options(path_));
  const FileDescriptor file = open_file(path_, O_RDWR);
  for (std::uint64_t segment = 1; segment < segment_count(); ++segment) {
    if (descriptor(segment).kind != SegmentKind::nodes) continue;
    const std::uint64_t begin = segment * segment_bytes;
    const std::uint64_t end = begin + meaningful_bytes(descriptor(segment));
    for (std::size_t at = pristine_.find("new", begin); at < end;
         at = pristine_.find("new", at + 1))
      put(file.number(), "nex", at);
  }
  EXPECT_EQ(state.check(), std::vector<std::string>{
                               "key of the key index not found in the point index: key_bytes=3"});
}

// Another thread overwrites the file all the time.
TEST_F(DamageTest, file_that_changes_constantly_never_crashes_its_reader) {
  SCOPED_TRACE(testing::seed_note());
  EXPECT_EQ(
      testing::run_in_child([&]() -> std::string {
        const std::unique_ptr<State> state = State::open(small_options(path_));
        std::atomic<bool> stop{false};
        std::thread damager([&] {
          std::mt19937_64 random(testing::test_seed());
          const FileDescriptor file = open_file(path_, O_RDWR);
          while (!stop) {
            for (int i = 0; i < 20; ++i) {
              const std::uint64_t noise = random() % 3 == 0 ? random()
                                          : random() % 2    ? 0
                                                            : UINT64_MAX;
              const std::uint64_t at =
                  random() % (random() % 2 == 0 ? pristine_.size() - 8 : segment_bytes / 8);
              put(file.number(), {reinterpret_cast<const char*>(&noise), 1 + random() % 8}, at);
            }
            put(file.number(), std::string_view(pristine_).substr(512), 512);
          }
        });
        std::uint64_t reads = 0;
        std::uint64_t errors = 0;
        std::string value;
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
        while (std::chrono::steady_clock::now() < end) {
          try {
            for (const auto& [key, unused] : contents_) state->get(key, value);
            static_cast<void>(TestState::contents(View(state->pin())));
            static_cast<void>(state->inspect());
            ++reads;
          } catch (const Error&) {
            ++errors;
          }
        }
        stop = true;
        damager.join();
        std::printf("rounds_read=%lu errors=%lu\n", reads, errors);
        std::fflush(stdout);
        return "";
      }),
      "");
}

}  // namespace
}  // namespace whycache
