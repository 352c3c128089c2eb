// A log that follows a script: it fails before it acts, acts and loses the answer, waits, or
// returns other rows than it holds.
#pragma once

#include <whycache/log.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "log/forwarding_log.h"

namespace whycache::testing {

// Hooks that may throw, wait, or call other caches. Set them before the log is used; change their
// behaviour later through atomics.
struct Script {
  std::function<void(UpdateId)> before_append;
  std::function<void(UpdateId)>
      after_append;  // throwing here loses the answer of a completed append
  std::function<void()> before_read;
  std::function<void()> after_read;  // after the rows are read and before the extent is
  std::function<void()> before_extent;
  std::function<void()> before_read_base;
  std::function<void()> before_rewrite;
  std::function<void()> after_rewrite;
  // Returns the bytes to show instead of a row; nullopt hides the row.
  std::function<std::optional<std::string>(UpdateId, std::string_view)> transform_row;
  std::function<std::string(std::uint64_t part, std::string_view)> transform_part;
  std::function<void(Extent&)> transform_extent;

  std::atomic<int> append_count{0};
  std::atomic<int> read_count{0};
  std::atomic<int> extent_count{0};
};

class ScriptedLog final : public ForwardingLog {
 public:
  ScriptedLog(std::unique_ptr<Log> log, std::shared_ptr<Script> script)
      : ForwardingLog(std::move(log)), script_(std::move(script)) {}

  Extent extent() override {
    ++script_->extent_count;
    run_step(script_->before_extent);
    return transformed(target().extent());
  }

  Appended append(UpdateId id, std::string_view bytes) override {
    ++script_->append_count;
    run_step(script_->before_append, id);
    const Appended appended = target().append(id, bytes);
    run_step(script_->after_append, id);
    return appended;
  }

  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    ++script_->read_count;
    run_step(script_->before_read);
    const Extent extent = target().read(first, last, [&](UpdateId id, std::string_view bytes) {
      if (!script_->transform_row) return visit(id, bytes);
      const std::optional<std::string> shown = script_->transform_row(id, bytes);
      return shown ? visit(id, *shown) : true;
    });
    run_step(script_->after_read);
    return transformed(script_->after_read ? target().extent() : extent);
  }

  void read_base(const VisitPart& visit) override {
    run_step(script_->before_read_base);
    std::uint64_t part = 0;
    target().read_base([&](std::string_view bytes) {
      return script_->transform_part ? visit(script_->transform_part(part++, bytes)) : visit(bytes);
    });
  }

  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    run_step(script_->before_rewrite);
    const bool switched = target().rewrite(base, base_chain, next_part);
    run_step(script_->after_rewrite);
    return switched;
  }

  std::unique_ptr<Log> reopen() override {
    std::unique_ptr<Log> log = target().reopen();
    return log ? std::make_unique<ScriptedLog>(std::move(log), script_) : nullptr;
  }

 private:
  template <typename Step, typename... Arguments>
  static void run_step(const Step& step, Arguments... arguments) {
    if (step) step(arguments...);
  }
  Extent transformed(Extent extent) const {
    if (script_->transform_extent) script_->transform_extent(extent);
    return extent;
  }

  std::shared_ptr<Script> script_;
};

// A log that is replaced by another one while it is open, as when a database is restored or fails
// over.
class SwitchedLog final : public ForwardingLog {
 public:
  explicit SwitchedLog(std::unique_ptr<Log> log)
      : ForwardingLog(std::move(log)), name_(target().name()) {}
  void switch_to(std::unique_ptr<Log> log) { set_target(std::move(log)); }

  std::string name() const override { return name_; }

 private:
  const std::string name_;
};

inline Error unavailable_error() { return Error(ErrorKind::unavailable, "the test's log is away"); }
inline Error uncertain_error() {
  return Error(ErrorKind::uncertain, "the test's log lost its answer");
}

}  // namespace whycache::testing
