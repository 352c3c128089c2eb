// Every damaged file is refused or read correctly; nothing in it may crash or hang a process.
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

// What is done to the file: bytes put at a place, or its end cut off.
struct Damage {
  std::string name;
  std::uint64_t offset = 0;
  std::string bytes;
  std::optional<std::uint64_t> cut_to;
};

class DamageTest : public ::testing::Test {
 protected:
  // A small state with a bit of everything: several leaves, versions, an erased key, a large entry,
  // a split index part.
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
    const Header& header = *reinterpret_cast<const Header*>(pristine_.data());
    ASSERT_EQ(pristine_.size(), header.file_bytes.load());
  }

  const SegmentDescriptor& descriptor(std::uint64_t segment) const {
    return *reinterpret_cast<const SegmentDescriptor*>(pristine_.data() +
                                                       descriptor_offset(segment));
  }
  std::uint64_t segment_count() const { return pristine_.size() / segment_bytes; }
  std::string bytes_at(std::uint64_t offset, std::size_t count) const {
    return pristine_.substr(offset, count);
  }

  void flip(std::vector<Damage>& all, const std::string& what, std::uint64_t offset) const {
    const std::string one = bytes_at(offset, 1);
    for (const unsigned pattern : {0x01U, 0x80U, 0xffU}) {
      all.push_back(
          {what,
           offset,
           std::string(1, static_cast<char>(static_cast<unsigned char>(one[0]) ^ pattern)),
           {}});
    }
  }

  void put_word(std::vector<Damage>& all, const std::string& what, std::uint64_t offset,
                std::uint64_t value) const {
    const std::string bytes(reinterpret_cast<const char*>(&value), sizeof value);
    if (bytes != bytes_at(offset, sizeof value)) all.push_back({what, offset, bytes, {}});
  }

  // Bytes that mean something, changed one at a time; and words that are set to what could do most
  // harm.
  std::vector<Damage> damages() const {
    const std::uint64_t step = testing::number_from_environment("WHYCACHE_DAMAGE_STEP", 0);
    std::vector<Damage> all;
    const std::uint64_t header_end = offsetof(Header, allocator_state) + sizeof(AllocatorState);
    for (std::uint64_t at = 0; at < header_end; ++at) {
      // The log's name is but text under the checksum.
      if (at > offsetof(HeaderFixed, log_name) + 8 && at < offsetof(HeaderFixed, checksum) &&
          at % 16 != 0)
        continue;
      flip(all, "header", at);
    }
    for (std::uint64_t segment = 0; segment < segment_count(); ++segment) {
      for (std::uint64_t i = 0; i < sizeof(SegmentDescriptor); ++i)
        flip(all, "descriptor", descriptor_offset(segment) + i);
    }
    const Header& header = *reinterpret_cast<const Header*>(pristine_.data());
    const std::uint64_t directory = index_directory_offset(header.index_directory.load());
    for (std::uint64_t i = 0; i < 8; ++i) flip(all, "directory", directory + i);

    std::vector<std::uint64_t> words;  // that are looked at: 64-bit words of parts, nodes, entries
    for (std::uint64_t segment = 1; segment < segment_count(); ++segment) {
      const std::uint64_t first = segment * segment_bytes;
      const SegmentDescriptor& book = descriptor(segment);
      std::uint64_t end = 0;
      std::uint64_t sparse = 1;
      switch (book.kind) {
        case SegmentKind::index_page: end = segment_bytes; break;
        case SegmentKind::filters:
          end = filter_bytes * std::bit_width(book.filters.in_use_bits);
          break;
        case SegmentKind::nodes: end = book.nodes.handed_out * std::uint64_t{1024}; break;
        case SegmentKind::entries: end = book.entries.used_bytes; break;
        case SegmentKind::large: end = 64; break;
        default: continue;
      }
      if (book.kind == SegmentKind::nodes) sparse = 3;
      if (book.kind == SegmentKind::entries) sparse = 2;
      std::uint64_t seen = 0;
      for (std::uint64_t at = first; at < first + end; at += 8) {
        std::uint64_t word;
        std::memcpy(&word, pristine_.data() + at, sizeof word);
        const bool index =
            book.kind == SegmentKind::index_page || book.kind == SegmentKind::filters;
        const bool empty = index && word == 0;
        if (step == 0 && (empty ? at % 4096 != 0 : seen++ % sparse != 0)) continue;
        words.push_back(at);
      }
    }
    for (const std::uint64_t at : words) {
      for (std::uint64_t i = 0; i < 8; i += step == 0 ? 3 : 1) flip(all, "word", at + i);
    }
    // Values chosen with malice.
    std::vector<std::uint64_t> places;
    for (std::uint64_t at = offsetof(Header, reclaim_generation); at < header_end; at += 8)
      places.push_back(at);
    for (std::uint64_t i = 0; i < 4; ++i) places.push_back(directory + 8 * i);
    for (std::uint64_t segment = 0; segment < segment_count(); ++segment) {
      for (std::uint64_t i = 0; i < sizeof(SegmentDescriptor); i += 8)
        places.push_back(descriptor_offset(segment) + i);
    }
    for (std::size_t i = 0; i < words.size(); i += step == 0 ? 10 : 1) places.push_back(words[i]);
    for (const std::uint64_t at : places) {
      std::uint64_t word;
      std::memcpy(&word, pristine_.data() + at, sizeof word);
      for (const std::uint64_t value :
           {std::uint64_t{0}, std::uint64_t{1}, UINT64_MAX, UINT64_MAX >> 1, word + 1, word - 1,
            word << 8, word + 8, word + segment_bytes, pristine_.size() - 8, std::uint64_t{at},
            at << 8}) {
        put_word(all, "malice", at, value);
      }
    }
    return all;
  }

  // Coarser things.
  std::vector<Damage> big_damages() const {
    std::vector<Damage> all;
    for (std::uint64_t at = 0; at < pristine_.size(); at += 4096) {
      for (const char fill : {'\0', '\xff', 'x'}) {
        std::string page(4096, fill);
        if (page != bytes_at(at, 4096)) all.push_back({"page", at, page, {}});
      }
    }
    for (std::uint64_t one = 0; one < segment_count(); ++one) {
      all.push_back({"zeroed segment", one * segment_bytes, std::string(segment_bytes, '\0'), {}});
      for (std::uint64_t other = 0; other < segment_count(); ++other) {
        if (one != other)
          all.push_back({"segment put over another",
                         one * segment_bytes,
                         bytes_at(other * segment_bytes, segment_bytes),
                         {}});
      }
    }
    // Entries that are their own past, and each other's.
    const Header& header = *reinterpret_cast<const Header*>(pristine_.data());
    std::uint64_t slot;
    std::memcpy(&slot, pristine_.data() + index_directory_offset(header.index_directory.load()),
                sizeof slot);
    for (std::uint64_t i = 0, found = 0; i < index_page_words && found < 40; ++i) {
      std::uint64_t word;
      std::memcpy(&word, pristine_.data() + index_page_offset(slot) + i * 8, sizeof word);
      if (!holds_entry(word)) continue;
      ++found;
      const std::uint64_t offset = word_offset(word);
      std::uint64_t first;
      std::memcpy(&first, pristine_.data() + offset, sizeof first);
      const EntryWord entry(first);
      const std::uint64_t key_bytes =
          entry.is_wide() ? entry.wide_key_bytes() : entry.narrow_key_bytes();
      const std::uint64_t value_bytes = entry.is_wide() ? 0 : entry.narrow_value_bytes();
      for (const std::uint64_t id : {entry.id(), UpdateId{9}, state_update_id_max}) {
        for (const std::uint64_t previous : {offset, offset + 8, offset + 1, std::uint64_t{8},
                                             std::uint64_t{pristine_.size() - 16}, ~offset}) {
          const EntryWord narrow = EntryWord::narrow(id, key_bytes & 0x7f, value_bytes, true);
          const std::string past = bytes_of(previous);
          std::string whole =
              bytes_of(narrow.word()) + bytes_at(offset + 8, (key_bytes + value_bytes + 7) / 8 * 8);
          all.push_back({"cyclic past", offset, whole + past, {}});
          all.push_back({"cyclic past of a wide one",
                         offset,
                         bytes_of(EntryWord::wide(id, entry.erased(), key_bytes).word()) +
                             bytes_of(WideWord(previous, value_bytes).word()),
                         {}});
        }
      }
    }
    return all;
  }

  static std::string bytes_of(std::uint64_t word) {
    return {reinterpret_cast<const char*>(&word), sizeof word};
  }

  std::vector<Damage> cuts() const {
    std::vector<Damage> all;
    for (std::uint64_t bytes = 0; bytes < pristine_.size(); bytes += bytes < 2048 ? 16 : 4096) {
      for (const std::uint64_t to : {bytes, bytes + 1}) all.push_back({"cut", 0, "", to});
    }
    for (const std::uint64_t segment : {1UL, 2UL, 3UL}) {
      for (const std::uint64_t more : {0UL, 1UL, 4095UL})
        all.push_back({"cut", 0, "", segment * segment_bytes + more});
    }
    return all;
  }

  // Runs `one` for each case in a child, and in another child from the next on where one died; so a
  // death is a failure with a name.
  template <typename One>
  void run(const std::vector<Damage>& cases, const One& one) {
    struct Progress {
      std::atomic<std::uint64_t> next{0};
      std::atomic<std::uint64_t> refused{0};
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
              bool refused = false;
              const std::string fault = one(damage, refused);
              progress->refused += refused;
              ++progress->next;
              if (fault.empty()) continue;
              if (++progress->bad <= 5) faults += describe(damage) + ": " + fault + "\n";
            }
            return faults;
          },
          600);
      const std::string said = child.wait();
      EXPECT_EQ(said, "");
      if (progress->next < cases.size()) {
        ++deaths;
        ADD_FAILURE() << "killed by case " << describe(cases[progress->next]);
        ++progress->next;
      }
    }
    std::printf("cases=%zu refused=%lu bad=%lu deaths=%d seconds=%.1f\n", cases.size(),
                progress->refused.load(), progress->bad.load(), deaths,
                std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
  }

  static std::string describe(const Damage& damage) {
    std::string text = damage.name + " offset=" + std::to_string(damage.offset) +
                       " bytes=" + std::to_string(damage.bytes.size());
    if (damage.bytes.size() <= 16) {
      for (const char byte : damage.bytes)
        text += " " + std::to_string(static_cast<unsigned char>(byte));
    }
    if (damage.cut_to) text += " cut_to=" + std::to_string(*damage.cut_to);
    return text;
  }

  static void put(int file, std::string_view bytes, std::uint64_t offset) {
    if (::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(offset)) !=
        static_cast<ssize_t>(bytes.size())) {
      throw std::runtime_error("cannot write a file of a test");
    }
  }

  // As a file that came from elsewhere: it is believed only if it is right.
  std::string open_from_elsewhere(const Damage& damage, bool& refused) const {
    const std::string path = directory_.file("copy.state");
    ::unlink(path.c_str());
    {
      const FileDescriptor file = open_file(path, O_RDWR | O_CREAT | O_EXCL, 0600);
      put(file.number(), pristine_, 0);
      if (damage.cut_to) {
        if (::ftruncate(file.number(), static_cast<off_t>(*damage.cut_to)) != 0)
          return "cannot cut";
      } else {
        put(file.number(), damage.bytes, damage.offset);
      }
    }
    try {
      const std::unique_ptr<State> state = State::open(small_options(path));
      if (!state->usable()) {
        refused = true;
        return state->unusable_reason().empty() ? "not usable, for no reason" : "";
      }
      if (state->info().digest != digest_ || TestState::contents(View(state->pin())) != contents_)
        return "other contents believed";
      std::string value;
      for (const auto& [key, expected] : contents_) {
        if (!state->get(key, value) || value != expected) return "another value of " + key;
      }
      if (state->contains("key/1004")) return "an erased key is there";
      {
        const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
        TestState::apply(*writer, {{"key/1003", "later"}, {"later", "1"}});
      }
      const std::vector<std::string> faults = state->check(TestState::deadline(), {});
      if (!faults.empty()) return "check afterwards: " + faults.front();
    } catch (const Error& error) {
      refused = true;
      if (error.kind() != ErrorKind::corrupt && error.kind() != ErrorKind::invalid)
        return std::string("threw: ") + error.what();
    } catch (const std::exception& error) {
      return std::string("threw: ") + error.what();
    }
    return "";
  }

  // Under the mapping of a process that has it open: each call gives something or an Error.
  std::string use_while_damaged(const Damage& damage, bool& refused) const {
    const FileDescriptor file = open_file(path_, O_RDWR);
    if (::ftruncate(file.number(), static_cast<off_t>(pristine_.size())) != 0) return "cannot cut";
    put(file.number(), pristine_, 0);
    const std::unique_ptr<State> state = State::open(small_options(path_));
    if (!state->usable()) return "not usable before";
    std::string fault;
    const auto attempt = [&](const char* what, const auto& call) {
      try {
        call();
      } catch (const Error& error) {
        refused = true;
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
    keys.push_back("never there");
    for (const std::string_view key : keys) {
      attempt("get", [&] { state->get(key, value); });
      attempt("view.get", [&] { static_cast<void>(before->get(key)); });
    }
    attempt("contains", [&] { static_cast<void>(state->contains("large")); });
    attempt("scan", [&] { static_cast<void>(TestState::contents(*before)); });
    attempt("new view", [&] { static_cast<void>(TestState::contents(View(state->pin()))); });
    attempt("range", [&] {
      for (const auto& item : before->items(KeyRange::prefix("key/10"))) value.assign(item.value);
    });
    attempt("get_multi", [&] {
      state->get_multi(keys, [&](std::size_t, std::string_view found) { value.assign(found); });
    });
    attempt("insides", [&] { static_cast<void>(state->inspect()); });
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

  // A few cases only where everything is slow.
  static std::vector<Damage> sample(std::vector<Damage> all, std::size_t count) {
    if (testing::number_from_environment("WHYCACHE_DAMAGE_STEP", 0) != 0 || all.size() <= count)
      return all;
    std::vector<Damage> some;
    for (std::size_t i = 0; i < count; ++i) some.push_back(std::move(all[i * all.size() / count]));
    return some;
  }

  TemporaryDirectory directory_{"/dev/shm"};
  std::string path_ = directory_.file("whole.state");
  std::string pristine_;
  Contents contents_;
  Digest digest_;
};

using DamageLong = DamageTest;

TEST_F(DamageLong, damaged_foreign_file_is_read_correctly_or_rejected) {
  run(damages(),
      [this](const Damage& damage, bool& refused) { return open_from_elsewhere(damage, refused); });
  run(big_damages(),
      [this](const Damage& damage, bool& refused) { return open_from_elsewhere(damage, refused); });
}

TEST_F(DamageLong, damage_to_mapped_file_never_crashes_its_users) {
  run(damages(),
      [this](const Damage& damage, bool& refused) { return use_while_damaged(damage, refused); });
  run(big_damages(),
      [this](const Damage& damage, bool& refused) { return use_while_damaged(damage, refused); });
}

TEST_F(DamageTest, truncated_foreign_file_is_rejected) {
  run(cuts(), [this](const Damage& damage, bool& refused) {
    const std::string fault = open_from_elsewhere(damage, refused);
    return !fault.empty() || refused ? fault : "a file cut short was believed";
  });
}

TEST_F(DamageTest, sampled_damage_to_foreign_file_is_harmless) {
  run(sample(damages(), 700),
      [this](const Damage& damage, bool& refused) { return open_from_elsewhere(damage, refused); });
  run(sample(big_damages(), 200),
      [this](const Damage& damage, bool& refused) { return open_from_elsewhere(damage, refused); });
}

TEST_F(DamageTest, sampled_damage_to_mapped_file_is_harmless) {
  run(sample(damages(), 700),
      [this](const Damage& damage, bool& refused) { return use_while_damaged(damage, refused); });
  run(sample(big_damages(), 200),
      [this](const Damage& damage, bool& refused) { return use_while_damaged(damage, refused); });
}

// Bytes that change all the time, under a reader.
TEST_F(DamageTest, file_that_changes_constantly_never_crashes_its_reader) {
  SCOPED_TRACE(testing::seed_note());
  EXPECT_EQ(
      testing::run_in_child([&]() -> std::string {
        const std::unique_ptr<State> state = State::open(small_options(path_));
        std::atomic<bool> stop{false};
        std::thread vandal([&] {
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
        vandal.join();
        std::printf("rounds read=%lu errors=%lu\n", reads, errors);
        std::fflush(stdout);
        return "";
      }),
      "");
}

}  // namespace
}  // namespace whycache
