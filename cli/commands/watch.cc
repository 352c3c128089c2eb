// whycache watch [PREFIX]
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <whycache/changes.h>
#include <whycache/value.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/outage.h"
#include "cli/command.h"
#include "cli/escape.h"
#include "cli/format.h"
#include "cli/stop_signals.h"
#include "cli/target.h"
#include "cli/value_json.h"

namespace whycache::cli {
namespace {

struct WatchArguments {
  Target target;
  std::string prefix;
  std::optional<UpdateId> from;
  std::optional<std::chrono::nanoseconds> interval;
  std::string command;  // --exec
  bool json = false;
  ValueForm value_form = ValueForm::typed;
};

const char* kind_name(FeedChange::Kind kind) {
  switch (kind) {
    case FeedChange::Kind::set: return "set";
    case FeedChange::Kind::erase: return "erase";
    case FeedChange::Kind::erase_all: return "erase_all";
    case FeedChange::Kind::reset: return "reset";
  }
  return "?";
}

bool has_key(const FeedChange& change) {
  return change.kind == FeedChange::Kind::set || change.kind == FeedChange::Kind::erase;
}

Json as_json(const FeedChange& change, ValueForm form) {
  Json object;
  object["id"] = change.id;
  object["kind"] = kind_name(change.kind);
  if (has_key(change)) put_bytes(object, "key", change.key);
  if (change.kind == FeedChange::Kind::set) put_value(object, change.value, form);
  const auto since_epoch = change.time.time_since_epoch();
  object["time"] =
      format_time(std::chrono::duration_cast<std::chrono::microseconds>(since_epoch).count());
  if (change.kind == FeedChange::Kind::reset) {
    put_bytes(object, "reason", change.note);
  } else {
    put_bytes(object, "writer", change.writer);
    if (!change.note.empty()) put_bytes(object, "note", change.note);
  }
  object["ends_update"] = change.ends_update;
  return object;
}

std::string as_line(const FeedChange& change, ValueForm form) {
  std::string line = fmt::format("{}\t{}", change.id, kind_name(change.kind));
  if (has_key(change)) line += "\t" + escape(change.key);
  if (change.kind == FeedChange::Kind::set) line += "\t" + value_to_line(change.value, form);
  return line;
}

// Returns the standard input of a command: the bytes that `whycache get` prints.
std::string bytes_for_command(std::string_view value, ValueForm form) {
  if (form == ValueForm::raw || !is_typed_value(value)) return std::string(value);
  try {
    return json_line(value_to_json(value)) + "\n";
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::corrupt) throw;
    return std::string(value);
  }
}

// A file in memory, at its beginning, as the standard input of a command that may not read it.
FileDescriptor input_with(std::string_view bytes) {
  FileDescriptor file(::memfd_create("value", MFD_CLOEXEC));
  if (!file) throw system_error("cannot make the input of the command", "memfd", errno);
  write_all(file.number(), bytes, "memfd");
  ::lseek(file.number(), 0, SEEK_SET);
  return file;
}

// Returns the environment of this process with the variables that describe the change.
std::vector<std::string> environment_for(const FeedChange& change) {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text(*variable);
    const bool is_ours = text.starts_with("WHYCACHE_KEY=") ||
                         text.starts_with("WHYCACHE_KEY_BASE64=") ||
                         text.starts_with("WHYCACHE_ID=") || text.starts_with("WHYCACHE_KIND=");
    if (!is_ours) variables.emplace_back(text);
  }
  variables.push_back(fmt::format("WHYCACHE_ID={}", change.id));
  variables.push_back(fmt::format("WHYCACHE_KIND={}", kind_name(change.kind)));
  if (!has_key(change)) return variables;
  // An environment cannot hold a zero byte.
  if (change.key.find('\0') == std::string_view::npos)
    variables.push_back("WHYCACHE_KEY=" + std::string(change.key));
  variables.push_back("WHYCACHE_KEY_BASE64=" + encode_base64(change.key));
  return variables;
}

std::string describe_end(int status) {
  if (WIFSIGNALED(status)) return fmt::format("signal={}", WTERMSIG(status));
  return fmt::format("exit_code={}", WEXITSTATUS(status));
}

// Waits for the end of a process that leads its own group. A stop ends the whole group by SIGTERM.
void wait_for_group(pid_t leader, const std::stop_token& stop) {
  const std::stop_callback terminate(stop, [leader] { ::kill(-leader, SIGTERM); });
  // The process stays a zombie, and its number taken, until no signal can be sent to it any more.
  siginfo_t end;
  while (::waitid(P_PID, static_cast<id_t>(leader), &end, WEXITED | WNOWAIT) < 0 &&
         errno == EINTR) {
  }
}

// Runs the command for one change and waits for its end. A stop ends the command by SIGTERM.
// Returns what went wrong, or an empty string.
std::string run_command(const std::string& command, const FeedChange& change, ValueForm form,
                        const std::stop_token& stop) {
  const FileDescriptor input = input_with(bytes_for_command(change.value, form));
  const std::vector<std::string> variables = environment_for(change);
  std::vector<char*> environment;
  environment.reserve(variables.size() + 1);
  for (const std::string& variable : variables)
    environment.push_back(const_cast<char*>(variable.c_str()));
  environment.push_back(nullptr);
  std::string shell = "/bin/sh";
  std::string option = "-c";
  std::string script = command;
  char* const words[] = {shell.data(), option.data(), script.data(), nullptr};
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawn_file_actions_adddup2(&files, input.number(), STDIN_FILENO);
  // A shell cannot reset a signal that it finds ignored, as SIGPIPE is in this process.
  sigset_t broken_pipe;
  ::sigemptyset(&broken_pipe);
  ::sigaddset(&broken_pipe, SIGPIPE);
  sigset_t mask;  // without the signals that StopSignals blocks
  ::pthread_sigmask(SIG_BLOCK, nullptr, &mask);
  ::sigdelset(&mask, SIGINT);
  ::sigdelset(&mask, SIGTERM);
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setsigdefault(&attributes, &broken_pipe);
  ::posix_spawnattr_setsigmask(&attributes, &mask);
  ::posix_spawnattr_setpgroup(&attributes, 0);  // a group of its own
  ::posix_spawnattr_setflags(
      &attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
  pid_t child = 0;
  const int error =
      ::posix_spawn(&child, shell.c_str(), &files, &attributes, words, environment.data());
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&files);
  if (error != 0)
    return fmt::format("cannot be started: reason=\"{}\"", std::system_category().message(error));
  wait_for_group(child, stop);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return status == 0 ? std::string() : "failed: " + describe_end(status);
}

class Watcher {
 public:
  Watcher(const WatchArguments& arguments, Output& output)
      : arguments_(arguments),
        output_(output),
        interval_(arguments.interval.value_or(std::chrono::seconds(1))),
        cache_(open()) {}

  void run() {
    const UpdateId from = arguments_.from.value_or(cache_->applied_id());
    Changes changes =
        cache_->changes(from, KeyRange::prefix(arguments_.prefix), {.deadline = {}, .stop = stop_});
    print_message(fmt::format("watching: state={} prefix={} from={}", cache_->state_path(),
                              escape(arguments_.prefix), from));
    while (!stop_.stop_requested()) {
      ask_log_if_due();
      print_what_is_there(changes);
    }
    output_.flush();
  }

 private:
  std::unique_ptr<Cache> open() const {
    const ProcessEndAtStop end(stop_);
    return open_cache(arguments_.target);
  }

  // A process that follows the log asks it for all. If none does, this one asks.
  void ask_log_if_due() {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_question_at_) return;
    next_question_at_ = now + interval_;
    note_outcome(trouble_of_log_, [&] {
      cache_->update({.staleness_max = interval_, .deadline = {}, .stop = stop_});
    });
  }

  void print_what_is_there(Changes& changes) {
    const auto longest = std::chrono::milliseconds(100);
    const auto wait = std::min(longest, std::chrono::ceil<std::chrono::milliseconds>(interval_));
    note_outcome(trouble_of_feed_, [&] {
      for (std::optional<FeedChange> change = changes.next(wait); change;
           change = changes.next(std::chrono::milliseconds(0))) {
        handle(*change);
        if (stop_.stop_requested()) return;
      }
    });
    output_.flush();
  }

  void handle(const FeedChange& change) {
    if (change.kind == FeedChange::Kind::reset) {
      output_.flush();
      print_message(fmt::format("changes are missing: id={}: {}", change.id, escape(change.note)),
                    "scan the keys again");
    }
    if (arguments_.json) {
      output_.write_json(as_json(change, arguments_.value_form));
    } else {
      output_.write_line(as_line(change, arguments_.value_form));
    }
    if (arguments_.command.empty()) return;
    output_.flush();  // before what the command prints
    const std::string fault = run_command(arguments_.command, change, arguments_.value_form, stop_);
    if (fault.empty()) return;
    print_message(
        fmt::format("command {}: id={} kind={} key={} command={}", fault, change.id,
                    kind_name(change.kind), escape(change.key), escape(arguments_.command)),
        next_step(change));
  }

  std::string next_step(const FeedChange& change) const {
    if (!stop_.stop_requested()) return "none needed: the watch continues";
    if (change.kind == FeedChange::Kind::reset) return "scan the keys again";
    return fmt::format("to run it again: --from {}", change.id - 1);
  }

  struct Trouble {
    Outage outage;
    std::chrono::milliseconds pause{0};
  };

  // An error of the log or the state does not end the watch: it is reported when it begins, at
  // growing intervals while it lasts, and when it is over.
  template <typename Call>
  void note_outcome(Trouble& trouble, const Call& call) {
    try {
      call();
      if (const std::optional<std::chrono::nanoseconds> lasted = trouble.outage.note_success())
        print_message(fmt::format("watching again after {}", format_duration(*lasted)));
      trouble.pause = std::chrono::milliseconds(0);
    } catch (const Error& error) {
      if (stop_.stop_requested()) return;  // perhaps the reason
      if (const std::optional<std::chrono::nanoseconds> lasted = trouble.outage.note_failure())
        print_message(error.what(), "none needed if it passes: the watch continues");
      trouble.pause = std::min<std::chrono::milliseconds>(
          2 * trouble.pause + std::chrono::milliseconds(10), std::chrono::seconds(1));
      Deadline(trouble.pause, stop_).sleep(trouble.pause);
    }
  }

  const WatchArguments& arguments_;
  Output& output_;
  const StopSignals signals_;  // installed before the cache is opened, which starts threads
  const std::stop_token stop_ = signals_.token();
  const std::chrono::nanoseconds interval_;
  const std::unique_ptr<Cache> cache_;
  std::chrono::steady_clock::time_point next_question_at_{};
  Trouble trouble_of_log_;
  Trouble trouble_of_feed_;  // which may have all changes while the log is away
};

ExitCode watch(const WatchArguments& arguments, Output& output) {
  check_target(arguments.target);
  Watcher(arguments, output).run();
  return ExitCode::done;
}

CommandAction prepare_watch(CLI::App& parser) {
  const auto arguments = std::make_shared<WatchArguments>();
  parser.add_option("PREFIX", arguments->prefix, "only keys that begin with this")->type_name("");
  parser.add_option("--from", arguments->from, "changes beyond this update (those from now on)")
      ->type_name("ID")
      ->check(CLI::NonNegativeNumber);
  parser.add_option("--exec", arguments->command, "run COMMAND by the shell for each change")
      ->type_name("COMMAND");
  add_duration_option(parser, "--interval", arguments->interval,
                      "how often to poll the log if no other process does (1s)");
  add_json_option(parser, arguments->json);
  add_raw_bytes_option(parser, arguments->value_form);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return watch(*arguments, output); };
}

}  // namespace

const Command watch_command{
    "watch", "print each change of keys as it is applied",
    R"(Prints the id of the update, set or erase, the key, and the value, with tabs between them.
Does so for each change that this machine applies, whichever machine made it. An update that erases
everything is printed as erase_all, whatever PREFIX is. Lines are escaped as those of `whycache
scan`.

Changes come from the ring of recent changes beside the state, and from the log if the ring no
longer has them. If neither has, as after a rewrite of history or a restored log, prints reset with
the id: what was printed before is incomplete, so scan the keys again.

With --json each line says in ends_update whether the update has no further change. To resume
without a gap, pass --from the id of the last line with ends_update true that was handled.

With --exec, the environment of COMMAND has WHYCACHE_ID, WHYCACHE_KIND, WHYCACHE_KEY (unless the
key has a zero byte) and WHYCACHE_KEY_BASE64, and its standard input the value, as `whycache get`
prints it. The next change waits until COMMAND has ended. If it fails, that is reported, and the
watch continues. Nothing that happens to log or state ends the watch. SIGINT and SIGTERM do,
whatever it waits for. A COMMAND that runs then gets SIGTERM, with all that it started, and is
waited for; a second signal ends the watch without that.)",
    R"(Examples:
  whycache watch
  whycache watch user. --json
  whycache watch user. --from 1200                    changes since update 1200 first
  whycache watch proxy. --exec 'systemctl reload proxy'
  whycache watch --exec 'cat > "files/$WHYCACHE_KEY"'

Exit codes: 0 ended by a signal, 2 the command line is wrong, 3 the log did not answer and there is
  no state, 9 standard output cannot be written)",
    prepare_watch};

}  // namespace whycache::cli
