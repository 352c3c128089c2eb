// LMDB, which many processes read from one mapped file, too. `lmdb` renews its read transaction for
// every read, as a program does that needs the newest data; `lmdb_long` uses one for all reads.
//
// It never syncs. Neither does the state of whycache, which can be rebuilt from the log.
#include <lmdb.h>
#include <sys/stat.h>

#include <stdexcept>

#include "bench/subject.h"
#include "bench/subject_kinds.h"

namespace bench {
namespace {

void check(int result, const char* what) {
  if (result != MDB_SUCCESS)
    throw std::runtime_error(std::string("lmdb: ") + what + ": " + mdb_strerror(result));
}

MDB_val value_of(std::string_view bytes) { return {bytes.size(), const_cast<char*>(bytes.data())}; }
std::string_view bytes_of(const MDB_val& value) {
  return {static_cast<const char*>(value.mv_data), value.mv_size};
}

template <bool renewed>
class Lmdb {
 public:
  Lmdb(const std::string& directory, std::uint64_t items_max)
      : path_(directory + "/lmdb"), map_bytes_(items_max * 2048 + (64 << 20)) {
    open();
  }
  Lmdb(const Lmdb&) = delete;
  Lmdb& operator=(const Lmdb&) = delete;
  ~Lmdb() { close(); }

  void open() {
    check(mdb_env_create(&environment_), "create");
    check(mdb_env_set_mapsize(environment_, map_bytes_), "mapsize");
    check(
        mdb_env_open(environment_, path_.c_str(), MDB_NOSUBDIR | MDB_NOSYNC | MDB_NORDAHEAD, 0600),
        "open");
    MDB_txn* transaction;
    check(mdb_txn_begin(environment_, nullptr, 0, &transaction), "begin");
    check(mdb_dbi_open(transaction, nullptr, 0, &database_), "open database");
    check(mdb_txn_commit(transaction), "commit");
    finish_writing();
  }
  void close() {
    abort_read_transaction();
    if (environment_ != nullptr) mdb_env_close(environment_);
    environment_ = nullptr;
  }

  void set(std::span<const Item> items) {
    abort_read_transaction();
    MDB_txn* transaction;
    check(mdb_txn_begin(environment_, nullptr, 0, &transaction), "begin");
    for (const Item& item : items) {
      MDB_val key = value_of(item.key);
      MDB_val value = value_of(item.value);
      check(mdb_put(transaction, database_, &key, &value, 0), "put");
    }
    check(mdb_txn_commit(transaction), "commit");
  }
  void finish_writing() {
    abort_read_transaction();
    check(mdb_txn_begin(environment_, nullptr, MDB_RDONLY, &read_transaction_), "begin");
    if (renewed) mdb_txn_reset(read_transaction_);
  }

  bool get(std::string_view key, std::string& value) const {
    const ReadTransaction reading(*this);
    return copy(key, value);
  }
  std::optional<std::string_view> view(std::string_view key) const {
    const ReadTransaction reading(*this);
    MDB_val wanted = value_of(key);
    MDB_val found;
    if (mdb_get(read_transaction_, database_, &wanted, &found) != MDB_SUCCESS) return std::nullopt;
    return bytes_of(found);
  }
  std::size_t get_multi(std::span<const std::string_view> keys,
                        std::span<std::optional<std::string>> values) const {
    const ReadTransaction reading(*this);
    std::size_t found = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) found += copy(keys[i], *values[i]) ? 1 : 0;
    return found;
  }

  template <typename Visit>
  void scan_items(const Visit& visit) const {
    const ReadTransaction reading(*this);
    MDB_cursor* cursor;
    check(mdb_cursor_open(read_transaction_, database_, &cursor), "cursor");
    MDB_val key;
    MDB_val value;
    while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == MDB_SUCCESS)
      visit(bytes_of(key), bytes_of(value));
    mdb_cursor_close(cursor);
  }
  template <typename Visit>
  void scan_keys(const Visit& visit) const {
    scan_items([&](std::string_view key, std::string_view) { visit(key); });
  }

  std::uint64_t external_bytes() const {
    struct stat status;
    return ::stat(path_.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_blocks) * 512
                                               : 0;
  }

 private:
  struct ReadTransaction {
    explicit ReadTransaction(const Lmdb& lmdb) : transaction(lmdb.read_transaction_) {
      if (renewed) check(mdb_txn_renew(transaction), "renew");
    }
    ~ReadTransaction() {
      if (renewed) mdb_txn_reset(transaction);
    }
    ReadTransaction(const ReadTransaction&) = delete;
    ReadTransaction& operator=(const ReadTransaction&) = delete;
    MDB_txn* transaction;
  };

  bool copy(std::string_view key, std::string& value) const {
    MDB_val wanted = value_of(key);
    MDB_val found;
    if (mdb_get(read_transaction_, database_, &wanted, &found) != MDB_SUCCESS) return false;
    value.assign(bytes_of(found));
    return true;
  }
  void abort_read_transaction() {
    if (read_transaction_ != nullptr) mdb_txn_abort(read_transaction_);
    read_transaction_ = nullptr;
  }

  std::string path_;
  std::uint64_t map_bytes_;
  MDB_env* environment_ = nullptr;
  MDB_dbi database_ = 0;
  MDB_txn* read_transaction_ = nullptr;
};

// Its writes and its size equal those of lmdb, so they are not measured.
class LmdbLong : public Lmdb<false> {
 public:
  using Lmdb::Lmdb;
  static constexpr bool is_read_only = true;
};

}  // namespace

std::unique_ptr<Subject> make_lmdb(const std::string& directory, std::uint64_t items_max) {
  return std::make_unique<StoreSubject<Lmdb<true>>>(directory, items_max);
}

std::unique_ptr<Subject> make_lmdb_long(const std::string& directory, std::uint64_t items_max) {
  return std::make_unique<StoreSubject<LmdbLong>>(directory, items_max);
}

}  // namespace bench
