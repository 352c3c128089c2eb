#include "log/redis_store.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <system_error>
#include <utility>

#include <whycache/error.h>

#include "base/call_limit.h"
#include "base/fork_handlers.h"
#include "base/hash.h"
#include "base/sha1.h"

namespace whycache {
namespace {

// How long the server is avoided after a failure.
constexpr std::chrono::milliseconds redis_retry_delay{2'000};
// How long the log is polled after the server has refused requests.
constexpr std::int64_t refusal_ns = std::int64_t{60} * 1'000'000'000;
// The server may have closed a connection that was idle for so long.
constexpr std::int64_t idle_ns = 1'000'000'000;
// The script computes with doubles.
constexpr UpdateId published_id_max = UpdateId{1} << 53;
// A request stores so many bytes of updates, or one update.
constexpr std::size_t publish_bytes_max = std::size_t{1} << 20;
// In place of the head that a record claims: greater than every id.
constexpr char no_head[] = "1e300";
// The bounds of the stream.
constexpr char stream_updates_max[] = "4096";
constexpr char stream_bytes_max[] = "16777216";
// A longer update is not in the stream, which pushes what it has to all that wait: the buffers for
// thousands of clients would fill the memory of the server.
constexpr std::size_t pushed_bytes_max = std::size_t{16} << 10;
// A waiting thread receives so much at once, and keeps so much for get_updates().
constexpr char updates_per_read_max[] = "16";
constexpr std::size_t received_bytes_max = std::size_t{2} << 20;
constexpr std::size_t received_overhead_bytes = 100;

// Stores updates, and replaces the head record.
//
// The stream cannot take an update before its last one. Such an update, or one that replaces
// another, makes the script build the stream again, from what it has around the update: up to 1 MiB
// on each side, and all that this publish() has stored already.
constexpr char publish_script[] = R"(
local head, stream, bodies = KEYS[1], KEYS[2], KEYS[3]
local change, found, record, claimed = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local lifetime, entries_max, bytes_max = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local first_published = tonumber(ARGV[8])
local kept_bytes_max = 1048576

if change ~= 'none' then
  local now = redis.call('GET', head)
  if change == 'add' and now or change == 'swap' and now ~= found then return 0 end
end

local function parse(entry)
  local id = entry and tonumber(string.match(entry[1], '^(%d+)%-0$'))
  local fields = entry and entry[2]
  if not id or fields[1] ~= 'b' or fields[3] ~= 't' then return nil end
  local apart = fields[5] == 'k' and fields[6] or ''
  return {id = id, name = entry[1], body = fields[2], total = tonumber(fields[4]) or 0,
          apart = apart, size = tonumber(string.match(apart, '^(%d+)')) or #fields[2]}
end
local function field_of(id) return string.format('%.0f', id) end
local function name_of(id) return field_of(id) .. '-0' end

local updates = {}
for i = 9, #ARGV, 3 do
  local bytes, apart = ARGV[i + 1], ARGV[i + 2]
  table.insert(updates, {id = tonumber(ARGV[i]), name = ARGV[i] .. '-0', bytes = bytes,
                         apart = apart, body = apart == '' and bytes or '', size = #bytes})
end

local top = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
local last = parse(top)
local first = parse(redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1])
-- The stream may be evicted by itself, and leave bytes that none of its entries will name.
if not top then redis.call('DEL', bodies) end
local is_foreign = top and not (first and last)
local rebuild = is_foreign
local keep_after = true
local last_kept = math.huge
if change ~= 'none' then last_kept = claimed end
if last and first then
  if last.id > last_kept then rebuild = true end
  local is_full = last.id - first.id >= entries_max / 2 or
                  last.total - first.total >= bytes_max / 2
  for _, update in ipairs(updates) do
    if update.id <= last.id and (update.id >= first.id or not is_full) then
      local there = parse(redis.call('XRANGE', stream, update.name, update.name)[1])
      local is_same = there and there.body == update.body and there.apart == update.apart
      update.is_stored = is_same
      if not is_same then rebuild = true end
      if there and not is_same then keep_after = false end
    end
  end
end

local before, after = {}, {}
if rebuild and not is_foreign then
  local bytes = 0
  local next_id = math.min(last_kept, last.id)
  if #updates > 0 then next_id = math.min(next_id, updates[1].id - 1) end
  while next_id >= first.id do
    local page = redis.call('XREVRANGE', stream, name_of(next_id), '-', 'COUNT', 16)
    if #page == 0 then break end
    for _, entry in ipairs(page) do
      local there = parse(entry)
      if not there or bytes >= kept_bytes_max and there.id < first_published then
        next_id = 0
        break
      end
      table.insert(before, there)
      bytes = bytes + #there.body
      next_id = there.id - 1
    end
  end
  for i = 1, math.floor(#before / 2) do
    before[i], before[#before - i + 1] = before[#before - i + 1], before[i]
  end
  bytes = 0
  next_id = #updates > 0 and keep_after and updates[#updates].id + 1 or math.huge
  while next_id <= math.min(last_kept, last.id) and bytes < kept_bytes_max do
    local page = redis.call('XRANGE', stream, name_of(next_id), '+', 'COUNT', 16)
    if #page == 0 then break end
    for _, entry in ipairs(page) do
      local there = parse(entry)
      if not there or there.id > last_kept or bytes >= kept_bytes_max then
        next_id = math.huge
        break
      end
      table.insert(after, there)
      bytes = bytes + #there.body
      next_id = there.id + 1
    end
  end
end

local end_id, total = last and last.id or 0, last and last.total or 0
if change ~= 'none' then redis.call('SET', head, record, 'EX', lifetime) end
if rebuild then
  redis.call('DEL', stream)
  end_id, total = 0, 0
end
local has_added = false
local added_apart = {}
local function add(list)
  for _, update in ipairs(list) do
    if update.id > end_id then
      total = total + update.size
      local fields = {'b', update.body, 't', string.format('%.0f', total)}
      if update.apart ~= '' then
        table.insert(fields, 'k')
        table.insert(fields, update.apart)
        added_apart[field_of(update.id)] = true
      end
      redis.call('XADD', stream, update.name, unpack(fields))
      end_id = update.id
      update.is_stored = true
      has_added = true
    end
  end
end
add(before)
add(updates)
add(after)

if rebuild then
  for _, field in ipairs(redis.call('HKEYS', bodies)) do
    if not added_apart[field] then redis.call('HDEL', bodies, field) end
  end
end
local has_bodies = false
for _, update in ipairs(updates) do
  if update.is_stored and update.apart ~= '' then
    redis.call('HSET', bodies, field_of(update.id), update.bytes)
    has_bodies = true
  end
end
if has_bodies then redis.call('EXPIRE', bodies, lifetime) end

if has_added then
  local count = 1
  local is_trimmed = false
  while not is_trimmed do
    local names, fields = {}, {}
    local page = redis.call('XRANGE', stream, '-', '+', 'COUNT', count)
    for _, entry in ipairs(page) do
      local oldest = parse(entry)
      is_trimmed = oldest and (oldest.id == end_id or
          end_id - oldest.id < entries_max and total - oldest.total + oldest.size <= bytes_max)
      if is_trimmed then break end
      table.insert(names, entry[1])
      if oldest and oldest.apart ~= '' then table.insert(fields, field_of(oldest.id)) end
    end
    if #names > 0 then redis.call('XDEL', stream, unpack(names)) end
    if #fields > 0 then redis.call('HDEL', bodies, unpack(fields)) end
    if #page == 0 then break end
    count = math.min(4 * count, 64)
  end
  redis.call('EXPIRE', stream, lifetime)
end
return 1
)";

std::optional<UpdateId> parse_entry_id(const std::string& text) {
  UpdateId id = 0;
  const char* const text_end = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), text_end, id);
  if (error != std::errc() ||
      std::string_view(end, static_cast<std::size_t>(text_end - end)) != "-0") {
    return std::nullopt;
  }
  return id;
}

// An entry of the stream: its id and its fields.
struct StreamEntry {
  UpdateId id = 0;
  std::string* bytes = nullptr;
  bool is_apart = false;  // the bytes are in the hash
};

std::optional<StreamEntry> parse_entry(RedisReply& entry) {
  const std::string* const name = entry.text_at(0);
  if (name == nullptr || entry.items.size() != 2) return std::nullopt;
  RedisReply& fields = entry.items[1];
  const std::string* const field = fields.text_at(0);
  const std::optional<UpdateId> id = parse_entry_id(*name);
  if (!id || field == nullptr || *field != "b" || fields.text_at(1) == nullptr) return std::nullopt;
  const std::string* const extra = fields.text_at(4);
  return StreamEntry{*id, &fields.items[1].text, extra != nullptr && *extra == "k"};
}

// What an entry says of an update that is not in the stream: its size and its hash.
std::string describe_apart(std::string_view bytes) {
  if (bytes.size() <= pushed_bytes_max || bytes.size() > tier_update_bytes_max) return {};
  char text[40];
  std::snprintf(text, sizeof text, "%zu-%016llx", bytes.size(),
                static_cast<unsigned long long>(hash64(bytes)));
  return text;
}

// Adds the arguments of publish_script, behind its keys. `change`: the record to replace; nullptr:
// none. `first`: where publish() began.
void add_script_arguments(std::vector<std::string>& words, const TierStore::HeadChange* change,
                          const std::string& record, UpdateId first,
                          std::span<const TierStore::UpdateView> updates) {
  if (change != nullptr) {
    words.insert(words.end(),
                 {change->found ? "swap" : "add", change->found ? change->found->bytes : "", record,
                  change->head > published_id_max ? no_head : std::to_string(change->head)});
  } else {
    words.insert(words.end(), {"none", "", "", no_head});
  }
  words.insert(words.end(), {std::to_string(tier_item_lifetime.count()), stream_updates_max,
                             stream_bytes_max, std::to_string(first)});
  for (const TierStore::UpdateView& update : updates) {
    if (update.id > published_id_max) break;
    words.push_back(std::to_string(update.id));
    // Without bytes: too large.
    words.emplace_back(update.bytes.size() <= tier_update_bytes_max ? update.bytes
                                                                    : std::string_view());
    words.push_back(describe_apart(update.bytes));
  }
}

}  // namespace

RedisStore::RedisStore(RedisServer server, std::chrono::milliseconds timeout)
    : server_(std::move(server)),
      timeout_(timeout),
      script_id_(Sha1::hex(publish_script)),
      owner_fork_count_(fork_count()),
      waiters_(std::make_unique<Waiters>()) {
  RedisConnection::prepare(server_);
}

RedisStore::~RedisStore() {
  if (fork_count() == owner_fork_count_) return;
  static_cast<void>(waiters_.release());
  RedisConnection::abandon(std::move(connection_));
  RedisConnection::abandon(std::move(listener_));
  if (attempt_) attempt_->leak_result();
  if (listener_attempt_) listener_attempt_->leak_result();
}

bool RedisStore::is_available() const noexcept {
  return fork_count() == owner_fork_count_ && (!unavailable_until_ || unavailable_until_->passed());
}

void RedisStore::mark_unavailable() {
  connection_.reset();
  unavailable_until_.emplace(redis_retry_delay);
}

// A limit of the caller that is shorter than the timeout tells nothing of the server.
void RedisStore::note_no_answer(std::int64_t began_at_ns) {
  if (boot_time_ns() - began_at_ns >= std::chrono::nanoseconds(timeout_).count())
    mark_unavailable();
}

void RedisStore::note_problem(std::string problem, bool of_writes_only) {
  const MutexLock lock(waiters_->mutex);
  waiters_->problem = std::move(problem);
  waiters_->is_problem_of_writes = of_writes_only;
}

void RedisStore::note_success(bool is_write) {
  const MutexLock lock(waiters_->mutex);
  if (is_write || !waiters_->is_problem_of_writes) waiters_->problem.clear();
}

void RedisStore::note_refusal(const std::string& error) {
  const std::string what =
      error.starts_with("TLS: ") ? "cannot connect to Redis" : "Redis refuses requests";
  note_problem(what + ": server=" + server_.address.text() + " reason=\"" + shortened(error) + '"' +
                   redis_hint(error),
               is_redis_write_refused(error));
}

// --- Requests. ---

std::optional<RedisReply> RedisStore::request(
    const std::string& prefix, RequestKind kind,
    const std::function<std::vector<std::string>(const std::string&)>& make_words,
    std::optional<std::uint64_t>* data_check) {
  if (!is_available()) return std::nullopt;
  const std::int64_t timeout_ns = std::chrono::nanoseconds(timeout_).count();
  const std::int64_t began_at_ns = boot_time_ns();
  const bool is_write = kind == RequestKind::write;
  if (is_write && began_at_ns < read_only_until_ns_) return std::nullopt;
  // A replica may have become the primary. Then it has other keys, which the next connection finds
  // out.
  if (read_only_until_ns_ != 0 && began_at_ns >= read_only_until_ns_) {
    connection_.reset();
    read_only_until_ns_ = 0;
  }
  const Deadline deadline = CallLimit::deadline(timeout_);
  try {
    // A caller with a shorter limit may have left an answer behind, which has arrived since.
    if (connection_ && connection_->waits_since_ns() != 0) connection_->skip_received();
    const std::int64_t waits_since_ns = connection_ ? connection_->waits_since_ns() : 0;
    if (waits_since_ns != 0 && began_at_ns - waits_since_ns > timeout_ns) {
      mark_unavailable();
      return std::nullopt;
    }
    if (connection_ && waits_since_ns == 0 && began_at_ns - last_answer_at_ns_ > idle_ns &&
        !connection_->is_alive())
      connection_.reset();
    if (!connection_) {
      connection_ = connect_redis(server_, timeout_, deadline, attempt_);
      if (connection_) {
        data_id_.store(connection_->data_id(), std::memory_order_relaxed);
        read_only_until_ns_ = 0;  // it may lead to another server
      }
    }
    std::optional<RedisReply> reply;
    if (connection_) {
      const std::vector<std::string> words = make_words(connection_->keys_of(prefix));
      const std::vector<std::string_view> views(words.begin(), words.end());
      const std::uint64_t number = connection_->send(views);
      if (data_check != nullptr) data_check->emplace(connection_->send_data_check());
      reply = connection_->await(number, deadline);
    }
    if (!reply) {
      note_no_answer(began_at_ns);
      return std::nullopt;
    }
    last_answer_at_ns_ = boot_time_ns();
    if (reply->kind != RedisReply::Kind::error) {
      note_success(is_write);
      return reply;
    }
    if (is_missing_script(reply->text)) return reply;
    if (!is_passing_redis_error(reply->text)) note_refusal(reply->text);
    // A server that is full, and a replica, can still be read.
    if (!is_redis_write_refused(reply->text)) mark_unavailable();
    if (reply->text.find("READONLY") != std::string::npos)
      read_only_until_ns_ = boot_time_ns() + std::chrono::nanoseconds(redis_retry_delay).count();
    return std::nullopt;
  } catch (const RedisFailure& failure) {
    if (failure.is_refusal) note_refusal(failure.reason);
  } catch (const Error& error) {  // a file that the options name
    note_problem(error.what());
  } catch (...) {  // out of memory, perhaps while an answer was parsed
    connection_.reset();
    throw;
  }
  mark_unavailable();
  return std::nullopt;
}

std::optional<TierStore::HeadAndLease> RedisStore::get_head(const std::string& prefix) {
  // A record that has changed has to be from the data that the connection was made to. The question
  // follows the request that it is about. It saves a round trip where a change is expected.
  const bool expects_new_head = expects_new_head_.exchange(false, std::memory_order_relaxed);
  std::optional<std::uint64_t> data_check;
  std::optional<RedisReply> reply = request(
      prefix, RequestKind::read,
      [](const std::string& keys) {
        return std::vector<std::string>{"MGET", keys + "head", keys + "ask"};
      },
      expects_new_head ? &data_check : nullptr);
  if (!reply || reply->items.size() != 2) return std::nullopt;
  HeadAndLease found;
  if (const std::string* const head = reply->text_at(0)) found.head = StoredHead{*head};
  const std::uint64_t head_hash = found.head ? hash64(found.head->bytes) : last_head_hash_;
  if (head_hash != last_head_hash_ || data_check) {
    if (!is_same_server(data_check ? *data_check : connection_->send_data_check()))
      return std::nullopt;
    last_head_hash_ = head_hash;
  }
  if (const std::string* const lease = reply->text_at(1)) found.poll_lease = *lease;
  return found;
}

// Whether the answers before that to `data_check` came from the data that the connection was made
// to. A primary that has become a replica keeps its connections.
bool RedisStore::is_same_server(std::uint64_t data_check) {
  const std::int64_t began_at_ns = boot_time_ns();
  try {
    const std::optional<bool> is_same =
        connection_->await_data_check(data_check, CallLimit::deadline(timeout_));
    if (!is_same) {
      note_no_answer(began_at_ns);
    } else if (!*is_same) {
      connection_.reset();
    }
    return is_same.value_or(false);
  } catch (const RedisFailure&) {
    mark_unavailable();
    return false;
  } catch (...) {  // out of memory, perhaps while an answer was parsed
    connection_.reset();
    throw;
  }
}

std::optional<std::vector<std::optional<TierStore::StoredUpdate>>> RedisStore::get_updates(
    const std::string& prefix, UpdateId first, UpdateId last) {
  if (!is_available()) return std::nullopt;
  std::vector<std::optional<StoredUpdate>> updates(last - first + 1);
  bool has_all = true;
  {
    const MutexLock lock(waiters_->mutex);
    for (UpdateId id = first; id <= last && has_all; ++id) {
      const auto found = waiters_->received.find(id);
      has_all = found != waiters_->received.end();
      if (has_all) updates[id - first] = StoredUpdate{std::move(found->second)};
    }
    // Handed out once: if one is wrong, the next request finds what replaced it.
    waiters_->received.clear();
    waiters_->received_bytes = 0;
  }
  if (has_all) return updates;

  std::optional<RedisReply> reply =
      request(prefix, RequestKind::read, [&](const std::string& keys) {
        return std::vector<std::string>{"XRANGE",
                                        keys + "updates",
                                        std::to_string(first) + "-0",
                                        std::to_string(last) + "-0",
                                        "COUNT",
                                        std::to_string(last - first + 1)};
      });
  if (!reply) return std::nullopt;
  std::fill(updates.begin(), updates.end(), std::nullopt);
  std::vector<UpdateId> apart;
  for (RedisReply& entry : reply->items) {
    const std::optional<StreamEntry> found = parse_entry(entry);
    if (!found || found->id < first || found->id > last) continue;
    if (found->is_apart) {
      apart.push_back(found->id);
    } else {
      updates[found->id - first] = StoredUpdate{std::move(*found->bytes)};
    }
  }
  if (apart.empty()) return updates;

  reply = request(prefix, RequestKind::read, [&](const std::string& keys) {
    std::vector<std::string> words = {"HMGET", keys + "bodies"};
    for (const UpdateId id : apart) words.push_back(std::to_string(id));
    return words;
  });
  if (!reply || reply->items.size() != apart.size()) return std::nullopt;
  for (std::size_t i = 0; i < apart.size(); ++i) {
    RedisReply& body = reply->items[i];
    if (body.kind == RedisReply::Kind::text && !body.text.empty())
      updates[apart[i] - first] = StoredUpdate{std::move(body.text)};
  }
  return updates;
}

TierStore::Published RedisStore::publish(const std::string& prefix,
                                         std::span<const UpdateView> updates,
                                         const std::optional<HeadChange>& change) {
  const UpdateId first = updates.empty() ? published_id_max : updates.front().id;
  for (std::size_t begin = 0;;) {
    std::size_t end = begin;
    std::size_t bytes = 0;
    while (end < updates.size() && (end == begin || bytes < publish_bytes_max))
      bytes += updates[end++].bytes.size();
    const bool is_last = end == updates.size();
    bool has_record = false;
    const auto run_script = [&](const std::string& command, const std::string& script) {
      return request(prefix, RequestKind::write, [&](const std::string& keys) {
        const std::optional<std::string> record =
            change && is_last ? change->make_record() : std::nullopt;
        has_record = record.has_value();
        std::vector<std::string> words = {command,       script,           "3",
                                          keys + "head", keys + "updates", keys + "bodies"};
        add_script_arguments(words, record ? &*change : nullptr, record.value_or(""), first,
                             updates.subspan(begin, end - begin));
        return words;
      });
    };
    std::optional<RedisReply> reply = run_script("EVALSHA", script_id_);
    // The server has not run it yet, or has forgotten it.
    if (reply && reply->kind == RedisReply::Kind::error) reply = run_script("EVAL", publish_script);
    if (!reply || reply->kind != RedisReply::Kind::number) return {};
    if (is_last && reply->number == 0) return {false, HeadResult::not_stored};
    if (is_last && has_record) return {true, HeadResult::stored};
    if (is_last) return {true, change ? HeadResult::failed : HeadResult::not_stored};
    begin = end;
  }
}

bool RedisStore::set_if(const std::string& prefix, const std::string& key, std::string_view bytes,
                        std::chrono::seconds duration, bool only_if_absent) {
  const auto make_words = [&](const std::string& keys) {
    std::vector<std::string> words = {"SET", keys + key, std::string(bytes), "EX",
                                      std::to_string(duration.count())};
    if (only_if_absent) words.emplace_back("NX");
    return words;
  };
  const std::optional<RedisReply> reply = request(prefix, RequestKind::write, make_words);
  return reply && reply->kind == RedisReply::Kind::text;
}

bool RedisStore::set_poll_lease(const std::string& prefix, std::string_view lease,
                                std::chrono::seconds duration) {
  return set_if(prefix, "ask", lease, duration, false);
}

bool RedisStore::add_poll_lease(const std::string& prefix, std::string_view lease,
                                std::chrono::seconds duration) {
  return set_if(prefix, "ask", lease, duration, true);
}

bool RedisStore::add_fill_lease(const std::string& prefix, UpdateId id,
                                std::chrono::seconds duration) {
  return set_if(prefix, "fill:" + std::to_string(id), "", duration, true);
}

// --- Waiting. ---

bool RedisStore::notifies() const noexcept {
  return fork_count() == owner_fork_count_ &&
         boot_time_ns() >= refused_until_ns_.load(std::memory_order_relaxed);
}

void RedisStore::note_head(UpdateId head, UpdateId claimed) noexcept {
  if (claimed > head) claimed_head_.compare_exchange_strong(claimed, 0, std::memory_order_relaxed);
}

// Reports what requests have met, once.
void RedisStore::throw_problem() {
  std::string problem;
  {
    const MutexLock lock(waiters_->mutex);
    problem = std::exchange(waiters_->problem, {});
  }
  if (problem.empty()) return;
  refused_until_ns_.store(boot_time_ns() + refusal_ns, std::memory_order_relaxed);
  throw Error(ErrorKind::unavailable, problem);
}

bool RedisStore::wait(const std::string& prefix, UpdateId after, std::chrono::nanoseconds at_most) {
  throw_problem();
  const Deadline deadline = CallLimit::deadline(
      std::chrono::ceil<std::chrono::milliseconds>(std::clamp<std::chrono::nanoseconds>(
          at_most, std::chrono::nanoseconds(0), std::chrono::hours(24))));
  {
    MutexLock lock(waiters_->mutex);
    // The mutex is held while it runs.
    const auto is_done = [&]() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
      return !waiters_->is_listening || claimed_head() > after;
    };
    deadline.wait(lock.native(), waiters_->changed, is_done);
    if (claimed_head() > after) return true;
    if (waiters_->is_listening || deadline.passed()) return false;
    waiters_->is_listening = true;
  }
  bool is_woken = false;
  {
    // Whatever happens, another thread listens next.
    struct StopListening {
      Waiters& waiters;
      ~StopListening() {
        const MutexLock lock(waiters.mutex);
        waiters.is_listening = false;
        waiters.changed.notify_all();
      }
    } const stop_listening{*waiters_};
    try {
      is_woken = listen(prefix, after, deadline);
    } catch (const RedisFailure& failure) {
      is_woken = end_failed_wait(failure, deadline);
    } catch (const Error& error) {  // a file that the options name
      note_problem(error.what());
    } catch (...) {  // out of memory, perhaps while an answer was parsed
      drop_listener();
      throw;
    }
  }
  throw_problem();
  return is_woken;
}

void RedisStore::drop_listener() noexcept {
  listener_.reset();
  pending_read_.reset();
}

bool RedisStore::end_failed_wait(const RedisFailure& failure, const Deadline& deadline) {
  const bool was_listening = listener_ != nullptr;
  drop_listener();
  if (failure.is_refusal) {
    note_refusal(failure.reason);
    return false;
  }
  // Something may have been missed. While the server stays away, nothing more is known.
  if (was_listening) return true;
  CallLimit::sleep(deadline.remaining());
  return false;
}

// The caller is the one thread that listens.
bool RedisStore::listen(const std::string& prefix, UpdateId after, const Deadline& deadline) {
  const bool is_new = !listener_;
  if (!listener_) {
    listener_ = connect_redis(server_, timeout_, deadline, listener_attempt_);
    pending_read_.reset();
    position_.store(0, std::memory_order_relaxed);
    if (!listener_) return false;
  }
  // Requests may reach another server since a failover.
  const std::uint64_t data_id = data_id_.load(std::memory_order_relaxed);
  if (data_id != 0 && data_id != listener_->data_id()) {
    drop_listener();
    if (is_new) deadline.sleep(deadline.remaining());
    return !is_new;
  }
  const std::string key = listener_->keys_of(prefix) + "updates";
  if (pending_read_ && pending_read_->key_hash != hash64(key)) {  // the log was replaced
    drop_listener();
    return true;
  }
  for (;;) {
    if (!pending_read_) send_read(key, after, deadline);
    std::optional<RedisReply> reply = listener_->await(pending_read_->number, deadline);
    if (!reply) {
      const std::int64_t timeout_ns =
          std::chrono::nanoseconds(timeout_ + redis_retry_delay).count();
      if (boot_time_ns() > pending_read_->ends_at_ns + timeout_ns) throw RedisFailure{};
      return false;
    }
    pending_read_.reset();
    if (reply->kind == RedisReply::Kind::error)
      throw RedisFailure{!is_passing_redis_error(reply->text), reply->text};
    if (reply->kind == RedisReply::Kind::nil) {
      position_.store(0, std::memory_order_relaxed);
    } else if (!note_received(*reply)) {
      // The stream has entries of another kind, which XREAD would return again at once.
      deadline.sleep(deadline.remaining());
      return false;
    }
    if (claimed_head() > after) return true;
    if (deadline.passed()) return false;
  }
}

void RedisStore::send_read(const std::string& key, UpdateId after, const Deadline& deadline) {
  // 0 would be without end.
  const std::int64_t left_ms =
      std::chrono::ceil<std::chrono::milliseconds>(deadline.time_left()).count();
  const std::string block_ms = std::to_string(std::max<std::int64_t>(left_ms, 1));
  const std::string from =
      std::to_string(std::max(after, position_.load(std::memory_order_relaxed))) + "-0";
  const std::string_view words[] = {
      "XREAD", "COUNT", updates_per_read_max, "BLOCK", block_ms, "STREAMS", key, from};
  pending_read_ = PendingRead{.number = listener_->send(words),
                              .key_hash = hash64(key),
                              .ends_at_ns = boot_time_ns() + left_ms * 1'000'000};
}

// A list of one stream: its key and its entries. Returns whether there was an update.
bool RedisStore::note_received(RedisReply& reply) {
  if (reply.items.size() != 1 || reply.items[0].items.size() != 2) return false;
  const MutexLock lock(waiters_->mutex);
  UpdateId greatest = 0;
  for (RedisReply& entry : reply.items[0].items[1].items) {
    const std::optional<StreamEntry> found = parse_entry(entry);
    if (!found) continue;
    greatest = std::max(greatest, found->id);
    if (waiters_->received_bytes > received_bytes_max) {
      waiters_->received.clear();
      waiters_->received_bytes = 0;
    }
    if (found->is_apart) continue;  // get_updates() requests it
    waiters_->received_bytes += found->bytes->size() + received_overhead_bytes;
    waiters_->received[found->id] = std::move(*found->bytes);
  }
  if (greatest == 0) return false;
  claimed_head_.store(greatest, std::memory_order_relaxed);
  position_.store(greatest, std::memory_order_relaxed);
  expects_new_head_.store(true, std::memory_order_relaxed);
  waiters_->changed.notify_all();
  return true;
}

}  // namespace whycache
