// Messages of TLS libraries are told apart, and each gets a next step for the operator.
#include "log/tls_failure.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace whycache {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string step_for(const std::string& reason) {
  return next_step_for_tls(reason, "server-options");
}

TEST(TlsFailure, alerts_but_internal_error_are_refusals) {
  for (const char* alert :
       {"sslv3 alert handshake failure", "tlsv1 alert protocol version", "ssl/tls alert bad record",
        "tlsv1 alert insufficient security", "tlsv1 alert unknown ca", "tlsv1 alert access denied",
        "tlsv1 alert decrypt error", "sslv3 alert bad certificate",
        "tlsv13 alert certificate required", "tlsv1 unrecognized name alert name"}) {
    EXPECT_TRUE(is_tls_refusal(alert)) << alert;
    EXPECT_TRUE(is_tls_refusal(std::string("SSL error: ") + alert)) << alert;
  }
  EXPECT_FALSE(is_tls_refusal("tlsv1 alert internal error"));
  EXPECT_FALSE(is_tls_refusal("A TLS fatal alert has been received."));
}

TEST(TlsFailure, broken_connection_is_no_refusal) {
  for (const char* reason : {"", "unexpected eof while reading", "internal error",
                             "Connection reset by peer", "server closed the connection"})
    EXPECT_FALSE(is_tls_refusal(reason)) << reason;
}

TEST(TlsFailure, sides_with_nothing_in_common_are_not_told_to_change_certificates) {
  for (const char* reason :
       {"unsupported protocol", "tlsv1 alert protocol version", "no protocols available",
        "tlsv1 alert insufficient security", "ee key too small", "ca md too weak"}) {
    EXPECT_TRUE(is_tls_refusal(reason)) << reason;
    EXPECT_THAT(step_for(reason), HasSubstr("TLS 1.2 or 1.3")) << reason;
    EXPECT_THAT(step_for(reason), Not(HasSubstr("tls_cert"))) << reason;
  }
}

TEST(TlsFailure, handshake_failure_names_certificate_and_ciphers) {
  EXPECT_THAT(step_for("sslv3 alert handshake failure"), HasSubstr("tls_cert and tls_key"));
  EXPECT_THAT(step_for("sslv3 alert handshake failure"), HasSubstr("ciphers"));
}

TEST(TlsFailure, alert_about_the_certificate_names_it_and_another_one_does_not) {
  for (const char* alert : {"sslv3 alert bad certificate", "tlsv13 alert certificate required",
                            "tlsv1 alert unknown ca", "sslv3 alert certificate expired"})
    EXPECT_THAT(step_for(alert), HasSubstr("certificate of this machine")) << alert;
  EXPECT_THAT(step_for("tlsv1 alert user cancelled"), HasSubstr("its log says why"));
}

}  // namespace
}  // namespace whycache
