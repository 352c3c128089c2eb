#include "support/postgres_server.h"

#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <ios>
#include <stdexcept>
#include <thread>

#include "support/memory_directory.h"
#include "support/program.h"

namespace whycache::testing {
namespace {

namespace fs = std::filesystem;

// Returns the directory of the programs of the newest installed version, or "".
std::string program_directory() {
  std::string newest;
  int newest_version = 0;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator("/usr/lib/postgresql", none)) {
    const int version = std::atoi(entry.path().filename().c_str());
    const fs::path programs = entry.path() / "bin";
    if (version <= newest_version || ::access((programs / "postgres").c_str(), X_OK) != 0) continue;
    newest = programs.string();
    newest_version = version;
  }
  return newest;
}

bool is_root() { return ::geteuid() == 0; }

// The server refuses to run as root.
std::vector<std::string> as_server_user(std::vector<std::string> words) {
  if (!is_root()) return words;
  std::vector<std::string> all = {find_program("setpriv"), "--reuid=postgres", "--regid=postgres",
                                  "--init-groups", "--pdeathsig=KILL"};
  all.insert(all.end(), words.begin(), words.end());
  return all;
}

void change_owner(const fs::path& path) {
  if (!is_root()) return;
  const passwd* const user = ::getpwnam("postgres");
  if (user == nullptr || ::lchown(path.c_str(), user->pw_uid, user->pw_gid) != 0)
    throw std::runtime_error("cannot give " + path.string() + " to the user postgres");
}

void run_as_server_user(const std::vector<std::string>& words, const std::string& output) {
  if (wait_for(run_program(as_server_user(words), output)) != 0)
    throw std::runtime_error(words[0] + " failed: " + read_file(output));
}

// Returns a data directory as initdb creates it. It is created once per version and kept, because
// that takes longer than starting a server.
fs::path data_directory_template() {
  const std::string programs = program_directory();
  if (programs.empty())
    throw std::runtime_error("PostgreSQL's server is not installed (Debian: postgresql)");
  const std::string initdb = programs + "/initdb";
  const fs::path made = fs::path(WHYCACHE_TEST_BIN) /
                        ("postgres_data_" + std::to_string(::geteuid()) + '_' +
                         std::to_string(fs::last_write_time(initdb).time_since_epoch().count()));
  if (fs::exists(made)) return made;
  const TemporaryDirectory directory(memory_directory());
  change_owner(directory.path());
  run_as_server_user({initdb, "-D", directory.file("data"), "-U", "postgres", "-A", "trust",
                      "--no-sync", "-E", "UTF8", "--locale=C", "--wal-segsize=1"},
                     directory.file("output"));
  // Under another name first: other processes must not find half of it.
  const TemporaryDirectory beside(fs::path(WHYCACHE_TEST_BIN));
  fs::copy(directory.file("data"), beside.file("data"), fs::copy_options::recursive);
  std::error_code made_by_another;
  fs::rename(beside.file("data"), made, made_by_another);
  return made;
}

// The state and the parent of a process, from /proc; {'Z', 0} if it does not exist.
std::pair<char, pid_t> state_and_parent(pid_t pid) {
  std::string text;
  try {
    text = read_file("/proc/" + std::to_string(pid) + "/stat");
  } catch (const std::ios_base::failure&) {  // it ended after the file was opened
  }
  const std::size_t end_of_name = text.rfind(')');
  if (end_of_name == std::string::npos) return {'Z', 0};
  return {text.at(end_of_name + 2), static_cast<pid_t>(std::atoi(text.c_str() + end_of_name + 4))};
}

std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    const int pid = std::atoi(entry.path().filename().c_str());
    if (pid > 0 && state_and_parent(pid).second == parent) children.push_back(pid);
  }
  return children;
}

}  // namespace

bool PostgresTestServer::is_installed() {
  if (program_directory().empty()) return false;
  return !is_root() || (::getpwnam("postgres") != nullptr && !find_program("setpriv").empty());
}

PostgresTestServer& PostgresTestServer::shared() {
  static PostgresTestServer server;
  return server;
}

PostgresTestServer::PostgresTestServer(std::vector<std::string> settings, const std::string& data)
    : settings_(std::move(settings)), directory_(memory_directory()), owner_pid_(::getpid()) {
  fs::copy(data.empty() ? data_directory_template() : fs::path(data), directory_.file("data"),
           fs::copy_options::recursive);
  fs::remove(directory_.file("data/postmaster.pid"));
  start();
}

PostgresTestServer::PostgresTestServer(CopyOf copy)
    : directory_(memory_directory()), owner_pid_(::getpid()) {
  give_to_server(directory_.path());
  run_as_server_user({program_directory() + "/pg_basebackup", "-D", directory_.file("data"), "-R",
                      "-X", "stream", "-c", "fast", "--no-sync", "-U", "postgres", "-h",
                      "127.0.0.1", "-p", std::to_string(copy.primary.port())},
                     directory_.file("log"));
  start();
}

std::unique_ptr<PostgresTestServer> PostgresTestServer::replica_of(
    const PostgresTestServer& primary) {
  return std::unique_ptr<PostgresTestServer>(new PostgresTestServer(CopyOf{primary}));
}

PostgresTestServer::~PostgresTestServer() {
  if (::getpid() != owner_pid_) return;  // a forked child's copy
  kill();
}

void PostgresTestServer::give_to_server(const std::string& path) const {
  change_owner(path);
  for (const auto& entry : fs::recursive_directory_iterator(path)) {
    change_owner(entry.path());
    // The server refuses a private key that others can read.
    if (entry.path().extension() == ".key") fs::permissions(entry.path(), fs::perms(0600));
  }
}

void PostgresTestServer::launch(std::uint16_t port) {
  port_ = port;
  std::vector<std::string> words = {program_directory() + "/postgres", "-D",
                                    directory_.file("data")};
  std::vector<std::string> settings = {"listen_addresses=127.0.0.1", "port=" + std::to_string(port),
                                       "unix_socket_directories=" + directory_.path(),
                                       // A server that is killed leaves segments in /dev/shm.
                                       "dynamic_shared_memory_type=mmap", "max_connections=200",
                                       "shared_buffers=32MB", "log_min_messages=fatal"};
  settings.insert(settings.end(), settings_.begin(), settings_.end());
  for (const std::string& setting : settings) {
    words.emplace_back("-c");
    words.push_back(setting);
  }
  pid_ = run_program(as_server_user(words), directory_.file("log"));
}

bool PostgresTestServer::wait_until_ready() {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (std::chrono::steady_clock::now() < end) {
    try {
      PostgresClient client(*this);
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

void PostgresTestServer::start() {
  // A restarted server keeps its port, so that its logs find it. Another process may have taken the
  // port of a new server, so try others.
  const int attempts = port_ == 0 ? 3 : 1;
  give_to_server(directory_.path());  // with what the test has put there
  for (int attempt = 0; attempt < attempts; ++attempt) {
    launch(attempts == 1 ? port_ : free_port());
    if (wait_until_ready()) return;
    kill();
  }
  throw std::runtime_error("postgres does not start: " + read_file(directory_.file("log")));
}

void PostgresTestServer::stop() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGINT);
  wait_for(pid_);
  pid_ = -1;
}

void PostgresTestServer::kill() {
  if (pid_ <= 0) return;
  ::kill(pid_, SIGSTOP);  // from here on it starts no process
  std::vector<pid_t> children = children_of(pid_);
  for (const pid_t child : children) ::kill(child, SIGKILL);
  ::kill(pid_, SIGKILL);
  wait_for(pid_);
  pid_ = -1;
  // A new server refuses to start while one of them uses the data.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  for (const pid_t child : children) {
    while (state_and_parent(child).first != 'Z' && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void PostgresTestServer::signal_all(int signal) const {
  ::kill(pid_, signal);
  for (const pid_t child : children_of(pid_)) ::kill(child, signal);
}

void PostgresTestServer::pause() {
  signal_all(SIGSTOP);
  ::waitpid(pid_, nullptr, WUNTRACED);  // before that it may still answer
}
void PostgresTestServer::resume() { signal_all(SIGCONT); }

void PostgresTestServer::promote() { PostgresClient(*this).run("SELECT pg_promote(true, 60)"); }

std::string PostgresTestServer::url(const std::string& database, const std::string& user) const {
  return "postgres://" + user + "@127.0.0.1:" + std::to_string(port_) + '/' + database;
}

std::string PostgresTestServer::make_database() {
  const std::string name = "database_" + std::to_string(++database_count_);
  PostgresClient(*this).run("CREATE DATABASE " + name);
  return name;
}

struct PostgresClient::Session {
  explicit Session(const std::string& info) : connection(PQconnectdb(info.c_str())) {
    PQsetNoticeProcessor(
        connection, [](void*, const char*) {}, nullptr);
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session() { PQfinish(connection); }

  PGconn* connection;
};

PostgresClient::PostgresClient(const PostgresTestServer& server, const std::string& database,
                               const std::string& user)
    : session_(std::make_unique<Session>("host=" + server.socket() +
                                         " port=" + std::to_string(server.port()) +
                                         " dbname=" + database + " user=" + user)) {
  if (PQstatus(session_->connection) != CONNECTION_OK) {
    throw std::runtime_error(std::string("cannot connect to the server: ") +
                             PQerrorMessage(session_->connection));
  }
}

PostgresClient::~PostgresClient() = default;

std::vector<std::string> PostgresClient::rows(const std::string& sql) {
  PGresult* const result = PQexec(session_->connection, sql.c_str());
  const ExecStatusType status = PQresultStatus(result);
  if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK) {
    PQclear(result);
    throw std::runtime_error(sql + ": " + PQerrorMessage(session_->connection));
  }
  std::vector<std::string> rows;
  for (int row = 0; row < PQntuples(result); ++row) {
    std::string text;
    for (int column = 0; column < PQnfields(result); ++column) {
      if (column > 0) text += '\t';
      text += PQgetisnull(result, row, column) != 0 ? "NULL" : PQgetvalue(result, row, column);
    }
    rows.push_back(text);
  }
  PQclear(result);
  return rows;
}

std::string PostgresClient::run(const std::string& sql) {
  const std::vector<std::string> all = rows(sql);
  if (all.empty()) return "";
  return all.back().substr(all.back().rfind('\t') + 1);
}

}  // namespace whycache::testing
