// Reads the log from base to head, verifies that every update follows the previous one, and
// computes the digest of the resulting items. Keeps a hash per key instead of the items, about 80
// bytes each.
#pragma once

#include <whycache/log.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <unordered_map>

#include "update/update.h"

namespace whycache::cli {

// The result of replaying the log up to one update id.
struct LogSummary {
  UpdateId id = 0;
  std::uint64_t chain = 0;
  std::uint64_t item_count = 0;
  Digest digest;
};

class LogVerifier {
 public:
  using ProgressCallback = std::function<void(UpdateId id, UpdateId head)>;

  // Also records the summary at `wanted_id`.
  LogVerifier(Log& log, UpdateId wanted_id) : log_(log), wanted_id_(wanted_id) {}

  // Verifies the whole log. Throws Error(corrupt), which names the update and the fault, or
  // Error(unavailable).
  void verify(const ProgressCallback& progress);

  const Extent& extent() const { return extent_; }
  const LogSummary& summary() const { return summary_; }
  // Returns nullopt if the wanted id is before the base or beyond the head.
  const std::optional<LogSummary>& wanted_summary() const { return wanted_summary_; }

 private:
  struct KeyFingerprint {
    std::uint64_t low;
    std::uint64_t high;
    friend bool operator==(const KeyFingerprint&, const KeyFingerprint&) = default;
  };
  struct KeyFingerprintHash {
    std::size_t operator()(const KeyFingerprint& hash) const noexcept { return hash.low; }
  };

  void reset();
  void load_base();
  void load_part(std::string_view bytes);
  // Continues after the current id. Returns false if a rewrite has replaced those updates
  // meanwhile, so that verification must start again.
  bool read_updates(const ProgressCallback& progress);
  void apply(UpdateId id, std::string_view bytes);
  void set(std::string_view key, std::string_view value);
  void erase(std::string_view key);
  void advance_to(UpdateId id, std::uint64_t chain);

  Log& log_;
  const UpdateId wanted_id_;
  Extent extent_;
  BasePart part_;
  std::uint64_t part_count_ = 0;
  std::string last_key_;
  std::optional<BaseInfo> base_info_;
  Update update_;
  LogSummary summary_;
  std::optional<LogSummary> wanted_summary_;
  std::unordered_map<KeyFingerprint, Digest, KeyFingerprintHash> item_digests_;
};

}  // namespace whycache::cli
