// A small state file and its lock file, damaged in every way of mutations.h. Nothing may crash or
// hang. Of a file in use, reads may return what the damage made of it, as README.md says: then
// check() must find the damage. A file that is not in use is read correctly or rejected.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "damage/mutations.h"
#include "state/btree/node_store.h"
#include "state/file/layout.h"
#include "state/file/lock_file.h"
#include "state/file/state_file.h"
#include "state/test_state.h"
#include "state/verify.h"
#include "support/child_process.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::ChildProcess;
using testing::for_each_byte_value;
using testing::for_each_mutation;
using testing::Mutation;
using testing::Sample;
using testing::SharedWithChildren;
using testing::takes_all_mutations;
using testing::Tally;
using testing::TemporaryDirectory;
using testing::TestChange;
using testing::TestState;
using testing::thrown_error;
using ItemMap = std::map<std::string, std::string>;

constexpr unsigned case_seconds_max = 60;

StateOptions mutation_options(const std::string& path) {
  StateOptions options;
  options.path = path;
  options.bytes_max = std::uint64_t{16} << 20;
  return options;
}

std::string bytes_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Bytes that replace those at an offset.
struct Patch {
  std::uint64_t offset = 0;
  std::string bytes;

  std::string describe() const {
    std::string text = "offset=" + std::to_string(offset) + " bytes=";
    for (std::size_t i = 0; i < std::min<std::size_t>(bytes.size(), 16); ++i)
      text += std::to_string(static_cast<unsigned char>(bytes[i])) + ' ';
    return text + "size=" + std::to_string(bytes.size());
  }
};

// What came of one case.
enum class Outcome : std::uint8_t {
  right,
  error,
  // Reads of a file in use returned something else than was written, and check() found it.
  wrong_and_found,
  // Only a view of an update before the newest did. check() does not read versions before the
  // newest.
  wrong_before_newest,
  // The file is whole, as it was one update before.
  earlier,
  count
};
constexpr const char* outcome_names[] = {"right", "error", "wrong value in use, found by check",
                                         "wrong value in a view of an earlier update",
                                         "whole, as of the update before"};

std::vector<TestChange> last_changes() {
  return {{"key/13", "again"}, {"key/14", std::nullopt}, {"key/15", std::string(70, 'v')}};
}

// A small state, and the same one update before.
struct SampleState {
  std::string path;
  ItemMap earlier_contents;
  std::string earlier_bytes;
  ItemMap contents;
  std::string whole;
};

class StateMutation : public ::testing::Test {
 protected:
  void SetUp() override {
    TestState state(sample_.path, mutation_options(sample_.path));
    std::vector<TestChange> changes;
    for (int i = 0; i < 12; ++i)
      changes.push_back({"key/" + std::to_string(10 + i), "value " + std::to_string(i)});
    changes.push_back({std::string(300, 'k'), "of a long key"});
    state.apply(changes);
    sample_.earlier_contents = state.contents();
    sample_.earlier_bytes = bytes_of_file(sample_.path);
    state.apply(last_changes());
    sample_.contents = state.contents();
    ASSERT_EQ(state.check(), std::vector<std::string>{});
    sample_.whole = bytes_of_file(sample_.path);
    ASSERT_EQ(sample_.whole.size(), header().file_bytes.load());
    ASSERT_EQ(sample_.earlier_bytes.size(), sample_.whole.size());
  }

  const Header& header() const { return *reinterpret_cast<const Header*>(sample_.whole.data()); }

  // What a byte of the file is for.
  enum class Use : std::uint8_t {
    data,        // it says something
    empty_word,  // of the index page and its filter, where readers look
    free_space
  };
  Use use_of(std::uint64_t offset) const {
    const std::uint64_t segment = offset / segment_bytes;
    const std::uint64_t within = offset % segment_bytes;
    const auto is_data = [](bool holds) { return holds ? Use::data : Use::free_space; };
    if (segment == 0) {
      return is_data(within < offsetof(Header, poll_record) + sizeof(PollRecord) ||
                     (within >= header_page_bytes &&
                      within < descriptor_offset(sample_.whole.size() / segment_bytes)));
    }
    const auto& descriptor = *reinterpret_cast<const SegmentDescriptor*>(
        sample_.whole.data() + descriptor_offset(segment));
    std::uint64_t word;
    std::memcpy(&word, sample_.whole.data() + offset / 8 * 8, sizeof word);
    switch (descriptor.kind) {
      case SegmentKind::entries: return is_data(within < descriptor.entries.used_bytes);
      case SegmentKind::nodes:
        return is_data(within < descriptor.nodes.handed_out * node_bytes_of(descriptor.size_class));
      case SegmentKind::index_directory: return is_data(word != 0);
      case SegmentKind::index_page: return word != 0 ? Use::data : Use::empty_word;
      case SegmentKind::filters:
        if ((descriptor.filters.in_use_bits & filter_bit(offset)) == 0) return Use::free_space;
        return word != 0 ? Use::data : Use::empty_word;
      default: return Use::free_space;
    }
  }

  bool is_free_line(std::uint64_t offset) const {
    if (offset % 64 != 0) return false;
    for (std::uint64_t i = 0; i < 64; ++i)
      if (use_of(offset + i) != Use::free_space) return false;
    return true;
  }

  // Every value of every byte of this use. Free space, which nothing reads, is damaged by 64 bytes
  // at once.
  template <typename Visit>
  void for_each_byte(Use use, const Visit& visit) const {
    for (std::uint64_t offset = 0, count = 1; offset < sample_.whole.size(); offset += count) {
      count = use == Use::free_space && is_free_line(offset) ? 64 : 1;
      if (use_of(offset) != use) continue;
      for_each_byte_value(sample_.whole[offset], [&](char value) {
        visit(Patch{offset, std::string(count, value)});
      });
    }
  }

  // Each page, and all pages from one on, as they were one update before: a copy that was
  // interrupted. Each segment in the place of each other one. Words of the file in other places.
  template <typename Visit>
  void for_each_splice(const Visit& visit) const {
    for (std::uint64_t offset = 0; offset < sample_.whole.size(); offset += header_page_bytes) {
      visit(Patch{offset, sample_.earlier_bytes.substr(offset, header_page_bytes)});
      visit(Patch{offset, sample_.earlier_bytes.substr(offset)});
      visit(Patch{0, sample_.earlier_bytes.substr(0, offset)});
    }
    for (std::uint64_t target = 0; target < sample_.whole.size(); target += segment_bytes)
      for (std::uint64_t source = 0; source < sample_.whole.size(); source += segment_bytes)
        if (source != target) visit(Patch{target, sample_.whole.substr(source, segment_bytes)});
    std::vector<std::uint64_t> words;
    for (std::uint64_t offset = 0; offset < sample_.whole.size(); offset += 8)
      if (use_of(offset) == Use::data) words.push_back(offset);
    for (std::size_t i = 0; i < words.size(); ++i) {
      for (const std::size_t count : {8, 16, 64}) {
        for (const std::size_t other : {i + 1, i * 7 + 13, i * 31 + 5}) {
          const std::uint64_t source = words[other % words.size()];
          if (words[i] + count <= sample_.whole.size() && source + count <= sample_.whole.size())
            visit(Patch{words[i], sample_.whole.substr(source, count)});
        }
      }
    }
  }

  // --- Running cases ---

  // Runs the cases that `enumerate` visits, or a sample of them, in a child that `check` fails or
  // crashes one at a time.
  template <typename Enumerate, typename Check>
  void run(const std::string& name, std::uint64_t interval, const Enumerate& enumerate,
           const Check& check) {
    struct Progress {
      std::uint64_t next = 0;
      std::uint64_t outcomes[static_cast<std::size_t>(Outcome::count)] = {};
      std::uint64_t offset = 0;  // of the patch
      std::uint64_t size = 0;
      char bytes[16] = {};
    };
    const SharedWithChildren<Progress> progress;
    bool is_complete = false;
    for (int deaths = 0; !is_complete && deaths < 10; ++deaths) {
      ChildProcess child(
          [&]() -> std::string {
            std::string faults;
            std::uint64_t number = 0;
            Sample sample(interval);
            const auto instance = check();
            enumerate([&](const Patch& patch) {
              if (!sample.takes_next() || number++ < progress->next || faults.size() > 500) return;
              progress->offset = patch.offset;
              progress->size = patch.bytes.size();
              patch.bytes.copy(progress->bytes, sizeof progress->bytes);
              if (++progress->next % 16 == 1) ::alarm(case_seconds_max);
              try {
                ++progress->outcomes[static_cast<std::size_t>(instance->run(patch))];
              } catch (const std::exception& error) {
                faults += patch.describe() + ": " + error.what() + "\n";
              }
            });
            ::alarm(0);
            return faults;
          },
          600);
      const std::string result = child.wait();
      is_complete = !result.starts_with("died") && !result.starts_with("exited");
      const Patch last{progress->offset,
                       {progress->bytes, std::min(sizeof progress->bytes, progress->size)}};
      EXPECT_EQ(result, "") << (is_complete ? "" : "at " + last.describe());
    }
    Tally tally(name);
    for (std::size_t i = 0; i < static_cast<std::size_t>(Outcome::count); ++i)
      if (progress->outcomes[i] != 0) tally.add(outcome_names[i], progress->outcomes[i]);
  }

  TemporaryDirectory directory_{"/dev/shm"};
  SampleState sample_{directory_.file("a.state"), {}, {}, {}, {}};
};

// Whether damage may cause an error of this kind. It is limit if the size of the file seems to have
// grown, and unavailable if another file seems to have replaced it.
bool is_of_damage(const Error& error) {
  return error.kind() == ErrorKind::corrupt || error.kind() == ErrorKind::unavailable ||
         error.kind() == ErrorKind::limit;
}

// Reads everything in every way, and compares it with what was written.
class ReadAll {
 public:
  explicit ReadAll(const ItemMap& contents) : items_(contents.begin(), contents.end()) {
    for (const auto& [key, value] : items_) keys_.push_back(key);
    for (const char* key : {"key/14", "later", "never set"})
      if (!contents.contains(key)) keys_.push_back(key);
  }

  // After each call: whether one of its reads failed, and whether one returned a wrong result.
  bool right() const { return !failed_ && !wrong_; }
  bool failed() const { return failed_; }
  bool wrong() const { return wrong_; }

  void read(const State& state) {
    begin();
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      attempt([&] {
        const bool found = state.get(keys_[i], value_);
        return found == (i < items_.size()) && (!found || value_ == items_[i].second);
      });
    }
    attempt([&] { return !state.contains("never set") && state.contains(keys_[0]); });
    attempt([&] {
      std::size_t right = 0;
      std::size_t found = 0;
      state.pin()->get_many(keys_, [&](std::size_t i, const LookupResult& result) {
        ++found;
        right += i < items_.size() && result.value == items_[i].second;
      });
      return found == items_.size() && right == found;
    });
    attempt([&] { return is_right(View(state.pin())); });
  }
  void read(const View& view) {
    begin();
    attempt([&] { return is_right(view); });
  }

 private:
  void begin() { failed_ = wrong_ = false; }
  template <typename Read>
  void attempt(const Read& read) {
    try {
      if (!read()) wrong_ = true;
    } catch (const Error& error) {
      failed_ = true;
      if (!is_of_damage(error)) throw;
    }
  }
  bool is_right(const View& view) const {
    std::size_t next = 0;
    for (const auto& [key, value] : view) {
      if (next == items_.size() || key != items_[next].first || value != items_[next].second)
        return false;
      ++next;
    }
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      const std::optional<std::string_view> value = view.get(keys_[i]);
      if (value.has_value() != (i < items_.size()) || (value && *value != items_[i].second))
        return false;
    }
    return next == items_.size() && view.count() == next && view.size() == next;
  }

  std::vector<std::pair<std::string, std::string>> items_;
  std::vector<std::string_view> keys_;
  std::string value_;
  bool failed_ = false;
  bool wrong_ = false;
};

// Writes `bytes` to a file in place, whatever its size was.
void overwrite(int file, std::string_view bytes) {
  if (::ftruncate(file, static_cast<off_t>(bytes.size())) != 0 ||
      ::pwrite(file, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size()))
    throw std::runtime_error("cannot write the test file");
}

// Throws what must not happen: anything but an Error of a kind that damage may cause.
template <typename Call>
bool succeeds(const Call& call) {
  const std::optional<Error> error = thrown_error(call);
  if (!error) return true;
  if (!is_of_damage(*error)) throw std::runtime_error(error->what());
  return false;
}

// The file is damaged while a process reads it, and repaired after each case.
class InUse {
 public:
  // Makes the last changes again, with a view of the update before them.
  InUse(const SampleState& sample, bool always_checks)
      : newest_(sample.contents),
        earlier_(sample.earlier_contents),
        always_checks_(always_checks),
        bytes_(sample.whole.size()) {
    const FileDescriptor file = open_file(sample.path, O_RDWR);
    overwrite(file.number(), sample.earlier_bytes);
    state_ = State::open(mutation_options(sample.path));
    earlier_view_.emplace(state_->pin());
    TestState::apply(*state_->begin_write(TestState::deadline()), last_changes());
    file_ = open_state_file_read_only(sample.path).mapping;
    void* const mapped =
        ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file.number(), 0);
    if (mapped == MAP_FAILED) throw std::runtime_error("cannot map");
    memory_ = static_cast<char*>(mapped);
  }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;
  ~InUse() { ::munmap(memory_, bytes_); }

  Outcome run(const Patch& patch) {
    const std::string before(memory_ + patch.offset, patch.bytes.size());
    std::memcpy(memory_ + patch.offset, patch.bytes.data(), patch.bytes.size());
    std::optional<std::string> fault;
    Outcome outcome = Outcome::right;
    try {
      outcome = read();
    } catch (const std::exception& error) {
      fault = error.what();
    }
    std::memcpy(memory_ + patch.offset, before.data(), before.size());
    if (fault) throw std::runtime_error(*fault);
    return outcome;
  }

 private:
  Outcome read() {
    newest_.read(*state_);
    earlier_.read(*earlier_view_);
    if (newest_.wrong() || newest_.failed() || always_checks_) {
      succeeds([&] { static_cast<void>(state_->inspect()); });
      succeeds([&] { static_cast<void>(state_->info()); });
      if (verify(*file_, true, {}).empty() && newest_.wrong()) {
        earlier_.read(*state_);
        if (earlier_.right()) return Outcome::earlier;
        throw std::runtime_error("a wrong value, and check() finds nothing");
      }
    }
    if (newest_.wrong()) return Outcome::wrong_and_found;
    if (earlier_.wrong()) return Outcome::wrong_before_newest;
    return newest_.failed() || earlier_.failed() ? Outcome::error : Outcome::right;
  }

  ReadAll newest_;
  ReadAll earlier_;
  bool always_checks_;
  std::uint64_t bytes_;
  std::unique_ptr<State> state_;
  std::optional<View> earlier_view_;
  std::shared_ptr<Mapping> file_;
  char* memory_ = nullptr;
};

// The file is damaged while it is in use, and then written to.
class Written {
 public:
  explicit Written(const SampleState& sample)
      : sample_(sample), file_(open_file(sample.path, O_RDWR)) {}

  Outcome run(const Patch& patch) {
    overwrite(file_.number(), sample_.whole);
    const std::unique_ptr<State> state = State::open(mutation_options(sample_.path));
    if (!state->usable()) throw std::runtime_error("not usable before the damage");
    if (::pwrite(file_.number(), patch.bytes.data(), patch.bytes.size(),
                 static_cast<off_t>(patch.offset)) < 0)
      throw std::runtime_error("cannot damage the file");
    ReadAll earlier(sample_.earlier_contents);
    earlier.read(*state);
    ItemMap expected = earlier.right() ? sample_.earlier_contents : sample_.contents;
    const bool is_written =
        succeeds([&] { TestState::apply(*state->begin_write(TestState::deadline()), changes()); });
    std::vector<std::string> faults;
    const bool is_checked =
        succeeds([&] { faults = state->check(TestState::deadline(), {}); }) && faults.empty();
    if (is_written) make_changes(expected);
    ReadAll reads(expected);
    reads.read(*state);
    if (reads.wrong() && is_checked)
      throw std::runtime_error("a wrong value, and check() finds nothing");
    if (reads.wrong()) return Outcome::wrong_and_found;
    if (earlier.right()) return Outcome::earlier;
    return is_written && is_checked && !reads.failed() ? Outcome::right : Outcome::error;
  }

 private:
  static std::vector<TestChange> changes() {
    return {{"key/13", std::string(50, 'x')}, {"key/16", std::nullopt}, {"later", "1"}};
  }
  static void make_changes(ItemMap& items) {
    for (const TestChange& change : changes()) {
      if (change.value) {
        items[change.key] = *change.value;
      } else {
        items.erase(change.key);
      }
    }
  }

  const SampleState& sample_;
  FileDescriptor file_;
};

// The file is damaged and copied, or survives a reboot: it is verified before it is used.
class NotInUse {
 public:
  explicit NotInUse(const SampleState& sample)
      : sample_(sample),
        path_(sample.path + ".copy"),
        file_(open_file(path_, O_RDWR | O_CREAT, 0600)) {}

  Outcome run(const Patch& patch) {
    overwrite(file_.number(), sample_.whole);
    if (::pwrite(file_.number(), patch.bytes.data(), patch.bytes.size(),
                 static_cast<off_t>(patch.offset)) < 0)
      throw std::runtime_error("cannot damage the file");
    return open();
  }
  Outcome run_truncated(std::uint64_t bytes) {
    if (::ftruncate(file_.number(), static_cast<off_t>(bytes)) != 0)
      throw std::runtime_error("cannot truncate the file");
    return open();
  }

 private:
  Outcome open() {
    std::unique_ptr<State> state;
    if (!succeeds([&] { state = State::open(mutation_options(path_)); })) return Outcome::error;
    if (!state->usable()) {
      if (state->unusable_reason().empty()) throw std::runtime_error("rejected without a reason");
      return Outcome::error;
    }
    ReadAll reads(sample_.contents);
    reads.read(*state);
    ReadAll earlier(sample_.earlier_contents);
    earlier.read(*state);
    if (!reads.right() && !earlier.right())
      throw std::runtime_error("accepted with other contents");
    TestState::apply(*state->begin_write(TestState::deadline()), {{"key/13", "x"}, {"later", "1"}});
    const std::vector<std::string> faults = state->check(TestState::deadline(), {});
    if (!faults.empty()) throw std::runtime_error("faulty after a write: " + faults.front());
    return reads.right() ? Outcome::right : Outcome::earlier;
  }

  const SampleState& sample_;
  std::string path_;
  FileDescriptor file_;
};

TEST_F(StateMutation, damage_to_file_in_use_is_harmless_or_found_by_check) {
  const auto in_use = [&](bool always_checks) {
    return [this, always_checks] { return std::make_unique<InUse>(sample_, always_checks); };
  };
  run(
      "a state in use, data", 20, [&](const auto& visit) { for_each_byte(Use::data, visit); },
      in_use(true));
  run(
      "a state in use, empty words", 5000,
      [&](const auto& visit) { for_each_byte(Use::empty_word, visit); }, in_use(false));
  run(
      "a state in use, free space", 500,
      [&](const auto& visit) { for_each_byte(Use::free_space, visit); }, in_use(false));
  run(
      "a state in use, splices", 20, [&](const auto& visit) { for_each_splice(visit); },
      in_use(true));
}

TEST_F(StateMutation, damaged_file_that_is_written_to_is_harmless_or_found_by_check) {
  const auto written = [&] { return std::make_unique<Written>(sample_); };
  run(
      "a state that is written to, data", 100,
      [&](const auto& visit) { for_each_byte(Use::data, visit); }, written);
  run(
      "a state that is written to, splices", 100,
      [&](const auto& visit) { for_each_splice(visit); }, written);
}

TEST_F(StateMutation, damaged_file_that_is_not_in_use_is_right_or_rejected) {
  const auto not_in_use = [&] { return std::make_unique<NotInUse>(sample_); };
  run(
      "a state not in use, data", 100, [&](const auto& visit) { for_each_byte(Use::data, visit); },
      not_in_use);
  run(
      "a state not in use, splices", 100, [&](const auto& visit) { for_each_splice(visit); },
      not_in_use);
}

TEST_F(StateMutation, truncated_file_is_rejected) {
  Tally tally("a state not in use, truncations");
  Sample sample(1000);
  NotInUse copy(sample_);
  EXPECT_EQ(copy.run({0, sample_.whole.substr(0, 1)}), Outcome::right);
  // From the end, so that each case only shortens the file.
  copy.run({0, sample_.whole});
  for (std::uint64_t bytes = sample_.whole.size(); bytes-- > 0;) {
    if (!sample.takes_next()) continue;
    ASSERT_EQ(copy.run_truncated(bytes), Outcome::error) << bytes;
    tally.add("error");
  }
}

// --- The lock file ---

// A process that writes opens the damaged lock file, or has it mapped when it is damaged.
class LockFileMutation : public StateMutation {
 protected:
  // What a write with the lock file at its path does.
  std::string outcome_of_write() {
    std::string reason;
    const std::optional<Error> error = thrown_error([&] {
      const std::unique_ptr<State> state = State::open(mutation_options(sample_.path));
      write(*state);
    });
    if (!error) return "right";
    EXPECT_TRUE(error->kind() == ErrorKind::corrupt || error->kind() == ErrorKind::invalid)
        << error->what();
    EXPECT_NE(std::string(error->what()).find(".lock"), std::string::npos) << error->what();
    return "error";
  }
  static void write(const State& state) {
    const auto begin = std::chrono::steady_clock::now();
    TestState::apply(*state.begin_write(TestState::deadline()), {{"key/10", "x"}});
    for (const StateLock lock : {StateLock::append, StateLock::follow, StateLock::install})
      static_cast<void>(state.lock(lock, TestState::deadline()));
    if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(10))
      throw std::runtime_error("damage to the lock file delays a write");
  }
};

TEST_F(LockFileMutation, damaged_lock_file_is_replaced_or_refused) {
  const std::string path = sample_.path + ".lock";
  const std::string whole = bytes_of_file(path);
  std::string earlier = whole;
  std::memcpy(earlier.data(), "whylock1", 8);
  const std::string others[] = {sample_.whole.substr(0, whole.size()), earlier,
                                std::string(whole.size(), '\0')};
  Tally tally("a lock file");
  Sample sample(300);
  for_each_mutation(whole, others, [&](const Mutation& mutation) {
    if (!sample.takes_next() || HasFailure()) return;
    ::unlink(path.c_str());
    const FileDescriptor file = open_file(path, O_RDWR | O_CREAT, 0600);
    overwrite(file.number(), mutation.bytes);
    ::alarm(case_seconds_max);
    const std::string outcome = outcome_of_write();
    // What is not a lock file of this library stays as it is.
    if (outcome == "error") {
      EXPECT_EQ(bytes_of_file(path), mutation.bytes);
    }
    EXPECT_FALSE(HasFailure()) << mutation.what << " offset=" << mutation.offset;
    tally.add(outcome);
  });
  ::alarm(0);
}

TEST_F(LockFileMutation, damage_to_lock_file_in_use_delays_no_process) {
  Tally tally("a lock file in use");
  Sample sample(100);
  const std::unique_ptr<State> state = State::open(mutation_options(sample_.path));
  write(*state);
  const std::string path = sample_.path + ".lock";
  const std::string whole = bytes_of_file(path);
  const FileDescriptor file = open_file(path, O_RDWR);
  for (std::size_t offset = 0; offset < whole.size(); ++offset) {
    for_each_byte_value(whole[offset], [&](char value) {
      if (!sample.takes_next()) return;
      std::string bytes = whole;
      bytes[offset] = value;
      overwrite(file.number(), bytes);
      ::alarm(case_seconds_max);
      write(*state);
      tally.add("right");
    });
  }
  ::alarm(0);
}

}  // namespace
}  // namespace whycache
