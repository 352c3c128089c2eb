// The log in memory: the plainest implementation of whycache/log.h, for tests and for a single
// process.
//
// One mutex, one map. The log belongs to the process that created it. A forked child has a copy
// that no other process would ever see, so every call in the child throws.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include <whycache/log.h>

namespace whycache {

class MemoryLog final : public Log {
 public:
  // A private log, destroyed with this object.
  MemoryLog();
  // Returns the log of that name in this process; the first call creates it. It lives until the
  // process exits, so that closing and reopening it loses nothing.
  static std::unique_ptr<MemoryLog> shared(const std::string& name);
  ~MemoryLog() override;

  std::string name() const override { return name_; }
  Extent extent() override;
  Appended append(UpdateId id, std::string_view bytes) override;
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override;
  bool wait(UpdateId after, std::chrono::nanoseconds at_most) override;
  bool notifies() const noexcept override { return true; }
  void read_base(const VisitPart& visit) override;
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override;

 private:
  class Store;
  MemoryLog(std::string name, std::shared_ptr<Store> store);
  // Throws Error(invalid) in a forked child.
  Store& store() const;

  std::string name_;
  std::shared_ptr<Store> store_;
};

}  // namespace whycache
