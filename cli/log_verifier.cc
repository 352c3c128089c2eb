#include "cli/log_verifier.h"

#include <fmt/format.h>

#include <exception>

#include "base/hash.h"

namespace whycache::cli {
namespace {

constexpr int attempts_max = 5;

Error corrupt_log(const std::string& message) { return Error(ErrorKind::corrupt, message); }

}  // namespace

void LogVerifier::verify(const ProgressCallback& progress) {
  for (int attempt = 1;; ++attempt) {
    reset();
    try {
      load_base();
      if (read_updates(progress)) return;
    } catch (const Error& error) {
      // A rewrite may have replaced the base while it was read. Any other cause of unavailability
      // fails again.
      if (error.kind() != ErrorKind::unavailable || attempt >= attempts_max) throw;
    }
    if (attempt >= attempts_max) {
      throw Error(ErrorKind::unavailable,
                  fmt::format("history was rewritten {} times while it was read", attempt));
    }
  }
}

void LogVerifier::reset() {
  extent_ = log_.extent();
  part_count_ = 0;
  last_key_.clear();
  base_info_.reset();
  summary_ = {};
  wanted_summary_.reset();
  item_digests_.clear();
}

void LogVerifier::load_base() {
  if (extent_.base == 0) return advance_to(0, chain_start(extent_.uuid));
  // Log does not promise to propagate exceptions of the callback.
  std::exception_ptr failure;
  log_.read_base([&](std::string_view bytes) {
    try {
      load_part(bytes);
    } catch (...) {
      failure = std::current_exception();
    }
    return !failure;
  });
  if (failure) std::rethrow_exception(failure);
  if (!base_info_)
    throw corrupt_log(
        fmt::format("base is cut short: base={} parts={}", extent_.base, part_count_));
  if (base_info_->base != extent_.base) {
    throw Error(ErrorKind::unavailable,
                fmt::format("base was replaced while it was read: base={} new_base={}",
                            extent_.base, base_info_->base));
  }
  if (base_info_->chain != extent_.base_chain) {
    throw corrupt_log(fmt::format("base and log have different chains: base={}", extent_.base));
  }
  if (base_info_->item_count != summary_.item_count || base_info_->digest != summary_.digest) {
    throw corrupt_log(fmt::format(
        "base differs from its own summary: base={} items={} expected={} digest={} expected={}",
        extent_.base, summary_.item_count, base_info_->item_count, to_string(summary_.digest),
        to_string(base_info_->digest)));
  }
  advance_to(extent_.base, extent_.base_chain);
}

void LogVerifier::load_part(std::string_view bytes) {
  decode_base_part(bytes, part_);
  if (part_.number != part_count_ || base_info_) {
    throw corrupt_log(fmt::format("base has a part out of place: base={} part={} expected={}",
                                  part_.base, part_.number, part_count_));
  }
  if (!part_.items.empty()) {
    if (part_count_ > 0 && part_.items.front().key <= last_key_) {
      throw corrupt_log(
          fmt::format("base has keys out of order: base={} part={}", part_.base, part_.number));
    }
    last_key_ = part_.items.back().key;
  }
  for (const Item& item : part_.items) set(item.key, item.value);
  base_info_ = part_.last;
  ++part_count_;
}

bool LogVerifier::read_updates(const ProgressCallback& progress) {
  while (summary_.id < extent_.head) {
    const UpdateId first = summary_.id + 1;
    std::exception_ptr failure;
    const Extent after = log_.read(first, extent_.head, [&](UpdateId id, std::string_view bytes) {
      try {
        apply(id, bytes);
        progress(id, extent_.head);
      } catch (...) {
        failure = std::current_exception();
      }
      return !failure;
    });
    if (after.base >= first || after.uuid != extent_.uuid) return false;
    if (failure) std::rethrow_exception(failure);
    if (summary_.id < extent_.head) {
      throw corrupt_log(fmt::format("updates are missing in the log: first={} head={}",
                                    summary_.id + 1, extent_.head));
    }
  }
  return true;
}

void LogVerifier::apply(UpdateId id, std::string_view bytes) {
  if (id != summary_.id + 1) {
    throw corrupt_log(
        fmt::format("updates are missing in the log: first={} next_found={}", summary_.id + 1, id));
  }
  std::uint64_t chain = 0;
  try {
    chain = verify_chain(bytes, id, summary_.chain);
    decode_update(bytes, update_);
  } catch (const Error& error) {
    throw corrupt_log(
        fmt::format("update does not follow the previous one: id={} ({})", id, error.what()));
  }
  if (update_.erases_all) {
    item_digests_.clear();
    summary_.digest = {};
    summary_.item_count = 0;
  }
  for (const Change& change : update_.changes) {
    if (change.kind == Change::Kind::set) {
      set(change.key, change.value);
    } else {
      erase(change.key);
    }
  }
  advance_to(id, chain);
}

void LogVerifier::set(std::string_view key, std::string_view value) {
  const XXH128_hash_t hash = XXH3_128bits(key.data(), key.size());
  const Digest digest = item_digest(key, value);
  const auto [entry, is_new] =
      item_digests_.try_emplace(KeyFingerprint{hash.low64, hash.high64}, digest);
  if (!is_new) subtract(summary_.digest, entry->second);
  entry->second = digest;
  add(summary_.digest, digest);
  summary_.item_count = item_digests_.size();
}

void LogVerifier::erase(std::string_view key) {
  const XXH128_hash_t hash = XXH3_128bits(key.data(), key.size());
  const auto found = item_digests_.find(KeyFingerprint{hash.low64, hash.high64});
  if (found == item_digests_.end()) return;
  subtract(summary_.digest, found->second);
  item_digests_.erase(found);
  summary_.item_count = item_digests_.size();
}

void LogVerifier::advance_to(UpdateId id, std::uint64_t chain) {
  summary_.id = id;
  summary_.chain = chain;
  if (id == wanted_id_) wanted_summary_ = summary_;
}

}  // namespace whycache::cli
