// Committing: changes become updates in the log, and then, by applying them, part of the state.
//
//   take StateLock::append                  processes of one machine do not race each other to the log
//     seal the draft for id n+1             n: the applied id; its chain ties the update to all before
//     log: insert n+1 if absent
//       appended   apply it (or find that a follower did), and return n+1
//       taken      follow the log, and try the next id
//       no answer  look at the log: our bytes at n+1: appended. Others: taken. Nothing: try again
//
// An append that failed may still be under way. So as long as one is in doubt nothing else is tried than the very same
// bytes at the very same id: a late arrival then does no harm, and the update is in the log once.
//
// Group commit. Callers queue; the one in front leads: it takes those behind it along into its update as far as they
// fit, appends for all, and tells each the id. Whoever waits meanwhile leads next. Each caller's batch stays atomic.
#pragma once

#include <whycache/cache.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/link.h"
#include "client/page.h"
#include "client/patience.h"

namespace whycache {

class Commit {
 public:
  explicit Commit(Link& link) : link_(link) {}

  // Appends and applies the changes, in several updates if one does not hold them. Returns the id of the last.
  UpdateId write(std::span<const Change> changes, const WriteOptions& options);

  // Makes a draft of what is to be written given that the state is as the pin shows it; nullopt: nothing.
  using Prepare = std::function<std::optional<Draft>(const std::shared_ptr<const detail::Pin>& pin)>;
  // Appends what `prepare` makes as the very next update after the one it looked at; if somebody else was first, it is
  // asked again. nullopt: it had nothing to write.
  std::optional<Place> write_prepared(const Prepare& prepare, Patience& patience);

 private:
  // What one caller wants to have in one update.
  struct Batch {
    Draft draft;
    std::span<const Change> changes;
    std::string_view note;
    Patience patience;
    bool in_group = false;
    bool done = false;
    UpdateId id = 0;
    std::exception_ptr failure;
  };

  std::vector<Batch> cut(std::span<const Change> changes, const WriteOptions& options);
  void commit(Batch& batch);
  void lead(Batch& batch);
  std::vector<Batch*> take_along(const Batch& leader);
  void leave_queue(Batch& batch);

  UpdateId append_group(Batch& leader, std::vector<Batch*>& others);
  UpdateId append(Draft& draft, Patience& patience);
  void look_at_log(Patience& patience);
  bool append_after(const Place& at, Draft& draft, Patience& patience);
  bool insert(const Place& at, std::string_view bytes, Patience& patience);
  enum class Found { nothing, ours, others, another_log };
  Found look_back(const Place& at, std::string_view bytes, std::string& why);
  void apply(const Place& at, const Update& update);

  Link& link_;
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::deque<Batch*> queue_;
  bool leading_ = false;
};

}  // namespace whycache
