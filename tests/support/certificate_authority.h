// Certificates for tests of TLS, made by the program openssl.
#pragma once

#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>

#include "support/temporary_directory.h"

namespace whycache::testing {

// A certificate authority, and a certificate for `host` that it signed.
class CertificateAuthority {
 public:
  explicit CertificateAuthority(const std::string& host) {
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=authority -keyout ca.key -out ca.pem");
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=server "
        "-keyout server.key -out server.csr");
    std::ofstream(directory_.file("extensions")) << "subjectAltName=" << host << '\n';
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
        "-extfile extensions -out server.pem");
  }
  std::string ca() const { return directory_.file("ca.pem"); }
  std::string certificate() const { return directory_.file("server.pem"); }
  std::string key() const { return directory_.file("server.key"); }
  // A certificate like certificate(), whose time is over.
  std::string expired_certificate() const {
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days -1 "
        "-extfile extensions -out expired.pem");
    return directory_.file("expired.pem");
  }

 private:
  void openssl(const std::string& words) const {
    const std::string command =
        "cd " + directory_.path() + " && openssl " + words + " >output 2>&1";
    if (std::system(command.c_str()) != 0) throw std::runtime_error("openssl failed: " + words);
  }

  TemporaryDirectory directory_;
};

}  // namespace whycache::testing
