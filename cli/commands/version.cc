// whycache version
#include <fmt/format.h>
#include <zstd.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/hash.h"
#include "cli/command.h"
#include "cli/options.h"
#include "state/file/layout.h"
#include "update/format.h"

#if WHYCACHE_WITH_SQLITE
#include <sqlite3.h>
#endif
#if WHYCACHE_WITH_MYSQL
#include <mysql.h>
#endif
#if WHYCACHE_WITH_POSTGRES
#include <libpq-fe.h>
#endif

namespace whycache::cli {
namespace {

struct VersionArguments {
  bool json = false;
};

std::vector<std::string> log_schemes() {
  std::vector<std::string> schemes = {"memory", "file"};
#if WHYCACHE_WITH_SQLITE
  schemes.emplace_back("sqlite");
#endif
#if WHYCACHE_WITH_MYSQL
  schemes.emplace_back("mysql");
#endif
#if WHYCACHE_WITH_POSTGRES
  schemes.emplace_back("postgres");
#endif
  return schemes;
}

Json library_versions() {
  Json versions;
#if WHYCACHE_WITH_SQLITE
  versions["sqlite"] = ::sqlite3_libversion();
#endif
#if WHYCACHE_WITH_MYSQL
  versions["libmariadb"] = ::mysql_get_client_info();
#endif
#if WHYCACHE_WITH_POSTGRES
  versions["libpq"] = fmt::format("{}.{}", ::PQlibVersion() / 10000, ::PQlibVersion() % 10000);
#endif
  versions["zstd"] = ::ZSTD_versionString();
  versions["xxhash"] =
      fmt::format("{}.{}.{}", XXH_VERSION_MAJOR, XXH_VERSION_MINOR, XXH_VERSION_RELEASE);
  versions["fmt"] =
      fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
  versions["cli11"] = CLI11_VERSION;
  versions["nlohmann_json"] = fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR,
                                          NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH);
  return versions;
}

ExitCode version(const VersionArguments& arguments, Output& output) {
  if (arguments.json) {
    Json object;
    object["version"] = WHYCACHE_VERSION;
    object["formats"] = {{"update", format_version}, {"state", state_format_major}};
    object["logs"] = log_schemes();
    object["libraries"] = library_versions();
    object["compiler"] = __VERSION__;
    output.write_json(object);
    return ExitCode::done;
  }
  output.write_line(std::string("whycache ") + WHYCACHE_VERSION);
  output.write_line(
      fmt::format("formats    update {}, state {}", format_version, state_format_major));
  output.write_line(fmt::format("logs       {}", fmt::join(log_schemes(), ", ")));
  const Json versions = library_versions();
  std::vector<std::string> names;
  for (const auto& [name, number] : versions.items())
    names.push_back(name + " " + number.get<std::string>());
  output.write_line(fmt::format("libraries  {}", fmt::join(names, ", ")));
  output.write_line(std::string("compiler   ") + __VERSION__);
  return ExitCode::done;
}

CommandAction prepare_version(CLI::App& parser) {
  const auto arguments = std::make_shared<VersionArguments>();
  add_json_option(parser, arguments->json);
  return [arguments](Output& output) { return version(*arguments, output); };
}

}  // namespace

const Command version_command{
    "version", "versions of the program, its formats and libraries",
    R"(Prints the version of whycache and of the formats that it reads and writes, the logs that are
compiled in, and the libraries in use. Please include the output in a bug report.)",
    R"(Examples:
  whycache version
  whycache version --json | jq -r .version

Exit codes: 0 done)",
    prepare_version};

}  // namespace whycache::cli
