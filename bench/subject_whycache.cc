// whycache as applications call it: Cache, View, get_multi and set_multi. The log keeps nothing,
// which leaves the cost of the cache itself.
#include <sys/stat.h>
#include <whycache/cache.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bench/discarding_log.h"
#include "bench/subject.h"
#include "bench/subject_kinds.h"

namespace bench {
namespace {

class Whycache {
 public:
  Whycache(const std::string& directory, std::uint64_t items_max)
      : state_path_(directory + "/whycache"),
        state_bytes_max_(items_max * 4096 + (std::uint64_t{1} << 30)) {
    open();
  }

  void open() {
    whycache::Options options;
    options.state_path = state_path_;
    options.state_bytes_max = state_bytes_max_;
    options.update_bytes_max = DiscardingLog::update_bytes_max;
    cache_.emplace(log_.reopen(), options);
  }
  void close() {
    view_.reset();
    cache_.reset();
  }

  void set(std::span<const Item> items) {
    view_.reset();
    cache_->set_multi(items);
  }

  bool get(std::string_view key, std::string& value) const { return cache_->get(key, value); }
  std::optional<std::string> get(std::string_view key) const { return cache_->get(key); }
  std::optional<std::string_view> view(std::string_view key) {
    if (!view_) view_.emplace(cache_->view());
    return view_->get(key);
  }
  std::size_t get_multi(std::span<const std::string_view> keys,
                        std::span<std::optional<std::string>> values) const {
    return cache_->get_multi(keys, values);
  }

  template <typename Visit>
  void scan_items(const Visit& visit) const {
    for (const auto& [key, value] : cache_->view()) visit(key, value);
  }
  template <typename Visit>
  void scan_keys(const Visit& visit) const {
    for (const std::string_view key : cache_->keys()) visit(key);
  }

  std::uint64_t external_bytes() const {
    std::uint64_t bytes = 0;
    for (const char* const suffix : {"", ".lock", ".changes"}) {
      struct stat status;
      if (::stat((state_path_ + suffix).c_str(), &status) == 0)
        bytes += static_cast<std::uint64_t>(status.st_blocks) * 512;
    }
    return bytes;
  }

 private:
  const std::string state_path_;
  const std::uint64_t state_bytes_max_;
  DiscardingLog log_;
  std::optional<whycache::Cache> cache_;
  std::optional<whycache::View> view_;
};

}  // namespace

std::unique_ptr<Subject> make_whycache(const std::string& directory, std::uint64_t items_max) {
  return std::make_unique<StoreSubject<Whycache>>(directory, items_max);
}

}  // namespace bench
