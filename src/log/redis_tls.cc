#include "log/redis_tls.h"

#include <arpa/inet.h>
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpedantic"  // hiredis has flexible arrays
#include <hiredis/hiredis.h>
#include <hiredis/hiredis_ssl.h>
#pragma GCC diagnostic pop
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <new>
#include <string>
#include <string_view>
#include <system_error>

#include <whycache/error.h>

#include "base/background_call.h"
#include "base/fork_exclusion.h"
#include "base/signals.h"
#include "log/tls_failure.h"

namespace whycache {
namespace {

constexpr std::chrono::milliseconds tls_exit_delay_max{500};
// A server sends so many records to an idle connection before it closes it: OpenSSL's sends two
// tickets.
constexpr int idle_records_max = 8;

// Connecting holds mutexes of OpenSSL for moments. fork() waits for a thread inside, but not for
// long.
ForkExclusion& redis_tls_fork_exclusion() {
  static auto* const instance = new ForkExclusion(std::chrono::milliseconds(100));
  return *instance;
}
// Created before there are threads, see register_fork_handler().
[[maybe_unused]] const ForkExclusion& early_redis_tls_fork_exclusion = redis_tls_fork_exclusion();

// The words of OpenSSL for the oldest error of this thread since ERR_clear_error(), or `otherwise`.
std::string openssl_reason(const std::string& otherwise) {
  const char* const reason = ERR_reason_error_string(ERR_peek_error());
  return reason != nullptr ? reason : otherwise;
}

// Throws the reason why OpenSSL made nothing: its configuration may leave it without algorithms.
[[noreturn]] void throw_unusable_openssl() {
  if (ERR_GET_REASON(ERR_peek_error()) == ERR_R_MALLOC_FAILURE) throw std::bad_alloc();
  throw RedisFailure{true, "TLS: OpenSSL cannot be used: " + openssl_reason("unknown reason")};
}

// Throws Error(invalid) unless OpenSSL has accepted a file.
void check_file(bool is_accepted, const std::string& option, const std::string& path) {
  if (is_accepted) return;
  const bool is_readable = ::access(path.c_str(), R_OK) == 0;
  const int error = is_readable ? 0 : errno;
  throw Error(
      ErrorKind::invalid,
      option + " of the log cannot be used: " + path + ": " +
          (is_readable ? openssl_reason("not understood") : std::system_category().message(error)),
      error);
}

struct FreeContext {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
struct FreeSession {
  void operator()(SSL* session) const { SSL_free(session); }
};
struct FreeConnection {
  void operator()(redisContext* connection) const { redisFreeKeepFd(connection); }
};

std::unique_ptr<SSL_CTX, FreeContext> make_context(const RedisServer& server) {
  std::unique_ptr<SSL_CTX, FreeContext> context(SSL_CTX_new(TLS_client_method()));
  if (context == nullptr) throw_unusable_openssl();
  if (SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION) != 1) throw_unusable_openssl();
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  // No terminal is asked for the passphrase of a key.
  SSL_CTX_set_default_passwd_cb(context.get(), [](char*, int, int, void*) { return 0; });
  if (server.tls_ca.empty()) {
    if (SSL_CTX_set_default_verify_paths(context.get()) != 1) throw_unusable_openssl();
  } else {
    check_file(SSL_CTX_load_verify_locations(context.get(), server.tls_ca.c_str(), nullptr) == 1,
               "redis_tls_ca", server.tls_ca);
  }
  if (server.tls_certificate.empty()) return context;
  check_file(SSL_CTX_use_certificate_chain_file(context.get(), server.tls_certificate.c_str()) == 1,
             "redis_tls_cert", server.tls_certificate);
  check_file(
      SSL_CTX_use_PrivateKey_file(context.get(), server.tls_key.c_str(), SSL_FILETYPE_PEM) == 1,
      "redis_tls_key", server.tls_key);
  return context;
}

std::unique_ptr<SSL, FreeSession> make_session(const RedisServer& server) {
  const std::unique_ptr<SSL_CTX, FreeContext> context = make_context(server);
  std::unique_ptr<SSL, FreeSession> session(SSL_new(context.get()));
  if (session == nullptr) throw_unusable_openssl();
  // One record at a time: a server that sends tickets without end must not keep a thread in
  // SSL_read() beyond its deadline.
  SSL_clear_mode(session.get(), SSL_MODE_AUTO_RETRY);
  const std::string& host = server.address.host;
  unsigned char bytes[sizeof(in6_addr)];
  const bool is_address = ::inet_pton(AF_INET, host.c_str(), bytes) == 1 ||
                          ::inet_pton(AF_INET6, host.c_str(), bytes) == 1;
  X509_VERIFY_PARAM_set_hostflags(SSL_get0_param(session.get()),
                                  X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
  const bool is_set =
      is_address ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(session.get()), host.c_str()) == 1
                 : SSL_set1_host(session.get(), host.c_str()) == 1 &&
                       SSL_set_tlsext_host_name(session.get(), host.c_str()) == 1;
  // Without a name to verify, any certificate of the authority would do.
  if (!is_set || host.empty()) throw RedisFailure{true, "TLS: name of the host cannot be verified"};
  return session;
}

class RedisTls final : public RedisTransport {
 public:
  RedisTls(const RedisServer& server, int socket) {
    const ForkExclusion::NoForkSection inside(redis_tls_fork_exclusion());
    const ThreadSignalBlocker no_signal(SIGPIPE);
    ERR_clear_error();
    redisOptions options{};
    options.type = REDIS_CONN_USERFD;
    options.endpoint.fd = socket;
    options.options = REDIS_OPT_NONBLOCK;
    connection_.reset(redisConnectWithOptions(&options));
    std::unique_ptr<SSL, FreeSession> session = make_session(server);
    if (connection_ == nullptr || connection_->err != 0) throw std::bad_alloc();
    // Begins the handshake. On success the connection owns the session.
    if (redisInitiateSSL(connection_.get(), session.get()) != REDIS_OK) throw failure(*session);
    session_ = session.release();
  }

  short shake_hands() override {
    const ForkExclusion::NoForkSection inside(redis_tls_fork_exclusion());
    const ThreadSignalBlocker no_signal(SIGPIPE);
    ERR_clear_error();
    const int result = SSL_do_handshake(session_);
    if (result == 1) return 0;
    switch (SSL_get_error(session_, result)) {
      case SSL_ERROR_WANT_READ: return POLLIN;
      case SSL_ERROR_WANT_WRITE: return POLLOUT;
      default: throw failure(*session_);
    }
  }

  void send(std::string& bytes) override {
    const ThreadSignalBlocker no_signal(SIGPIPE);
    ERR_clear_error();
    if (!bytes.empty()) {
      if (redisAppendFormattedCommand(connection_.get(), bytes.data(), bytes.size()) != REDIS_OK)
        throw std::bad_alloc();
      bytes.clear();
    }
    int is_all_sent = 1;
    if (redisBufferWrite(connection_.get(), &is_all_sent) != REDIS_OK) {
      // A server that closed the connection may have said why.
      char ignored;
      if (SSL_read(session_, &ignored, 1) > 0) ERR_clear_error();
      throw failure(*session_);
    }
    has_unsent_ = is_all_sent == 0;
  }
  bool has_unsent() const noexcept override { return has_unsent_; }

  std::size_t receive(char* to, std::size_t size) override {
    const ThreadSignalBlocker no_signal(SIGPIPE);
    ERR_clear_error();
    const auto received = connection_->funcs->read(connection_.get(), to, size);
    if (received < 0) throw failure(*session_);
    return static_cast<std::size_t>(received);
  }
  bool has_received() const noexcept override { return SSL_pending(session_) > 0; }

  // Tickets of sessions may have arrived, each of which takes one call; answers have not.
  bool is_alive() noexcept override {
    try {
      for (int record = 0; record < idle_records_max; ++record) {
        char unexpected;
        if (receive(&unexpected, 1) != 0) return false;
      }
      return true;
    } catch (...) {
      return false;
    }
  }

  std::string certificate_end() const override {
    const std::unique_ptr<BIO, decltype(&BIO_free)> text(BIO_new(BIO_s_mem()), BIO_free);
    X509* const certificate = SSL_get_peer_certificate(session_);
    const std::unique_ptr<X509, decltype(&X509_free)> owner(certificate, X509_free);
    if (!text || certificate == nullptr ||
        ASN1_TIME_print(text.get(), X509_get0_notAfter(certificate)) != 1)
      return {};
    char* begin = nullptr;
    const long size = BIO_get_mem_data(text.get(), &begin);
    return {begin, static_cast<std::size_t>(size)};
  }

 private:
  // What has ended the connection.
  RedisFailure failure(const SSL& session) const {
    if (const long result = SSL_get_verify_result(&session); result != X509_V_OK)
      return {true, std::string("TLS: certificate: ") + X509_verify_cert_error_string(result)};
    const std::string reason = openssl_reason("");
    if (reason == "wrong version number") return {true, "TLS: server does not support it"};
    if (is_tls_refusal(reason)) return {true, "TLS: " + reason};
    if (!reason.empty()) return {false, "TLS: " + reason};
    return {false, connection_->err != 0 ? connection_->errstr : "server closed the connection"};
  }

  std::unique_ptr<redisContext, FreeConnection> connection_;
  SSL* session_ = nullptr;
  bool has_unsent_ = false;
};

}  // namespace

void prepare_redis_tls() {
  // Before the static: a child forked while another thread initializes it would wait forever.
  const ForkExclusion::NoForkSection inside(redis_tls_fork_exclusion());
  static const bool is_prepared = [] {
    OPENSSL_init_ssl(0, nullptr);
    // Runs before the handler of OpenSSL, which that call registers: a thread that still connects
    // would use what it destroys.
    std::atexit([] { BackgroundThreads::wait_for_none(tls_exit_delay_max); });
    return true;
  }();
  static_cast<void>(is_prepared);
}

std::unique_ptr<RedisTransport> make_redis_tls(const RedisServer& server, int socket) {
  return std::make_unique<RedisTls>(server, socket);
}

}  // namespace whycache
