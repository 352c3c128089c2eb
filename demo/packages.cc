#include "packages.h"

#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string_view>

#include <nlohmann/json.hpp>

namespace whycache::demo {
namespace {

constexpr const char* lists_directory = "/var/lib/apt/lists";

// apt's helper reads the lists with any compression.
std::string read_list(const std::string& path) {
  const std::string command = "/usr/lib/apt/apt-helper cat-file '" + path + "'";
  // The command is fixed but for a path below `lists_directory`, which only root can write to.
  FILE* const pipe = ::popen(command.c_str(), "r");  // NOLINT(cert-env33-c)
  if (pipe == nullptr) throw std::runtime_error("cannot run apt-helper");
  std::string text;
  std::array<char, 65536> buffer;
  while (const std::size_t bytes = std::fread(buffer.data(), 1, buffer.size(), pipe))
    text.append(buffer.data(), bytes);
  if (const int status = ::pclose(pipe); !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw std::runtime_error("cannot read package list: path=" + path);
  }
  return text;
}

std::string_view package_name(std::string_view stanza) {
  constexpr std::string_view field = "Package: ";
  const std::size_t at = stanza.substr(0, field.size()) == field ? 0 : stanza.find("\nPackage: ");
  if (at == std::string_view::npos) return {};
  const std::size_t begin = at + field.size() + (at == 0 ? 0 : 1);
  return stanza.substr(begin, stanza.find('\n', begin) - begin);
}

}  // namespace

std::vector<Record> read_package_index() {
  std::map<std::string, std::string> packages;
  std::vector<std::string> paths;
  if (std::filesystem::is_directory(lists_directory)) {
    for (const auto& entry : std::filesystem::directory_iterator(lists_directory)) {
      if (entry.path().filename().string().find("_Packages") != std::string::npos)
        paths.push_back(entry.path().string());
    }
  }
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) {
    const std::string text = read_list(path);
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.find("\n\n", begin), text.size());
      const std::string_view stanza(text.data() + begin, end - begin);
      if (const std::string_view name = package_name(stanza); !name.empty())
        packages[std::string(name)] = stanza;
      begin = end + 2;
    }
  }
  if (packages.empty()) {
    throw std::runtime_error(
        "no package index found: run `apt-get update`, or name a file: make demo DATA=file.jsonl");
  }
  std::vector<Record> records;
  records.reserve(packages.size());
  for (auto& [name, stanza] : packages) records.push_back({name, std::move(stanza)});
  return records;
}

std::vector<Record> read_json_lines(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot open data: path=" + path);
  std::map<std::string, std::string> records;
  std::string line;
  for (std::size_t number = 1; std::getline(file, line); ++number) {
    if (line.empty()) continue;
    const nlohmann::json item = nlohmann::json::parse(line, nullptr, false);
    if (!item.is_object() || !item.contains("key") || !item["key"].is_string() ||
        !item.contains("value")) {
      throw std::runtime_error("not an object with key and value: path=" + path +
                               " line=" + std::to_string(number));
    }
    records[item["key"].get<std::string>()] =
        item["value"].is_string() ? item["value"].get<std::string>() : item["value"].dump();
  }
  if (records.empty()) throw std::runtime_error("no items: path=" + path);
  std::vector<Record> result;
  result.reserve(records.size());
  for (auto& [key, value] : records) result.push_back({key, std::move(value)});
  return result;
}

}  // namespace whycache::demo
