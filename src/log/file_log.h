// The log in a folder: one file per update. Format, byte by byte, with a worked example:
// docs/formats/file_log.md.
//
//   DIR/INSTANCE/meta                      uuid, base, chain and parts of the base; replaced by rename(2)
//                lock                      empty; byte 0: appenders (shared) against the switch of the base (alone),
//                                          byte 1: a switch is waiting, newcomers let it go first
//                updates/ID                one update each, ID in 20 decimal digits
//                base-ID-TOKEN/NUMBER      the parts of a base
//                tmp/TOKEN                 files being written; each locked by its writer
//
// How it is safe between any number of processes, each of which may be killed at any instruction:
//
// - A file is written under a name in tmp/ and synced; only then it gets its final name, by
// link(2), which fails if the
//   name is taken: insert-if-absent. So no partial file is ever seen under a final name. append() returns when
//   the folder is synced too.
// - append() looks at the base and links while it holds byte 0 together with other appenders; the
// switch to another
//   base holds it alone. So an update is never linked at or below the base, and `below_base` means that it is surely
//   not in the log. (Looking at the base again after the link cannot say that: a rewriter may have read the update
//   just linked. See docs/decisions/file-log-lock.md.)
// - Updates are deleted after the switch is on the disk. Whoever reads looks at the meta again
// after the rows.
// - The kernel drops the locks of the dead. What they left in tmp/, and base folders nobody
// switched to, are known by
//   their lock being free; the next rewrite deletes them, and the first append of each FileLog what is in tmp/.
//
// For local file systems. The head is found by probing names from the one last seen, doubling the
// step; the id space is never walked, the folder never listed, except to delete.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <whycache/log.h>

namespace whycache {

struct FileLogOptions {
  std::string directory;  // its parent has to exist
  std::string instance = "default";
  std::string name;  // for messages
  // How long to wait for a rewrite to switch, or for appenders to let it.
  std::chrono::milliseconds deadline{10'000};
};

// Has no open files between calls, and nothing a fork() could break: a child goes on with its copy.
class FileLog final : public Log {
 public:
  // Makes the log if it is not there. Throws Error.
  explicit FileLog(FileLogOptions options);

  std::string name() const override { return options_.name; }
  Extent extent() override;
  // An append whose predecessor is not there, or to a log that was replaced since the last call,
  // answers `taken`: reading again will tell.
  Appended append(UpdateId id, std::string_view bytes) override;
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override;
  void read_base(const VisitPart& visit) override;
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override;

 private:
  struct Meta;
  class OwnedTemporaryFile;
  class SwitchLock;

  void create();
  std::optional<Meta> read_meta_if_exists() const;
  Meta read_meta() const;
  void remember_uuid(const Meta& meta) noexcept;
  bool matches_seen_uuid(const Meta& meta) const noexcept;

  UpdateId find_head(const Meta& meta);
  bool has_update(UpdateId id) const;
  std::optional<std::string> read_update(UpdateId id) const;

  void prepare_to_write();
  void sync_unsynced_updates();
  Appended link_update(UpdateId id, const OwnedTemporaryFile& file);
  std::uint64_t write_parts(const std::string& base_folder, const NextPart& next_part) const;
  bool switch_base(const Meta& next);
  void delete_obsolete_files() const;
  void delete_updates_below_base() const;
  void delete_orphaned_bases() const;
  void delete_orphaned_temporary_files() const;

  std::string update_path(UpdateId id) const;
  std::string base_directory(UpdateId base, const Uuid& token) const;

  FileLogOptions options_;
  std::string root_;  // DIR/INSTANCE
  // Hints, checked against the folder each time they are used.
  std::atomic<UpdateId> head_seen_{0};
  std::atomic<std::uint64_t> seen_uuid_prefix_{0};  // its first eight bytes
  std::atomic<bool> is_prepared_to_write_{false};
  std::atomic<std::uint32_t> file_mode_{0600};
  // How often an update was linked, by us, whose folder could not be synced then; and how many of
  // these times the folder has been synced since (release, after that). Not the same: who is about
  // to say what is there syncs it first. If two do so at once the smaller number may stay, which
  // costs one more.
  std::atomic<std::uint64_t> failed_sync_count_{0};
  std::atomic<std::uint64_t> repaired_sync_count_{0};
};

}  // namespace whycache
