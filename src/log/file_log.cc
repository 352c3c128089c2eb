#include "log/file_log.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/backoff.h"
#include "base/bytes.h"
#include "base/call_limit.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/fork_handlers.h"
#include "base/hash.h"
#include "base/lock_holders.h"
#include "base/owned_temporary_file.h"
#include "base/process_lock.h"
#include "base/random.h"
#include "log/log_checks.h"

namespace whycache {
namespace {

constexpr char file_restore_hint[] =
    " (restore it from a backup, or move the log's directory away to begin an empty log)";

Error corrupt_file_error(const std::string& what, const std::string& path,
                         const std::string& values = "") {
  return Error(ErrorKind::corrupt, what + ": path=" + path + values + file_restore_hint);
}

// --- Files of the log: a header, then the payload. ---

enum class FileKind : char { meta = 'm', update = 'u', base_part = 'p' };

constexpr std::string_view magic = "whycache";
constexpr char format_version = 1;
constexpr std::size_t header_bytes = 40;
constexpr std::size_t hashed_header_bytes = 32;  // their hash seeds that of the payload
constexpr std::uint64_t payload_bytes_max = std::uint64_t{1} << 30;

// `number` is the update's id or the part's number; 0 for the meta.
std::string encode_file(FileKind kind, std::uint64_t number, std::string_view payload) {
  std::string bytes;
  bytes.reserve(header_bytes + payload.size());
  bytes.append(magic);
  bytes += format_version;
  bytes += static_cast<char>(kind);
  bytes.append(6, '\0');
  append_little_endian<std::uint64_t>(bytes, number);
  append_little_endian<std::uint64_t>(bytes, payload.size());
  append_little_endian(bytes, hash64(payload, hash64(bytes)));
  bytes.append(payload);
  return bytes;
}

std::string read_all(int descriptor, std::uint64_t size, const std::string& path) {
  std::string bytes(static_cast<std::size_t>(size), '\0');
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t got = ::read(descriptor, bytes.data() + done, bytes.size() - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw system_error("cannot read file", path, errno);
    if (got == 0) throw corrupt_file_error("file of the log is cut short", path);
    done += static_cast<std::size_t>(got);
  }
  return bytes;
}

// Returns the payload of a file of the log, or nullopt if there is no file. The bytes are
// untrusted. Throws Error(corrupt).
std::optional<std::string> read_payload(const std::string& path, FileKind kind,
                                        std::uint64_t number) {
  // O_NONBLOCK: opening a pipe in the file's place would block forever.
  const FileDescriptor file = open_file_if_exists(path, O_RDONLY | O_NONBLOCK);
  if (!file) return std::nullopt;
  struct stat status;
  if (::fstat(file.number(), &status) != 0) throw system_error("cannot read file", path, errno);
  if (!S_ISREG(status.st_mode))
    throw corrupt_file_error("not a regular file in the place of a file of the log", path);
  const auto file_bytes = static_cast<std::uint64_t>(status.st_size);
  if (file_bytes < header_bytes || file_bytes > header_bytes + payload_bytes_max) {
    throw corrupt_file_error("file of the log is too short or too long to be one", path,
                             " bytes=" + std::to_string(file_bytes));
  }

  std::string bytes = read_all(file.number(), file_bytes, path);
  const std::string_view header = std::string_view(bytes).substr(0, header_bytes);
  if (header.substr(0, magic.size()) != magic)
    throw corrupt_file_error("not a file of a whycache log", path);
  if (header[8] != format_version) {
    const auto found_version = static_cast<unsigned char>(header[8]);
    const std::string message =
        "file of the log has a format this version does not know: path=" + path +
        " format=" + std::to_string(found_version);
    const bool is_newer = found_version > format_version;
    throw Error(ErrorKind::corrupt, message + (is_newer ? upgrade_hint : file_restore_hint));
  }
  const auto found_number = load_little_endian<std::uint64_t>(&header[16]);
  if (header[9] != static_cast<char>(kind) || found_number != number) {
    throw corrupt_file_error(
        "file of the log holds something else than its name says", path,
        " expected=" + std::to_string(number) + " found=" + std::to_string(found_number));
  }
  const auto payload_bytes = load_little_endian<std::uint64_t>(&header[24]);
  if (payload_bytes != file_bytes - header_bytes) {
    throw corrupt_file_error(
        "file of the log has the wrong size", path,
        " bytes=" + std::to_string(file_bytes) + " payload_bytes=" + std::to_string(payload_bytes));
  }
  const std::uint64_t seed = hash64(header.substr(0, hashed_header_bytes));
  if (hash64(std::string_view(bytes).substr(header_bytes), seed) !=
      load_little_endian<std::uint64_t>(&header[hashed_header_bytes])) {
    throw corrupt_file_error("file of the log is damaged", path);
  }
  bytes.erase(0, header_bytes);
  return bytes;
}

// Calls `write`, which writes to a file. Names the limit if the file would exceed RLIMIT_FSIZE.
template <typename Write>
void write_within_size_limit(const std::string& path, const Write& write) {
  try {
    write();
  } catch (const Error& error) {
    if (error.system_error() != EFBIG) throw;
    rlimit limit{};
    ::getrlimit(RLIMIT_FSIZE, &limit);
    throw Error(ErrorKind::limit,
                "file of the log exceeds the limit of this process on the size of files: path=" +
                    path + " bytes_max=" + std::to_string(limit.rlim_cur) +
                    " (raise RLIMIT_FSIZE, which ulimit -f sets)",
                EFBIG);
  }
}

void write_durably(OwnedTemporaryFile& file, const std::string& bytes) {
  write_within_size_limit(file.path(), [&] { file.write_durably(bytes); });
}

// --- Names. ---

constexpr std::size_t id_digits = 20;
constexpr std::size_t token_digits = 32;
constexpr std::string_view base_prefix = "base-";
constexpr std::size_t base_name_bytes = base_prefix.size() + id_digits + 1 + token_digits;

std::string zero_padded(std::uint64_t number, std::size_t digits) {
  const std::string text = std::to_string(number);
  return std::string(digits - std::min(digits, text.size()), '0') + text;
}

// Returns the id that names a file in updates/, or nullopt if the name is not an update's.
std::optional<UpdateId> parse_update_file_name(std::string_view name) {
  if (name.size() != id_digits) return std::nullopt;
  UpdateId id = 0;
  for (const char digit : name) {
    if (digit < '0' || digit > '9' || id > update_id_max / 10) return std::nullopt;
    id = id * 10 + static_cast<UpdateId>(digit - '0');
  }
  if (id == 0 || id > update_id_max) return std::nullopt;
  return id;
}

// --- Directories. ---

void create_directory_if_missing(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return;
  if (errno == ENOENT) {
    throw Error(ErrorKind::invalid,
                "cannot create directory for the log, its parent does not exist: path=" + path,
                ENOENT);
  }
  throw system_error("cannot create directory for the log", path, errno);
}

// Another user may have created it, to make this process write elsewhere.
void reject_symbolic_link(const std::string& path) {
  struct stat status;
  if (::lstat(path.c_str(), &status) == 0 && S_ISLNK(status.st_mode)) {
    throw system_error("cannot use directory for the log", path, ELOOP);
  }
}

// Calls `visit` with the descriptor of a directory and each name in it. A directory that another
// process has deleted is empty.
void visit_directory(const std::string& path,
                     const std::function<void(int directory, std::string_view name)>& visit) {
  FileDescriptor descriptor = open_file_if_exists(path, O_RDONLY | O_DIRECTORY);
  if (!descriptor) return;
  const std::unique_ptr<DIR, int (*)(DIR*)> directory(::fdopendir(descriptor.number()), ::closedir);
  if (!directory) throw system_error("cannot list directory", path, errno);
  descriptor.release();
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(directory.get());
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") visit(::dirfd(directory.get()), name);
  }
  if (errno != 0) throw system_error("cannot list directory", path, errno);
}

// Takes the descriptor of the directory, so that it does not touch a log that another process
// creates at the same path meanwhile.
void delete_file(int directory, std::string_view name, const std::string& directory_path) {
  if (::unlinkat(directory, std::string(name).c_str(), 0) == 0 || errno == ENOENT) return;
  throw system_error("cannot delete file", directory_path + '/' + std::string(name), errno);
}

void delete_directory(const std::string& path) {
  visit_directory(
      path, [&](int directory, std::string_view name) { delete_file(directory, name, path); });
  if (::rmdir(path.c_str()) != 0 && errno != ENOENT)
    throw system_error("cannot delete directory", path, errno);
}

// Returns the permissions without those to read of groups and others that may not write. A user
// that may open a file for reading can hold a shared lock on it, and so keep all others from
// writing.
mode_t without_readers(mode_t mode) noexcept {
  const mode_t writers = mode & 0022;
  return (mode & 0700) | writers | (mode & (writers << 1));
}

// Changes nothing if the file belongs to another user.
void exclude_readers(int descriptor) noexcept {
  struct stat status;
  if (::fstat(descriptor, &status) != 0) return;
  const mode_t mode = status.st_mode & 0777;
  if (without_readers(mode) != mode) ::fchmod(descriptor, without_readers(mode));
}

bool is_directory_empty(const std::string& path) {
  bool empty = true;
  visit_directory(path, [&](int, std::string_view) { empty = false; });
  return empty;
}

// --- Waiting. ---

constexpr std::uint64_t switch_byte = 0;
constexpr std::uint64_t gate_byte = 1;

constexpr Backoff::Pauses lock_pauses{std::chrono::microseconds(20), std::chrono::milliseconds(2)};

// Retries until `attempt` returns true. Returns false if the deadline passes first.
bool retry_until(const std::function<bool()>& attempt, const Deadline& deadline) {
  Backoff backoff(deadline, lock_pauses);
  while (!attempt()) {
    if (!backoff.pause()) return false;
  }
  return true;
}

}  // namespace

// Those of the directory DIR/INSTANCE, which new files and directories get.
struct FileLog::Permissions {
  mode_t mode = 0600;
  gid_t group = 0;
};

struct FileLog::Meta {
  Uuid uuid{};
  Uuid token{};  // of the base's directory
  UpdateId base = 0;
  std::uint64_t base_chain = 0;
  std::uint64_t part_count = 0;

  friend bool operator==(const Meta&, const Meta&) = default;

  std::string encode() const {
    std::string payload;
    for (const Uuid* id : {&uuid, &token}) payload.append(id->begin(), id->end());
    append_little_endian(payload, base);
    append_little_endian(payload, base_chain);
    append_little_endian(payload, part_count);
    return encode_file(FileKind::meta, 0, payload);
  }
};

// Gives a new file or directory its permissions. If this process is not in the group of the log,
// the file keeps the group of the process, which then gets the permissions of others.
void FileLog::give_permissions(int descriptor, const std::string& path,
                               const Permissions& permissions) {
  struct stat status;
  if (::fstat(descriptor, &status) != 0) throw system_error("cannot read file", path, errno);
  mode_t mode = permissions.mode;
  if ((mode & 0060) != 0 && status.st_gid != permissions.group &&
      ::fchown(descriptor, static_cast<uid_t>(-1), permissions.group) != 0)
    mode = (mode & 0606) | ((mode & 0006) << 3);
  if (S_ISDIR(status.st_mode)) mode |= (mode & 0444) >> 2;  // search permission to readers
  if (mode != (status.st_mode & 0777) && ::fchmod(descriptor, mode) != 0)
    throw system_error("cannot set permissions of file", path, errno);
}

// Prevents a switch of the base while an update is linked, or appends while the base is switched.
// Allocated on the heap, because a child that is forked meanwhile keeps the object registered.
class FileLog::SwitchLock final : ForkHandler {
 public:
  enum class Holder { appender, switcher };

  SwitchLock(const FileLog& log, Holder holder) : path_(log.root_ + "/lock") {
    register_fork_handler(this, [&] { file_ = open_file(path_, O_RDWR); });
    exclude_readers(file_.number());
    try {
      const Deadline deadline = CallLimit::deadline(log.options_.deadline);
      if (holder == Holder::appender ? lock_shared(deadline) : lock_exclusive(deadline)) return;
      throw Error(ErrorKind::unavailable,
                  "log is locked by another process for too long: path=" + path_ + " waited_ms=" +
                      std::to_string(log.options_.deadline.count()) + describe_holders(),
                  EBUSY);
    } catch (...) {
      release();
      throw;
    }
  }
  ~SwitchLock() { release(); }

 private:
  bool lock_shared(const Deadline& deadline) {
    return retry_until(
        [&] {
          return !is_byte_locked(file_.number(), gate_byte) &&
                 try_lock_byte_shared(file_.number(), switch_byte);
        },
        deadline);
  }
  bool lock_exclusive(const Deadline& deadline) {
    return retry_until([&] { return try_lock_byte(file_.number(), gate_byte); }, deadline) &&
           retry_until([&] { return try_lock_byte(file_.number(), switch_byte); }, deadline);
  }
  std::string describe_holders() const {
    const std::string processes = lock_holders(path_);
    if (processes.empty()) return " (fuser -v lists the processes that have this file open)";
    return " lock_holders=" + processes + " (let it continue, or end it)";
  }
  void release() noexcept {
    unregister_fork_handler(this);
    // Closing does not unlock while a forked child has not closed its copy of the descriptor yet.
    unlock_byte(file_.number(), switch_byte);
    unlock_byte(file_.number(), gate_byte);
  }
  void after_fork_in_child() noexcept override { file_.close(); }

  std::string path_;
  FileDescriptor file_;
};

FileLog::FileLog(FileLogOptions options, IfMissing if_missing) : options_(std::move(options)) {
  std::string& directory = options_.directory;
  while (directory.size() > 1 && directory.back() == '/') directory.pop_back();
  root_ = (directory == "/" ? "" : directory) + '/' + options_.instance;
  watch_ = std::make_unique<UpdateWatch>(
      options_.name,
      std::vector<FileWatch::WatchedFile>{{root_ + "/updates", IN_CREATE | IN_MOVED_TO}});
  for (const std::string& path : {directory, root_}) reject_symbolic_link(path);
  if (read_meta_if_exists()) return;
  check_no_updates();
  if (if_missing == IfMissing::fail) throw log_missing();
  create();
}

// The updates of a log that has lost its meta must not be taken for none.
void FileLog::check_no_updates() const {
  if (!is_directory_empty(root_ + "/updates") && !read_meta_if_exists()) {
    throw corrupt_file_error("file of the log is missing, though there are updates",
                             root_ + "/meta");
  }
}

LogMissing FileLog::log_missing() const {
  if (::access(options_.directory.c_str(), F_OK) != 0) return {name(), "no such directory"};
  std::vector<std::string> instances;
  visit_directory(options_.directory, [&](int, std::string_view entry) {
    const std::string meta = options_.directory + '/' + std::string(entry) + "/meta";
    if (::access(meta.c_str(), F_OK) == 0) instances.emplace_back(entry);
  });
  std::sort(instances.begin(), instances.end());
  return {name(), describe_instances(instances)};
}

// Any number of processes may create the log at once; the first to link its meta wins.
void FileLog::create() {
  create_directory_if_missing(options_.directory);
  for (const std::string& path : {root_, root_ + "/updates", root_ + "/tmp"})
    create_directory_if_missing(path);
  open_file(root_ + "/lock", O_RDWR | O_CREAT, 0600);

  check_no_updates();
  const Permissions permissions = read_permissions();
  OwnedTemporaryFile file = create_temporary_file(permissions);
  write_durably(file, Meta{.uuid = random_uuid()}.encode());
  give_permissions(file.descriptor(), file.path(), permissions);
  sync_directory(root_);  // if a meta exists, so does everything else
  if (::link(file.path().c_str(), (root_ + "/meta").c_str()) != 0 && errno != EEXIST) {
    throw system_error("cannot link file (a file log needs a file system with hard links)",
                       root_ + "/meta", errno);
  }
  prepare_to_write();
}

// Runs once, before this object first writes. The process that created the log may have died before
// it synced the directories.
void FileLog::prepare_to_write() {
  if (is_prepared_to_write_.load(std::memory_order_relaxed)) return;
  sync_directory(root_);
  sync_directory(options_.directory);
  try {
    sync_directory(parent_directory(canonical_path(options_.directory)));
  } catch (const Error& error) {
    if (error.system_error() != EACCES) throw;  // the user who created the directory may sync it
  }
  delete_orphaned_temporary_files();
  is_prepared_to_write_.store(true, std::memory_order_relaxed);
}

std::optional<FileLog::Meta> FileLog::read_meta_if_exists() const {
  const std::string path = root_ + "/meta";
  const std::optional<std::string> payload = read_payload(path, FileKind::meta, 0);
  if (!payload) return std::nullopt;
  Meta meta;
  try {
    ByteReader reader(*payload, "meta");
    for (Uuid* id : {&meta.uuid, &meta.token}) {
      const std::string_view bytes = reader.take_bytes(id->size());
      std::copy(bytes.begin(), bytes.end(), id->begin());
    }
    meta.base = reader.take_little_endian<std::uint64_t>();
    meta.base_chain = reader.take_little_endian<std::uint64_t>();
    meta.part_count = reader.take_little_endian<std::uint64_t>();
    reader.expect_end();
  } catch (const Error& error) {
    throw corrupt_file_error(error.what(), path);
  }
  if (meta.base > update_id_max)
    throw corrupt_file_error("meta has an impossible base", path,
                             " base=" + std::to_string(meta.base));
  return meta;
}

FileLog::Meta FileLog::read_meta() const {
  const std::optional<Meta> meta = read_meta_if_exists();
  if (!meta) throw log_deleted_error(name());
  return *meta;
}

void FileLog::remember_uuid(const Meta& meta) noexcept {
  seen_uuid_prefix_.store(load_little_endian<std::uint64_t>(meta.uuid.data()),
                          std::memory_order_relaxed);
}

bool FileLog::matches_seen_uuid(const Meta& meta) const noexcept {
  const std::uint64_t seen = seen_uuid_prefix_.load(std::memory_order_relaxed);
  return seen == 0 || seen == load_little_endian<std::uint64_t>(meta.uuid.data());
}

// --- Reading. ---

Extent FileLog::extent() {
  for (;;) {
    const Meta meta = read_meta();
    const UpdateId seen = head_seen_.load(std::memory_order_relaxed);
    const UpdateId head = find_head(meta);

    // If an update exists beyond the head but the next one does not, updates between were deleted.
    bool has_gap = false;
    const UpdateId look_ahead = head == seen ? 2 : 1024;
    for (UpdateId step = 2; step <= look_ahead && !has_gap; step *= 2) {
      has_gap = has_update(head + step) && !has_update(head + 1);
    }
    // While the base is unchanged, no rewrite deletes an update above it.
    if (read_meta() != meta) continue;
    if (has_gap) throw missing_update_error(name(), head + 1, head + 2);
    head_seen_.store(head, std::memory_order_relaxed);
    remember_uuid(meta);
    return {meta.uuid, meta.base, meta.base_chain, head};
  }
}

// Ids are dense above the base: double the step while the update exists, then halve it.
UpdateId FileLog::find_head(const Meta& meta) {
  const UpdateId seen = head_seen_.load(std::memory_order_relaxed);
  UpdateId head = seen > meta.base && has_update(seen) ? seen : meta.base;
  UpdateId step = 1;
  while (has_update(head + step)) {
    head += step;
    step *= 2;
  }
  for (step /= 2; step > 0; step /= 2) {
    if (has_update(head + step)) head += step;
  }
  return head;
}

bool FileLog::has_update(UpdateId id) const {
  if (id > update_id_max) return false;
  struct stat status;
  if (::lstat(update_path(id).c_str(), &status) == 0) return true;
  if (errno != ENOENT && errno != ENOTDIR)
    throw system_error("cannot check for update", update_path(id), errno);
  return false;
}

std::optional<std::string> FileLog::read_update(UpdateId id) const {
  return read_payload(update_path(id), FileKind::update, id);
}

Extent FileLog::read(UpdateId first, UpdateId last, const VisitUpdate& visit) {
  sync_unsynced_updates();
  const Extent initial = extent();
  const UpdateId begin = std::max(first, initial.base + 1);
  for (UpdateId id = begin; id <= std::min(last, initial.head); ++id) {
    const std::optional<std::string> bytes = read_update(id);
    if (bytes && visit(id, *bytes)) continue;
    const Extent now = extent();
    const bool was_deleted = now.base >= id || now.uuid != initial.uuid;
    if (!bytes && !was_deleted) throw missing_update_error(name(), id, initial.head);
    return now;
  }
  return begin <= std::min(last, initial.head) ? extent() : initial;
}

bool FileLog::wait(UpdateId after, std::chrono::nanoseconds at_most) {
  return watch_->wait(at_most, [&] { return has_update(after + 1); });
}

void FileLog::read_base(const VisitPart& visit) {
  const Meta meta = read_meta();
  for (std::uint64_t number = 0; number < meta.part_count; ++number) {
    const std::string path =
        base_directory(meta.base, meta.token) + '/' + zero_padded(number, id_digits);
    const std::optional<std::string> part = read_payload(path, FileKind::base_part, number);
    if (!part && read_meta() != meta) throw base_replaced_error(name());
    if (!part) throw corrupt_file_error("part of the base is missing", path);
    if (!visit(*part)) return;
  }
}

// --- Writing. ---

Log::Appended FileLog::append(UpdateId id, std::string_view bytes) {
  check_update(id, bytes);
  if (bytes.size() > payload_bytes_max) {
    throw Error(ErrorKind::limit,
                "update is too large for a file log: bytes=" + std::to_string(bytes.size()) +
                    " bytes_max=" + std::to_string(payload_bytes_max));
  }
  sync_unsynced_updates();
  // Detects most conflicts before anything is written.
  const Meta meta = read_meta();
  if (id <= meta.base) return Appended::below_base;
  if (has_update(id)) return Appended::taken;

  prepare_to_write();
  const FileDescriptor updates = open_file(root_ + "/updates", O_RDONLY | O_DIRECTORY);
  const Permissions permissions = read_permissions();
  OwnedTemporaryFile file = create_temporary_file(permissions);
  write_durably(file, encode_file(FileKind::update, id, bytes));
  give_permissions(file.descriptor(), file.path(), permissions);
  const Appended appended = link_update(id, file);
  if (appended != Appended::yes) return appended;
  if (::fsync(updates.number()) != 0) {
    const Error error =
        system_error("cannot sync directory after an append", root_ + "/updates", errno);
    failed_sync_count_.fetch_add(1, std::memory_order_release);
    throw Error(ErrorKind::uncertain, error.what(), error.system_error());
  }
  return Appended::yes;
}

// An update that this object linked is visible to all, but a power cut may lose it until its
// directory is synced. Callers sync before they report which updates exist.
void FileLog::sync_unsynced_updates() {
  const std::uint64_t failed = failed_sync_count_.load(std::memory_order_acquire);
  if (failed == repaired_sync_count_.load(std::memory_order_acquire)) return;
  const FileDescriptor updates = open_file(root_ + "/updates", O_RDONLY | O_DIRECTORY);
  if (::fsync(updates.number()) != 0) {
    const Error error =
        system_error("updates exist whose directory cannot be synced", root_ + "/updates", errno);
    throw Error(ErrorKind::unavailable, error.what(), error.system_error());
  }
  repaired_sync_count_.store(failed, std::memory_order_release);
}

Log::Appended FileLog::link_update(UpdateId id, const OwnedTemporaryFile& file) {
  const auto lock = std::make_unique<SwitchLock>(*this, SwitchLock::Holder::appender);
  const Meta meta = read_meta();
  if (id <= meta.base) return Appended::below_base;
  if (!matches_seen_uuid(meta)) return Appended::taken;
  if (id != meta.base + 1 && !has_update(id - 1)) return Appended::taken;
  if (::link(file.path().c_str(), update_path(id).c_str()) == 0) return Appended::yes;
  if (errno == EEXIST) return Appended::taken;
  throw system_error("cannot link update", update_path(id), errno);
}

// The directories that a rewrite creates files in and deletes files from. An append needs the last
// two only.
void FileLog::check_may_rewrite() {
  for (const std::string& path : {root_, root_ + "/updates", root_ + "/tmp"}) {
    if (::faccessat(AT_FDCWD, path.c_str(), R_OK | W_OK | X_OK, AT_EACCESS) != 0)
      throw system_error("cannot rewrite history in directory", path, errno);
  }
}

bool FileLog::rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) {
  const Extent previous = extent();
  if (base > previous.head) throw rewrite_beyond_head_error(base, previous.head);
  prepare_to_write();
  const Permissions permissions = read_permissions();

  bool switched = false;
  if (base > previous.base) {
    try {
      const OwnedTemporaryFile owner =
          create_temporary_file(permissions);  // its lock shows that the new base is not orphaned
      Meta next{
          .uuid = previous.uuid, .token = owner.token(), .base = base, .base_chain = base_chain};
      next.part_count = write_parts(base_directory(base, next.token), permissions, next_part);
      switched = switch_base(next, permissions);
    } catch (...) {
      try {
        delete_orphaned_bases();
      } catch (const Error&) {
        // The next rewrite deletes them. Report the first error.
      }
      throw;
    }
  }
  try {
    delete_obsolete_files();
  } catch (const Error& error) {
    throw Error(
        ErrorKind::uncertain,
        std::string("history was rewritten, but obsolete files were not deleted: ") + error.what(),
        error.system_error());
  }
  return switched;
}

std::uint64_t FileLog::write_parts(const std::string& directory, const Permissions& permissions,
                                   const NextPart& next_part) const {
  create_directory_if_missing(directory);
  const FileDescriptor opened = open_file(directory, O_RDONLY | O_DIRECTORY);
  give_permissions(opened.number(), directory, permissions);

  std::uint64_t part_count = 0;
  while (const std::optional<std::string_view> part = next_part()) {
    const std::string path = directory + '/' + zero_padded(part_count, id_digits);
    const FileDescriptor file = open_file(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    give_permissions(file.number(), path, permissions);
    const std::string bytes = encode_file(FileKind::base_part, part_count, *part);
    write_within_size_limit(path, [&] { write_all(file.number(), bytes, path); });
    sync_file(file.number(), path);
    ++part_count;
  }
  sync_directory(directory);
  return part_count;
}

// Returns false if another rewrite has reached the same base or a later one. The switch is durable
// once the directory is synced.
bool FileLog::switch_base(const Meta& next, const Permissions& permissions) {
  OwnedTemporaryFile file = create_temporary_file(permissions);
  write_durably(file, next.encode());
  give_permissions(file.descriptor(), file.path(), permissions);
  sync_directory(root_);  // has the entry of the base's directory

  const auto lock = std::make_unique<SwitchLock>(*this, SwitchLock::Holder::switcher);
  const Meta current = read_meta();
  if (current.uuid != next.uuid) throw log_deleted_error(name());
  if (current.base >= next.base) return false;
  if (const std::optional<std::string> bytes = read_update(next.base))
    check_base_chain(name(), next.base, *bytes, next.base_chain);
  if (::rename(file.path().c_str(), (root_ + "/meta").c_str()) == 0) return true;
  throw system_error("cannot replace file", root_ + "/meta", errno);
}

void FileLog::delete_obsolete_files() const {
  sync_directory(root_);  // the switch is durable before any file is deleted
  delete_updates_below_base();
  delete_orphaned_bases();
  delete_orphaned_temporary_files();
}

void FileLog::delete_updates_below_base() const {
  const std::string path = root_ + "/updates";
  std::optional<UpdateId> base;
  visit_directory(path, [&](int directory, std::string_view name) {
    if (!base) base = read_meta().base;
    const std::optional<UpdateId> id = parse_update_file_name(name);
    if (id && *id <= *base) delete_file(directory, name, path);
  });
}

void FileLog::delete_orphaned_bases() const {
  std::vector<std::string> names;
  visit_directory(root_, [&](int, std::string_view name) {
    if (name.size() == base_name_bytes && name.substr(0, base_prefix.size()) == base_prefix)
      names.emplace_back(name);
  });
  for (const std::string& name : names) {
    const std::string token = name.substr(name.size() - token_digits);
    // Lock first, then read the meta: its writer may switch to the base and unlock at any moment.
    if (OrphanLock(root_ + "/tmp/" + token) && to_string(read_meta().token) != token) {
      delete_directory(root_ + '/' + name);
    }
  }
}

void FileLog::delete_orphaned_temporary_files() const {
  const std::string path = root_ + "/tmp";
  visit_directory(path, [&](int directory, std::string_view name) {
    // Held until the file is deleted.
    const OrphanLock orphan(path + '/' + std::string(name));
    if (orphan) delete_file(directory, name, path);
  });
}

// Permissions may change at any time, so each write reads them.
FileLog::Permissions FileLog::read_permissions() const {
  struct stat status;
  if (::stat(root_.c_str(), &status) != 0) throw system_error("cannot use directory", root_, errno);
  return {status.st_mode & 0666, status.st_gid};
}

OwnedTemporaryFile FileLog::create_temporary_file(const Permissions& permissions) const {
  OwnedTemporaryFile file(root_ + "/tmp/");
  const Permissions of_writers{without_readers(permissions.mode), permissions.group};
  give_permissions(file.descriptor(), file.path(), of_writers);
  return file;
}

std::string FileLog::update_path(UpdateId id) const {
  return root_ + "/updates/" + zero_padded(id, id_digits);
}

std::string FileLog::base_directory(UpdateId base, const Uuid& token) const {
  return root_ + '/' + std::string(base_prefix) + zero_padded(base, id_digits) + '-' +
         to_string(token);
}

}  // namespace whycache
