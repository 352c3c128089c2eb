// Boost.Interprocess: an unordered_map in a managed segment of shared memory, with a sharable mutex
// in the same segment. This is the usual way to build a map that processes share. The segment is a
// mapped file, so that it is in the same directory as the files of the other subjects; in /dev/shm
// it equals managed_shared_memory.
#include <sys/stat.h>

#include <boost/interprocess/allocators/allocator.hpp>
#include <boost/interprocess/containers/string.hpp>
#include <boost/interprocess/managed_mapped_file.hpp>
#include <boost/interprocess/sync/interprocess_sharable_mutex.hpp>
#include <boost/interprocess/sync/scoped_lock.hpp>
#include <boost/interprocess/sync/sharable_lock.hpp>
#include <boost/unordered_map.hpp>
#include <functional>
#include <stdexcept>
#include <utility>

#include "bench/subject.h"
#include "bench/subject_kinds.h"

namespace bench {
namespace {

namespace interprocess = boost::interprocess;

using Segment = interprocess::managed_mapped_file;
template <typename T>
using Allocator = interprocess::allocator<T, Segment::segment_manager>;
using String = interprocess::basic_string<char, std::char_traits<char>, Allocator<char>>;

std::string_view bytes_of(const String& string) { return {string.data(), string.size()}; }
std::string_view bytes_of(std::string_view bytes) { return bytes; }

// Allows lookups without constructing a String.
struct Hash {
  template <typename Bytes>
  std::size_t operator()(const Bytes& bytes) const {
    return std::hash<std::string_view>()(bytes_of(bytes));
  }
};
struct Equal {
  template <typename Left, typename Right>
  bool operator()(const Left& left, const Right& right) const {
    return bytes_of(left) == bytes_of(right);
  }
};
using Map =
    boost::unordered_map<String, String, Hash, Equal, Allocator<std::pair<const String, String>>>;

struct SharedMap {
  explicit SharedMap(Segment::segment_manager* manager)
      : map(0, Hash(), Equal(), Map::allocator_type(manager)) {}
  interprocess::interprocess_sharable_mutex mutex;
  Map map;
};

class BoostInterprocess {
 public:
  BoostInterprocess(const std::string& directory, std::uint64_t items_max)
      : path_(directory + "/segment") {
    // The file has holes where nothing has been written.
    const std::uint64_t bytes_max = items_max * 4096 + (64 << 20);
    segment_ = Segment(interprocess::create_only, path_.c_str(), bytes_max);
    shared_ = segment_.construct<SharedMap>("shared")(segment_.get_segment_manager());
  }

  void open() {
    segment_ = Segment(interprocess::open_only, path_.c_str());
    shared_ = segment_.find<SharedMap>("shared").first;
    if (shared_ == nullptr) throw std::runtime_error("boost_interprocess: the map is missing");
  }
  void close() {
    shared_ = nullptr;
    segment_ = Segment();
  }

  void set(std::span<const Item> items) {
    const interprocess::scoped_lock lock(shared_->mutex);
    const Allocator<char> allocator(segment_.get_segment_manager());
    for (const Item& item : items) {
      if (const auto found = find(item.key); found != shared_->map.end()) {
        found->second.assign(item.value.data(), item.value.size());
      } else {
        shared_->map.emplace(String(item.key.data(), item.key.size(), allocator),
                             String(item.value.data(), item.value.size(), allocator));
      }
    }
  }

  bool get(std::string_view key, std::string& value) const {
    const interprocess::sharable_lock lock(shared_->mutex);
    return copy(key, value);
  }
  std::size_t get_multi(std::span<const std::string_view> keys,
                        std::span<std::optional<std::string>> values) const {
    const interprocess::sharable_lock lock(shared_->mutex);
    std::size_t found = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) found += copy(keys[i], *values[i]) ? 1 : 0;
    return found;
  }

  std::uint64_t external_bytes() const {
    struct stat status;
    return ::stat(path_.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_blocks) * 512
                                               : 0;
  }

 private:
  Map::iterator find(std::string_view key) const { return shared_->map.find(key, Hash(), Equal()); }
  bool copy(std::string_view key, std::string& value) const {
    const auto found = find(key);
    if (found == shared_->map.end()) return false;
    value.assign(found->second.data(), found->second.size());
    return true;
  }

  std::string path_;
  Segment segment_;
  SharedMap* shared_ = nullptr;
};

}  // namespace

std::unique_ptr<Subject> make_boost_interprocess(const std::string& directory,
                                                 std::uint64_t items_max) {
  return std::make_unique<StoreSubject<BoostInterprocess>>(directory, items_max);
}

}  // namespace bench
