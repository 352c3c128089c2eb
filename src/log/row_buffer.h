// Consecutive updates, copied out of a database, so that no lock, cursor or statement is open while
// the caller visits them.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/log.h>
#include <whycache/types.h>

namespace whycache {

class RowBuffer {
 public:
  // is_full() once the buffer holds `bytes_max` bytes or `rows_max` rows: the last row added may
  // exceed `bytes_max`.
  explicit RowBuffer(std::size_t bytes_max,
                     std::size_t rows_max = std::numeric_limits<std::size_t>::max())
      : bytes_max_(bytes_max), rows_max_(rows_max) {}

  void clear() {
    rows_.clear();
    bytes_.clear();
    largest_row_bytes_ = 0;
  }
  void add(UpdateId id, std::string_view bytes) {
    rows_.push_back({id, bytes_.size(), bytes.size()});
    bytes_.append(bytes);
    largest_row_bytes_ = std::max(largest_row_bytes_, bytes.size());
  }

  bool empty() const { return rows_.empty(); }
  bool is_full() const { return bytes_.size() >= bytes_max_ || rows_.size() >= rows_max_; }
  std::size_t row_count() const { return rows_.size(); }
  std::size_t largest_row_bytes() const { return largest_row_bytes_; }
  // The buffer must not be empty.
  UpdateId last_id() const {
    assert(!rows_.empty());
    return rows_.back().id;
  }
  std::string_view last_update() const {
    assert(!rows_.empty());
    return std::string_view(bytes_).substr(rows_.back().offset);
  }

  // Visits all rows in order. Returns false, and stops, as soon as `visit` returns false.
  bool visit_all(const Log::VisitUpdate& visit) const {
    return std::all_of(rows_.begin(), rows_.end(), [&](const RowSpan& row) {
      return visit(row.id, std::string_view(bytes_).substr(row.offset, row.size));
    });
  }

 private:
  struct RowSpan {
    UpdateId id;
    std::size_t offset;
    std::size_t size;
  };

  std::size_t bytes_max_;
  std::size_t rows_max_;
  std::vector<RowSpan> rows_;
  std::string bytes_;
  std::size_t largest_row_bytes_ = 0;
};

}  // namespace whycache
