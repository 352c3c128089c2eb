#include "client/write_queue.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <unordered_set>
#include <utility>

#include "client/follow.h"
#include "client/guards.h"
#include "client/rebuild.h"
#include "state/read/pin.h"
#include "update/format.h"

namespace whycache {
namespace {

// A log that was restored or replaced must not be given an update that continues another. So it is looked at before an
// append, unless that was done just now by some process of this machine. What happens to the log within this time is
// found by the log itself, which takes an update only if it has the one before, or, after any failure, by looking back.
constexpr std::int64_t look_before_append_ns = 100'000'000;

// Of several changes to one key the last one counts; it keeps its place.
std::vector<Change> last_of_each_key(std::span<const Change> changes) {
  std::vector<Change> kept;
  kept.reserve(changes.size());
  std::unordered_set<std::string_view> seen(changes.size());
  for (std::size_t i = changes.size(); i > 0; --i) {
    if (seen.insert(changes[i - 1].key).second) kept.push_back(changes[i - 1]);
  }
  std::reverse(kept.begin(), kept.end());
  return kept;
}

// The rest of a split batch failed: what was written before must not be lost from sight.
Error stopped_midway(const Error& error, std::size_t written, std::size_t all, UpdateId last_id) {
  return Error(ErrorKind::uncertain,
               "stopped midway, the first changes of the batch are written: changes_written=" +
                   std::to_string(written) + " of=" + std::to_string(all) + " last_id=" + std::to_string(last_id) +
                   ": " + to_string(error.kind()) + ": " + error.what(),
               error.system_error());
}

}  // namespace

UpdateId Commit::write(std::span<const Change> changes, const WriteOptions& options) {
  if (changes.empty()) return link_.state.applied_id();
  std::vector<Change> kept;
  if (changes.size() > 1) changes = kept = last_of_each_key(changes);
  check(changes);

  std::vector<Batch> batches = cut(changes, options);
  std::size_t written = 0;
  UpdateId id = 0;
  for (Batch& batch : batches) {
    batch.patience.renew();
    try {
      commit(batch);
    } catch (const Error& error) {
      if (written == 0) throw;
      throw stopped_midway(error, written, changes.size(), id);
    }
    id = batch.id;
    written += batch.changes.size();
  }
  return id;
}

void Commit::check(std::span<const Change> changes) const {
  const Guards& guards = link_.options.guards;
  if (guards.validate || limit_erasing(guards)) check_guards(guards, changes, View(link_.state.pin()));
}

// Everything that can be wrong with the changes is found here, before anything is written.
std::vector<Commit::Batch> Commit::cut(std::span<const Change> changes, const WriteOptions& options) {
  const std::size_t bytes_max = link_.options.update_bytes_max;
  const auto new_batch = [&] {
    return Batch{.draft = Draft(link_.authorship(options.note)),
                 .changes = {},
                 .note = options.note,
                 .patience = Patience(options.deadline.value_or(link_.options.deadline)),
                 .failure = nullptr};
  };
  std::vector<Batch> batches;
  batches.push_back(new_batch());
  std::size_t first = 0;
  const auto close_batch = [&](std::size_t end) {
    batches.back().changes = changes.subspan(first, end - first);
    first = end;
  };
  for (std::size_t i = 0; i < changes.size(); ++i) {
    if (batches.back().draft.add(changes[i], bytes_max)) continue;
    if (batches.back().draft.change_count() > 0 && link_.options.split_updates) {
      close_batch(i);
      batches.push_back(new_batch());
      if (batches.back().draft.add(changes[i], bytes_max)) continue;
    }
    if (batches.back().draft.change_count() > 0) {
      throw Error(ErrorKind::limit, "batch too large for one update: changes=" + std::to_string(changes.size()) +
                                        " update_bytes_max=" + std::to_string(bytes_max) +
                                        " (raise update_bytes_max, or set split_updates)");
    }
    throw Error(ErrorKind::limit, "value too large for an update: key_bytes=" + std::to_string(changes[i].key.size()) +
                                      " value_bytes=" + std::to_string(changes[i].value.size()) +
                                      " update_bytes_max=" + std::to_string(bytes_max) + " (raise update_bytes_max)");
  }
  close_batch(changes.size());
  return batches;
}

// --- Writes nobody waits for ---

std::future<UpdateId> Commit::write_later(std::span<const Change> changes, const WriteOptions& options) {
  std::list<LaterWrite> made;
  LaterWrite& write = made.emplace_back();
  std::future<UpdateId> future = write.promise.get_future();
  if (changes.empty()) {
    write.promise.set_value(link_.state.applied_id());
    return future;
  }
  std::size_t bytes = 0;
  for (const Change& change : changes) bytes += change.key.size() + change.value.size();
  const auto check_room = [&] {
    const std::size_t bytes_max = link_.options.queue_bytes_max;
    if (bytes <= bytes_max - std::min(later_bytes_, bytes_max)) return;
    throw Error(ErrorKind::limit,
                "too much is waiting to be written, nothing of this was taken: bytes=" + std::to_string(bytes) +
                    " waiting=" + std::to_string(later_bytes_) + " queue_bytes_max=" + std::to_string(bytes_max) +
                    " (wait for some of the futures, or raise queue_bytes_max)");
  };
  {
    const std::lock_guard lock(mutex_);
    check_room();
  }
  write.options = options;
  write.bytes.reserve(bytes);
  const auto copy = [&](std::string_view from) {
    const std::size_t at = write.bytes.size();
    write.bytes.append(from);
    return std::string_view(write.bytes).substr(at);
  };
  write.changes.assign(changes.begin(), changes.end());
  for (Change& change : write.changes) {
    change.key = copy(change.key);
    change.value = copy(change.value);
  }
  if (write.changes.size() > 1) write.changes = last_of_each_key(write.changes);
  check(write.changes);
  write.batches = cut(write.changes, write.options);
  for (Batch& batch : write.batches) batch.later = &write;

  const std::lock_guard lock(mutex_);
  if (stopping_)
    throw Error(ErrorKind::invalid, "cache is closed: its state was closed or deleted through this object");
  check_room();
  if (!thread_.joinable()) thread_ = std::thread([this] { write_those_of_nobody(); });
  const std::size_t queued_before = queue_.size();
  try {
    for (Batch& batch : write.batches) queue_.push_back(&batch);
  } catch (...) {  // no memory: nobody will write what is only half in the queue
    queue_.resize(queued_before);
    throw;
  }
  later_bytes_ += bytes;
  later_.splice(later_.end(), made);
  for_thread_.notify_one();
  return future;
}

void Commit::write_those_of_nobody() {
  Locked locked(*this);
  for (;;) {
    later_.remove_if([&](const LaterWrite& write) {
      const bool ended = write.batches_ended == write.batches.size();
      if (ended) later_bytes_ -= write.bytes.size();
      return ended;
    });
    if (!leading_ && !queue_.empty() && queue_.front()->later != nullptr) {
      Batch& batch = *queue_.front();
      if (stopping_) {
        end(locked, batch, 0,
            std::make_exception_ptr(
                Error(ErrorKind::unavailable, "cache was closed before this was written, nothing was written")));
        wake_front(locked);
        continue;
      }
      leading_ = true;
      locked.release();
      lead(batch);
      locked.hold_again();
    } else if (stopping_ && later_.empty()) {
      return;
    } else {
      locked.wait(for_thread_);
    }
  }
}

void Commit::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    for_thread_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

// --- The queue ---

void Commit::Locked::wake(const Batch& batch, bool first) noexcept {
  if (!batch.turn) return;
  try {
    woken_.insert(first ? woken_.begin() : woken_.end(), batch.turn);
  } catch (const std::bad_alloc&) {
    batch.turn->notify_one();
  }
}

void Commit::Locked::notify_woken() noexcept {
  for (const std::shared_ptr<std::condition_variable>& turn : woken_) turn->notify_one();
  woken_.clear();
}

// Who is in front leads, unless somebody leads already. He can begin while the others are being woken.
void Commit::wake_front(Locked& locked) noexcept {
  if (leading_ || queue_.empty()) return;
  locked.wake(*queue_.front(), /*first=*/true);
  if (queue_.front()->later != nullptr) for_thread_.notify_one();
}

void Commit::commit(Batch& batch) {
  const auto turn = std::make_shared<std::condition_variable>();
  batch.turn = turn;
  Locked locked(*this);
  queue_.push_back(&batch);
  while (!batch.done) {
    if (!leading_ && queue_.front() == &batch) {
      leading_ = true;
      locked.release();
      lead(batch);
      locked.hold_again();
    } else if (batch.in_group) {
      locked.wait(*turn);  // the leader's patience ends before ours
    } else if (const std::chrono::nanoseconds left = batch.patience.deadline().left(); left.count() > 0) {
      locked.wait(*turn, left);
    } else {
      leave_queue(batch);
      throw Error(ErrorKind::unavailable,
                  "others of this process were writing until the deadline, nothing was written: deadline_ms=" +
                      std::to_string(batch.patience.limit().count()));
    }
  }
  if (batch.failure) std::rethrow_exception(batch.failure);
}

// Appends for the batch, which is in front, and for those behind it that fit, and tells each what became of it.
void Commit::lead(Batch& batch) {
  std::vector<Batch*> others;
  UpdateId id = 0;
  std::exception_ptr failure;
  bool nothing_written = false;
  try {
    const HeldLock appending = link_.state.lock(StateLock::append, batch.patience.deadline());
    look_at_log(batch.patience);
    // Those who were told their id just now, and are ready to run, mostly come back with the next write.
    if (had_company_) std::this_thread::yield();
    others = take_along(batch);
    had_company_ = !others.empty();
    id = append_group(batch, others);
  } catch (const Error& error) {
    failure = std::current_exception();
    nothing_written = error.kind() != ErrorKind::uncertain;
  } catch (...) {
    failure = std::current_exception();
  }

  Locked locked(*this);
  leading_ = false;
  end(locked, batch, id, failure);
  for (Batch* other : others) {
    other->in_group = false;
    // Who has patience left when the leader's is at its end stays in the queue, and leads next.
    if (!other->done && (!nothing_written || other->patience.deadline().passed())) {
      end(locked, *other, id, failure);
    } else {
      locked.wake(*other);
    }
  }
  wake_front(locked);
}

// The caller of these two holds the mutex.

void Commit::end(Locked& locked, Batch& batch, UpdateId id, const std::exception_ptr& failure) {
  leave_queue(batch);
  locked.wake(batch);
  batch.done = true;
  batch.id = id;
  batch.failure = failure;
  if (batch.later != nullptr) end_later(batch);
}

void Commit::end_later(Batch& batch) {
  LaterWrite& write = *batch.later;
  for_thread_.notify_one();
  ++write.batches_ended;
  if (!batch.failure) {
    write.changes_written += batch.changes.size();
    write.last_id = batch.id;
    if (write.batches_ended == write.batches.size()) write.promise.set_value(batch.id);
    return;
  }
  // It is in front of the others of its write, so none of these is written, and none must be without it.
  for (Batch& after : write.batches) {
    if (after.done) continue;
    leave_queue(after);
    after.done = true;
    ++write.batches_ended;
  }
  try {
    std::rethrow_exception(batch.failure);
  } catch (const Error& error) {
    if (write.changes_written == 0) return write.promise.set_exception(batch.failure);
    write.promise.set_exception(
        std::make_exception_ptr(stopped_midway(error, write.changes_written, write.changes.size(), write.last_id)));
  } catch (...) {
    write.promise.set_exception(batch.failure);
  }
}

// Those behind the leader that go into one update with it: they have the same note, and patience for as long as the
// leader's, who cannot let go of one before he is done.
std::vector<Commit::Batch*> Commit::take_along(const Batch& leader) {
  const std::lock_guard lock(mutex_);
  std::vector<Batch*> others;
  std::size_t bytes = leader.draft.bytes();
  std::size_t changes = leader.draft.change_count();
  for (Batch* batch : queue_) {
    if (batch == &leader) continue;
    bytes += batch->draft.bytes();
    changes += batch->draft.change_count();
    if (bytes > link_.options.update_bytes_max || changes > element_count_max || batch->note != leader.note ||
        batch->patience.deadline().left() < leader.patience.deadline().left()) {
      break;
    }
    others.push_back(batch);
  }
  for (Batch* batch : others) batch->in_group = true;
  return others;
}

// --- The log ---

// The caller of these holds StateLock::append.

UpdateId Commit::append_group(Batch& leader, std::vector<Batch*>& others) {
  if (!others.empty()) {
    Draft together(link_.authorship(std::string(leader.note)));
    bool fits = true;  // take_along() saw to it
    const auto add = [&](const Batch& batch) {
      for (const Change& change : batch.changes) fits = fits && together.add(change, link_.options.update_bytes_max);
    };
    add(leader);
    for (const Batch* other : others) add(*other);
    try {
      if (fits) return append(together, leader.patience);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::limit && error.kind() != ErrorKind::invalid) throw;
    }
    // The log refuses what they make together: each goes alone, and finds out whether it was the one.
    Locked locked(*this);
    for (Batch* other : others) {
      other->in_group = false;
      locked.wake(*other);
    }
    others.clear();
  }
  return append(leader.draft, leader.patience);
}

UpdateId Commit::append(Draft& draft, Patience& patience) {
  for (;;) {
    const Place at = place_of(link_.state.info());
    if (append_after(at, draft, patience)) return at.id + 1;
  }
}

std::optional<Place> Commit::write_prepared(const Prepare& prepare, Patience& patience,
                                            const std::function<void()>& before_look) {
  const HeldLock appending = link_.state.lock(StateLock::append, patience.deadline());
  look_at_log(patience);
  for (;;) {
    if (before_look) before_look();
    const Uuid log_uuid = link_.state.info().log_uuid;
    const std::shared_ptr<const detail::Pin> pin = link_.state.pin();
    const Place at{log_uuid, pin->id(), pin->block().chain};
    std::optional<Draft> draft = prepare(pin);
    if (!draft) return std::nullopt;
    if (append_after(at, *draft, patience)) return Place{log_uuid, at.id + 1, draft->chain()};
  }
}

void Commit::look_at_log(Patience& patience) {
  link_.state.follow_switch();
  if (!store_asked_since(link_.state, boot_time_ns() - look_before_append_ns) || !link_.state.usable() ||
      !link_.has_followed() || !link_.has_seen_log(link_.state.info().log_uuid)) {
    follow(link_, patience);
  }
}

// Appends the draft as the update after `at`, and applies it. False: somebody else was first, and has been followed.
bool Commit::append_after(const Place& at, Draft& draft, Patience& patience) {
  const UpdateId id = at.id + 1;
  const std::string_view bytes = draft.seal(id, at.chain);
  Update update;
  decode_update(bytes, update);  // what could not be read back must not get into the log
  if (insert(at, bytes, patience)) {
    link_.tally.add(&Counters::updates_written);
    link_.state.announce_release(StateLock::append);
    apply(at, update);
    return true;
  }
  link_.tally.add(&Counters::append_conflicts);
  if (patience.deadline().passed()) {
    throw Error(ErrorKind::unavailable,
                "others were always first until the deadline, nothing was written: id=" + std::to_string(id) +
                    " deadline_ms=" + std::to_string(patience.limit().count()));
  }
  follow(link_, patience);
  // The log must show who was first.
  if (link_.state.info().chain == at.chain && !patience.pause()) {
    throw LogError(ErrorKind::unavailable,
                   "log says that an id is taken but shows no update there, nothing was written: id=" +
                       std::to_string(id) + " log=" + link_.log.name());
  }
  return false;
}

// Puts the bytes into the log after `at`, once, whatever it takes. False: another update is there. Throws when the
// patience is at its end: uncertain if an attempt is in doubt, else unavailable.
bool Commit::insert(const Place& at, std::string_view bytes, Patience& patience) {
  const UpdateId id = at.id + 1;
  bool failed = false;    // an attempt failed; the log should have done nothing then, but we look
  bool in_doubt = false;  // an attempt may have succeeded, or may still do so
  const auto uncertain = [&](const std::string& why) {
    return Error(ErrorKind::uncertain, "write may or may not be in the log: id=" + std::to_string(id) +
                                           " log=" + link_.log.name() + ": " + why + " (update(), then look)");
  };
  const auto append_once = [&] {
    try {
      return link_.ask([&](Log& log) { return log.append(id, bytes); }) == Log::Appended::yes;
    } catch (const LogError& error) {
      in_doubt = in_doubt || error.kind() == ErrorKind::uncertain;
      throw;
    }
  };
  for (;;) {
    try {
      if (failed) {
        std::string why;
        const Found found = look_back(at, bytes, why);
        if (found == Found::ours) return true;
        if (found == Found::others) return false;
        if (found == Found::another_log && in_doubt) throw uncertain(why);
        if (found == Found::another_log) return false;
      }
      if (append_once()) return true;
      if (!failed) return false;
      throw LogError(ErrorKind::unavailable, "the id was taken between two looks");  // by whom, the next one tells
    } catch (const LogError& error) {
      failed = true;
      try {
        link_.wait_after(error, patience);
      } catch (const LogError& last) {
        if (in_doubt) throw uncertain(last.what());
        throw;
      }
    }
  }
}

// What stands after `at` in the log by now.
Commit::Found Commit::look_back(const Place& at, std::string_view bytes, std::string& why) {
  const Page page = link_.ask([&](Log& log) { return read_page(log, first_to_read(at.id), at.id + 1); });
  if (fit_of(page, at, why) != Fit::fits) return Found::another_log;
  for (std::size_t i = 0; i < page.row_count(); ++i) {
    if (page.row(i).id == at.id + 1) return page.row(i).bytes == bytes ? Found::ours : Found::others;
  }
  return Found::nothing;
}

// Makes the update that was appended after `at` visible to this machine.
void Commit::apply(const Place& at, const Update& update) {
  Patience patience(link_.options.deadline);  // it is written: now it has to become visible, however long that took
  try {
    const std::unique_ptr<StateWriter> writer =
        link_.state.begin_write(patience.deadline(), AfterWriting::keep_for_a_while);
    note_recovery(link_, *writer);
    const Place now = place_of(writer->info());
    if (now.log_uuid == at.log_uuid) {
      if (now.id == at.id && now.chain == at.chain) {
        writer->apply(update);
        link_.tally.add(&Counters::updates_applied);
        return;
      }
      if (now.id > update.id || (now.id == update.id && now.chain == update.chain)) return;  // a follower was here
    }
  } catch (const std::exception&) {  // following says what is wrong, and mends what can be mended
  }
  const auto not_applied = [&](const std::string& why, int system_error) {
    return Error(
        ErrorKind::uncertain,
        "write is in the log, but could not be applied on this machine: id=" + std::to_string(update.id) + ": " + why,
        system_error);
  };
  try {
    follow(link_, patience, update.id);
  } catch (const Error& error) {
    throw not_applied(std::string(to_string(error.kind())) + ": " + error.what(), error.system_error());
  } catch (const std::exception& error) {  // no memory
    throw not_applied(error.what(), 0);
  }
}

}  // namespace whycache
