// Encodes an update. add() appends each change in its final encoding. seal() adds id and chain,
// which depend on the position in the log, again for each attempt to append.
#include <algorithm>
#include <cassert>
#include <utility>

#include "base/bytes.h"
#include "update/compression.h"
#include "update/format.h"
#include "update/update.h"

namespace whycache {
namespace {

// Leaves out fields with the value zero or empty.
std::string encode_fields(const Authorship& authorship) {
  const auto tag = [](UpdateTag of) { return static_cast<std::uint64_t>(of); };
  std::string fields;
  constexpr std::size_t bytes_besides_texts = 64;
  fields.reserve(bytes_besides_texts + authorship.writer_name.size() + authorship.note.size());
  append_number_field(fields, tag(UpdateTag::time_us),
                      static_cast<std::uint64_t>(authorship.time_us));
  if (authorship.writer_id != Uuid{}) {
    append_field(
        fields, tag(UpdateTag::writer_id),
        {reinterpret_cast<const char*>(authorship.writer_id.data()), authorship.writer_id.size()});
  }
  append_number_field(fields, tag(UpdateTag::writer_sequence), authorship.writer_sequence);
  append_text_field(fields, tag(UpdateTag::writer_name), authorship.writer_name, "writer name");
  append_text_field(fields, tag(UpdateTag::note), authorship.note, "note");

  return with_size_prefix(fields);
}

void check_change(const Change& change) {
  if (change.key.empty()) throw Error(ErrorKind::invalid, "key is empty");
  if (change.key.size() > key_bytes_max) {
    throw Error(ErrorKind::invalid, "key too long: bytes=" + std::to_string(change.key.size()) +
                                        " key_bytes_max=" + std::to_string(key_bytes_max));
  }
  if (change.kind == Change::Kind::set && change.value.size() > value_bytes_max) {
    throw Error(ErrorKind::limit, "value too long: bytes=" + std::to_string(change.value.size()) +
                                      " value_bytes_max=" + std::to_string(value_bytes_max));
  }
}

std::uint64_t key_size_and_kind(const Change& change) {
  return change.key.size() << 1 | (is_erase(change) ? 1 : 0);
}

std::size_t encoded_bytes(const Change& change) {
  return varint_bytes(key_size_and_kind(change)) + change.key.size() +
         (is_erase(change) ? 0 : varint_bytes(change.value.size()) + change.value.size());
}

}  // namespace

Draft::Draft(const Authorship& authorship, bool erases_all)
    : erases_all_(erases_all), fields_(encode_fields(authorship)) {}

std::size_t Draft::uncompressed_bytes() const {
  return common_header_bytes + fields_.size() + varint_bytes(change_count_) + changes_.size();
}

void Draft::reserve(std::span<const Change> changes) {
  std::size_t bytes = 0;
  for (const Change& change : changes) bytes += encoded_bytes(change);
  changes_.reserve(bytes);
}

bool Draft::add(const Change& change, std::size_t bytes_max) {
  check_change(change);
  if (is_finished_) throw Error(ErrorKind::invalid, "a finished draft takes no more changes");

  const bool erases = is_erase(change);
  const std::size_t change_bytes = encoded_bytes(change);
  const std::size_t count_growth = varint_bytes(change_count_ + 1) - varint_bytes(change_count_);
  if (change_count_ == element_count_max ||
      uncompressed_bytes() + count_growth + change_bytes > bytes_max)
    return false;

  const std::size_t begin = changes_.size();
  changes_.resize(begin + change_bytes);
  char* to = store_varint(changes_.data() + begin, key_size_and_kind(change));
  to = std::copy(change.key.begin(), change.key.end(), to);
  if (!erases) {
    to = store_varint(to, change.value.size());
    to = std::copy(change.value.begin(), change.value.end(), to);
  }
  assert(to == changes_.data() + changes_.size());
  ++change_count_;
  return true;
}

void Draft::finish() {
  if (std::exchange(is_finished_, true)) return;
  std::uint8_t flags = erases_all_ ? flag_erases_all : 0;
  sealed_.reserve(uncompressed_bytes());
  sealed_.assign(common_header_bytes, '\0');
  sealed_ += fields_;
  append_varint(sealed_, change_count_);
  if (append_compressed(sealed_, changes_)) {
    flags |= flag_zstd;
  } else {
    sealed_ += changes_;
    changes_ = std::string();
  }
  sealed_[version_offset] = static_cast<char>(format_version);
  sealed_[flags_offset] = static_cast<char>(flags);
  content_hash_ = content_hash(sealed_);
}

std::string_view Draft::seal(UpdateId id, std::uint64_t previous_chain) {
  finish();
  store_little_endian(sealed_.data() + id_offset, id);
  chain_ = chain_after(previous_chain, sealed_.data(), content_hash_);
  store_little_endian(sealed_.data() + chain_offset, chain_);
  return sealed_;
}

void Draft::decode_sealed(Update& update) {
  // Decompressing into the memory of the changes as they were added allocates none. It is complete:
  // decompress() compares the number of bytes that it has written.
  update.storage = std::exchange(changes_, {});
  decode_update(sealed_, update);
}

}  // namespace whycache
