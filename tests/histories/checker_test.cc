// The checker of histories reports violations. For each guarantee there is a history that violates
// it and no other.
#include "histories/checker.h"

#include <gtest/gtest.h>

#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/hash.h"
#include "support/temporary_directory.h"

namespace whycache::testing {
namespace {

using Violations = std::map<Violation, std::uint64_t>;

// The log of these tests.
std::vector<ArchivedUpdate> archive() {
  return {
      {1, {{"a", "w1."}, {"b", "w1."}}},
      {2, {{"a", "w2."}}},
      {3, {{"b", std::nullopt}, {"c", "w3.."}}},
      {4, {{"c", "w4"}}},
  };
}

Digest digest_of(const std::map<std::string, std::string>& items) {
  Digest digest;
  for (const auto& [key, value] : items) add(digest, item_digest(key, value));
  return digest;
}

std::string text_of(const Digest& digest) {
  return std::to_string(digest.low) + ':' + std::to_string(digest.high);
}

// The history of the process that wrote the log.
const char* const writer =
    "call 1 100\n"
    "try 1 w1 - a=w1.,b=w1.\n"
    "done 1 150 1\n"
    "call 2 200\n"
    "try 2 w2 - a=w2.\n"
    "done 2 250 2\n"
    "call 3 300\n"
    "try 3 w3 - b,c=w3..\n"
    "done 3 350 3\n"
    "call 4 400\n"
    "try 4 w4 a=w2.,b c=w4\n"
    "done 4 450 4\n";

std::string replace_first(std::string text, const std::string& old_text,
                          const std::string& new_text) {
  const std::size_t at = text.find(old_text);
  if (at == std::string::npos) throw std::runtime_error("not in the history: " + old_text);
  return text.replace(at, old_text.size(), new_text);
}

History history(const std::string& lines, const std::string& process = "one",
                const std::string& machine = "berlin") {
  std::istringstream text(lines);
  return read_history(text, process, machine);
}

Violations violations_of(const std::vector<History>& histories,
                         const std::vector<ArchivedUpdate>& log = archive()) {
  return check(log, histories).violations;
}
// Checks the writer's history with `old_text` replaced, and the history of a reader.
Violations violations_of(const std::string& old_text, const std::string& new_text,
                         const std::string& reader = "") {
  return violations_of(
      {history(old_text.empty() ? writer : replace_first(writer, old_text, new_text)),
       history(reader, "two")});
}

TEST(HistoryChecker, valid_history_has_no_violation) {
  const std::string all = text_of(digest_of({{"a", "w2."}, {"c", "w4"}}));
  const std::string two = text_of(digest_of({{"a", "w2."}, {"b", "w1."}}));
  const Verdict verdict =
      check(archive(), {history(writer), history("saw 110 120 0 1 - 0 a,b,c\n"
                                                 "saw 260 270 2 2 " +
                                                     two +
                                                     " 1 a=w2.,b=w1.,c\n"
                                                     "saw 280 460 2 4 - 2 b,c=w3..\n"
                                                     "saw 500 510 4 4 " +
                                                     all + " 4 a=w2.,b,c=w4,d\n",
                                                 "two")});
  EXPECT_EQ(verdict.violations, Violations{});
  EXPECT_EQ(verdict.updates, 4U);
  EXPECT_EQ(verdict.writes, 4U);
  EXPECT_EQ(verdict.acknowledged, 4U);
  EXPECT_EQ(verdict.transactions, 1U);
  EXPECT_EQ(verdict.reads, 4U);
  EXPECT_EQ(verdict.values, 12U);
  EXPECT_EQ(verdict.tokens, 3U);
  EXPECT_EQ(verdict.digests, 2U);
}

TEST(HistoryChecker, unacknowledged_write_may_be_in_log_or_not) {
  EXPECT_EQ(violations_of("done 2 250 2\n", "failed 2 250 uncertain\n"), Violations{});
  EXPECT_EQ(violations_of("done 2 250 2\n", ""), Violations{});
  EXPECT_EQ(
      violations_of("", "",
                    "call 1 50\ntry 1 x - a=x\nfailed 1 60 uncertain\ncall 2 61\ntry 2 y - a=y\n"),
      Violations{});
  EXPECT_EQ(violations_of("", "", "call 1 50\ntry 1 x - a=x\nfailed 1 60 unavailable\n"),
            Violations{});
}

TEST(HistoryChecker, log_with_gap_is_reported) {
  std::vector<ArchivedUpdate> log = archive();
  log[3].id = 5;
  EXPECT_EQ(violations_of({history(writer)}, log), (Violations{{Violation::log_gap, 1}}));
}

TEST(HistoryChecker, update_without_writer_is_reported) {
  std::vector<ArchivedUpdate> log = archive();
  log.push_back({5, {{"z", "stranger"}}});
  EXPECT_EQ(violations_of({history(writer)}, log), (Violations{{Violation::phantom_write, 1}}));
}

TEST(HistoryChecker, lost_acknowledged_write_is_reported) {
  EXPECT_EQ(violations_of("", "", "call 1 500\ntry 1 x - a=x\ndone 1 510 5\n"),
            (Violations{{Violation::lost, 1}}));
}

TEST(HistoryChecker, acknowledged_write_at_wrong_id_is_reported) {
  EXPECT_EQ(violations_of("done 4 450 4", "done 4 450 5"), (Violations{{Violation::lost, 1}}));
}

TEST(HistoryChecker, transaction_acknowledged_for_earlier_attempt_is_reported) {
  EXPECT_EQ(violations_of("done 4 450 4", "try 4 w4b c=w3.. c=w4b\ndone 4 450 4"),
            (Violations{{Violation::lost, 1}}));
  EXPECT_EQ(violations_of("try 4 w4 ", "try 4 w4a c=w2 c=w4a\ntry 4 w4 "), Violations{});
}

TEST(HistoryChecker, duplicated_write_is_reported) {
  std::vector<ArchivedUpdate> log = archive();
  log.push_back({5, {{"c", "w4"}}});
  EXPECT_EQ(violations_of({history(writer)}, log), (Violations{{Violation::duplicated, 1}}));
  EXPECT_EQ(violations_of({history(replace_first(writer, "done 4 450 4\n", ""))}, log),
            (Violations{{Violation::duplicated, 1}}))
      << "an unanswered write, too";
}

TEST(HistoryChecker, transaction_with_two_attempts_in_log_is_reported) {
  std::vector<ArchivedUpdate> log = archive();
  log.push_back({5, {{"c", "w5"}}});
  EXPECT_EQ(
      violations_of(
          {history(replace_first(writer, "done 4 450 4", "try 4 w5 c=w4 c=w5\ndone 4 450 5"))},
          log),
      (Violations{{Violation::duplicated, 1}}));
}

TEST(HistoryChecker, failed_write_found_in_log_is_reported) {
  for (const char* kind : {"unavailable", "limit", "invalid", "conflict", "refused", "corrupt"}) {
    EXPECT_EQ(violations_of("done 2 250 2", std::string("failed 2 250 ") + kind),
              (Violations{{Violation::written_despite_failure, 1}}))
        << kind;
  }
}

TEST(HistoryChecker, torn_write_is_reported) {
  EXPECT_EQ(violations_of("a=w2.\n", "a=w2.,d=w2.\n"), (Violations{{Violation::torn, 1}}));
  EXPECT_EQ(violations_of("try 3 w3 - b,c", "try 3 w3 - a,c"), (Violations{{Violation::torn, 1}}));
  EXPECT_EQ(violations_of("try 2 w2 - a=w2.", "try 2 w2 - a=w2.."),
            (Violations{{Violation::torn, 1}}));
}

TEST(HistoryChecker, transaction_with_changed_reads_is_reported) {
  EXPECT_EQ(violations_of("a=w2.,b c=w4", "a=w1.,b c=w4"),
            (Violations{{Violation::not_serializable, 1}}));
  EXPECT_EQ(violations_of("a=w2.,b c=w4", "a=w2.,b=w1. c=w4"),
            (Violations{{Violation::not_serializable, 1}}));
  EXPECT_EQ(violations_of("a=w2.,b c=w4", "a=w2.,c c=w4"),
            (Violations{{Violation::not_serializable, 1}}));
  EXPECT_EQ(violations_of("a=w2.,b c=w4\ndone 4 450 4", "a=w1.,b c=w4\nfailed 4 450 uncertain"),
            (Violations{{Violation::not_serializable, 1}}))
      << "a write with an unknown outcome, too";
}

TEST(HistoryChecker, write_with_id_below_earlier_read_is_reported) {
  // Another machine saw update 4 before write 4 had begun.
  EXPECT_EQ(violations_of({history(writer), history("saw 380 390 4 4 - 0 -\n", "two", "tokyo")}),
            (Violations{{Violation::out_of_order, 1}}));
}

TEST(HistoryChecker, process_going_backwards_is_reported) {
  EXPECT_EQ(
      violations_of({history(writer),
                     history("saw 510 520 4 4 - 0 -\nsaw 515 530 3 3 - 0 -\n", "two", "tokyo")}),
      (Violations{{Violation::process_went_backwards, 1}}));
  EXPECT_EQ(violations_of({history(writer), history("saw 510 520 4 3 - 0 -\n", "two")}),
            (Violations{{Violation::process_went_backwards, 1}}));
}

TEST(HistoryChecker, machine_going_backwards_is_reported) {
  const History early = history("saw 510 520 4 4 - 0 -\n", "two", "tokyo");
  EXPECT_EQ(
      violations_of({history(writer), early, history("saw 530 540 3 3 - 0 -\n", "three", "tokyo")}),
      (Violations{{Violation::machine_went_backwards, 1}}));
  EXPECT_EQ(
      violations_of({history(writer), early, history("saw 530 540 3 3 - 0 -\n", "three", "rome")}),
      Violations{})
      << "another machine may be behind";
  EXPECT_EQ(
      violations_of({history(writer), early, history("saw 515 540 3 3 - 0 -\n", "three", "tokyo")}),
      Violations{})
      << "a read that began earlier may see less";
}

TEST(HistoryChecker, write_unseen_by_other_process_of_machine_is_reported) {
  EXPECT_EQ(violations_of({history(writer), history("saw 460 470 3 3 - 0 -\n", "two")}),
            (Violations{{Violation::machine_went_backwards, 1}}));
}

TEST(HistoryChecker, read_below_its_token_is_reported) {
  EXPECT_EQ(violations_of({history(writer), history("saw 460 470 3 3 - 4 -\n", "two", "tokyo")}),
            (Violations{{Violation::token_not_seen, 1}}));
}

TEST(HistoryChecker, value_absent_at_read_ids_is_reported) {
  const auto of = [](const std::string& seen) {
    return violations_of({history(writer), history(seen, "two", "tokyo")});
  };
  const Violations wrong{{Violation::wrong_value, 1}};
  EXPECT_EQ(of("saw 460 470 2 2 - 0 a=w1.\n"), wrong) << "older";
  EXPECT_EQ(of("saw 460 470 1 1 - 0 a=w2.\n"), wrong) << "newer";
  EXPECT_EQ(of("saw 460 470 2 2 - 0 a\n"), wrong) << "lost";
  EXPECT_EQ(of("saw 460 470 3 3 - 0 b=w1.\n"), wrong) << "erased";
  EXPECT_EQ(of("saw 460 470 1 1 - 0 c=w3..\n"), wrong) << "not there yet";
  EXPECT_EQ(of("saw 460 470 2 2 - 0 a=w2\n"), wrong) << "truncated";
  EXPECT_EQ(of("saw 460 470 3 4 - 0 c\n"), wrong) << "at neither id";
  EXPECT_EQ(of("saw 460 470 1 1 - 0 z=w1.\n"), wrong) << "a key that was never written";
}

TEST(HistoryChecker, overwritten_change_within_update_is_reported_if_read) {
  const std::vector<ArchivedUpdate> log{{1, {{"a", "x"}, {"a", "y"}}}};
  const std::string writes =
      "call 1 1\ntry 1 x - a=x\ndone 1 9 1\ncall 2 2\ntry 2 y - a=y\ndone 2 9 1\n";
  EXPECT_EQ(violations_of({history(writes), history("saw 3 20 0 1 - 0 a=y\n", "two")}, log),
            Violations{});
  EXPECT_EQ(violations_of({history(writes), history("saw 3 20 0 1 - 0 a=x\n", "two")}, log),
            (Violations{{Violation::wrong_value, 1}}));
}

TEST(HistoryChecker, id_beyond_log_is_reported) {
  EXPECT_EQ(violations_of({history(writer), history("saw 460 470 5 5 - 0 -\n", "two")}),
            (Violations{{Violation::wrong_value, 1}}));
}

TEST(HistoryChecker, wrong_digest_is_reported) {
  const std::string three = text_of(digest_of({{"a", "w2."}, {"c", "w3.."}}));
  EXPECT_EQ(violations_of({history(writer), history("saw 360 370 3 3 " + three + " 0 -\n", "two")}),
            Violations{});
  EXPECT_EQ(violations_of({history(writer), history("saw 460 470 4 4 " + three + " 0 -\n", "two")}),
            (Violations{{Violation::wrong_digest, 1}}));
}

TEST(HistoryChecker, unexpected_event_is_reported) {
  EXPECT_EQ(violations_of({history(writer), history("strange state is damaged\n", "two")}),
            (Violations{{Violation::unexpected, 1}}));
}

TEST(HistoryChecker, verdict_counts_and_names_violations) {
  const Verdict verdict = check(
      archive(), {history(replace_first(writer, "done 2 250 2", "failed 2 250 unavailable"))});
  EXPECT_EQ(verdict.violation_count(), 1U);
  ASSERT_EQ(verdict.examples.size(), 1U);
  EXPECT_EQ(verdict.examples[0], "written_despite_failure: one write 2: id=2");
}

// --- The files. ---

TEST(HistoryFile, file_round_trips_history) {
  const TemporaryDirectory directory;
  {
    HistoryWriter writes(directory.file("one"));
    EXPECT_EQ(writes.begin_write(), 1U);
    writes.record_attempt(1, {"t1", {}, {{"a", "t1."}, {"b", std::nullopt}}});
    writes.record_attempt(1, {"t2", {{"a", std::nullopt}, {"b", "x"}}, {{"c", "t2"}}});
    writes.record_acknowledged(1, 17);
    EXPECT_EQ(writes.begin_write(), 2U);
    writes.record_failure(2, Error(ErrorKind::uncertain, "no answer"));
    EXPECT_EQ(writes.begin_write(), 3U);
    writes.record_read({1, 2, 17, 18, Digest{3, 4}, 5, {{"a", ""}}});
    writes.record_unexpected("a\nb");
  }
  std::ifstream lines(directory.file("one"));
  const History read = read_history(lines, "one", "berlin");
  ASSERT_EQ(read.writes.size(), 3U);
  const Write& first = read.writes[0];
  EXPECT_EQ(first.answer, Write::Answer::acknowledged);
  EXPECT_EQ(first.id, 17U);
  EXPECT_LE(first.began_ns, first.ended_ns);
  ASSERT_EQ(first.attempts.size(), 2U);
  EXPECT_EQ(first.attempts[0].changes, (KeyValues{{"a", "t1."}, {"b", std::nullopt}}));
  EXPECT_EQ(first.attempts[1].reads, (KeyValues{{"a", std::nullopt}, {"b", "x"}}));
  EXPECT_EQ(read.writes[1].answer, Write::Answer::uncertain);
  EXPECT_EQ(read.writes[2].answer, Write::Answer::none);
  ASSERT_EQ(read.observations.size(), 1U);
  EXPECT_EQ(read.observations[0].digest, (Digest{3, 4}));
  EXPECT_EQ(read.observations[0].at_least, 5U);
  EXPECT_EQ(read.observations[0].key_values, (KeyValues{{"a", ""}}));
  EXPECT_EQ(read.ids, (std::vector<UpdateId>{17, 17, 18}));
  EXPECT_EQ(read.unexpected, (std::vector<std::string>{"a b"}));
}

TEST(HistoryFile, truncated_last_line_is_ignored) {
  EXPECT_EQ(history("call 1 100\ntry 1 w1 - a=w1.\ndone 1 15").writes[0].answer,
            Write::Answer::none);
}

TEST(HistoryFile, malformed_line_throws_runtime_error) {
  for (const char* line :
       {"what 1 2\n", "call 2 100\n", "call x\n", "try 1 t - a=t\n", "done 1 2 3\n", "saw 1 2 3\n",
        "saw 1 2 3 4 x 0 -\n", "call 1 1\nfailed 1 2 nonsense\n", "\n"}) {
    EXPECT_THROW(history(line), std::runtime_error) << line;
  }
}

}  // namespace
}  // namespace whycache::testing
