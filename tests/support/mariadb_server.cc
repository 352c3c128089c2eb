#include "support/mariadb_server.h"

#include <errmsg.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "support/memory_directory.h"
#include "support/program.h"

namespace whycache::testing {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> with_user(std::vector<std::string> words) {
  if (::geteuid() == 0) words.push_back("--user=root");
  return words;
}

// Returns a data directory as mariadb-install-db creates it. It is created once per version and
// kept, because that takes longer than starting a server.
fs::path data_template() {
  const std::string installer = find_program("mariadb-install-db");
  if (installer.empty())
    throw std::runtime_error("mariadb-install-db is not installed (Debian: mariadb-server)");
  const fs::path made =
      fs::path(WHYCACHE_TEST_BIN) /
      ("mariadb_data_" + std::to_string(::geteuid()) + '_' +
       std::to_string(fs::last_write_time(find_program("mariadbd")).time_since_epoch().count()));
  if (fs::exists(made)) return made;
  const TemporaryDirectory directory(fs::path(WHYCACHE_TEST_BIN));
  const pid_t pid =
      run_program(with_user({installer, "--no-defaults", "--datadir=" + directory.file("data"),
                             "--skip-test-db", "--auth-root-authentication-method=normal",
                             "--innodb-log-file-size=8M", "--innodb-undo-tablespaces=0",
                             // A starting server clears the directory that it shares with others.
                             "--tmpdir=" + directory.path()}),
                  directory.file("output"));
  if (wait_for(pid) != 0)
    throw std::runtime_error("mariadb-install-db failed: " + read_file(directory.file("output")));
  std::error_code made_by_another;
  fs::rename(directory.file("data"), made, made_by_another);
  return made;
}

}  // namespace

bool MariadbServer::is_installed() { return !find_program("mariadbd").empty(); }

MariadbServer& MariadbServer::shared() {
  static MariadbServer server;
  return server;
}

MariadbServer::MariadbServer(std::vector<std::string> options, const std::string& data,
                             const std::string& parent)
    : options_(std::move(options)),
      directory_(parent.empty() ? memory_directory() : fs::path(parent)),
      owner_pid_(::getpid()) {
  fs::copy(data.empty() ? data_template() : fs::path(data), directory_.file("data"),
           fs::copy_options::recursive);
  // Programs that a server starts may run as another user.
  fs::permissions(directory_.path(), fs::perms(0755));
  fs::permissions(directory_.file("data"), fs::perms(0777));
  start();
}

MariadbServer::~MariadbServer() {
  if (::getpid() != owner_pid_) return;  // a forked child's copy
  kill();
}

void MariadbServer::launch(std::uint16_t port) {
  port_ = port;
  std::vector<std::string> words = with_user(
      {find_program("mariadbd"), "--no-defaults", "--datadir=" + directory_.file("data"),
       "--socket=" + socket(), "--pid-file=" + directory_.file("pid"),
       "--log-error=" + directory_.file("error.log"), "--bind-address=127.0.0.1",
       "--port=" + std::to_string(port), "--skip-log-bin", "--performance-schema=off",
       "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=64M",
       "--innodb-buffer-pool-dump-at-shutdown=0", "--innodb-buffer-pool-load-at-startup=0",
       "--innodb-flush-method=fsync", "--max-allowed-packet=64M", "--tmpdir=" + directory_.path(),
       "--max-connections=400"});
  if (const char* const more = std::getenv("WHYCACHE_TEST_MARIADB_OPTIONS")) {
    std::istringstream text(more);
    words.insert(words.end(), std::istream_iterator<std::string>(text), {});
  }
  words.insert(words.end(), options_.begin(), options_.end());
  pid_ = run_program(words, directory_.file("error.log"));
}

bool MariadbServer::wait_until_ready() {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (std::chrono::steady_clock::now() < end) {
    try {
      MariadbClient client(*this);
      return true;
    } catch (const std::runtime_error&) {
    }
    if (::waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = -1;
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

void MariadbServer::start() {
  // A restarted server keeps its port, so that its logs find it. Another process may have taken the
  // port of a new server, so try others.
  const int attempts = port_ == 0 ? 3 : 1;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    launch(attempts == 1 ? port_ : free_port());
    if (wait_until_ready()) return;
    kill();
  }
  throw std::runtime_error("mariadbd does not start: " + error_log());
}

std::string MariadbServer::error_log() const { return read_file(directory_.file("error.log")); }

void MariadbServer::stop() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGTERM);
  wait_for(pid_);
  pid_ = -1;
}

void MariadbServer::kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  wait_for(pid_);
  pid_ = -1;
}

void MariadbServer::pause() {
  ::kill(pid_, SIGSTOP);
  ::waitpid(pid_, nullptr, WUNTRACED);  // before that it may still answer
}
void MariadbServer::resume() { ::kill(pid_, SIGCONT); }

std::string MariadbServer::url(const std::string& database, const std::string& user) const {
  return "mysql://" + user + "@127.0.0.1:" + std::to_string(port_) + '/' + database;
}

std::string MariadbServer::make_database() {
  const std::string name = "database_" + std::to_string(++database_count_);
  MariadbClient(*this).run("CREATE DATABASE " + name);
  return name;
}

MariadbClient::MariadbClient(const MariadbServer& server, const std::string& database,
                             const std::string& user)
    : mysql_(mysql_init(nullptr)) {
  constexpr unsigned by_socket = MYSQL_PROTOCOL_SOCKET;
  mysql_options(mysql_, MYSQL_OPT_PROTOCOL, &by_socket);
  if (mysql_real_connect(mysql_, nullptr, user.c_str(), "",
                         database.empty() ? nullptr : database.c_str(), 0, server.socket().c_str(),
                         CLIENT_MULTI_STATEMENTS) == nullptr) {
    const std::string reason = mysql_error(mysql_);
    mysql_close(mysql_);
    throw std::runtime_error("cannot connect to the server: " + reason);
  }
}

MariadbClient::~MariadbClient() { mysql_close(mysql_); }

std::vector<std::string> MariadbClient::rows(const std::string& sql) {
  std::vector<std::string> rows;
  int code = mysql_real_query(mysql_, sql.data(), sql.size());
  for (; code == 0; code = mysql_next_result(mysql_)) {
    MYSQL_RES* const result = mysql_store_result(mysql_);
    if (result == nullptr) continue;
    rows.clear();
    const unsigned columns = mysql_num_fields(result);
    while (const MYSQL_ROW row = mysql_fetch_row(result)) {
      const unsigned long* const sizes = mysql_fetch_lengths(result);
      std::string text;
      for (unsigned column = 0; column < columns; ++column) {
        if (column > 0) text += '\t';
        text += row[column] == nullptr ? "NULL" : std::string(row[column], sizes[column]);
      }
      rows.push_back(text);
    }
    mysql_free_result(result);
  }
  if (code > 0) throw std::runtime_error(sql + ": " + mysql_error(mysql_));
  return rows;
}

std::string MariadbClient::run(const std::string& sql) {
  const std::vector<std::string> all = rows(sql);
  if (all.empty()) return "";
  return all.back().substr(all.back().rfind('\t') + 1);
}

}  // namespace whycache::testing
