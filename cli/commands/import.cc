// whycache import FILE
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/change_list.h"
#include "cli/change_reader.h"
#include "cli/command.h"
#include "cli/escape.h"
#include "cli/format.h"
#include "cli/mirror.h"
#include "cli/progress.h"
#include "cli/target.h"
#include "client/guards.h"
#include "update/update.h"

namespace whycache::cli {
namespace {

struct ImportArguments {
  Target target;
  std::string file;
  FormatOptions format;
  bool dry_run = false;
  std::uint64_t from_line = 1;
  std::optional<std::string> mirror;
  bool skip_equal = false;
  EraseOptions erase;
  std::string note;
  bool json = false;
  bool quiet = false;
};

// The changes of one update, copied out of the input.
class ImportBatch {
 public:
  // Upper bounds for the overhead of an update and of each of its changes.
  static constexpr std::size_t update_overhead_bytes = 1024;
  static constexpr std::size_t change_overhead_bytes = 16;

  explicit ImportBatch(std::size_t update_bytes_max)
      : bytes_max_(update_bytes_max > update_overhead_bytes
                       ? update_bytes_max - update_overhead_bytes
                       : 0) {}

  // A change that is too large for any update gets a batch of its own, so that the library refuses
  // it alone.
  bool has_room_for(const Change& change) const {
    return changes_.empty() || bytes_ + bytes_of(change) <= bytes_max_;
  }
  void add(const Change& change, std::uint64_t line) {
    if (changes_.empty()) first_line_ = line;
    last_line_ = line;
    bytes_ += bytes_of(change);
    changes_.add(change);
  }
  void clear() {
    changes_.clear();
    bytes_ = 0;
  }
  bool empty() const { return changes_.empty(); }
  std::uint64_t first_line() const { return first_line_; }
  std::uint64_t last_line() const { return last_line_; }
  std::vector<Change> changes() const { return changes_.changes(); }

 private:
  static std::size_t bytes_of(const Change& change) {
    return change.key.size() + change.value.size() + change_overhead_bytes;
  }

  std::size_t bytes_max_;
  std::size_t bytes_ = 0;
  std::uint64_t first_line_ = 0;
  std::uint64_t last_line_ = 0;
  ChangeList changes_;
};

// Reads the input once if it can erase nothing, or if the user has agreed to whatever it erases.
// Otherwise counts first what it would erase.
class Importer {
 public:
  explicit Importer(const ImportArguments& arguments)
      : arguments_(arguments),
        input_(arguments.file),
        reader_(input_, arguments.format),
        batch_(arguments.target.update_bytes_max),
        progress_(arguments.dry_run ? "reading" : "importing", input_.bytes_total(),
                  Progress::Unit::bytes, arguments.quiet) {
    if (arguments_.dry_run) return;
    cache_ = open_cache_with_log(arguments_.target);
    if (arguments_.mirror || arguments_.skip_equal)
      ask_before_write(arguments_.target, [&] { cache_->update(); });
  }

  void run() {
    if (cache_ && arguments_.mirror) {
      plan_mirror();
    } else if (cache_ && input_.is_seekable() && input_.contains("\"erase\"")) {
      count_erased_keys();
    }
    for (Change change; next_change(change);) {
      if (reader_.line_number() < arguments_.from_line) continue;
      if (is_erase(change) && cache_ && !may_erase_) {
        // The first erased key of a pipe, whose earlier lines cannot be read again.
        erased_keys_.emplace(change.key);
        const std::string key(change.key);
        write_batch();
        count_erased_keys();
        change = Change::erase(key);
        add(change);
      } else {
        add(change);
      }
      progress_.update(input_.bytes_read(), items_read_ + erases_read_);
    }
    for (const std::string& key : mirror_.keys_to_erase()) add_to_batch(Change::erase(key));
    write_batch();
    progress_.hide();
  }

  void report(Output& output) const {
    const std::uint64_t update_count = cache_ ? cache_->counters().updates_written : 0;
    const std::uint64_t erased = erases_read_ + mirror_.keys_to_erase().size();
    if (arguments_.json) {
      Json object{{"items", items_read_}, {"dry_run", arguments_.dry_run}};
      object["erased"] = erased;
      if (cache_) {
        object["skipped"] = items_skipped_;
        object["updates"] = update_count;
        object["last_update_id"] = last_id_;
      }
      output.write_json(object);
      return;
    }
    std::string text = format_count(items_read_, "item");
    if (erased > 0) text += " and " + format_count(erased, "key") + " to erase";
    if (items_skipped_ > 0) text += fmt::format(", {} of them equal", items_skipped_);
    if (!cache_) {
      output.write_line(text + " can be imported");
    } else if (update_count == 0) {
      output.write_line(text + ", nothing was written");
    } else {
      output.write_line(fmt::format("{} in {}, the last is update {}", text,
                                    format_count(update_count, "update"), last_id_));
    }
  }

 private:
  // Reads the whole input, and finds the keys with the prefix that it does not have.
  void plan_mirror() {
    if (arguments_.from_line > 1) {
      throw Failure(ExitCode::usage, "--mirror and --from-line exclude each other",
                    "import the whole input: it is harmless to import items again");
    }
    const View view = cache_->view();
    mirror_.plan(input_, reader_, *arguments_.mirror, view);
    require_consent(view, mirror_.keys_to_erase().size());
  }

  void update_before_erasing() {
    try {
      cache_->update();
    } catch (const Error& error) {
      progress_.hide();
      throw Error(error.kind(), completed_message() + ": " + error.what(), error.system_error());
    }
  }

  // Counts the present keys that the rest of the input erases, beside those in erased_keys_.
  void count_erased_keys() {
    update_before_erasing();
    const bool is_limited = !arguments_.erase.yes || arguments_.erase.erase_max.has_value();
    if (is_limited || cache_->contains(log_guards_key)) {
      input_.hold();
      const std::uint64_t position = input_.position();
      const ChangeReader start = reader_;
      try {
        for (Change change; reader_.next(change);) {
          if (is_erase(change) && reader_.line_number() >= arguments_.from_line)
            erased_keys_.emplace(change.key);
        }
      } catch (const Failure&) {
        // Reported when it is reached. Nothing behind it is erased.
      }
      reader_ = start;
      input_.seek(position);
      const View view = cache_->view();
      require_consent(view, static_cast<std::uint64_t>(std::count_if(
                                erased_keys_.begin(), erased_keys_.end(),
                                [&](const std::string& key) { return view.contains(key); })));
      erased_keys_.clear();
    }
    may_erase_ = true;
  }

  // Throws Failure if the user, or Error if a guard of the log, does not let this be erased.
  void require_consent(const View& view, std::uint64_t erased) {
    progress_.hide();
    arguments_.erase.require_consent(completed_message(), erased, view.size(), 0);
    check_log_guards(view, erased);
    may_erase_ = true;
  }

  // Writes the changes before bad input first, because the message says that those lines are done.
  bool next_change(Change& change) {
    try {
      return reader_.next(change);
    } catch (const Failure& failure) {
      write_batch();
      progress_.hide();
      if (!cache_) throw;
      throw Failure(failure.code(), failure.what(),
                    failure.next_step() + "; " + completed_message());
    }
  }

  void add(const Change& change) {
    ++(is_erase(change) ? erases_read_ : items_read_);
    add_to_batch(change);
  }

  void add_to_batch(const Change& change) {
    if (!batch_.has_room_for(change)) write_batch();
    batch_.add(change, reader_.line_number());
  }

  void write_batch() {
    if (batch_.empty()) return;
    std::vector<Change> changes = batch_.changes();
    if (cache_) {
      if (arguments_.skip_equal) drop_equal(changes);
      try {
        if (!changes.empty()) last_id_ = cache_->write(changes, {.note = arguments_.note});
      } catch (const Error& error) {
        progress_.hide();
        throw Error(error.kind(),
                    fmt::format("{}; lines {}..{}: {}",
                                error.kind() == ErrorKind::uncertain ? uncertain_message()
                                                                     : completed_message(),
                                batch_.first_line(), batch_.last_line(), error.what()),
                    error.system_error());
      }
    } else {
      check_change_fits(changes);
    }
    last_line_ = batch_.last_line();
    batch_.clear();
  }

  // If a key is changed twice, its last change counts, so the first one is not compared.
  void drop_equal(std::vector<Change>& changes) {
    const View view = cache_->view();
    std::vector<Change> kept;
    std::set<std::string_view> seen;
    for (std::size_t i = changes.size(); i-- > 0;) {
      const Change& change = changes[i];
      if (!seen.insert(change.key).second) continue;
      if (has_effect(change, view)) {
        kept.push_back(change);
      } else if (!is_erase(change)) {
        ++items_skipped_;
      }
    }
    std::reverse(kept.begin(), kept.end());
    changes = std::move(kept);
  }

  // Makes the same check as the library before a write.
  void check_change_fits(const std::vector<Change>& changes) const {
    Draft draft(Authorship{.note = arguments_.note});
    if (changes.size() > 1 || draft.add(changes[0], arguments_.target.update_bytes_max)) return;
    throw Failure(
        ExitCode::limit,
        fmt::format("bad input: path={} line={} reason=\"the item does not fit into one update\" "
                    "bytes_max={}",
                    input_.name(), batch_.first_line(), arguments_.target.update_bytes_max),
        "split the value, or raise --update-bytes-max");
  }

  std::string completed_message() const {
    if (last_line_ == 0) return "nothing was imported";
    return fmt::format("lines up to {} are in the log, up to update {}; resume with --from-line {}",
                       last_line_, last_id_, last_line_ + 1);
  }

  // The lines of the batch may be in the log, or are in it and could not be applied here.
  std::string uncertain_message() const {
    return fmt::format("importing them again is harmless; resume with --from-line {}",
                       batch_.first_line());
  }

  const ImportArguments& arguments_;
  Input input_;
  ChangeReader reader_;
  std::unique_ptr<Cache> cache_;
  ImportBatch batch_;
  Progress progress_;
  MirrorPlan mirror_;
  std::set<std::string> erased_keys_;
  bool may_erase_ = false;
  std::uint64_t items_read_ = 0;
  std::uint64_t items_skipped_ = 0;
  std::uint64_t erases_read_ = 0;
  std::uint64_t last_line_ = 0;
  UpdateId last_id_ = 0;
};

ExitCode import_items(const ImportArguments& arguments, Output& output) {
  Importer importer(arguments);
  importer.run();
  importer.report(output);
  return ExitCode::done;
}

CommandAction prepare_import(CLI::App& parser) {
  const auto arguments = std::make_shared<ImportArguments>();
  parser.add_option("FILE", arguments->file, "the input; - is standard input")
      ->type_name("")
      ->required();
  add_format_options(parser, arguments->format);
  parser.add_flag("--dry-run", arguments->dry_run,
                  "check the whole input without writing; needs no log");
  parser
      .add_option("--from-line", arguments->from_line,
                  "first line to import, to resume an import that stopped")
      ->type_name("N");
  parser
      .add_option("--mirror", arguments->mirror,
                  "erase the keys that begin with PREFIX and are not in the input")
      ->type_name("PREFIX");
  parser.add_flag("--skip-equal", arguments->skip_equal,
                  "write no item that the cache has already with the same value");
  add_erase_options(parser, arguments->erase);
  add_writer_options(parser, arguments->target, arguments->note);
  add_json_option(parser, arguments->json);
  add_quiet_option(parser, arguments->quiet);
  add_update_bytes_max_option(parser, arguments->target);
  add_target_options(parser, arguments->target);
  arguments->target.creates_log = true;
  return [arguments](Output& output) { return import_items(*arguments, output); };
}

}  // namespace

const Command import_command{
    "import", "set many keys from a file",
    R"(Sets every key in a file, in updates of as many items as fit. The file is read in pieces, so
it may be larger than memory. If the import stops, the message says how many lines are done and how
to resume. Importing the same lines again is harmless.

Formats:
  jsonl     one line per item: {"key":"a","value":"b"}; "key_base64" and "value_base64" for any
            bytes; {"key":"a","erase":true} erases; "typed":true for a value that is the JSON of a
            typed one; other fields and empty lines are ignored
  json      one document: {"a":"b","c":5}, or an array of objects as above or of pairs ["a","b"]
  csv       with a header; the columns key and value, or --key-column and --value-column
  tsv       key, tab, value; \\ \t \n \r \xNN stand for bytes, as `whycache scan` prints them
  raw-tsv   key, tab, value; a backslash is a backslash
  null      key, zero byte, value, zero byte

An import that would erase keys that are present prints how many, and needs --yes or --erase-max.
A pipe is read up to its first erase before that; a file, or with --mirror, nothing is written.)",
    R"(Examples:
  whycache import flags.jsonl
  whycache import --mirror flags. --skip-equal flags.json    no other keys begin with flags. then
  zcat words.tsv.gz | whycache import --format raw-tsv -
  whycache import --dry-run flags.jsonl              names the first bad line
  whycache scan --json --log sqlite:///old.db | whycache import --log sqlite:///new.db -

Exit codes: 0 all imported, 2 bad input, 3 the log did not answer, 5 log or state are damaged,
  7 permission, 8 it erases keys without --yes, or a guard of the log forbids it,
  9 an item does not fit into an update, or the disk is full)",
    prepare_import};

}  // namespace whycache::cli
