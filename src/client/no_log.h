// The log of a cache that was attached to a state: there is none, and every call says so.
#pragma once

#include <whycache/log.h>

#include <memory>
#include <string>
#include <utility>

namespace whycache {

class NoLog final : public Log {
 public:
  explicit NoLog(std::string state_path) : state_path_(std::move(state_path)) {}

  std::string name() const override { return "none"; }
  Extent extent() override { fail(); }
  Appended append(UpdateId, std::string_view) override { fail(); }
  Extent read(UpdateId, UpdateId, const VisitUpdate&) override { fail(); }
  void read_base(const VisitPart&) override { fail(); }
  bool rewrite(UpdateId, std::uint64_t, const NextPart&) override { fail(); }
  void check_may_rewrite() override { fail(); }
  std::unique_ptr<Log> reopen() override { return std::make_unique<NoLog>(state_path_); }

  [[noreturn]] void fail() const {
    throw Error(ErrorKind::invalid,
                "cache is attached to a state and has no log: path=" + state_path_ +
                    " (to update it or to write, open a cache with the URL of the log)");
  }

 private:
  std::string state_path_;
};

}  // namespace whycache
