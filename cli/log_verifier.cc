#include "cli/log_verifier.h"

#include <fmt/format.h>

#include <exception>

#include "base/hash.h"

namespace whycache::cli {
namespace {

constexpr int attempts_max = 5;

Error damaged(const std::string& message) { return Error(ErrorKind::corrupt, message); }

}  // namespace

void Replay::run(const Progress& progress) {
  for (int attempt = 1;; ++attempt) {
    begin();
    try {
      load_base();
      if (read_updates(progress)) return;
    } catch (const Error& error) {
      // A base that was replaced while it was read; whatever else did not answer will not then either.
      if (error.kind() != ErrorKind::unavailable || attempt >= attempts_max) throw;
    }
    if (attempt >= attempts_max) {
      throw Error(ErrorKind::unavailable, fmt::format("history was rewritten {} times while it was read", attempt));
    }
  }
}

void Replay::begin() {
  extent_ = log_.extent();
  part_count_ = 0;
  last_key_.clear();
  base_info_.reset();
  update_count_ = 0;
  place_ = {};
  wanted_.reset();
  items_.clear();
}

void Replay::load_base() {
  if (extent_.base == 0) return arrive(0, chain_start(extent_.uuid));
  // A log is not asked to pass our exceptions through.
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
  if (!base_info_) throw damaged(fmt::format("base is cut short: base={} parts={}", extent_.base, part_count_));
  if (base_info_->base != extent_.base) {
    throw Error(ErrorKind::unavailable,
                fmt::format("base was replaced: base={} now={}", extent_.base, base_info_->base));
  }
  if (base_info_->chain != extent_.base_chain) {
    throw damaged(fmt::format("base has another chain than the log says: base={}", extent_.base));
  }
  if (base_info_->item_count != place_.item_count || base_info_->digest != place_.digest) {
    throw damaged(fmt::format("base does not hold what it should: base={} items={} expected={} digest={} expected={}",
                              extent_.base, place_.item_count, base_info_->item_count, to_string(place_.digest),
                              to_string(base_info_->digest)));
  }
  arrive(extent_.base, extent_.base_chain);
}

void Replay::load_part(std::string_view bytes) {
  decode_base_part(bytes, part_);
  if (part_.number != part_count_ || base_info_) {
    throw damaged(fmt::format("base has a part out of place: base={} part={} expected={}", part_.base, part_.number,
                              part_count_));
  }
  if (!part_.items.empty()) {
    if (part_count_ > 0 && part_.items.front().key <= last_key_) {
      throw damaged(fmt::format("base has keys out of order: base={} part={}", part_.base, part_.number));
    }
    last_key_ = part_.items.back().key;
  }
  for (const Item& item : part_.items) set(item.key, item.value);
  base_info_ = part_.last;
  ++part_count_;
}

bool Replay::read_updates(const Progress& progress) {
  while (place_.id < extent_.head) {
    const UpdateId first = place_.id + 1;
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
    if (place_.id < extent_.head) {
      throw damaged(fmt::format("updates are missing in the log: first={} head={}", place_.id + 1, extent_.head));
    }
  }
  return true;
}

void Replay::apply(UpdateId id, std::string_view bytes) {
  if (id != place_.id + 1) {
    throw damaged(fmt::format("updates are missing in the log: first={} next_found={}", place_.id + 1, id));
  }
  std::uint64_t chain = 0;
  try {
    chain = verify_chain(bytes, id, place_.chain);
    decode_update(bytes, update_);
  } catch (const Error& error) {
    throw damaged(fmt::format("update does not follow the one before: id={} ({})", id, error.what()));
  }
  if (update_.erases_all) {
    items_.clear();
    place_.digest = {};
    place_.item_count = 0;
  }
  for (const Change& change : update_.changes) {
    if (change.kind == Change::Kind::set) {
      set(change.key, change.value);
    } else {
      erase(change.key);
    }
  }
  ++update_count_;
  arrive(id, chain);
}

void Replay::set(std::string_view key, std::string_view value) {
  const XXH128_hash_t hash = XXH3_128bits(key.data(), key.size());
  const Digest digest = item_digest(key, value);
  const auto [place, is_new] = items_.try_emplace(KeyHash{hash.low64, hash.high64}, digest);
  if (!is_new) subtract(place_.digest, place->second);
  place->second = digest;
  add(place_.digest, digest);
  place_.item_count = items_.size();
}

void Replay::erase(std::string_view key) {
  const XXH128_hash_t hash = XXH3_128bits(key.data(), key.size());
  const auto found = items_.find(KeyHash{hash.low64, hash.high64});
  if (found == items_.end()) return;
  subtract(place_.digest, found->second);
  items_.erase(found);
  place_.item_count = items_.size();
}

void Replay::arrive(UpdateId id, std::uint64_t chain) {
  place_.id = id;
  place_.chain = chain;
  if (id == wanted_id_) wanted_ = place_;
}

}  // namespace whycache::cli
