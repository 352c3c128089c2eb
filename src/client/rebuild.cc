#include "client/rebuild.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <exception>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include <whycache/view.h>

#include "client/log_page.h"
#include "client/state_links.h"
#include "client/state_location.h"
#include "state/write/builder.h"
#include "state/write/writer.h"

namespace whycache {
namespace {

// How long an installation may block this machine's writers while the log is read.
constexpr std::chrono::milliseconds blocked_writer_time_max{1'000};
constexpr UpdateId no_limit = std::numeric_limits<UpdateId>::max();

LogError damaged_base(UpdateId base, const std::string& why) {
  return LogError(ErrorKind::corrupt, "base is damaged: base=" + std::to_string(base) + ": " + why +
                                          " (repair or restore the log; a machine that has a newer "
                                          "id applied can rewrite history)");
}

// Loads the parts of a base, in order, into a builder. Verifies that they are complete, in key
// order, and have the count and digest that the last part names.
class BaseLoader {
 public:
  explicit BaseLoader(StateBuilder& builder) : builder_(builder) {}

  void load(std::string_view bytes) {
    try {
      decode_base_part(bytes, part_);
    } catch (const Error& error) {
      throw damaged_base(base_, "part=" + std::to_string(part_count_) + ": " + error.what());
    }
    if (part_count_ == 0) base_ = part_.base;
    if (part_.base != base_ || part_.number != part_count_ || info_) {
      throw damaged_base(base_,
                         "part of another base or place: part_base=" + std::to_string(part_.base) +
                             " part=" + std::to_string(part_.number) +
                             " expected=" + std::to_string(part_count_));
    }
    if (!part_.items.empty()) {
      if (part_count_ > 0 && part_.items.front().key <= last_key_) {
        throw damaged_base(base_, "keys out of order: part=" + std::to_string(part_count_));
      }
      last_key_ = part_.items.back().key;
      builder_.load(part_.items, base_);
    }
    info_ = part_.last;
    ++part_count_;
  }

  // Finishes the base: the builder then has the state as of it. Throws LogError(corrupt) if the
  // base is incomplete or differs from its last part.
  LogPosition finish(const Extent& extent) {
    if (!info_ || info_->base != base_) {
      throw damaged_base(extent.base, "cut short: parts=" + std::to_string(part_count_));
    }
    builder_.finish_load(info_->base, info_->chain);
    const StateInfo loaded = builder_.info();
    if (loaded.item_count != info_->item_count || loaded.digest != info_->digest) {
      throw damaged_base(base_, "items=" + std::to_string(loaded.item_count) +
                                    " expected=" + std::to_string(info_->item_count) +
                                    " digest=" + to_string(loaded.digest) +
                                    " expected=" + to_string(info_->digest));
    }
    return {extent.uuid, info_->base, info_->chain};
  }

 private:
  StateBuilder& builder_;
  BasePart part_;
  UpdateId base_ = 0;
  std::uint64_t part_count_ = 0;
  std::string last_key_;
  std::optional<BaseInfo> info_;
};

// Measures how far attempts get with a base. An attempt that gets further than all before it gets
// the full deadline again. Thus a slow load is not stopped, but one that restarts again and again
// is, as when other machines write base after base.
class BaseProgress {
 public:
  explicit BaseProgress(Backoff& backoff) : backoff_(backoff) {}

  // Moves forward with each part.
  const Deadline& deadline() const { return backoff_.deadline(); }
  const Backoff& backoff() const { return backoff_; }
  void begin_attempt() { part_count_ = 0; }
  void record_part() {
    if (++part_count_ <= part_count_max_) return;
    part_count_max_ = part_count_;
    backoff_.reset();
  }

 private:
  Backoff& backoff_;
  std::uint64_t part_count_ = 0;
  std::uint64_t part_count_max_ = 0;
};

// Reads the base into the loader. Keeps an exception of the loader from passing through the log's
// code.
void read_base(Session& session, BaseLoader& loader, BaseProgress& progress) {
  std::exception_ptr failure;
  session.call_log(progress.deadline(), [&](Log& log) {
    log.read_base([&](std::string_view bytes) {
      if (failure) return false;
      try {
        session.throw_if_stopped(progress.backoff());
        loader.load(bytes);
        progress.record_part();
      } catch (...) {
        failure = std::current_exception();
      }
      return !failure;
    });
    return 0;
  });
  if (failure) std::rethrow_exception(failure);
}

struct Build {
  std::unique_ptr<StateBuilder> builder;
  Extent extent;  // of the log when the build began
  LogPosition position;
  std::int64_t poll_time_ns = 0;  // when the log was last asked
  UpdateId head = 0;
};

// Applies the updates after the build's position, up to `last`. Returns false if the log was
// rewritten or replaced meanwhile.
bool apply_log_up_to(Session& session, Build& build, UpdateId last, Backoff& backoff) {
  LogPosition& position = build.position;
  const Extent& extent = build.extent;
  for (bool complete = false; !complete;) {
    session.throw_if_stopped(backoff);
    build.poll_time_ns = boot_time_ns();
    const LogPage page = session.call_log_with_retries(
        backoff, [&](Log& log) { return read_page(log, first_id_to_read(position.id), last); });
    std::string why;
    if (compare_history(page, position, why) != HistoryMatch::matches) {
      const bool moved = page.extent().uuid != extent.uuid || page.extent().base != extent.base;
      if (!moved && position.id == extent.base)
        throw damaged_base(extent.base, "its chain is not the one it was made with: " + why);
      return false;
    }
    const UpdateId before = position.id;
    apply_updates(page, position, [&](const Update& update) { build.builder->apply(update); });
    if (position.id > before) backoff.reset();
    build.head = page.extent().head;
    complete = page.is_complete() || position.id >= last;
    if (complete) check_head_reached(session.log, position.id, std::min(extent.head, last));
  }
  return true;
}

// Returns the name of the log that a new state bears. One that is built by the name of an alias
// keeps the name that its path stands for: processes that use that name then need not ask the log.
std::string log_name_of_build(const Session& session, const Uuid& log_uuid) {
  if (session.location.is_alias()) {
    if (std::optional<LogIdentity> present = find_log_of_state(session.state.path());
        present && present->uuid == log_uuid)
      return std::move(present->name);
  }
  return session.log.name();
}

// Makes one attempt. Returns nullopt if the log was rewritten or replaced meanwhile.
std::optional<Build> try_build(Session& session, const Extent& extent, UpdateId last,
                               Backoff& backoff, BaseProgress& progress) {
  Build build;
  build.builder = session.state.begin_build(extent.uuid, log_name_of_build(session, extent.uuid));
  build.extent = extent;
  build.position = {extent.uuid, 0, chain_start(extent.uuid)};
  if (extent.base > 0) {
    BaseLoader loader(*build.builder);
    progress.begin_attempt();
    read_base(session, loader, progress);
    build.position = loader.finish(extent);
  } else {
    build.builder->finish_load(0, build.position.chain);
  }
  if (build.position.id < last && !apply_log_up_to(session, build, last, backoff))
    return std::nullopt;
  return build;
}

// Makes a file of the items that are pinned as of `build.position`, without free space, the one of
// `build`. The versions of the items become that id.
void compact(Session& session, const std::shared_ptr<const detail::Pin>& items, Build& build,
             const Backoff& backoff) {
  constexpr std::size_t batch_items_max = 1024;
  const LogPosition& position = build.position;
  auto builder =
      session.state.begin_build(position.log_uuid, log_name_of_build(session, position.log_uuid));
  std::vector<Item> batch;
  const auto load_batch = [&] {
    session.throw_if_stopped(backoff);
    if (!batch.empty()) builder->load(batch, position.id);
    batch.clear();
  };
  const View view(items);
  for (const Item item : view.items()) {
    batch.push_back(item);
    if (batch.size() == batch_items_max) load_batch();
  }
  load_batch();
  builder->finish_load(position.id, position.chain);
  build.builder = std::move(builder);
}

// Builds until an attempt succeeds. Returns nullopt if the base is beyond `last`.
std::optional<Build> build_up_to(Session& session, UpdateId last, Backoff& backoff) {
  BaseProgress progress(backoff);
  for (;;) {
    const Extent extent =
        session.call_log_with_retries(backoff, [](Log& log) { return log.extent(); });
    if (extent.base > last) return std::nullopt;
    std::optional<LogError> failure;
    try {
      if (std::optional<Build> build = try_build(session, extent, last, backoff, progress))
        return build;
      failure.emplace(ErrorKind::unavailable, "the log was rewritten or replaced meanwhile");
    } catch (const LogError& error) {
      failure = error;
    }
    session.back_off_after(*failure, backoff);
  }
}

std::uint64_t Counters::*counter_of(RebuildReason reason) {
  switch (reason) {
    case RebuildReason::damaged: return &Counters::rebuilds_damaged;
    case RebuildReason::behind_base: return &Counters::rebuilds_behind_base;
    case RebuildReason::diverged: return &Counters::rebuilds_diverged;
    case RebuildReason::replaced: return &Counters::rebuilds_replaced;
    case RebuildReason::mostly_free: return &Counters::rebuilds_to_shrink;
    case RebuildReason::no_state:
    case RebuildReason::removed:
    case RebuildReason::requested: break;
  }
  return nullptr;
}

const char* describe(RebuildReason reason) {
  switch (reason) {
    case RebuildReason::no_state: return "there was none";
    case RebuildReason::removed: return "it was removed";
    case RebuildReason::damaged: return "it could not be used";
    case RebuildReason::behind_base: return "it was behind the log's base";
    case RebuildReason::diverged: return "the log was restored, forked or lost its tail";
    case RebuildReason::replaced: return "the log was replaced";
    case RebuildReason::mostly_free: return "most of it was free";
    case RebuildReason::requested: return "that was requested";
  }
  return "";
}

// Installs the new state. Returns false if the caller must look for the cause again.
bool install(Session& session, Build& build, const RebuildCause& cause, Backoff& backoff) {
  switch (cause.reason) {
    // The log does not have the updates of the old state.
    case RebuildReason::diverged:
    case RebuildReason::replaced:
      return session.state.install(*build.builder, InstallPolicy::always, {}, backoff.deadline(),
                                   cause.other_log);
    // If a writer of this machine brought the old state beyond the new one, nothing has to be
    // rebuilt.
    case RebuildReason::behind_base:
      return session.state.install(*build.builder, InstallPolicy::unless_behind, {},
                                   backoff.deadline());
    case RebuildReason::no_state:
    case RebuildReason::removed:
    case RebuildReason::damaged:
    case RebuildReason::mostly_free:
    case RebuildReason::requested: break;
  }
  // A process may have written to the old state meanwhile, damaged as it may be. The new state must
  // not lack an update that a reader saw there.
  constexpr int rounds_max = 3;
  for (int round = 0; round < rounds_max; ++round) {
    if (session.state.install(*build.builder, InstallPolicy::unless_behind, {}, backoff.deadline()))
      return true;
    if (!apply_log_up_to(session, build, no_limit, backoff)) return false;
  }
  // The writer is faster. Block it once, under the writer lock, while the rest of the log is read.
  // If the log does not answer soon, install anyway; the next update() catches up.
  return session.state.install(
      *build.builder, InstallPolicy::always,
      [&] {
        try {
          Backoff brief(blocked_writer_time_max, backoff.deadline().stop());
          apply_log_up_to(session, build, no_limit, brief);
        } catch (const LogError&) {
        }
      },
      backoff.deadline());
}

}  // namespace

void check_may_replace(const Session& session, const LogIdentity& present, const Uuid& log_uuid) {
  const bool is_alias = session.location.is_alias();
  const bool has_seen = session.has_seen_log(present.uuid);
  if (has_seen && !is_alias) return;
  const bool is_in_use = session.state.is_used_by_others();
  const bool has_name = present.name == session.log.name();
  if (!is_in_use && (has_seen || has_name || session.state.adopted())) return;
  if (is_alias || session.location.is_name_confirmed) {
    remove_alias(session.location.name_path);
    throw LogError(ErrorKind::corrupt,
                   "state belongs to another log than the alias that led to it: path=" +
                       session.state.path() + " alias=" + session.location.name_path +
                       " state_log=" + present.name + " state_uuid=" + to_string(present.uuid) +
                       " log=" + session.log.name() + " uuid=" + to_string(log_uuid) +
                       " (open the cache again, which finds the log's own state; or choose "
                       "another state_path)");
  }
  throw LogError(ErrorKind::corrupt,
                 "state belongs to another log" + std::string(has_name ? " of the same name" : "") +
                     (is_in_use ? ", whose processes use it" : "") +
                     ": path=" + session.state.path() + " state_log=" + present.name +
                     " state_uuid=" + to_string(present.uuid) + " log=" + session.log.name() +
                     " uuid=" + to_string(log_uuid) +
                     (is_in_use ? " (choose another state_path)"
                                : " (choose another state_path; or delete the state if it is no "
                                  "longer needed)"));
}

void refuse_empty_log(const Session& session, const StateInfo& info, const Extent& extent) {
  if (extent.head != 0 || info.item_count == 0 || session.options.accept_replaced_log ||
      session.log.name().starts_with("memory:"))
    return;
  throw LogError(
      ErrorKind::corrupt,
      "log is empty, in place of one that this machine has applied: log=" + session.log.name() +
          " uuid=" + to_string(extent.uuid) + " path=" + session.state.path() + " state_uuid=" +
          to_string(info.log_uuid) + " applied_id=" + std::to_string(info.applied_id) +
          " items=" + std::to_string(info.item_count) +
          " (mount or restore the log that was there; if it was emptied on purpose, `whycache "
          "update --accept-replaced-log` or Options::accept_replaced_log empties the state, too)");
}

RebuildCause unusable_state_cause(const Session& session) {
  if (::access(session.state.path().c_str(), F_OK) == 0)
    return {RebuildReason::damaged, session.state.unusable_reason()};
  return {session.has_had_state() ? RebuildReason::removed : RebuildReason::no_state,
          "nothing is in its place"};
}

namespace {

bool is_for_lack_of_room(const Error& error) {
  return error.system_error() == ENOSPC || error.system_error() == EDQUOT;
}

// Builds a state up to the head. If there is no room for a second one, the current one gives way,
// unless other processes or views have it open. Sets `gave_way` then.
std::optional<Build> build_beside_or_instead(Session& session, Backoff& backoff, bool& gave_way) {
  for (;;) {
    try {
      return build_up_to(session, no_limit, backoff);
    } catch (const LogError&) {
      throw;
    } catch (const Error& error) {
      if (gave_way || !is_for_lack_of_room(error) ||
          ::access(session.state.path().c_str(), F_OK) != 0)
        throw;
      if (!session.state.remove_if_unused(backoff.deadline())) {
        throw Error(error.kind(),
                    std::string("no room to build a new state beside the old one, which other "
                                "processes or views have open: ") +
                        error.what() + " (free space, or close them)",
                    error.system_error());
      }
      gave_way = true;
    }
  }
}

void finish_rebuild(Session& session, const Build& build, const RebuildCause& cause,
                    Backoff& backoff, bool gave_way) {
  session.state.switch_if_replaced(backoff.deadline());
  const StateInfo info = session.state.info();
  session.note_seen_log(info.log_uuid);
  session.note_usable_state();
  if (session.location.is_named_after_log()) record_state(session.state.path(), info.log_uuid);
  session.state.record_poll(build.poll_time_ns, build.head);
  if (cause.reason == RebuildReason::no_state) return;
  if (std::uint64_t Counters::*const counter = counter_of(cause.reason))
    session.counters.add(counter);
  try {
    session.state.begin_write(backoff.deadline())->add_counters(session.counters.take_unreported());
  } catch (const Error&) {  // the next update that this process applies adds it
  }
  session.report(Event::Kind::rebuilt, std::string("state rebuilt, since ") +
                                           describe(cause.reason) + ": " + cause.details +
                                           (gave_way ? " (for lack of room, the old one was "
                                                       "removed first)"
                                                     : "") +
                                           " path=" + session.state.path() +
                                           " now_applied_id=" + std::to_string(info.applied_id));
}

std::uint64_t file_bytes(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_size) : 0;
}

}  // namespace

bool rebuild(Session& session, const RebuildCause& cause, Backoff& backoff) {
  bool gave_way = false;
  std::optional<Build> build = build_beside_or_instead(session, backoff, gave_way);
  // A damaged state may belong to another log, too.
  if (session.state.usable()) {
    const StateInfo present = session.state.info();
    if (present.log_uuid != build->extent.uuid)
      check_may_replace(session, {present.log_uuid, present.log_name}, build->extent.uuid);
  }
  if (!install(session, *build, cause, backoff)) return false;
  finish_rebuild(session, *build, cause, backoff, gave_way);
  return true;
}

namespace {

LogError log_changed_error(const Session& session) {
  return LogError(
      ErrorKind::unavailable,
      "state could not be rebuilt, as it or its log was replaced or rewritten meanwhile "
      "(retry): path=" +
          session.state.path() + " log=" + session.log.name());
}

// Builds the state from the log, in a file without much free space.
Build build_from_log(Session& session, Backoff& backoff) {
  std::optional<Build> build = build_up_to(session, no_limit, backoff);
  if (build->builder->has_free_space()) compact(session, build->builder->pin(), *build, backoff);
  return std::move(*build);
}

// Builds the state from the items of the present one, which spares the log.
Build build_from_state(Session& session, Backoff& backoff) {
  Build build;
  build.extent = session.call_log_with_retries(backoff, [](Log& log) { return log.extent(); });
  std::shared_ptr<const detail::Pin> items;
  StateInfo info;
  do {  // until no update was applied in between
    items = session.state.pin();
    info = session.state.info();
  } while (View(items).id() != info.applied_id && !backoff.deadline().passed());
  build.position = position_of(info);
  if (View(items).id() != info.applied_id || build.extent.uuid != info.log_uuid ||
      build.extent.base > info.applied_id)
    throw log_changed_error(session);
  compact(session, items, build, backoff);
  const StateInfo built = build.builder->info();
  if (built.digest != info.digest || built.item_count != info.item_count) {
    throw Error(ErrorKind::corrupt,
                "items of the state do not have its digest: path=" + session.state.path() +
                    " (run whycache rebuild, which reads the log)");
  }
  if (!apply_log_up_to(session, build, no_limit, backoff)) throw log_changed_error(session);
  return build;
}

}  // namespace

void rebuild_beside(Session& session, RebuildReason reason, Backoff& backoff) {
  const StateInfo before = session.state.info();
  Build build = reason == RebuildReason::requested ? build_from_log(session, backoff)
                                                   : build_from_state(session, backoff);
  refuse_empty_log(session, before, build.extent);
  const HeldLock following = session.lock_for_log(StateLock::follow, backoff);
  session.state.switch_if_replaced(backoff.deadline());
  const StateInfo present = session.state.info();
  if (present.log_uuid != build.extent.uuid || present.log_uuid != before.log_uuid)
    throw log_changed_error(session);
  const RebuildCause cause{reason,
                           "file_bytes=" + std::to_string(file_bytes(session.state.path()))};
  if (!install(session, build, cause, backoff)) throw log_changed_error(session);
  finish_rebuild(session, build, cause, backoff, false);
}

std::unique_ptr<StateBuilder> build_as_of(Session& session, UpdateId last, Backoff& backoff) {
  std::optional<Build> build = build_up_to(session, last, backoff);
  return build ? std::move(build->builder) : nullptr;
}

void report_recovery(Session& session, const StateWriter& writer) {
  if (!writer.recovered()) return;
  session.counters.add(&Counters::recoveries);
  session.report(Event::Kind::recovered,
                 "a writer died while it applied an update, which was rolled back: path=" +
                     session.state.path() +
                     " applied_id=" + std::to_string(writer.info().applied_id));
}

void report_ring_fault(Session& session, StateWriter& writer) {
  if (const std::optional<std::string> fault = writer.take_ring_fault())
    session.report(Event::Kind::changes_not_kept, *fault);
}

}  // namespace whycache
