// The log in a directory: one file per update. Format, byte by byte, with a worked example:
// docs/formats/file_log.md.
//
//   DIR/INSTANCE/meta                  uuid, base with its chain and parts; replaced by rename(2)
//                lock                  empty; byte 0: shared by appenders, exclusive for a rewrite
//                                      that switches the base; byte 1: a rewrite is waiting for
//                                      byte 0, new appenders wait. Readable by those alone who may
//                                      write: others could lock it
//                updates/ID            one update each, ID in 20 decimal digits
//                base-ID-TOKEN/NUMBER  the parts of a base
//                tmp/TOKEN             files being written, each locked by its writer
//
// Any number of processes may use the log, and each may be killed at any instruction:
//
// - A writer writes each file under a name in tmp/ and syncs it. Then link(2) gives it its final
//   name, and fails if that name is taken: insert if absent. No partial file ever has a final
//   name. append() returns once the directory is synced too.
// - append() reads the base and links the update while it shares byte 0 with other appenders. A
//   rewrite holds byte 0 alone while it switches the base. An update is therefore never linked at
//   or below the base, and `below_base` means that the update is not in the log. Reading the base
//   again after the link could not prove that: a rewriter may have read the update in between.
//   See docs/decisions/file-log-lock.md.
// - A rewrite deletes updates after the switch is on the disk. A reader reads the meta again after
//   the updates.
// - The kernel drops the locks of a dead process. A file in tmp/ is orphaned if its lock is free. A
//   base directory is orphaned if it is not the current one and its file in tmp/ is orphaned. The
//   next rewrite deletes both. The first append of each FileLog deletes orphaned files in tmp/.
//
// For local file systems. The head is found by probing for updates, from the last head seen, in
// steps that double. Ids are never enumerated, and a directory is listed only to delete from it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <whycache/log.h>

#include "log/log_checks.h"
#include "log/update_watch.h"

namespace whycache {

class OwnedTemporaryFile;

struct FileLogOptions {
  std::string directory;  // its parent must exist
  std::string instance = "default";
  std::string name;  // for messages
  // How long an append waits for a rewrite to switch the base, and a rewrite for appenders.
  std::chrono::milliseconds deadline{10'000};
};

// Keeps no files of the log open between calls, nor anything else that fork() could break: a child
// may use its copy.
class FileLog final : public Log {
 public:
  // Creates the log if it does not exist, or throws LogMissing. Throws Error.
  explicit FileLog(FileLogOptions options, IfMissing if_missing = IfMissing::create);

  std::string name() const override { return options_.name; }
  Extent extent() override;
  // Returns `taken` if the previous update is missing, or if the log was replaced since the last
  // call; reading the log again shows which.
  Appended append(UpdateId id, std::string_view bytes) override;
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override;
  // Woken when a process of this machine links an update.
  bool wait(UpdateId after, std::chrono::nanoseconds at_most) override;
  bool notifies() const noexcept override { return watch_->notifies(); }
  void read_base(const VisitPart& visit) override;
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override;
  void check_may_rewrite() override;

 private:
  struct Meta;
  struct Permissions;
  class SwitchLock;

  void create();
  void check_no_updates() const;
  LogMissing log_missing() const;
  std::optional<Meta> read_meta_if_exists() const;
  Meta read_meta() const;
  void remember_uuid(const Meta& meta) noexcept;
  bool matches_seen_uuid(const Meta& meta) const noexcept;

  UpdateId find_head(const Meta& meta);
  bool has_update(UpdateId id) const;
  std::optional<std::string> read_update(UpdateId id) const;

  void prepare_to_write();
  void sync_unsynced_updates();
  Permissions read_permissions() const;
  static void give_permissions(int descriptor, const std::string& path,
                               const Permissions& permissions);
  OwnedTemporaryFile create_temporary_file(const Permissions& permissions) const;
  Appended link_update(UpdateId id, const OwnedTemporaryFile& file);
  std::uint64_t write_parts(const std::string& directory, const Permissions& permissions,
                            const NextPart& next_part) const;
  bool switch_base(const Meta& next, const Permissions& permissions);
  void delete_obsolete_files() const;
  void delete_updates_below_base() const;
  void delete_orphaned_bases() const;
  void delete_orphaned_temporary_files() const;

  std::string update_path(UpdateId id) const;
  std::string base_directory(UpdateId base, const Uuid& token) const;

  FileLogOptions options_;
  std::string root_;  // DIR/INSTANCE
  std::unique_ptr<UpdateWatch> watch_;
  // Hints: each use checks them against the directory. Relaxed, for no other memory depends on
  // them.
  std::atomic<UpdateId> head_seen_{0};
  std::atomic<std::uint64_t> seen_uuid_prefix_{0};  // first eight bytes; 0: none seen
  std::atomic<bool> is_prepared_to_write_{false};
  // How often this object linked an update and then failed to sync its directory; and the value of
  // that counter before the last sync that succeeded. While they differ, read() and append() sync
  // the directory first. Stored with release, after the link and after the sync; loaded with
  // acquire. If two threads sync at once the smaller value may remain, which costs one more sync.
  std::atomic<std::uint64_t> failed_sync_count_{0};
  std::atomic<std::uint64_t> repaired_sync_count_{0};
};

}  // namespace whycache
