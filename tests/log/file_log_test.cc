// The log in a directory: its files, leftovers, power loss, and failing disks.
#include "log/file_log.h"

#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <whycache/cache.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/process_lock.h"
#include "log/log_helpers.h"
#include "log/root_tests.h"
#include "log/stores.h"
#include "support/program.h"
#include "support/seed.h"
#include "support/temporary_directory.h"
#include "support/thrown_error.h"

namespace {

// Called before each fsync and fdatasync of this program while it is set. Returns an errno to fail
// with, or 0.
std::function<int(int descriptor)>* sync_hook = nullptr;

int sync_unless_failing(long call, int descriptor) {
  if (sync_hook != nullptr) {
    if (const int error = (*sync_hook)(descriptor)) {
      errno = error;
      return -1;
    }
  }
  return static_cast<int>(::syscall(call, descriptor));
}

// Calls a hook before every sync while this object lives. The hook may make the sync fail.
class SyncListener {
 public:
  explicit SyncListener(std::function<int(int descriptor)> hook) : hook_(std::move(hook)) {
    sync_hook = &hook_;
  }
  SyncListener(const SyncListener&) = delete;
  SyncListener& operator=(const SyncListener&) = delete;
  ~SyncListener() { sync_hook = nullptr; }

 private:
  std::function<int(int)> hook_;
};

}  // namespace

// Replace the functions of the C library.
extern "C" int fsync(int descriptor) { return sync_unless_failing(SYS_fsync, descriptor); }
extern "C" int fdatasync(int descriptor) { return sync_unless_failing(SYS_fdatasync, descriptor); }

namespace whycache {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::expect_error;
using testing::read_file;
using testing::TemporaryDirectory;
using testing::thrown_error;

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

// Returns a file of a log, built only from docs/formats/file_log.md.
std::string file_of_kind(char kind, std::uint64_t number, const std::string& payload) {
  std::string bytes = std::string("whycache\x01") + kind + std::string(6, '\0');
  append_little_endian(bytes, number);
  append_little_endian(bytes, std::uint64_t{payload.size()});
  append_little_endian(bytes, hash64(payload, hash64(bytes)));
  return bytes + payload;
}

std::string meta_file(const std::string& uuid, const std::string& token, UpdateId base,
                      std::uint64_t base_chain, std::uint64_t parts) {
  std::string payload = uuid + token;
  append_little_endian(payload, base);
  append_little_endian(payload, base_chain);
  append_little_endian(payload, parts);
  return file_of_kind('m', 0, payload);
}

// --- The format. ---

TEST(FileLogFormat, files_of_vectors_open_as_documented_log) {
  const json vectors = load_vectors();
  StoreDirectory directory;
  for (const auto& [path, bytes] : vectors["files"].items())
    write_file(directory.file("log/" + path), from_hex(bytes));
  for (const char* name : {"lock", "tmp/none"})
    write_file(directory.file("log/default/" + std::string(name)), "");

  FileLog log({.directory = directory.file("log"), .name = "vectors"});

  expect_documented_log(log, vectors["log"]);
}

TEST(FileLogFormat, written_files_equal_vectors) {
  const json vectors = load_vectors();
  const json& documented = vectors["log"];
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, documented["base"]);
  for (const json& update : documented["updates"])
    log->append(update["id"], from_hex(update["bytes"]));
  std::vector<std::string> parts;
  for (const json& part : documented["parts"]) parts.push_back(from_hex(part));
  rewrite(*log, documented["base"], parts);

  std::vector<std::string> written;
  std::vector<std::string> expected;
  for (const auto& entry : fs::recursive_directory_iterator(store.root())) {
    if (entry.is_regular_file() && entry.file_size() > 0 && entry.path().filename() != "meta")
      written.push_back(read_file(entry.path()));
  }
  for (const auto& [path, bytes] : vectors["files"].items()) {
    if (!path.ends_with("/meta")) expected.push_back(from_hex(bytes));
  }
  std::sort(written.begin(), written.end());
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(written, expected);

  const std::string meta = from_hex(vectors["files"]["default/meta"]);
  EXPECT_EQ(meta, meta_file(from_hex(documented["uuid"]), from_hex(documented["token"]),
                            documented["base"], documented["base_chain"], parts.size()));
  const std::string own = read_file(store.root() + "/meta");
  EXPECT_EQ(own, meta_file(own.substr(40, 16), own.substr(56, 16), documented["base"],
                           documented["base"].get<std::uint64_t>() * 1000, parts.size()));
}

// In the document a line has an offset, bytes in hexadecimal, and their meaning.
TEST(FileLogFormat, worked_examples_equal_two_vectors) {
  std::ifstream document(WHYCACHE_SOURCE_FOLDER "/docs/formats/file_log.md");
  std::vector<std::string> examples;
  for (std::string line; std::getline(document, line);) {
    std::istringstream words(line);
    std::size_t offset = 0;
    if (!line.starts_with("    ") || !(words >> offset)) continue;
    if (offset == 0) examples.emplace_back();
    ASSERT_FALSE(examples.empty());
    EXPECT_EQ(examples.back().size(), offset) << line;
    for (std::string word; words >> word && word.size() == 2 &&
                           word.find_first_not_of("0123456789abcdef") == std::string::npos;) {
      examples.back() += from_hex(word);
    }
  }
  const json vectors = load_vectors();
  EXPECT_EQ(examples, (std::vector<std::string>{
                          from_hex(vectors["files"]["default/meta"]),
                          from_hex(vectors["files"]["default/updates/00000000000000000003"])}));
}

TEST(FileLogFormat, head_far_beyond_id_one_is_found_without_scan) {
  // Given a log with a high base id.
  FileStore store;
  store.open();
  constexpr UpdateId base = 3'000'000'000'000;
  const std::string meta = read_file(store.root() + "/meta");
  const std::string token(16, '\x11');
  write_file(store.root() + "/meta", meta_file(meta.substr(40, 16), token, base, 5, 0));

  const auto log = store.open();
  EXPECT_EQ(log->extent().head, base);
  for (UpdateId id = base + 1; id <= base + 100; ++id)
    ASSERT_EQ(log->append(id, "far out"), Appended::yes);
  EXPECT_EQ(store.open()->extent().head, base + 100);
  EXPECT_EQ(updates_of(*log).size(), 100U);
}

// --- Damage. ---

TEST(FileLogDamage, flipped_or_truncated_bytes_of_meta_or_update_are_corrupt) {
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, 2);
  for (const std::string& path : {store.root() + "/meta", store.update_path(2)}) {
    const std::string whole = read_file(path);
    const auto expect_refused = [&](const std::string& bytes,
                                    const std::string& advice = "backup") {
      write_file(path, bytes);
      expect_error(
          ErrorKind::corrupt, [&] { updates_of(*log); }, path, advice);
    };
    for (std::size_t size = 0; size < whole.size(); ++size) expect_refused(whole.substr(0, size));
    expect_refused(whole + "x");
    for (std::size_t i = 0; i < whole.size(); ++i) {
      for (const int flip : {0x01, 0x80, 0xff}) {
        std::string damaged = whole;
        damaged[i] = static_cast<char>(damaged[i] ^ flip);
        const bool has_newer_format = i == 8 && damaged[i] != 0;
        expect_refused(damaged, has_newer_format ? "newer whycache" : "backup");
      }
    }
    write_file(path, whole);
    EXPECT_EQ(updates_of(*log).size(), 2U);
  }
}

TEST(FileLogDamage, update_file_of_huge_size_is_corrupt) {
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  fs::resize_file(store.update_path(1), std::uintmax_t{1} << 40);  // a sparse file
  expect_error(
      ErrorKind::corrupt, [&] { updates_of(*log); }, store.update_path(1));
}

TEST(FileLogDamage, foreign_file_at_update_path_is_refused) {
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  const std::string path = store.update_path(1);
  const auto expect_refused = [&](ErrorKind kind) {
    expect_error(
        kind, [&] { updates_of(*log); }, path);
    fs::remove_all(path);
  };
  fs::remove(path);
  write_file(path, "#!/bin/sh\necho not an update\n");
  expect_refused(ErrorKind::corrupt);
  fs::create_directory(path);
  expect_refused(ErrorKind::corrupt);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  expect_refused(ErrorKind::corrupt);
  fs::create_symlink("/etc/passwd", path);
  expect_refused(ErrorKind::invalid);
}

TEST(FileLogDamage, swapped_update_files_are_corrupt) {
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  fs::rename(store.update_path(2), store.root() + "/kept");
  fs::rename(store.update_path(3), store.update_path(2));
  fs::rename(store.root() + "/kept", store.update_path(3));
  expect_error(
      ErrorKind::corrupt, [&] { updates_of(*log); }, store.update_path(2), "expected=2", "found=3");
}

TEST(FileLogDamage, missing_update_at_any_position_is_corrupt) {
  constexpr UpdateId head = 40;
  for (UpdateId lost = 1; lost < head; ++lost) {
    FileStore store;
    const auto log = store.open();
    append_up_to(*log, head);
    ASSERT_TRUE(fs::remove(store.update_path(lost)));
    const std::string id = "id=" + std::to_string(lost) + " ";
    expect_error(
        ErrorKind::corrupt, [&] { updates_of(*log); }, "missing", id);
    expect_error(
        ErrorKind::corrupt, [&] { updates_of(*store.open()); }, "missing", id);
  }
}

TEST(FileLogDamage, missing_meta_is_corrupt_and_keeps_updates) {
  FileStore store;
  auto log = store.open();
  append_up_to(*log, 3);
  fs::remove(store.root() + "/meta");
  expect_error(
      ErrorKind::corrupt, [&] { store.open(); }, store.root() + "/meta", "missing");
  expect_error(
      ErrorKind::unavailable, [&] { log->extent(); }, "log was deleted");
  EXPECT_EQ(names_in(store.root() + "/updates").size(), 3U);
}

TEST(FileLogDamage, missing_part_of_base_is_corrupt) {
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  rewrite(*log, 2, {"a", "b", "c"});
  for (const auto& entry : fs::recursive_directory_iterator(store.root())) {
    if (entry.path().string().ends_with("/00000000000000000001")) fs::remove(entry.path());
  }
  expect_error(
      ErrorKind::corrupt, [&] { parts_of(*log); }, "part of the base is missing", store.root());
}

// --- Appends that do not fit the log. ---

TEST(FileLog, append_beyond_next_id_returns_taken) {
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  EXPECT_EQ(log->append(7, "beyond"), Appended::taken);
  EXPECT_EQ(log->append(700, "far beyond"), Appended::taken);
  EXPECT_EQ(log->extent().head, 5);
}

TEST(FileLog, append_of_reserved_id_or_empty_update_is_invalid) {
  FileStore store;
  const auto log = store.open();
  expect_error(
      ErrorKind::invalid, [&] { log->append(0, "x"); }, "id=0");
  expect_error(
      ErrorKind::invalid, [&] { log->append(no_end, "x"); }, "id=");
  expect_error(
      ErrorKind::invalid, [&] { log->append(1, ""); }, "empty");
  EXPECT_EQ(log->extent().head, 0);
}

// --- Leftovers of dead processes. ---

TEST(FileLog, rewrite_deletes_leftovers_of_dead_processes_only) {
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, 5);

  // Given a rewriter that is writing its parts, and leftovers of two dead rewriters,
  const std::string dead_token = "00112233445566778899aabbccddeeff";
  write_file(store.root() + "/tmp/" + dead_token, "half an upd");
  write_file(store.root() + "/base-00000000000000000004-" + dead_token + "/00000000000000000000",
             "half a part");
  const std::string other_token = "ff112233445566778899aabbccddeeff";
  write_file(store.root() + "/base-00000000000000000999-" + other_token + "/00000000000000000000",
             "");
  write_file(store.root() + "/notes.txt", "notes of an administrator");
  int part = 0;
  const bool switched = log->rewrite(5, 7, [&]() -> std::optional<std::string_view> {
    // when another rewrite completes,
    if (++part == 2) {
      EXPECT_TRUE(rewrite(*store.open(), 3, {"other"}));
    }
    return part <= 3 ? std::optional<std::string_view>("part") : std::nullopt;
  });

  // then the running rewrite is unaffected, and only the base remains.
  EXPECT_TRUE(switched);
  EXPECT_EQ(parts_of(*log), (std::vector<std::string>{"part", "part", "part"}));
  EXPECT_TRUE(names_in(store.root() + "/tmp").empty());
  const auto names = names_in(store.root());
  EXPECT_EQ(std::count_if(names.begin(), names.end(),
                          [](const std::string& name) { return name.starts_with("base-"); }),
            1);
  EXPECT_EQ(std::count(names.begin(), names.end(), "notes.txt"), 1);
}

TEST(FileLog, first_append_deletes_leftovers_of_dead_writers) {
  FileStore store;
  store.open();
  for (int i = 0; i < 5; ++i) write_file(store.root() + "/tmp/leftover" + std::to_string(i), "x");
  const auto log = store.open();
  ASSERT_EQ(log->append(1, "x"), Appended::yes);
  EXPECT_TRUE(names_in(store.root() + "/tmp").empty());
}

TEST(FileLog, switch_lock_times_out_while_held_and_is_free_after_death) {
  FileStore store;
  store.open();
  FileLog log(
      {.directory = store.directory(), .name = "log", .deadline = std::chrono::milliseconds(50)});
  append_up_to(log, 3);
  int pipe_ends[2];
  ASSERT_EQ(::pipe(pipe_ends), 0);
  Child holder([&] {
    const FileDescriptor lock = open_file(store.root() + "/lock", O_RDWR);
    require(try_lock_byte(lock.number(), 1) && try_lock_byte(lock.number(), 0), "lock");
    require(::write(pipe_ends[1], "x", 1) == 1, "write");
    ::pause();
  });
  char locked;
  ASSERT_EQ(::read(pipe_ends[0], &locked, 1), 1);
  expect_error(
      ErrorKind::unavailable, [&] { log.append(4, "x"); }, store.root() + "/lock", "waited_ms=50");
  expect_error(
      ErrorKind::unavailable, [&] { rewrite(log, 2, {"part"}); }, store.root() + "/lock");
  EXPECT_EQ(updates_of(log).size(), 3U);

  holder.kill();
  holder.wait();
  EXPECT_EQ(log.append(4, "x"), Appended::yes);
  EXPECT_TRUE(rewrite(log, 2, {"part"}));
  for (const int end : pipe_ends) ::close(end);
}

// --- Power loss. ---

// A model of the worst state in which a file system may leave a directory after power loss. It may
// lose bytes written since the last sync of a file, and names changed since the last sync of their
// directory.
class PowerLossModel {
 public:
  explicit PowerLossModel(std::string root) : root_(std::move(root)) {}

  // Marks the current content of `descriptor` as synced.
  void record_sync(int descriptor) {
    struct stat status;
    require(::fstat(descriptor, &status) == 0, "fstat");
    const std::string path = fs::read_symlink("/proc/self/fd/" + std::to_string(descriptor));
    if (S_ISDIR(status.st_mode)) {
      directories_[path] = entries_of(path);
    } else {
      files_[status.st_ino] = read_file("/proc/self/fd/" + std::to_string(descriptor), status);
      held_.emplace_back(::dup(descriptor));  // so that no other file gets its inode number
    }
  }

  // Writes one possible state of the disk after a power loss at this moment.
  void make_image(const std::string& to, std::mt19937_64& random) const {
    copy_directory(root_, to, random);
  }

 private:
  struct Entry {
    ino_t number;
    bool is_directory;
  };
  using Entries = std::map<std::string, Entry>;

  static std::string read_file(const std::string& path, const struct stat& status) {
    const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::string bytes(static_cast<std::size_t>(status.st_size), '\0');
    require(::pread(file.number(), bytes.data(), bytes.size(), 0) == status.st_size,
            "pread " + path);
    return bytes;
  }

  static Entries entries_of(const std::string& directory) {
    Entries entries;
    if (!fs::exists(directory)) return entries;
    for (const auto& entry : fs::directory_iterator(directory)) {
      struct stat status;
      if (::lstat(entry.path().c_str(), &status) == 0)
        entries[entry.path().filename()] = {status.st_ino, S_ISDIR(status.st_mode)};
    }
    return entries;
  }

  void copy_directory(const std::string& from, const std::string& to,
                      std::mt19937_64& random) const {
    fs::create_directory(to);
    const Entries now = entries_of(from);
    const auto known = directories_.find(from);
    const Entries durable = known == directories_.end() ? Entries() : known->second;
    Entries all = now;
    all.insert(durable.begin(), durable.end());
    const auto entry_in = [](const Entries& entries, const std::string& name) {
      const auto found = entries.find(name);
      return found == entries.end() ? std::nullopt : std::optional<Entry>(found->second);
    };
    for (const auto& [name, any] : all) {
      const auto was = entry_in(durable, name);
      const auto is = entry_in(now, name);
      const auto chosen = random() % 2 == 0 ? was : is;
      if (!chosen) continue;
      if (chosen->is_directory) {
        copy_directory(from + '/' + name, to + '/' + name, random);
      } else {
        write_file(to + '/' + name, bytes_of(*chosen, from + '/' + name, random));
      }
    }
  }

  std::string bytes_of(const Entry& entry, const std::string& path, std::mt19937_64& random) const {
    const auto synced = files_.find(entry.number);
    if (synced != files_.end()) return synced->second;
    struct stat status;
    if (::lstat(path.c_str(), &status) != 0 || status.st_ino != entry.number) return "";
    std::string bytes = read_file(path, status);
    if (random() % 3 == 0)
      return std::string(bytes.size(), '\0');  // the size reached the disk before the bytes
    return bytes.substr(0, random() % (bytes.size() + 1));
  }

  std::string root_;
  std::map<ino_t, std::string> files_;
  std::map<std::string, Entries> directories_;
  std::vector<FileDescriptor> held_;
};

TEST(FileLogPower, every_image_after_power_loss_holds_acknowledged_updates) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  StoreDirectory directory;
  const std::string disk = directory.file("disk");
  fs::create_directory(disk);
  PowerLossModel model(disk);
  Updates acknowledged;
  UpdateId acknowledged_base = 0;
  int images = 0;
  bool checking = false;

  const auto check_image = [&] {
    checking = true;
    const std::string image = directory.file("image");
    fs::remove_all(image);
    model.make_image(image, random);
    ++images;
    FileLog log({.directory = image + "/log", .name = "image"});
    const Extent extent = log.extent();
    ASSERT_GE(extent.base, acknowledged_base);
    const Updates found = updates_of(log);
    for (const auto& [id, bytes] : acknowledged) {
      if (id <= extent.base) continue;
      const auto update = found.find(id);
      ASSERT_TRUE(update != found.end() && update->second == bytes) << "lost: " << id;
    }
    for (const auto& [id, bytes] : found) ASSERT_EQ(bytes, "update " + std::to_string(id));
    const auto parts = parts_of(log);
    ASSERT_EQ(parts.size(), extent.base == 0 ? 0U : 3U);
    for (const std::string& part : parts) ASSERT_EQ(part, "as of " + std::to_string(extent.base));
    // The log accepts new updates.
    ASSERT_EQ(log.append(extent.head + 1, "update"), Appended::yes);
    ASSERT_TRUE(rewrite(log, extent.head + 1, {"part"}));
    ASSERT_EQ(log.extent().head, extent.head + 1);
    checking = false;
  };
  const SyncListener cut_power([&](int descriptor) {
    if (checking) return 0;
    // More can go wrong while the log is being created.
    for (int i = images < 500 ? 50 : 2; i > 0 && !::testing::Test::HasFatalFailure(); --i)
      check_image();
    model.record_sync(descriptor);
    return 0;
  });
  FileLog log({.directory = disk + "/log", .name = "disk"});
  for (UpdateId id = 1; id <= 60 && !::testing::Test::HasFatalFailure(); ++id) {
    ASSERT_EQ(log.append(id, "update " + std::to_string(id)), Appended::yes);
    acknowledged[id] = "update " + std::to_string(id);
    check_image();
    if (random() % 6 == 0) {
      const UpdateId base = log.extent().base + 1 + random() % (id - log.extent().base);
      const std::string part = "as of " + std::to_string(base);
      ASSERT_TRUE(rewrite(log, base, {part, part, part}));
      acknowledged_base = base;
      check_image();
    }
  }
  RecordProperty("images", images);
  EXPECT_GT(images, 700);
}

TEST(FileLogPower, append_syncs_file_before_link_and_directory_before_return) {
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  std::vector<std::string> synced;
  const SyncListener note([&](int descriptor) {
    synced.push_back(fs::read_symlink("/proc/self/fd/" + std::to_string(descriptor)));
    EXPECT_EQ(fs::exists(store.update_path(2)), synced.size() == 2);
    return 0;
  });
  EXPECT_EQ(log->append(2, "x"), Appended::yes);
  ASSERT_EQ(synced.size(), 2U);
  EXPECT_TRUE(synced[0].starts_with(store.root() + "/tmp/"));
  EXPECT_EQ(synced[1], store.root() + "/updates");
}

// --- Disks that fail or fill up, and permissions. ---

TEST(FileLogDisk, failed_file_sync_leaves_update_out_of_log) {
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  for (const auto& [error, kind] : {std::pair{EIO, ErrorKind::unavailable},
                                    {ENOSPC, ErrorKind::limit},
                                    {EDQUOT, ErrorKind::limit}}) {
    {
      const SyncListener fail([error = error](int) { return error; });
      expect_error(
          kind, [&] { log->append(2, "x"); }, store.root());
    }
    EXPECT_EQ(log->extent().head, 1);
    EXPECT_TRUE(names_in(store.root() + "/tmp").empty());
  }
}

TEST(FileLogDisk, failed_directory_sync_makes_append_uncertain) {
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  int syncs = 0;
  const SyncListener fail_second([&](int) { return ++syncs == 2 ? EIO : 0; });
  expect_error(
      ErrorKind::uncertain, [&] { log->append(2, "x"); }, store.root() + "/updates");
  EXPECT_EQ(log->extent().head, 2);
}

// Other processes see the update. Its writer must not take it for written before it is on the disk.
TEST(FileLogDisk, writer_reads_own_update_only_after_directory_sync) {
  FileStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  {
    int syncs = 0;
    const SyncListener fail([&](int) { return ++syncs >= 2 ? EIO : 0; });
    expect_error(ErrorKind::uncertain, [&] { log->append(2, "x"); });
    expect_error(
        ErrorKind::unavailable, [&] { updates_of(*log); }, "cannot be synced");
    expect_error(
        ErrorKind::unavailable, [&] { log->append(3, "y"); }, "cannot be synced");
    EXPECT_EQ(updates_of(*store.open()).size(), 2U);
  }
  int syncs = 0;
  const SyncListener count([&](int) { return ++syncs * 0; });
  EXPECT_EQ(updates_of(*log).size(), 2U);
  EXPECT_EQ(syncs, 1);
  EXPECT_EQ(updates_of(*log).size(), 2U);
  EXPECT_EQ(syncs, 1);
}

// A cache reports such a write as uncertain.
TEST(FileLogDisk, cache_write_is_uncertain_until_directory_sync_succeeds) {
  FileStore store;
  const TemporaryDirectory directory;
  Options options;
  options.state_path = directory.file("state");
  options.deadline = std::chrono::milliseconds(200);
  Cache cache(store.open(), options);
  cache.set("key", "1");
  const std::string updates = store.root() + "/updates";
  std::atomic<bool> broken{true};
  const SyncListener fail([&](int descriptor) {
    return broken && fs::read_symlink("/proc/self/fd/" + std::to_string(descriptor)) == updates
               ? EIO
               : 0;
  });
  expect_error(
      ErrorKind::uncertain, [&] { cache.set("key", "2"); }, "synced");
  std::thread repair([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    broken = false;
  });
  EXPECT_EQ(cache.set("key", "3"), 3U);
  repair.join();
  EXPECT_EQ(cache.get("key"), "3");
}

TEST(FileLogDisk, rewrite_leaves_consistent_log_after_any_failed_sync) {
  for (int failing = 1; failing < 100; ++failing) {
    FileStore store;
    const auto log = store.open();
    append_up_to(*log, 5);
    const auto error = thrown_error([&] {
      int syncs = 0;
      const SyncListener fail_one([&](int) { return ++syncs == failing ? EIO : 0; });
      rewrite(*log, 3, {"a", "b"});
    });

    const UpdateId base = log->extent().base;
    EXPECT_EQ(base, !error || error->kind() == ErrorKind::uncertain ? 3U : 0U) << failing;
    EXPECT_EQ(updates_of(*log).size(), 5 - base);
    EXPECT_EQ(parts_of(*log).size(), base == 0 ? 0U : 2U);
    EXPECT_EQ(rewrite(*log, 4, {"c"}), true);
    EXPECT_EQ(updates_of(*log).size(), 1U);
    if (!error) {
      EXPECT_GE(failing, 6);  // a rewrite syncs at least five times
      return;
    }
  }
}

TEST(FileLogDisk, full_disk_throws_limit_and_leaves_log_consistent) {
  StoreDirectory directory;
  const bool ran_as_root = run_as_root([&] {
    fs::create_directory(directory.file("disk"));
    mount_small_disk(directory.file("disk"), "512k");
    FileLog log({.directory = directory.file("disk/log"), .name = "full"});
    write_file(directory.file("disk/filler"), std::string(100'000, 'x'));
    UpdateId head = 0;
    std::optional<Error> error;
    while (!error) {
      error = thrown_error([&] {
        require(log.append(head + 1, std::string(20'000, 'u')) == Appended::yes, "append");
      });
      if (!error) ++head;
    }
    require(error->kind() == ErrorKind::limit && error->system_error() == ENOSPC, error->what());
    require(head > 5 && log.extent().head == head && updates_of(log).size() == head,
            "updates after a full disk");
    require(names_in(directory.file("disk/log/default/tmp")).empty(), "tmp is empty");

    error = thrown_error([&] { rewrite(log, head, {std::string(100'000, 'p')}); });
    require(error && error->kind() == ErrorKind::limit, "rewrite on a full disk");
    require(log.extent().base == 0 && updates_of(log).size() == head,
            "updates after a rewrite on a full disk");

    fs::remove(directory.file("disk/filler"));
    require(log.append(head + 1, std::string(20'000, 'u')) == Appended::yes,
            "append when there is room");
    require(rewrite(log, head + 1, {"small"}) && updates_of(log).empty(),
            "rewrite when there is room");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(FileLogDisk, read_only_file_system_allows_reads_and_refuses_writes) {
  StoreDirectory directory;
  const bool ran_as_root = run_as_root([&] {
    fs::create_directory(directory.file("disk"));
    mount_small_disk(directory.file("disk"), "1m");
    require(FileLog({.directory = directory.file("disk/log"), .name = "log"}).append(1, "x") ==
                Appended::yes,
            "append");
    make_disk_read_only(directory.file("disk"));

    FileLog log({.directory = directory.file("disk/log"), .name = "read-only"});
    require(updates_of(log).size() == 1, "read");
    const auto append_error = thrown_error([&] { log.append(2, "y"); });
    require(append_error && append_error->kind() == ErrorKind::invalid &&
                append_error->system_error() == EROFS,
            "append");
    const auto open_error = thrown_error(
        [&] { FileLog({.directory = directory.file("disk/other"), .name = "other"}); });
    require(open_error && open_error->kind() == ErrorKind::invalid &&
                open_error->system_error() == EROFS,
            "make");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(FileLogDisk, read_only_user_can_follow_and_other_user_is_refused) {
  StoreDirectory directory;
  fs::permissions(fs::path(directory.file("x")).parent_path(), fs::perms(0755));
  const std::string path = directory.file("log");
  const bool ran_as_root = run_as_root([&] {
    require(FileLog({.directory = path, .name = "log"}).append(1, "x") == Appended::yes, "append");
    Child other_user([&] {
      drop_privileges();
      const auto error = thrown_error([&] { FileLog({.directory = path, .name = "other_user"}); });
      require(error && error->kind() == ErrorKind::invalid && error->system_error() == EACCES,
              "a other_user is refused");
    });
    require(other_user.wait() == 0, "other_user");

    // Given a directory that its owner makes readable for all users: new files inherit that.
    for (const char* each : {"", "/default", "/default/updates"})
      fs::permissions(path + each, fs::perms(0755));
    for (const char* each : {"/default/meta", "/default/updates/00000000000000000001"})
      fs::permissions(path + each, fs::perms(0644));
    ::umask(0077);
    FileLog log({.directory = path, .name = "log"});
    require(log.append(2, "y") == Appended::yes, "append");
    require(rewrite(log, 1, {"part"}), "rewrite");
    Child reader([&] {
      drop_privileges();
      FileLog readable({.directory = path, .name = "reader"});
      require(updates_of(readable) == Updates{{2, "y"}}, "read");
      require(parts_of(readable).size() == 1, "read base");
      const auto error = thrown_error([&] { readable.append(3, "z"); });
      require(error && error->kind() == ErrorKind::invalid && error->system_error() == EACCES,
              "a reader cannot append");
    });
    require(reader.wait() == 0, "reader");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

// Becomes a user that is in one group alone.
void become(uid_t user, gid_t group) {
  require(::setgroups(0, nullptr) == 0 && ::setgid(group) == 0 && ::setuid(user) == 0,
          "become another user");
}

constexpr uid_t writing_user = 23001;
constexpr uid_t reading_user = 23002;
constexpr gid_t writing_group = 23101;
constexpr gid_t reading_group = 23102;

bool can_open(const std::string& path, int flags) {
  return FileDescriptor(::open(path.c_str(), flags | O_CLOEXEC)).number() >= 0;
}

TEST(FileLogDisk, reader_cannot_lock_what_writers_wait_for) {
  StoreDirectory directory;
  fs::permissions(fs::path(directory.file("x")).parent_path(), fs::perms(0755));
  const std::string path = directory.file("log");
  const bool ran_as_root = run_as_root([&] {
    FileLog log({.directory = path, .name = "log", .deadline = std::chrono::milliseconds(200)});
    append_up_to(log, 3);
    // Given a log that its owner makes readable with all its files,
    for (const char* each : {"", "/default", "/default/updates", "/default/tmp"})
      fs::permissions(path + each, fs::perms(0755));
    for (const char* each : {"/default/meta", "/default/lock"})
      fs::permissions(path + each, fs::perms(0644));
    // when the owner writes next,
    require(log.append(4, "x") == Appended::yes, "append");
    // no reader can open any file that carries a lock, also while a rewrite runs.
    int parts = 0;
    const auto next_part = [&]() -> std::optional<std::string_view> {
      if (parts++ > 0) return std::nullopt;
      Child reader([&] {
        become(reading_user, reading_group);
        require(can_open(path + "/default/meta", O_RDONLY), "meta is readable");
        require(!can_open(path + "/default/lock", O_RDONLY), "lock is not readable");
        int temporary_files = 0;
        for (const std::string& name : names_in(path + "/default/tmp")) {
          require(!can_open(path + "/default/tmp/" + name, O_RDONLY), name);
          ++temporary_files;
        }
        require(temporary_files > 0, "the rewrite has a file");
      });
      require(reader.wait() == 0, "reader");
      return "part";
    };
    require(log.rewrite(2, 2000, next_part), "rewrite");
    require(log.append(5, "x") == Appended::yes, "append");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(FileLogDisk, group_that_may_write_still_shares_the_lock) {
  StoreDirectory directory;
  fs::permissions(fs::path(directory.file("x")).parent_path(), fs::perms(0755));
  const std::string path = directory.file("log");
  const bool ran_as_root = run_as_root([&] {
    append_up_to(*std::make_unique<FileLog>(FileLogOptions{.directory = path, .name = "log"}), 3);
    const std::string command =
        "chgrp -R " + std::to_string(writing_group) + ' ' + path + " && chmod -R g+rwX " + path;
    require(std::system(command.c_str()) == 0, command);
    for (UpdateId id = 4; id <= 7; ++id) {
      Child writer([&] {
        // Users of different ids, and one with the group among its others.
        const gid_t groups[] = {writing_group};
        require(::setgroups(1, groups) == 0, "setgroups");
        require(::setgid(id % 2 == 0 ? writing_group : reading_group) == 0, "setgid");
        require(::setuid(writing_user + static_cast<uid_t>(id)) == 0, "setuid");
        FileLog log({.directory = path, .name = "log"});
        require(updates_of(log).size() == id - 1, "read");
        require(log.append(id, "x") == Appended::yes, "append");
      });
      require(writer.wait() == 0, "writer");
    }
    FileLog log({.directory = path, .name = "log"});
    require(rewrite(log, 6, {"part"}), "rewrite");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(FileLogDisk, writer_that_may_not_rewrite_learns_it_before) {
  StoreDirectory directory;
  fs::permissions(fs::path(directory.file("x")).parent_path(), fs::perms(0755));
  const std::string path = directory.file("log");
  const bool ran_as_root = run_as_root([&] {
    FileLog log({.directory = path, .name = "log"});
    append_up_to(log, 3);
    log.check_may_rewrite();
    // Given files that a group may append to, but a base that it may not replace,
    const std::string command = "chgrp -R " + std::to_string(writing_group) + ' ' + path +
                                " && chmod -R g+rwX " + path + " && chmod g-w " + path + "/default";
    require(std::system(command.c_str()) == 0, command);
    Child writer([&] {
      become(writing_user, writing_group);
      FileLog writable({.directory = path, .name = "log"});
      // then its user is told, and can go on.
      const auto error = thrown_error([&] { writable.check_may_rewrite(); });
      require(error && error->kind() == ErrorKind::invalid && error->system_error() == EACCES,
              "may not rewrite");
      require(writable.append(4, "x") == Appended::yes, "append");
    });
    require(writer.wait() == 0, "writer");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(FileLogDisk, documented_commands_let_only_a_group_follow) {
  const std::vector<std::string> documented = fenced_blocks("logs.md", "sh file");
  ASSERT_EQ(documented.size(), 1U);
  StoreDirectory directory;
  fs::permissions(fs::path(directory.file("x")).parent_path(), fs::perms(0755));
  const std::string path = directory.file("log");
  const bool ran_as_root = run_as_root([&] {
    std::string commands = documented[0];
    const std::pair<std::string, std::string> words[] = {
        {"DIR", path}, {"NAME", "default"}, {"readers", std::to_string(reading_group)}};
    for (const auto& [word, value] : words) {
      for (std::size_t at = commands.find(word); at != std::string::npos;
           at = commands.find(word, at + value.size()))
        commands.replace(at, word.size(), value);
    }
    fs::create_directory(path);
    require(::chown(path.c_str(), writing_user, writing_group) == 0, "chown");
    // Given a writer that is in the group of readers, too, and runs all the time,
    int to_writer[2];
    int from_writer[2];
    require(::pipe(to_writer) == 0 && ::pipe(from_writer) == 0, "pipe");
    Child writer([&] {
      const gid_t groups[] = {reading_group};
      require(::setgroups(1, groups) == 0 && ::setgid(writing_group) == 0 &&
                  ::setuid(writing_user) == 0,
              "become the writer");
      FileLog log({.directory = path, .name = "log"});
      append_up_to(log, 2);
      char command = 'x';
      while (::write(from_writer[1], "x", 1) == 1 && ::read(to_writer[0], &command, 1) == 1 &&
             command != 'q') {
        append_up_to(log, log.extent().head + 2);
        require(rewrite(log, log.extent().head - 1, {"part"}), "rewrite");
      }
    });
    char ready;
    require(::read(from_writer[0], &ready, 1) == 1, "writer");
    // when root runs the commands, and the writer goes on,
    require(std::system(commands.c_str()) == 0, commands);
    for (int round = 0; round < 2; ++round) {
      const auto expect_reader = [&](gid_t group, bool follows) {
        Child reader([&] {
          become(reading_user, group);
          const auto error = thrown_error([&] {
            FileLog log({.directory = path, .name = "log"});
            require(!updates_of(log).empty(), "updates");
            require(round == 0 || parts_of(log).size() == 1, "base");
          });
          require(follows == !error, error ? error->what() : "reads");
          require(!can_open(path + "/default/lock", O_RDONLY), "lock");
        });
        require(reader.wait() == 0, "reader");
      };
      // then the group follows, and others do not.
      expect_reader(reading_group, true);
      expect_reader(writing_group, false);
      require(::write(to_writer[1], "x", 1) == 1 && ::read(from_writer[0], &ready, 1) == 1,
              "writer");
    }
    require(::write(to_writer[1], "q", 1) == 1 && writer.wait() == 0, "writer");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(FileLogDisk, new_files_give_other_groups_of_the_writer_the_permissions_of_others) {
  StoreDirectory directory;
  fs::permissions(fs::path(directory.file("x")).parent_path(), fs::perms(0755));
  const std::string path = directory.file("log");
  const std::string root = path + "/default";
  const bool ran_as_root = run_as_root([&] {
    fs::create_directory(path);
    require(::chown(path.c_str(), writing_user, writing_group) == 0, "chown");
    const auto append_as_writer = [&](UpdateId id) {
      Child writer([&] {
        become(writing_user, writing_group);  // not in the group of readers
        append_up_to(*std::make_unique<FileLog>(FileLogOptions{.directory = path, .name = "log"}),
                     id);
      });
      require(writer.wait() == 0, "writer");
      struct stat status;
      const std::string name = std::to_string(id);
      const std::string digits = std::string(20 - name.size(), '0') + name;
      require(::stat((root + "/updates/" + digits).c_str(), &status) == 0, "stat");
      require(status.st_gid == writing_group, "group");
      return status.st_mode & 0777;
    };
    require(append_as_writer(1) == 0600, "a new log is closed");
    require(::chown(root.c_str(), writing_user, reading_group) == 0, "chown");
    fs::permissions(root, fs::perms(0750));
    require(append_as_writer(2) == 0600, "closed to the group of the writer");
    fs::permissions(root, fs::perms(0755));
    require(append_as_writer(3) == 0644, "open to all");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(FileLogDisk, symbolic_link_as_log_directory_is_refused) {
  StoreDirectory directory;
  fs::create_directory(directory.file("elsewhere"));
  fs::create_directory_symlink(directory.file("elsewhere"), directory.file("log"));
  expect_error(
      ErrorKind::invalid, [&] { FileLog({.directory = directory.file("log"), .name = "log"}); },
      directory.file("log"), "symbolic link");
  EXPECT_TRUE(fs::is_empty(directory.file("elsewhere")));
}

TEST(FileLogDisk, only_last_path_component_is_created_with_owner_permissions) {
  StoreDirectory directory;
  expect_error(
      ErrorKind::invalid, [&] { FileLog({.directory = directory.file("a/b"), .name = "log"}); },
      "does not exist", "a/b");
  EXPECT_FALSE(fs::exists(directory.file("a")));
  write_file(directory.file("file"), "x");
  expect_error(
      ErrorKind::invalid, [&] { FileLog({.directory = directory.file("file"), .name = "log"}); },
      directory.file("file"));
  expect_error(
      ErrorKind::invalid,
      [&] { FileLog({.directory = directory.file("file/log"), .name = "log"}); },
      directory.file("file"));

  FileLog log({.directory = directory.file("log/"), .name = "log"});
  ASSERT_EQ(log.append(1, "x"), Appended::yes);
  for (const auto& entry : fs::recursive_directory_iterator(directory.file("log"))) {
    EXPECT_EQ(entry.status().permissions(),
              entry.is_directory() ? fs::perms(0700) : fs::perms(0600))
        << entry.path();
  }
  EXPECT_EQ(fs::status(directory.file("log")).permissions(), fs::perms(0700));
}

}  // namespace
}  // namespace whycache
