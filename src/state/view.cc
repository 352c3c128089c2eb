// Views and their iteration in key order: include/whycache/view.h, implemented on a Pin.
#include <whycache/view.h>

#include <algorithm>

#include "state/btree/cursor.h"
#include "state/btree/mapped_nodes.h"
#include "state/btree/reverse_cursor.h"
#include "state/errors.h"
#include "state/read/pin.h"

namespace whycache {

KeyRange KeyRange::prefix(std::string_view prefix) {
  // The end is the least string above all strings that start with the prefix: drop trailing 0xff
  // bytes, then increment the last byte.
  std::string end(prefix);
  while (!end.empty() && end.back() == '\xff') end.pop_back();
  if (end.empty()) return {std::string(prefix), std::nullopt};
  end.back() = static_cast<char>(static_cast<unsigned char>(end.back()) + 1);
  return {std::string(prefix), std::move(end)};
}

namespace {

[[noreturn, gnu::cold, gnu::noinline]] void throw_view_moved_from() {
  throw Error(ErrorKind::invalid, "view was moved from");
}

}  // namespace

namespace detail {

class Cursor {
 public:
  Cursor(std::shared_ptr<const Pin> pin, const KeyRange& range, bool with_values, bool descending)
      : pin_(std::move(pin)),
        nodes_(pin_->mapping()),
        key_cursor_(nodes_, with_values ? nullptr : &pin_->key_arena()),
        range_(range),
        with_values_(with_values) {
    pin_->check_not_forked();
    const NodeOffset root = pin_->block().key_index_root;
    if (descending) {
      reverse_key_cursor_.emplace(nodes_, with_values ? nullptr : &pin_->key_arena());
      reverse_key_cursor_->seek_before(root, range.end);
    } else {
      key_cursor_.seek(root, range.begin);
    }
    fill();
  }

  bool at_end() const { return index_ == items_.size(); }
  const Item& item() const { return items_[index_]; }
  // Stays at the end.
  void next() {
    pin_->check_not_forked();
    if (index_ < items_.size() && ++index_ == items_.size()) fill();
  }

 private:
  // Fetches a few keys at first, for callers that want only a few; whole leaves later.
  void fill() {
    pin_->check_not_forked();
    index_ = 0;
    items_.clear();
    if (ended_ || !next_batch()) return;
    batch_max_ = std::min<std::size_t>(batch_max_ * 4, 1024);
    items_.resize(batch_.size());
    if (!with_values_) {
      for (std::size_t i = 0; i < batch_.size(); ++i) items_[i].key = batch_[i];
      return;
    }
    std::size_t found = 0;
    pin_->get_many(batch_, [&](std::size_t i, const LookupResult& result) {
      items_[i] = {{result.key, batch_[i].size()}, result.value};
      ++found;
    });
    if (found != batch_.size()) {
      throw corrupt_state("a key of the key index has no value: path=" + pin_->mapping().path());
    }
  }

  // Fetches keys of the range. Returns false if there are none.
  bool next_batch() {
    if (reverse_key_cursor_) {
      if (reverse_key_cursor_->next_batch(batch_, batch_max_) == 0) return false;
      end_batch_at(std::partition_point(batch_.begin(), batch_.end(),
                                        [&](std::string_view key) { return key >= range_.begin; }));
    } else {
      if (key_cursor_.next_batch(batch_, batch_max_) == 0) return false;
      if (range_.end) {
        end_batch_at(std::lower_bound(batch_.begin(), batch_.end(), std::string_view(*range_.end)));
      }
    }
    return true;
  }
  void end_batch_at(std::vector<std::string_view>::iterator beyond) {
    ended_ = beyond != batch_.end();
    batch_.erase(beyond, batch_.end());
  }

  std::shared_ptr<const Pin> pin_;
  MappedNodes nodes_;
  BTreeCursor key_cursor_;
  std::optional<ReverseBTreeCursor> reverse_key_cursor_;  // if the order is descending
  KeyRange range_;
  bool with_values_;
  bool ended_ = false;
  std::size_t batch_max_ = 8;
  std::vector<std::string_view> batch_;
  std::vector<Item> items_;
  std::size_t index_ = 0;
};

std::shared_ptr<Cursor> CursorAccess::open(std::shared_ptr<const Pin> pin, const KeyRange& range,
                                           bool with_values, bool descending) {
  if (!pin) throw_view_moved_from();
  return std::make_shared<Cursor>(std::move(pin), range, with_values, descending);
}
bool CursorAccess::at_end(const Cursor& cursor) noexcept { return cursor.at_end(); }
void CursorAccess::next(Cursor& cursor) { cursor.next(); }
const Item& CursorAccess::item(const Cursor& cursor) noexcept { return cursor.item(); }

}  // namespace detail

const detail::Pin& View::pin() const {
  if (!pin_) [[unlikely]]
    throw_view_moved_from();
  return *pin_;
}

UpdateId View::id() const { return pin().id(); }
std::size_t View::size() const { return pin().block().item_count; }
Digest View::digest() const { return {pin().block().digest_low, pin().block().digest_high}; }

std::string_view View::find(std::string_view key) const { return pin().find(key); }

bool View::contains(std::string_view key) const { return find(key).data() != nullptr; }

std::optional<UpdateId> View::version(std::string_view key) const { return pin().version_of(key); }

std::optional<VersionedValue> View::get_versioned(std::string_view key) const {
  UpdateId version = 0;
  const std::string_view value = pin().find(key, version);
  if (value.data() == nullptr) return std::nullopt;
  return VersionedValue{std::string(value), version};
}

namespace {

std::optional<Item> first_of(const Items& items) {
  const auto item = items.begin();
  if (item == std::default_sentinel) return std::nullopt;
  return *item;
}

}  // namespace

std::optional<Item> View::first(const KeyRange& range) const& { return first_of(items(range)); }

std::optional<Item> View::last(const KeyRange& range) const& {
  return first_of(items(range).reversed());
}

std::size_t View::count(const KeyRange& range) const {
  pin().check_not_forked();
  if (range.begin.empty() && !range.end) return size();
  const MappedNodes nodes(pin().mapping());
  BTreeCursor cursor(nodes);
  cursor.seek(pin().block().key_index_root, range.begin);
  return cursor.count_before(range.end);
}

}  // namespace whycache
