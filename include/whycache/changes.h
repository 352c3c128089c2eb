// The change feed: what updates change, in the order of the log, as this machine applies them.
//
//   const whycache::View view = cache.view();
//   for (auto [key, value] : view.items(flags)) load(key, value);
//   for (const auto& change : cache.changes(view.id(), flags)) {   // waits for the next one
//     if (change.kind == whycache::FeedChange::Kind::reset) load_everything_again();
//     else load(change.key, change.value);
//   }
//
// The changes come from a ring of recent updates that writers keep beside the state, so watching
// costs the log nothing. A feed that is behind the ring reads the log. docs/guide/changes.md.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <string_view>

#include <whycache/error.h>
#include <whycache/options.h>
#include <whycache/types.h>
#include <whycache/view.h>

namespace whycache {

// What one update changed. The bytes are valid until the feed is asked for the next change.
struct FeedChange {
  enum class Kind : std::uint8_t {
    set,
    // The key was erased, or was absent already. An update that erases a range or a prefix has one
    // of these for each key that it erases.
    erase,
    // Every key was erased, whatever the range of the feed; changes of the same update follow it.
    // Cache::delete_all_history() does this, and sets the guards of the log again.
    erase_all,
    // The feed cannot say what changed up to the update `id`; `note` says why. Scan the keys again,
    // in a view that is opened now: whatever it does not show, the feed returns.
    reset
  };

  Kind kind = Kind::set;
  UpdateId id = 0;         // of the update
  std::string_view key;    // of set and erase
  std::string_view value;  // of set
  // When the update was written, by the writer's wall clock. Of reset: when it was noticed.
  std::chrono::system_clock::time_point time{};
  std::string_view writer;  // Options::writer_name
  std::string_view note;    // WriteOptions::note; of reset: the reason
  // Whether the feed has no further change of this update. A process that stores `id` once it has
  // handled such a change resumes there, without a gap and without a repetition.
  bool ends_update = true;
};

// A feed: an input range, for one loop. Use it from one thread at a time. The cache must stay where
// it is, and open, as long as the feed exists. A feed holds no view and no lock while it waits, and
// no writer waits for it. In a forked child it continues where the parent's was.
class WHYCACHE_API Changes {
 public:
  class FeedIterator {
   public:
    using value_type = FeedChange;
    using difference_type = std::ptrdiff_t;
    using iterator_category = std::input_iterator_tag;
    using pointer = const FeedChange*;
    using reference = const FeedChange&;

    FeedIterator() = default;
    explicit FeedIterator(Changes& changes) : changes_(&changes), change_(changes.next()) {}

    reference operator*() const { return *change_; }
    pointer operator->() const { return &*change_; }
    FeedIterator& operator++() {
      change_ = changes_->next();
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const FeedIterator& it, std::default_sentinel_t) {
      return !it.change_.has_value();
    }

   private:
    Changes* changes_ = nullptr;
    std::optional<FeedChange> change_;
  };

  Changes(Changes&&) noexcept;
  Changes& operator=(Changes&&) noexcept;
  ~Changes();

  // Returns the next change, and waits for it. Returns nullopt once the deadline has passed or a
  // stop was requested (ChangesOptions).
  //
  // Throws Error(unavailable) if the feed needs the log and it does not answer within
  // Options::deadline, Error(corrupt) if an update in the log is damaged or missing, and as the
  // reads of the cache. In a callback of the cache, throws Error(invalid) where it would need the
  // log or wait: next(0ms) returns what is there. A later call continues where this one failed.
  [[nodiscard]] std::optional<FeedChange> next();
  // The same, but waits for `at_most`, if that is less.
  [[nodiscard]] std::optional<FeedChange> next(std::chrono::milliseconds at_most);
  // Returns the id of the last update whose changes were all returned: what to resume from.
  [[nodiscard]] UpdateId position() const;

  // Both throw as next().
  FeedIterator begin() { return FeedIterator(*this); }
  static std::default_sentinel_t end() { return {}; }

  class Feed;  // src/client/change_feed.h
  explicit Changes(std::unique_ptr<Feed> feed);

 private:
  Feed& feed() const;

  std::unique_ptr<Feed> feed_;
};

}  // namespace whycache
