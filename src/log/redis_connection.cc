#include "log/redis_connection.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"  // hiredis 1 has flexible arrays
#include <hiredis/hiredis.h>
#pragma GCC diagnostic pop
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <new>
#include <stop_token>
#include <system_error>
#include <tuple>
#include <utility>

#include <whycache/error.h>

#include "base/hash.h"
#include "log/server_options.h"
#include "log/tls_failure.h"
#if WHYCACHE_WITH_REDIS_TLS
#include "log/redis_tls.h"
#endif

namespace whycache {

// The functions with which a reader makes replies: those of hiredis, but for arrays. Each
// connection has its own: a child could inherit what all share in the middle of its initialization.
struct RedisReplyFunctions {
  redisReplyObjectFunctions functions;
  decltype(redisReplyObjectFunctions::createArray) create_array_in_hiredis;
  std::size_t element_count = 0;  // of the arrays of the reply that is being read
};

namespace {

constexpr std::chrono::milliseconds connect_time_min{2'000};
// No answer to these commands is longer.
constexpr std::size_t reply_bytes_max = std::size_t{24} << 20;
constexpr std::size_t reply_elements_max = 100'000;
constexpr int reply_depth_max = 6;
// Of a message of the server, in an error or event.
constexpr std::size_t error_bytes_max = 200;

RedisFailure lost(const std::string& what, int error = errno) {
  return {false, what + ": " + std::system_category().message(error)};
}

RedisFailure no_answer() { return {false, "no answer before the deadline"}; }

class PlainTransport final : public RedisTransport {
 public:
  explicit PlainTransport(int socket) : socket_(socket) {}

  void send(std::string& bytes) override {
    std::size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t more =
          ::send(socket_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (more < 0 && errno == EINTR) continue;
      if (more < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
      if (more < 0) throw lost("cannot send");
      sent += static_cast<std::size_t>(more);
    }
    bytes.erase(0, sent);
  }

  std::size_t receive(char* to, std::size_t size) override {
    for (;;) {
      const ssize_t received = ::recv(socket_, to, size, MSG_DONTWAIT);
      if (received < 0 && errno == EINTR) continue;
      if (received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
      if (received < 0) throw lost("cannot receive");
      if (received == 0) throw RedisFailure{false, "server closed the connection"};
      return static_cast<std::size_t>(received);
    }
  }

  bool is_alive() noexcept override {
    char byte;
    const ssize_t size = ::recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return size > 0 || (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR));
  }

 private:
  const int socket_;
};

RedisReply to_reply(const redisReply& from) {
  RedisReply reply;
  switch (from.type) {
    case REDIS_REPLY_INTEGER:
      reply.kind = RedisReply::Kind::number;
      reply.number = from.integer;
      break;
    case REDIS_REPLY_STRING:
    case REDIS_REPLY_STATUS:
    case REDIS_REPLY_ERROR:
      reply.kind =
          from.type == REDIS_REPLY_ERROR ? RedisReply::Kind::error : RedisReply::Kind::text;
      reply.text.assign(from.str, static_cast<std::size_t>(from.len));
      break;
    case REDIS_REPLY_ARRAY:
      reply.kind = RedisReply::Kind::list;
      for (std::size_t i = 0; i < from.elements; ++i)
        reply.items.push_back(to_reply(*from.element[i]));
      break;
    default: break;
  }
  return reply;
}

// A server that lies about the length of an array must not make this process reserve memory for it,
// nor nest arrays until the stack ends. Versions of hiredis count elements by an int or a size_t.
template <typename Size>
void* create_array(const redisReadTask* task, Size elements) {
  int depth = 0;
  for (const redisReadTask* parent = task->parent; parent != nullptr; parent = parent->parent)
    ++depth;
  if (depth > reply_depth_max || std::cmp_less(elements, 0)) return nullptr;
  auto& functions = *static_cast<RedisReplyFunctions*>(task->privdata);
  if (std::cmp_greater(elements, reply_elements_max - functions.element_count)) return nullptr;
  functions.element_count += static_cast<std::size_t>(elements);
  return functions.create_array_in_hiredis(task, elements);
}

void check_reply(const RedisReply& reply) {
  if (reply.kind == RedisReply::Kind::error)
    throw RedisFailure{!is_passing_redis_error(reply.text), shortened(reply.text)};
}

std::string field_of(const std::string& info, const std::string& name) {
  const std::size_t at = info.find('\n' + name + ':');
  if (at == std::string::npos) return {};
  const std::size_t begin = at + name.size() + 2;
  return info.substr(begin, info.find_first_of("\r\n", begin) - begin);
}

// Scripts fail with "ERR Error running script ...: -OOM command not allowed" in Redis 6.
bool has_code(std::string_view error, std::string_view code) {
  if (error.starts_with(code)) return true;
  if (!error.starts_with("ERR ")) return false;
  return error.find(": -" + std::string(code) + ' ') != std::string_view::npos ||
         error.find(": " + std::string(code) + ' ') != std::string_view::npos;
}

}  // namespace

std::string shortened(std::string text) {
  if (text.size() > error_bytes_max) text.resize(error_bytes_max);
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < ' ' || c > '~' || c == '"'; }, '?');
  return text;
}

bool is_passing_redis_error(std::string_view error) {
  for (const char* code : {"LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "UNBLOCKED"}) {
    if (has_code(error, code)) return true;
  }
  return error.find("max number of clients") != std::string_view::npos;
}

bool is_missing_script(std::string_view error) { return has_code(error, "NOSCRIPT"); }

bool is_redis_write_refused(std::string_view error) {
  constexpr std::string_view codes[] = {"OOM", "READONLY", "MISCONF", "NOREPLICAS"};
  return std::any_of(std::begin(codes), std::end(codes),
                     [&](std::string_view code) { return has_code(error, code); });
}

std::string redis_hint(std::string_view error) {
  if (error.starts_with("TLS: "))
    return next_step_for_tls(error, "tls-port, tls-cert-file, tls-key-file", "redis_");
  static constexpr struct {
    const char* code;
    const char* hint;
  } hints[] = {
      {"NOAUTH", "it requires a password: redis_password_file="},
      {"WRONGPASS", "correct redis_user= and redis_password_file="},
      {"NOPERM", "give the user what docs/logs.md lists"},
      {"MOVED", "it is a cluster: name a single server in redis="},
      {"ASK", "it is a cluster: name a single server in redis="},
      {"CROSSSLOT", "it is a cluster: name a single server in redis="},
      {"CLUSTERDOWN", "it is a cluster: name a single server in redis="},
      {"READONLY", "it is a replica: name the primary in redis="},
      {"OOM", "raise its maxmemory, or set maxmemory-policy to volatile-lru"},
      {"MISCONF", "it cannot save its data: its own log says why"},
      {"NOREPLICAS", "it has too few replicas"},
      {"WRONGTYPE", "another program uses keys that begin with whycache2: delete them"},
  };
  for (const auto& [code, hint] : hints) {
    if (has_code(error, code)) return std::string(" (") + hint + ')';
  }
  return {};
}

void RedisConnection::FreeReader::operator()(redisReader* reader) const { redisReaderFree(reader); }

RedisConnection::RedisConnection(const RedisServer& server, const Deadline& deadline)
    : stop_event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)), reader_(redisReaderCreate()) {
  if (reader_ == nullptr) throw std::bad_alloc();
  reply_functions_ = std::make_unique<RedisReplyFunctions>(
      RedisReplyFunctions{*reader_->fn, reader_->fn->createArray});
  reply_functions_->functions.createArray = create_array;
  reader_->fn = &reply_functions_->functions;
  reader_->privdata = reply_functions_.get();
  connect(server.address, deadline);
  if (server.verifies_tls) start_tls(server, deadline);
  log_in(server, deadline);
  read_data_id(deadline);
}

RedisConnection::~RedisConnection() = default;

void RedisConnection::abandon(std::unique_ptr<RedisConnection> connection) noexcept {
  RedisConnection* const leaked = connection.release();
  if (leaked == nullptr) return;
  leaked->socket_.close();
  leaked->stop_event_.close();
}

void RedisConnection::prepare([[maybe_unused]] const RedisServer& server) {
#if WHYCACHE_WITH_REDIS_TLS
  if (server.verifies_tls) prepare_redis_tls();
#endif
}

#if WHYCACHE_WITH_REDIS_TLS
void RedisConnection::start_tls(const RedisServer& server, const Deadline& deadline) {
  const Deadline end = deadline.at_most(
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline.time_left() / 2));
  transport_ = make_redis_tls(server, socket_.number());
  while (const short events = transport_->shake_hands()) {
    // Parts of a handshake may arrive all the time.
    if (!end.passed() && wait_for_socket(events, end)) continue;
    // A server without TLS waits for the rest of a command.
    if (answers_without_tls(server.address, deadline))
      throw RedisFailure{true, "TLS: server does not support it at this port"};
    throw RedisFailure{false, "TLS: no answer before the deadline"};
  }
}

// Sends nothing that is secret.
bool RedisConnection::answers_without_tls(const ServerAddress& address, const Deadline& deadline) {
  try {
    connect(address, deadline);
    const std::string_view words[] = {"PING"};
    return await(send(words), deadline).has_value();
  } catch (const RedisFailure&) {
    return false;
  }
}
#else
// take_redis_server() refuses such a server.
void RedisConnection::start_tls(const RedisServer& /*server*/, const Deadline& /*deadline*/) {
  throw RedisFailure{true, "TLS: this build of whycache does not support it"};
}
#endif

void RedisConnection::connect(const ServerAddress& address, const Deadline& deadline) {
  const auto try_connect = [&](int family, const sockaddr* to, socklen_t size,
                               const Deadline& limit) {
    socket_ = FileDescriptor(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!socket_) throw lost("cannot make a socket");
    // EAGAIN: the queue of a unix socket is full.
    if (::connect(socket_.number(), to, size) == 0) return;
    if (errno != EINPROGRESS) throw lost("cannot connect");
    if (!wait_for_socket(POLLOUT, limit))
      throw RedisFailure{false, "cannot connect: no answer before the deadline"};
    int error = 0;
    socklen_t error_size = sizeof error;
    ::getsockopt(socket_.number(), SOL_SOCKET, SO_ERROR, &error, &error_size);
    if (error != 0) throw lost("cannot connect", error);
  };

  if (!address.socket.empty()) {
    sockaddr_un to{};
    to.sun_family = AF_UNIX;
    if (address.socket.size() >= sizeof to.sun_path)
      throw RedisFailure{false, "path of the socket is too long"};
    std::memcpy(to.sun_path, address.socket.data(), address.socket.size());
    try_connect(AF_UNIX, reinterpret_cast<const sockaddr*>(&to), sizeof to, deadline);
    transport_ = std::make_unique<PlainTransport>(socket_.number());
    return;
  }

  const auto resolve = [&](int flags) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags;
    addrinfo* found = nullptr;
    const int result =
        ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
    return std::pair(result, found);
  };
  // With AI_ADDRCONFIG, a loopback address may be passed over.
  auto [result, found] = resolve(AI_NUMERICHOST);
  if (result != 0) std::tie(result, found) = resolve(AI_ADDRCONFIG);
  if (result != 0)
    throw RedisFailure{false, std::string("cannot resolve the host: ") + ::gai_strerror(result)};
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
  std::int64_t count = 0;
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) ++count;
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next, --count) {
    // One that does not answer leaves time for the others.
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline.time_left());
    try {
      try_connect(each->ai_family, each->ai_addr, each->ai_addrlen,
                  count == 1 ? deadline : deadline.at_most(left / count));
      break;
    } catch (const RedisFailure&) {
      if (each->ai_next == nullptr) throw;
    }
  }
  const int on = 1;
  ::setsockopt(socket_.number(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  ::setsockopt(socket_.number(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  transport_ = std::make_unique<PlainTransport>(socket_.number());
}

void RedisConnection::run(std::span<const std::string_view> words, const Deadline& deadline) {
  const std::optional<RedisReply> reply = await(send(words), deadline);
  if (!reply) throw no_answer();
  check_reply(*reply);
}

void RedisConnection::log_in(const RedisServer& server, const Deadline& deadline) {
  std::string password;
  if (!server.password_file.empty()) {
    password = read_password_file(server.password_file);
  } else if (const char* const from_environment = ::secure_getenv("WHYCACHE_REDIS_PASSWORD")) {
    password = from_environment;
  }
  if (password.empty() && server.user.empty()) return;
  std::vector<std::string_view> words = {"AUTH"};
  if (!server.user.empty()) words.push_back(server.user);
  words.push_back(password);
  try {
    run(words, deadline);
  } catch (RedisFailure& failure) {
    // A server that does not know the command repeats its arguments.
    if (failure.is_refusal && !has_code(failure.reason, "WRONGPASS"))
      failure.reason = "AUTH was refused";
    throw;
  }
}

// run_id differs after each restart; master_replid, after a replica became the primary.
void RedisConnection::read_data_id(const Deadline& deadline) {
  const std::string_view words[] = {"INFO", "server"};
  const std::uint64_t server = send(words);
  const std::uint64_t replication = send_data_check();
  const std::optional<RedisReply> reply = await(server, deadline);
  if (!reply) throw no_answer();
  check_reply(*reply);
  run_id_ = field_of(reply->text, "run_id");
  const std::optional<RedisReply> history = await(replication, deadline);
  if (!history) throw no_answer();
  data_id_ = data_id_in(*history);
}

std::uint64_t RedisConnection::data_id_in(const RedisReply& replication) const {
  check_reply(replication);
  const std::string history = field_of(replication.text, "master_replid");
  if (run_id_.empty() || history.empty())
    throw RedisFailure{true, "server does not say its run_id and master_replid"};
  return hash64(run_id_ + ' ' + history);
}

std::uint64_t RedisConnection::send_data_check() {
  const std::string_view words[] = {"INFO", "replication"};
  return send(words);
}

std::optional<bool> RedisConnection::await_data_check(std::uint64_t number,
                                                      const Deadline& deadline) {
  const std::optional<RedisReply> reply = await(number, deadline);
  return reply ? std::optional(data_id_in(*reply) == data_id_) : std::nullopt;
}

std::string RedisConnection::keys_of(const std::string& prefix) const {
  char text[18];
  std::snprintf(text, sizeof text, "%016llx:", static_cast<unsigned long long>(data_id_));
  return prefix + text;
}

std::uint64_t RedisConnection::send(std::span<const std::string_view> words) {
  std::vector<const char*> texts;
  std::vector<std::size_t> sizes;
  for (const std::string_view word : words) {
    texts.push_back(word.data());
    sizes.push_back(word.size());
  }
  char* command = nullptr;
  const auto size =
      redisFormatCommandArgv(&command, static_cast<int>(words.size()), texts.data(), sizes.data());
  if (size < 0 || command == nullptr) throw std::bad_alloc();
  const std::unique_ptr<char, void (*)(char*)> owner(command, redisFreeCommand);
  queued_.append(command, static_cast<std::size_t>(size));
  if (waits_since_ns_ == 0) waits_since_ns_ = boot_time_ns();
  return ++sent_count_;
}

std::optional<RedisReply> RedisConnection::await(std::uint64_t number, const Deadline& deadline) {
  for (bool has_received = false;; has_received = true) {
    transport_->send(queued_);
    while (std::optional<RedisReply> reply = next_reply()) {
      if (answered_count_ == number) return reply;
    }
    // Parts of an answer may arrive all the time.
    if (has_received && deadline.passed()) return std::nullopt;
    const bool has_sent_all = queued_.empty() && !transport_->has_unsent();
    const short events = static_cast<short>(has_sent_all ? POLLIN : POLLIN | POLLOUT);
    if (!transport_->has_received() && !wait_for_socket(events, deadline)) return std::nullopt;
    receive();
  }
}

void RedisConnection::skip_received() {
  receive();
  while (next_reply()) {
  }
}

bool RedisConnection::wait_for_socket(short events, const Deadline& deadline) {
  const int stop_event = stop_event_.number();
  const auto wake = [stop_event]() noexcept { static_cast<void>(::eventfd_write(stop_event, 1)); };
  std::optional<std::stop_callback<decltype(wake)>> on_stop;
  if (stop_event_) {
    eventfd_t ignored;
    static_cast<void>(::eventfd_read(stop_event, &ignored));  // of an earlier stop
    if (deadline.stop().stop_possible()) on_stop.emplace(deadline.stop(), wake);
  }
  for (;;) {
    // Without a descriptor for it, a stop is asked for at intervals.
    const std::chrono::nanoseconds left = stop_event_ ? deadline.remaining() : deadline.next_wait();
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
    const timespec timeout{static_cast<time_t>(seconds.count()),
                           static_cast<long>((left - seconds).count())};
    pollfd polled[] = {{socket_.number(), events, 0}, {stop_event, POLLIN, 0}};
    const int ready = ::ppoll(polled, stop_event_ ? 2 : 1, &timeout, nullptr);
    if (ready < 0 && errno != EINTR) throw lost("cannot wait");
    if (ready > 0 && polled[0].revents != 0) return true;
    if (deadline.passed()) return false;
  }
}

void RedisConnection::receive() {
  char buffer[std::size_t{16} << 10];
  for (;;) {
    const std::size_t size = transport_->receive(buffer, sizeof buffer);
    if (size == 0) return;
    unparsed_bytes_ += size;
    if (unparsed_bytes_ > reply_bytes_max) throw RedisFailure{false, "answer is too long"};
    if (redisReaderFeed(reader_.get(), buffer, size) != REDIS_OK)
      throw RedisFailure{false, std::string("answer is damaged: ") + reader_->errstr};
    if (size < sizeof buffer) return;
  }
}

std::optional<RedisReply> RedisConnection::next_reply() {
  void* found = nullptr;
  if (redisReaderGetReply(reader_.get(), &found) != REDIS_OK)
    throw RedisFailure{false, std::string("answer is damaged: ") + reader_->errstr};
  if (found == nullptr) return std::nullopt;
  const std::unique_ptr<void, void (*)(void*)> owner(found, freeReplyObject);
  unparsed_bytes_ = 0;
  reply_functions_->element_count = 0;
  if (answered_count_ == sent_count_) throw RedisFailure{false, "answer was not asked for"};
  ++answered_count_;
  waits_since_ns_ = answered_count_ == sent_count_ ? 0 : boot_time_ns();
  return to_reply(*static_cast<const redisReply*>(found));
}

std::unique_ptr<RedisConnection> connect_redis(const RedisServer& server,
                                               std::chrono::milliseconds timeout,
                                               const Deadline& deadline,
                                               std::optional<RedisConnectionAttempt>& attempt) {
  // An attempt outlives the request that began it: a slow name server must not keep Redis away.
  const std::chrono::milliseconds attempt_timeout = std::max(timeout, connect_time_min);
  return await_connection<RedisConnection>(
      [server, attempt_timeout] {
        return std::make_unique<RedisConnection>(server, Deadline(attempt_timeout));
      },
      attempt_timeout, deadline, attempt);
}

}  // namespace whycache
