#include "base/url.h"

#include <sys/stat.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <string>
#include <string_view>

#include "base/file.h"
#include "support/seed.h"
#include "support/temporary_directory.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::expect_error;

void expect_url_rejected(std::string_view text, const std::string& words) {
  SCOPED_TRACE(std::string(text));
  expect_error(
      ErrorKind::invalid, [&] { Url url(text); }, words);
}

TEST(Url, file_url_has_a_file_path) {
  const Url file("file:///var/lib/flags");
  EXPECT_EQ(file.scheme(), "file");
  EXPECT_EQ(file.file_path(), "/var/lib/flags");
  EXPECT_EQ(file.host(), "");

  EXPECT_EQ(Url("sqlite:///var/lib/flags.db?instance=blue").file_path(), "/var/lib/flags.db");
  EXPECT_EQ(Url("SQLite:/var/lib/flags.db").scheme(), "sqlite");
  EXPECT_EQ(Url("sqlite:/var/lib/flags.db").file_path(), "/var/lib/flags.db");
}

TEST(Url, memory_url_has_a_name_as_path) {
  EXPECT_EQ(Url("memory:").path(), "");
  EXPECT_EQ(Url("memory:name").path(), "name");
  EXPECT_EQ(Url("memory:?instance=x").path(), "");
}

TEST(Url, server_url_has_user_host_port_and_options) {
  Url url("mysql://user:pass%40word@db.example.com:3306/flags?tls=verify&instance=blue");
  EXPECT_EQ(url.scheme(), "mysql");
  EXPECT_EQ(url.user(), "user");
  EXPECT_EQ(url.password(), "pass@word");
  EXPECT_EQ(url.host(), "db.example.com");
  EXPECT_EQ(url.port(), 3306);
  EXPECT_EQ(url.path(), "/flags");
  EXPECT_EQ(url.take_option("tls"), "verify");
  EXPECT_EQ(url.take_instance(), "blue");
  url.reject_unknown_options();

  const Url bare("postgres://host");
  EXPECT_EQ(bare.user(), "");
  EXPECT_EQ(bare.password(), std::nullopt);
  EXPECT_EQ(bare.port(), std::nullopt);
  EXPECT_EQ(bare.path(), "");

  const Url ipv6("memcached+mysql://[2001:db8::1]:11211/");
  EXPECT_EQ(ipv6.scheme(), "memcached+mysql");
  EXPECT_EQ(ipv6.host(), "2001:db8::1");
  EXPECT_EQ(ipv6.port(), 11211);
  EXPECT_EQ(Url("mysql://[::1]/db").port(), std::nullopt);
}

TEST(Url, each_part_is_percent_decoded) {
  EXPECT_EQ(Url("file:///a%20b%2Fc%25%3f%23").path(), "/a b/c%?#");
  EXPECT_EQ(Url("file:///m\xc3\xbcll/%C3%BC").path(), "/m\xc3\xbcll/\xc3\xbc");
  EXPECT_EQ(Url("memory:a+b").path(), "a+b") << "a plus is a plus";
  EXPECT_EQ(Url("x://u%3Aa:p%3A%2F@h").user(), "u:a");
  EXPECT_EQ(Url("x://u%3Aa:p%3A%2F@h").password(), "p:/");
  EXPECT_EQ(Url("x:?key=a%26b%3dc=d").take_option("key"), "a&b=c=d");

  for (const char* text : {"file:///a%", "file:///a%2", "file:///%zz", "file:///%2", "x:?key=%",
                           "x://u%@h", "x://u:%1@h"}) {
    expect_url_rejected(text, "'%' without two hexadecimal digits");
  }
  expect_url_rejected("file:///etc/passwd%00.db", "zero byte");
}

TEST(Url, url_without_a_scheme_is_rejected) {
  for (const char* text : {"", ":", "/var/lib/flags.db", "flags.db", "://x",
                           "1x:", "-x:", "a b:", "\xc3\xbc:", "//host/x"}) {
    expect_url_rejected(text, "does not begin with a scheme (write ");
  }
  expect_url_rejected(std::string(33, 'x') + ":", "does not begin with a scheme");
}

TEST(Url, url_with_an_invalid_character_is_rejected) {
  expect_url_rejected("file:///a\nb", "control character");
  expect_url_rejected(std::string_view("file:///a\0b", 11), "control character");
  expect_url_rejected("file:///a#b", "'#'");
  expect_url_rejected("x://ho%41st", "host");
  expect_url_rejected("x://ho st", "blank");
  expect_url_rejected("sqlite:///flags.db ", "%20");
  expect_url_rejected(" sqlite:///flags.db", "scheme");
  expect_url_rejected("x://[::1", "']'");
  expect_url_rejected("x://[]", "host");
  expect_url_rejected("x://[::g]", "host");
  expect_url_rejected("x://[::1]x", "after its host");
}

TEST(Url, url_with_an_invalid_port_is_rejected) {
  for (const char* text : {"x://h:", "x://h:0", "x://h:65536", "x://h:99999999999999999999",
                           "x://h:-1", "x://h:1x", "x://[::1]:"}) {
    expect_url_rejected(text, "port");
  }
  EXPECT_EQ(Url("x://h:65535").port(), 65535);
}

TEST(Url, overlong_url_is_rejected) {
  EXPECT_EQ(Url("memory:" + std::string(8185, 'x')).path().size(), 8185U);
  expect_url_rejected("memory:" + std::string(8186, 'x'), "too long: bytes=8193 bytes_max=8192");
}

TEST(Url, relative_file_path_is_rejected) {
  expect_error(
      ErrorKind::invalid, [] { (void)Url("sqlite:flags.db").file_path(); },
      "no absolute path: url=sqlite:flags.db", "write sqlite:///path");
  expect_error(
      ErrorKind::invalid, [] { (void)Url("file://var/lib").file_path(); }, "has a host",
      "with three slashes");
  expect_error(
      ErrorKind::invalid, [] { (void)Url("file://").file_path(); }, "no absolute path");
  expect_error(
      ErrorKind::invalid, [] { (void)Url("file://u:secret@/x").file_path(); }, "has a host");
}

TEST(UrlOptions, error_names_unknown_options) {
  Url url("sqlite:///x.db?wal=on&instance=blue&sync=off");
  EXPECT_EQ(url.take_instance(), "blue");
  expect_error(
      ErrorKind::invalid, [&] { url.reject_unknown_options(); }, "options=wal,sync scheme=sqlite");

  EXPECT_EQ(url.take_option("wal"), "on");
  EXPECT_EQ(url.take_option("absent"), std::nullopt);
  expect_error(
      ErrorKind::invalid, [&] { url.reject_unknown_options(); }, "options=sync");
}

TEST(UrlOptions, option_without_key_or_equals_sign_is_rejected) {
  EXPECT_EQ(Url("x:?key=").take_option("key"), "");
  EXPECT_NO_THROW(Url("x:?").reject_unknown_options());
  for (const char* text :
       {"x:?key", "x:?=value", "x:?&", "x:?a=1&&b=2", "x:?Key=1", "x:?k%65y=1"}) {
    expect_url_rejected(text, "not of the form key=value");
  }
  expect_url_rejected("x:?a=1&nonsense", "number=2");
  expect_url_rejected("x:?a b=1", "blank");
}

TEST(UrlOptions, repeated_option_is_rejected) {
  expect_url_rejected("file:///x?instance=a&instance=b", "option twice: option=instance");
  expect_url_rejected("file:///x?instance=a&instance=a", "option twice");
}

TEST(UrlInstance, instance_defaults_to_default) {
  EXPECT_EQ(Url("memory:").take_instance(), "default");
}

TEST(UrlInstance, instance_has_1_to_48_letters_digits_underscores) {
  EXPECT_TRUE(is_instance_name("default"));
  EXPECT_TRUE(is_instance_name("A_z09"));
  EXPECT_TRUE(is_instance_name(std::string(48, 'x')));
  EXPECT_FALSE(is_instance_name(std::string(49, 'x')));
  for (const char* name :
       {"", "a-b", "a.b", "a b", "a/b", "../x", "a;drop table", "a'b", "a\"b", "m\xc3\xbcller"}) {
    EXPECT_FALSE(is_instance_name(name)) << name;
  }
  EXPECT_FALSE(is_instance_name(std::string_view("a\0b", 3)));

  for (const char* text : {"memory:?instance=", "memory:?instance=a%2fb", "memory:?instance=%27;--",
                           "memory:?instance=a%0ab"}) {
    expect_error(
        ErrorKind::invalid, [&] { Url(text).take_instance(); }, "instance name cannot be used",
        "use 1 to 48 of A-Z a-z 0-9 _");
  }
}

TEST(UrlRedacted, redacted_url_shows_where_the_log_is) {
  for (const char* text :
       {"memory:", "memory:name", "file:///var/lib/flags",
        "sqlite:///var/lib/flags.db?instance=default", "mysql://user@host:3306/db",
        "mysql://[::1]:3306/db", "file:///a%20b%25"}) {
    EXPECT_EQ(Url(text).redacted(), text);
  }
}

TEST(UrlRedacted, redacted_url_hides_passwords_and_unknown_options) {
  const Url url(
      "mysql://user:hunter2@host/db?password_file=/run/hunter2&instance=blue&token=hunter2");
  EXPECT_EQ(url.redacted(), "mysql://user:***@host/db?password_file=***&instance=blue&token=***");
  EXPECT_EQ(Url("x://:hunter2@host").redacted(), "x://:***@host");
  EXPECT_EQ(Url("x://u:@host").redacted(), "x://u:***@host");
}

TEST(UrlRedacted, redacted_url_is_unchanged_by_taking_options) {
  Url url("x://u:p@h/d?tls=off&instance=a");
  const std::string before = url.redacted();
  url.take_option("tls");
  url.take_instance();
  EXPECT_EQ(url.redacted(), before);
}

std::string canonical(std::string_view text) { return Url(text).canonical().redacted(); }

TEST(UrlCanonical, spellings_of_one_file_are_one) {
  const testing::TemporaryDirectory directory;
  const std::string path = canonical_path(directory.file("log"));
  const std::string parent = parent_directory(path);
  ASSERT_EQ(::mkdir((parent + "/real").c_str(), 0700), 0);
  ASSERT_EQ(::symlink("real", (parent + "/link").c_str()), 0);
  for (const char* scheme : {"sqlite", "file", "memcached+sqlite"}) {
    const std::string begin = std::string(scheme) + "://";
    for (const std::string& spelling :
         {path, "/" + path, "/" + parent + "//log", parent + "/./log", parent + "/real/../log",
          parent + "/link/../log", path + "/", path + "/."}) {
      EXPECT_EQ(canonical(begin + spelling), begin + path) << spelling;
    }
    EXPECT_EQ(canonical(scheme + (":" + path)), begin + path);
    EXPECT_EQ(canonical(begin + parent + "/link/x"), begin + parent + "/real/x");
    EXPECT_EQ(canonical(begin + parent + "/link/"), begin + parent + "/real");
    EXPECT_EQ(canonical(begin + parent + "/no/a/../b/"), begin + parent + "/no/b");
    EXPECT_NE(canonical(begin + path), canonical(begin + parent + "/LOG"));
  }
}

TEST(UrlCanonical, spellings_of_one_server_are_one) {
  for (const char* local : {"127.0.0.1", "localhost", "LocalHost", "[::1]", "[0:0::0:1]"}) {
    const std::string host(local);
    EXPECT_EQ(canonical("mysql://" + host + "/db"), "mysql://127.0.0.1/db") << host;
    EXPECT_EQ(canonical("mysql://" + host + ":3306/db"), "mysql://127.0.0.1/db") << host;
    EXPECT_EQ(canonical("mysql://" + host + ":3307/db"), "mysql://127.0.0.1:3307/db") << host;
  }
  EXPECT_EQ(canonical("mysql://DB.example.org:3306/Flags"), "mysql://db.example.org/Flags");
  EXPECT_EQ(canonical("memcached+mysql://db:3306/Flags"), "memcached+mysql://db/Flags");
  EXPECT_EQ(canonical("mysql://127.0.0.2/db"), "mysql://127.0.0.2/db");
  EXPECT_EQ(canonical("mysql://[FE80::0:1]/db"), "mysql://[fe80::1]/db");
  EXPECT_EQ(canonical("memory:a//b/./c"), "memory:a//b/./c");
}

TEST(UrlHosts, postgres_url_has_several_hosts_in_order) {
  const Url url("postgres://user:pass@One.example.org,two.example.org:5433,[::1]:5434/db?tls=off");
  EXPECT_EQ(url.host(), "One.example.org");
  EXPECT_EQ(url.port(), std::nullopt);
  const std::vector<Url::HostAndPort> more = {{"two.example.org", 5433}, {"::1", 5434}};
  EXPECT_EQ(url.more_hosts(), more);
  EXPECT_EQ(url.path(), "/db");
  EXPECT_EQ(url.redacted(),
            "postgres://user:***@One.example.org,two.example.org:5433,[::1]:5434/db?tls=***");
}

TEST(UrlHosts, order_and_spelling_of_postgres_hosts_do_not_matter) {
  for (const char* const spelling :
       {"postgres://b,a:5433/db", "postgresql://A:5433,B/db", "postgresql://b:5432,b,a:5433/db"})
    EXPECT_EQ(canonical(spelling), "postgres://a:5433,b/db") << spelling;
  EXPECT_EQ(canonical("memcached+postgresql://LOCALHOST:5432/db"),
            "memcached+postgres://127.0.0.1/db");
}

TEST(UrlHosts, several_hosts_are_rejected_where_they_mean_nothing) {
  for (const char* const text :
       {"mysql://a,b/db", "postgres://a,/db", "postgres://,a/db", "postgres://a,b:0/db",
        "postgres://a,b c/db", "postgres://a,[::1/db", "postgres://a,[::1]x/db"})
    EXPECT_THROW(Url{text}, Error) << text;
}

// A redacted URL can be printed in a message without quoting.
TEST(UrlRedacted, redacted_url_encodes_control_characters_and_quotes) {
  const std::string text = Url("file:///a%0Ab%1b[2J%22?instance=%0a").redacted();
  EXPECT_EQ(text, "file:///a%0Ab%1B%5B2J%22?instance=%0A");
}

// Passwords with characters that end an authority, written without percent-encoding. However the
// URL is parsed, no piece of the password is shown.
TEST(UrlSecrets, misplaced_password_is_never_shown) {
  for (const char* text : {
           "mysql://user:hunter2/secret@host/db",
           "mysql://user:1234/secret@host/db",
           "mysql://user:hunter2?secret@host/db",
           "mysql://user:1234?secret=1@host/db",
           "mysql://user:hunter2#secret@host/db",
           "mysql://user:hunter2:secret@host/db",
           "mysql://user:hunter2@secret@host/db",
           "mysql://user:hunter2%secret@host/db",
           "mysql://user:hunter2 secret@host/db",
           "mysql://user:[hunter2]secret@host/db",
           "mysql://user:secret@[host/db",
           "mysql://user:secret@host:port/db",
           "mysql:user:secret@host/db",
           "mysql:/user:secret@host/db",
           "mysql:///user:secret@host/db",
           "mysql://host/db?secret",
           "mysql://host/db?password=secret&password=secret",
           "mysql://host/db?instance=a&x=%secret",
           "user:secret@host/db",
       }) {
    SCOPED_TRACE(text);
    std::string shown;
    try {
      Url url(text);
      shown = url.redacted();
      url.reject_unknown_options();
    } catch (const Error& error) {
      shown += error.what();
    }
    for (const char* secret : {"secret", "hunter2", "1234"})
      EXPECT_EQ(shown.find(secret), std::string::npos) << shown;
  }
}

TEST(Url, slash_in_a_user_is_shown_encoded) {
  const Url url("mysql://a%2Fb@host/db");
  EXPECT_EQ(url.redacted(), "mysql://a%2Fb@host/db");
  EXPECT_EQ(Url(url.redacted()).user(), "a/b");
}

// Any text is rejected or parsed. If it is parsed, its redacted form parses to the same parts.
TEST(Url, random_text_is_rejected_or_round_trips) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  constexpr std::string_view alphabet = "ax1:/?&=%@[]#.+-_ %41%00%2f\n\xc3instance=file://";
  int parsed = 0;
  for (int i = 0; i < 200'000; ++i) {
    std::string text = random() % 2 == 0 ? "x:" : "";
    for (std::size_t size = random() % 24; size > 0; --size)
      text += alphabet[random() % alphabet.size()];
    std::optional<Url> url;
    const std::optional<Error> error = testing::thrown_error([&] { url.emplace(text); });
    if (error) {
      ASSERT_EQ(error->kind(), ErrorKind::invalid);
      continue;
    }
    ++parsed;
    const Url reparsed(url->redacted());
    ASSERT_EQ(reparsed.redacted(), url->redacted()) << text;
    ASSERT_EQ(reparsed.path(), url->path()) << text;
    ASSERT_EQ(reparsed.host(), url->host()) << text;
  }
  EXPECT_GT(parsed, 1000);
}

}  // namespace
}  // namespace whycache
