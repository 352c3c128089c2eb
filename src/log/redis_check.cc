#include "log/redis_check.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/random.h"
#include "base/sha1.h"

namespace whycache {
namespace {

// What an error begins with: "NOPERM" of "NOPERM this user has no permissions ...".
std::string_view code_of(std::string_view error) { return error.substr(0, error.find(' ')); }

// Commands that are sent together: a server far away takes a round trip for all of them.
class RedisTrial {
 public:
  RedisTrial(RedisConnection& connection, const Deadline& deadline)
      : connection_(connection), deadline_(deadline) {}

  // Sends a command. Its refusal is noted as one of `name`.
  void run(const std::vector<std::string>& words, const std::string& name) {
    const std::vector<std::string_view> views(words.begin(), words.end());
    sent_.push_back({connection_.send(views), name});
  }
  void run(const std::vector<std::string>& words) { run(words, words[0]); }

  // Awaits all answers. Returns the refusals.
  std::vector<RedisRefusal> finish() {
    std::vector<RedisRefusal> refusals;
    for (const auto& [number, name] : sent_) {
      const std::optional<RedisReply> reply = connection_.await(number, deadline_);
      if (!reply) throw RedisFailure{false, "no answer before the deadline: command=" + name};
      if (reply->kind == RedisReply::Kind::error) add(refusals, reply->text, name);
    }
    return refusals;
  }

 private:
  struct SentCommand {
    std::uint64_t number = 0;
    std::string name;
  };

  static void add(std::vector<RedisRefusal>& refusals, const std::string& error,
                  const std::string& name) {
    const auto same = std::find_if(refusals.begin(), refusals.end(), [&](const auto& refusal) {
      return code_of(refusal.error) == code_of(error);
    });
    RedisRefusal& refusal = same != refusals.end() ? *same : refusals.emplace_back();
    if (refusal.error.empty()) refusal.error = error;
    if (std::find(refusal.commands.begin(), refusal.commands.end(), name) == refusal.commands.end())
      refusal.commands.push_back(name);
  }

  RedisConnection& connection_;
  const Deadline& deadline_;
  std::vector<SentCommand> sent_;
};

}  // namespace

std::vector<RedisRefusal> find_redis_refusals(RedisConnection& connection,
                                              const std::string& log_prefix,
                                              const Deadline& deadline) {
  RedisTrial trial(connection, deadline);
  const std::string own = "whycache2:doctor:" + std::to_string(random_u64()) + ':';
  const std::string text = own + "text";
  const std::string stream = own + "stream";
  const std::string hash = own + "hash";
  const std::string lifetime = "10";
  const std::string script = "return 1";
  trial.run({"SET", text, "x", "EX", lifetime});
  trial.run({"SET", text, "x", "EX", lifetime, "NX"});
  trial.run({"GET", text});
  trial.run({"MGET", text, text});
  trial.run({"XADD", stream, "1-0", "b", "x", "t", "1"});
  trial.run({"EXPIRE", stream, lifetime});
  trial.run({"XRANGE", stream, "-", "+", "COUNT", "1"});
  trial.run({"XREVRANGE", stream, "+", "-", "COUNT", "1"});
  trial.run({"XREAD", "COUNT", "1", "BLOCK", "1", "STREAMS", stream, "0-0"});
  trial.run({"XDEL", stream, "1-0"});
  trial.run({"HSET", hash, "1", "x"});
  trial.run({"EXPIRE", hash, lifetime});
  trial.run({"HKEYS", hash});
  trial.run({"HMGET", hash, "1"});
  trial.run({"HDEL", hash, "1"});
  for (const std::string& key : {text, stream, hash}) trial.run({"DEL", key});
  trial.run({"EVAL", script, "1", text});
  trial.run({"EVALSHA", Sha1::hex(script), "1", text});
  if (log_prefix.empty()) return trial.finish();

  const std::string keys = connection.keys_of(log_prefix);
  trial.run({"GET", keys + "head"}, "GET " + keys + "head");
  trial.run({"GET", keys + "ask"}, "GET " + keys + "ask");
  trial.run({"XRANGE", keys + "updates", "-", "+", "COUNT", "1"}, "XRANGE " + keys + "updates");
  trial.run({"HMGET", keys + "bodies", "1"}, "HMGET " + keys + "bodies");
  return trial.finish();
}

}  // namespace whycache
