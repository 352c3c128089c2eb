// Tkrzw's tree database, in key order, in a mapped file. It caches pages on the heap, by default
// ten thousand. Here it may cache all of them, so that it reads no page twice.
#include <tkrzw_dbm_tree.h>

#include "bench/subject.h"
#include "bench/subject_kinds.h"
#include "bench/tkrzw.h"

namespace bench {
namespace {

class TkrzwTree : public Tkrzw<tkrzw::TreeDBM> {
 public:
  TkrzwTree(const std::string& directory, std::uint64_t items_max)
      : Tkrzw(directory + "/tree.tkt", tuned(items_max)) {}

  template <typename Visit>
  void scan_items(const Visit& visit) {
    const std::unique_ptr<tkrzw::DBM::Iterator> at = database().MakeIterator();
    check(at->First(), "first");
    std::string key;
    std::string value;
    for (; at->Get(&key, &value) == tkrzw::Status::SUCCESS; check(at->Next(), "next"))
      visit(key, value);
  }
  template <typename Visit>
  void scan_keys(const Visit& visit) {
    const std::unique_ptr<tkrzw::DBM::Iterator> at = database().MakeIterator();
    check(at->First(), "first");
    std::string key;
    for (; at->Get(&key) == tkrzw::Status::SUCCESS; check(at->Next(), "next")) visit(key);
  }

 private:
  static Tuning tuned(std::uint64_t items_max) {
    Tuning tuning;
    tuning.num_buckets =
        static_cast<std::int64_t>(items_max / 10 + 1000);  // of pages, each of dozens of records
    tuning.max_cached_pages = static_cast<std::int32_t>(items_max / 10 + 10'000);
    tuning.offset_width = 5;
    return tuning;
  }
};

}  // namespace

std::unique_ptr<Subject> make_tkrzw_tree(const std::string& directory, std::uint64_t items_max) {
  return std::make_unique<StoreSubject<TkrzwTree>>(directory, items_max);
}

}  // namespace bench
