// The base of logs that change one behaviour of another log: every call is forwarded to the target.
#pragma once

#include <whycache/log.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace whycache::testing {

// poll() keeps the default of Log, which calls read() of the derived class. A derived class that
// intercepts read() therefore intercepts followers too. reopen() keeps its default, because a log
// reopened by the target would lose the changes of the derived class. A derived class whose target
// needs reopening overrides it and wraps the result.
class ForwardingLog : public Log {
 public:
  explicit ForwardingLog(std::unique_ptr<Log> target) : target_(std::move(target)) {}

  std::string name() const override { return target_->name(); }
  Extent extent() override { return target_->extent(); }
  Appended append(UpdateId id, std::string_view bytes) override {
    return target_->append(id, bytes);
  }
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    return target_->read(first, last, visit);
  }
  bool wait(UpdateId after, std::chrono::nanoseconds at_most) override {
    return target_->wait(after, at_most);
  }
  bool notifies() const noexcept override { return target_->notifies(); }
  void read_base(const VisitPart& visit) override { target_->read_base(visit); }
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    return target_->rewrite(base, base_chain, next_part);
  }
  void check_may_rewrite() override { target_->check_may_rewrite(); }

 protected:
  Log& target() const { return *target_; }
  void set_target(std::unique_ptr<Log> target) { target_ = std::move(target); }

 private:
  std::unique_ptr<Log> target_;
};

}  // namespace whycache::testing
