// The log in memory: the contract of whycache/log.h at its plainest, for tests and for one process
// alone.
//
// One mutex, one map. It lives in the process that made it: a forked child sees a copy that nobody
// else would ever hear about, so there every call throws.
#pragma once

#include <memory>
#include <string>

#include <whycache/log.h>

namespace whycache {

class MemoryLog final : public Log {
 public:
  // A log of its own, gone with this object.
  MemoryLog();
  // The log of that name in this process, made by whoever asks first. It stays until the process
  // ends, so that closing and opening it again loses nothing.
  static std::unique_ptr<MemoryLog> shared(const std::string& name);
  ~MemoryLog() override;

  std::string name() const override { return name_; }
  Extent extent() override;
  Appended append(UpdateId id, std::string_view bytes) override;
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override;
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
