// whycache init [URL]
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/call_limit.h"
#include "base/file.h"
#include "base/url.h"
#include "cli/command.h"
#include "cli/escape.h"
#include "cli/target.h"
#include "log/log_checks.h"
#include "log/open_log.h"

namespace whycache::cli {
namespace {

struct InitArguments {
  Target target;
  std::string url;
  bool json = false;
};

// The procedures of docs/formats/sql.md.
constexpr std::string_view create_procedures_sql = R"(DELIMITER //
CREATE PROCEDURE IF NOT EXISTS whycache_read (
  IN log VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin,
  IN first BIGINT UNSIGNED, IN last BIGINT UNSIGNED, IN row_max BIGINT UNSIGNED)
  READS SQL DATA SQL SECURITY DEFINER
BEGIN
  COMMIT;
  SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY;
  (SELECT NULL AS id,
          (SELECT LEFT(bytes, 512) FROM whycache_updates WHERE instance = log
           ORDER BY id DESC LIMIT 1) AS bytes,
          format, uuid, base, base_chain, token, part_count,
          (SELECT id FROM whycache_updates WHERE instance = log ORDER BY id DESC LIMIT 1)
   FROM whycache_logs WHERE instance = log)
  UNION ALL
  (SELECT id, bytes, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM whycache_updates
   WHERE instance = log AND id BETWEEN first AND last
     AND id > (SELECT base FROM whycache_logs WHERE instance = log)
   ORDER BY id LIMIT row_max);
  COMMIT;
END //
CREATE PROCEDURE IF NOT EXISTS whycache_read_part (
  IN log VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin,
  IN part_base BIGINT UNSIGNED, IN part_token BINARY(16), IN part_number BIGINT UNSIGNED)
  READS SQL DATA SQL SECURITY DEFINER
BEGIN
  COMMIT;
  SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY;
  SELECT bytes FROM whycache_parts
  WHERE instance = log AND base = part_base AND token = part_token AND number = part_number;
  COMMIT;
END //
DELIMITER ;
)";

// {} is the name of the database. Tables and procedures exist before they are named here.
constexpr std::string_view grants_sql = R"(
-- Users without a password are created locked. To give one a password, and let it in:
--   ALTER USER 'follower'@'%' IDENTIFIED BY '...' ACCOUNT UNLOCK;
CREATE USER IF NOT EXISTS 'follower'@'%' ACCOUNT LOCK;
CREATE USER IF NOT EXISTS 'writer'@'%' ACCOUNT LOCK;
CREATE USER IF NOT EXISTS 'rewriter'@'%' ACCOUNT LOCK;

-- follower: get, update, follow. It can delay nobody.
GRANT EXECUTE ON PROCEDURE {0}.whycache_read TO 'follower'@'%';
GRANT EXECUTE ON PROCEDURE {0}.whycache_read_part TO 'follower'@'%';

-- writer: the same, set, del and import.
GRANT SELECT ON {0}.whycache_logs TO 'writer'@'%';
GRANT SELECT, INSERT ON {0}.whycache_updates TO 'writer'@'%';
GRANT SELECT ON {0}.whycache_parts TO 'writer'@'%';

-- rewriter: the same, rewrite and clear.
GRANT SELECT, UPDATE ON {0}.whycache_logs TO 'rewriter'@'%';
GRANT SELECT, INSERT, DELETE ON {0}.whycache_updates TO 'rewriter'@'%';
GRANT SELECT, INSERT, DELETE ON {0}.whycache_parts TO 'rewriter'@'%';
)";

// {0} is the quoted name of the schema.
constexpr std::string_view postgres_grants_sql =
    R"(-- Roles are created without a password and without the right to log in. To let one in:
--   ALTER ROLE follower LOGIN PASSWORD '...';
DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['follower', 'writer', 'rewriter'] LOOP
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = name) THEN
      EXECUTE format('CREATE ROLE %I', name);
    END IF;
  END LOOP;
END $$;
GRANT USAGE ON SCHEMA {0} TO follower, writer, rewriter;

-- follower: get, update, follow. It can delay nobody.
GRANT SELECT ON {0}.whycache_logs, {0}.whycache_updates, {0}.whycache_parts TO follower;

-- writer: the same, set, del and import.
GRANT SELECT ON {0}.whycache_logs, {0}.whycache_updates, {0}.whycache_parts TO writer;
GRANT UPDATE (append_lock) ON {0}.whycache_logs TO writer;
GRANT INSERT ON {0}.whycache_updates TO writer;

-- rewriter: the same, rewrite and clear.
GRANT SELECT, UPDATE ON {0}.whycache_logs TO rewriter;
GRANT SELECT, INSERT, DELETE ON {0}.whycache_updates, {0}.whycache_parts TO rewriter;
)";

// Returns the text with quotes that shells or SQL leave alone.
std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

std::string sql_name(const std::string& name) {
  std::string quoted = "`";
  for (const char c : name) quoted += c == '`' ? "``" : std::string(1, c);
  return quoted + "`";
}

std::string mysql_grants(const Url& url) {
  const std::string database =
      sql_name(url.path().starts_with('/') ? url.path().substr(1) : url.path());
  return "-- Run this as the user that created the log, or another that stays: the procedures "
         "have\n"
         "-- its rights.\n"
         "USE " +
         database + ";\n" + std::string(create_procedures_sql) +
         fmt::format(fmt::runtime(grants_sql), database);
}

std::string postgres_grants(Url url) {
  std::string schema = "\"";
  for (const char c : url.take_option("schema").value_or("public"))
    schema += c == '"' ? "\"\"" : std::string(1, c);
  return fmt::format(fmt::runtime(postgres_grants_sql), schema + "\"");
}

// Lets the group `readers` follow the log.
std::string file_grants(Url url) {
  const std::string directory = canonical_path(url.file_path());
  const std::string log = shell_quoted(directory + "/" + url.take_instance());
  return "# Lets the group `readers` follow this log. Each user that can write to the directory\n"
         "# can write to the log.\n"
         "chgrp -R readers " +
         log + " && chmod -R g+rX " + log + " && chmod g= " + log + "/lock " + log +
         "/tmp\nchgrp readers " + shell_quoted(directory) + " && chmod g+x " +
         shell_quoted(directory) + "\n";
}

std::string sqlite_grants(const Url& url) {
  const std::string file = shell_quoted(canonical_path(url.file_path()));
  return "# Lets the group `readers` follow this log, and delay its writers. In WAL mode, the "
         "other\n"
         "# files are " +
         file + "-wal and -shm.\nchgrp readers " + file + " " + file + "-journal && chmod g+r " +
         file + " " + file + "-journal\n";
}

std::string grants(const std::string& url_text) {
  const Url url(url_text);
  const std::string& scheme = url.scheme();
  if (scheme.ends_with("mysql")) return mysql_grants(url);
  if (scheme.ends_with("postgres") || scheme.ends_with("postgresql")) return postgres_grants(url);
  if (scheme.ends_with("sqlite")) return sqlite_grants(url);
  if (scheme.ends_with("file")) return file_grants(url);
  return {};
}

ExitCode init(const InitArguments& arguments, Output& output) {
  Target target = arguments.target;
  if (!arguments.url.empty()) target.log = arguments.url;
  check_target(target);
  const std::string url = log_url(target);
  const Deadline deadline(target.deadline());
  const CallLimit limit(deadline);
  bool is_new = false;
  std::unique_ptr<Log> log;
  try {
    log = whycache::open_log(url, target.deadline(), IfMissing::fail);
  } catch (const LogMissing&) {
    // This command is there to create, whatever the URL says to others.
    log = whycache::open_log(url, target.deadline(), IfMissing::create_against_url);
    is_new = true;
  }
  const Extent extent = log->extent();
  const std::string rights = grants(url);
  print_message(fmt::format("{}: log={} uuid={} head={}",
                            is_new ? "created the log" : "the log exists already", log->name(),
                            to_string(extent.uuid), extent.head));
  if (arguments.json) {
    Json object{{"created", is_new}, {"log_uuid", to_string(extent.uuid)}, {"head", extent.head}};
    put_bytes(object, "log", log->name());
    put_bytes(object, "grants", rights);
    output.write_json(object);
  } else {
    output.write(rights);
  }
  return ExitCode::done;
}

CommandAction prepare_init(CLI::App& parser) {
  const auto arguments = std::make_shared<InitArguments>();
  parser.add_option("URL", arguments->url, "the log; by default that of --log")->type_name("");
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return init(*arguments, output); };
}

}  // namespace

const Command init_command{
    "init", "create a log, and print the rights that its users need",
    R"(Creates a log if it does not exist: its tables, file or directory, but not the database or
directory that contains it. Nothing else has to be set up. Prints what gives other users their
rights: SQL statements for a database server, to be run in this order, shell commands for others.

Commands that only read never create a log, nor does any command whose machine has a state of it.
Commands that set items or guards create one otherwise, unless the URL has create=off.)",
    R"(Examples:
  whycache init mysql://root@db.example.org/flags
  whycache init mysql://root@db.example.org/flags | mariadb -u root flags
  whycache init postgres://postgres@db.example.org/flags | psql -U postgres flags
  whycache init sqlite:///var/lib/flags.db

JSON: created, log_uuid, head, log, grants

Exit codes: 0 the log exists now, 2 wrong URL, 3 the log did not answer, 5 the log is damaged,
  7 permission, 9 the disk is full)",
    prepare_init};

}  // namespace whycache::cli
