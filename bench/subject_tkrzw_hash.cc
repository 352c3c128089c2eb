// Tkrzw's hash database, a mapped file. As its documentation recommends, it has more buckets than
// records.
#include <tkrzw_dbm_hash.h>

#include "bench/subject.h"
#include "bench/subject_kinds.h"
#include "bench/tkrzw.h"

namespace bench {
namespace {

class TkrzwHash : public Tkrzw<tkrzw::HashDBM> {
 public:
  TkrzwHash(const std::string& directory, std::uint64_t items_max)
      : Tkrzw(directory + "/hash.tkh", tuned(items_max)) {}

 private:
  static Tuning tuned(std::uint64_t items_max) {
    Tuning tuning;
    tuning.num_buckets = static_cast<std::int64_t>(items_max * 2);
    tuning.offset_width = 5;  // 8 TiB: enough for more than ten million items
    return tuning;
  }
};

}  // namespace

std::unique_ptr<Subject> make_tkrzw_hash(const std::string& directory, std::uint64_t items_max) {
  return std::make_unique<StoreSubject<TkrzwHash>>(directory, items_max);
}

}  // namespace bench
