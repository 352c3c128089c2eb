// Tkrzw's hash database, a mapped file. As its makers recommend it has more buckets than records.
#include <tkrzw_dbm_hash.h>

#include "bench/subject.h"
#include "bench/subject_kinds.h"
#include "bench/tkrzw.h"

namespace bench {
namespace {

class TkrzwHash : public Tkrzw<tkrzw::HashDBM> {
 public:
  TkrzwHash(const std::string& folder, std::uint64_t items_max)
      : Tkrzw(folder + "/hash.tkh", tuned(items_max)) {}

 private:
  static Tuning tuned(std::uint64_t items_max) {
    Tuning tuning;
    tuning.num_buckets = static_cast<std::int64_t>(items_max * 2);
    tuning.offset_width = 5;  // 8 TiB: room for ten million items and more
    return tuning;
  }
};

}  // namespace

std::unique_ptr<Subject> make_tkrzw_hash(const std::string& folder, std::uint64_t items_max) {
  return std::make_unique<StoreSubject<TkrzwHash>>(folder, items_max);
}

}  // namespace bench
