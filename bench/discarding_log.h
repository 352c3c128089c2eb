// A log that keeps its last update only, so that it costs a benchmark hardly any time or memory. A
// process whose state has the other updates can continue, and only such a process: one process
// writes at a time. Processes forked after the construction share the log.
#pragma once

#include <whycache/log.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "bench/child.h"

namespace bench {

class DiscardingLog final : public whycache::Log {
 public:
  static constexpr std::uint32_t update_bytes_max = 64U << 20;

  DiscardingLog() : last_(std::make_shared<SharedWithChildren<Last>>()) {}

  // Another object for the same log.
  std::unique_ptr<whycache::Log> reopen() override {
    return std::unique_ptr<whycache::Log>(new DiscardingLog(*this));
  }
  std::string name() const override { return "bench:"; }
  whycache::Extent extent() override { return {.uuid = {1}, .head = last().id}; }

  Appended append(whycache::UpdateId id, std::string_view bytes) override {
    if (id != last().id + 1) return Appended::taken;
    if (bytes.size() > sizeof last().bytes) throw std::runtime_error("update is too large");
    std::memcpy(last().bytes, bytes.data(), bytes.size());
    last().size = bytes.size();
    last().id = id;
    return Appended::yes;
  }
  whycache::Extent read(whycache::UpdateId first, whycache::UpdateId end,
                        const VisitUpdate& visit) override {
    const whycache::UpdateId id = last().id;
    if (id != 0 && first < id && first <= end)
      throw std::runtime_error("update was discarded: id=" + std::to_string(first));
    if (id != 0 && first <= id && id <= end) visit(id, {last().bytes, last().size});
    return extent();
  }
  void read_base(const VisitPart&) override {}
  bool rewrite(whycache::UpdateId, std::uint64_t, const NextPart&) override {
    throw std::runtime_error("the log of a benchmark has no history to rewrite");
  }

 private:
  struct Last {
    whycache::UpdateId id = 0;
    std::size_t size = 0;
    char bytes[update_bytes_max];
  };
  DiscardingLog(const DiscardingLog&) = default;
  Last& last() const { return **last_; }

  std::shared_ptr<SharedWithChildren<Last>> last_;
};

}  // namespace bench
