// Helpers of the tests of the project's own logs.
#pragma once

#include <gtest/gtest.h>
#include <whycache/log.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace whycache {

using Appended = Log::Appended;
using Updates = std::map<UpdateId, std::string>;

inline constexpr UpdateId no_end = ~UpdateId{0};

inline Updates updates_of(Log& log, UpdateId first = 1) {
  Updates updates;
  log.read(first, no_end,
           [&](UpdateId id, std::string_view bytes) { return updates.emplace(id, bytes).second; });
  return updates;
}

inline std::vector<std::string> parts_of(Log& log) {
  std::vector<std::string> parts;
  log.read_base([&](std::string_view part) {
    parts.emplace_back(part);
    return true;
  });
  return parts;
}

inline bool rewrite(Log& log, UpdateId base, const std::vector<std::string>& parts) {
  std::size_t next = 0;
  return log.rewrite(base, base * 1000, [&]() -> std::optional<std::string_view> {
    if (next == parts.size()) return std::nullopt;
    return parts[next++];
  });
}

inline void append_up_to(Log& log, UpdateId last) {
  for (UpdateId id = log.extent().head + 1; id <= last; ++id)
    ASSERT_EQ(log.append(id, "update " + std::to_string(id)), Appended::yes);
}

// Writes a file, and creates its directory if it does not exist.
inline void write_file(const std::string& path, std::string_view bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// --- Documented formats. ---

inline nlohmann::json load_vectors() {
  std::ifstream file(WHYCACHE_SOURCE_FOLDER "/docs/formats/vectors/file_log.json");
  EXPECT_TRUE(file.is_open());
  return nlohmann::json::parse(file);
}

inline std::string from_hex(const std::string& digits) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

// Expects that the log equals `documented`, the entry "log" of the vectors.
inline void expect_documented_log(Log& log, const nlohmann::json& documented) {
  const Extent extent = log.extent();
  EXPECT_EQ(to_string(extent.uuid), documented["uuid"]);
  EXPECT_EQ(extent.base, documented["base"]);
  EXPECT_EQ(extent.base_chain, documented["base_chain"]);
  EXPECT_EQ(extent.head, documented["head"]);
  Updates updates;
  for (const nlohmann::json& update : documented["updates"])
    updates[update["id"]] = from_hex(update["bytes"]);
  EXPECT_EQ(updates_of(log), updates);
  std::vector<std::string> parts;
  for (const nlohmann::json& part : documented["parts"]) parts.push_back(from_hex(part));
  EXPECT_EQ(parts_of(log), parts);
}

// Returns the fenced blocks of a document below docs/ that are marked with `language`.
inline std::vector<std::string> fenced_blocks(const std::string& document,
                                              const std::string& language) {
  std::ifstream file(std::string(WHYCACHE_SOURCE_FOLDER) + "/docs/" + document);
  std::vector<std::string> blocks;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line == "```" + language) {
      inside = true;
      blocks.emplace_back();
    } else if (line == "```") {
      inside = false;
    } else if (inside) {
      blocks.back() += line + '\n';
    }
  }
  return blocks;
}

}  // namespace whycache
