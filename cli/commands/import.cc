// whycache import FILE
#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/item_format.h"
#include "cli/progress.h"
#include "cli/target.h"
#include "update/update.h"

namespace whycache::cli {
namespace {

struct ImportArguments {
  Target target;
  std::string file;
  std::string format = "auto";
  bool null_separated = false;
  bool dry_run = false;
  std::uint64_t from_line = 1;
  std::string note;
  bool json = false;
  bool quiet = false;

  ItemReader::InputFormat input_format() const {
    if (null_separated) return ItemReader::InputFormat::null;
    const auto parsed = ItemReader::parse_format(format);
    if (!parsed)
      throw Failure(ExitCode::usage, "no such format: name=" + format,
                    "choose auto, jsonl, tsv, raw-tsv or null");
    return *parsed;
  }
};

// The items of one update, copied out of the input.
class ImportBatch {
 public:
  // Upper bounds for the overhead of an update and of each of its items.
  static constexpr std::size_t update_overhead_bytes = 1024;
  static constexpr std::size_t item_overhead_bytes = 16;

  explicit ImportBatch(std::size_t update_bytes_max)
      : bytes_max_(update_bytes_max > update_overhead_bytes
                       ? update_bytes_max - update_overhead_bytes
                       : 0) {}

  // An item that is too large for any update gets a batch of its own, so that the library refuses
  // it alone.
  bool has_room_for(const Item& item) const {
    return items_.empty() || bytes_ + item_bytes_max(item) <= bytes_max_;
  }
  void add(const Item& item, std::uint64_t line) {
    if (items_.empty()) first_line_ = line;
    last_line_ = line;
    bytes_ += item_bytes_max(item);
    items_.emplace_back(item.key, item.value);
  }
  void clear() {
    items_.clear();
    bytes_ = 0;
  }
  bool empty() const { return items_.empty(); }
  std::size_t size() const { return items_.size(); }
  std::uint64_t first_line() const { return first_line_; }
  std::uint64_t last_line() const { return last_line_; }
  std::vector<Item> items() const {
    std::vector<Item> items;
    items.reserve(items_.size());
    for (const auto& [key, value] : items_) items.push_back({key, value});
    return items;
  }

 private:
  static std::size_t item_bytes_max(const Item& item) {
    return item.key.size() + item.value.size() + item_overhead_bytes;
  }

  std::size_t bytes_max_;
  std::size_t bytes_ = 0;
  std::uint64_t first_line_ = 0;
  std::uint64_t last_line_ = 0;
  std::vector<std::pair<std::string, std::string>> items_;
};

class Importer {
 public:
  explicit Importer(const ImportArguments& arguments)
      : arguments_(arguments),
        input_(arguments.file),
        reader_(input_, arguments.input_format()),
        batch_(arguments.target.update_bytes_max),
        progress_(arguments.dry_run ? "reading" : "importing", input_.bytes_total(),
                  Progress::Unit::bytes, arguments.quiet) {
    if (!arguments_.dry_run) cache_ = open_cache(arguments_.target);
  }

  void run() {
    for (Item item; next_item(item);) {
      if (reader_.line_number() < arguments_.from_line) continue;
      if (!batch_.has_room_for(item)) write_batch();
      batch_.add(item, reader_.line_number());
      ++items_read_;
      progress_.update(input_.bytes_read(), items_read_);
    }
    write_batch();
    progress_.hide();
  }

  void report(Output& output) const {
    const std::uint64_t update_count = cache_ ? cache_->counters().updates_written : 0;
    if (arguments_.json) {
      Json object{{"items", items_read_}, {"dry_run", arguments_.dry_run}};
      if (cache_) {
        object["updates"] = update_count;
        object["last_update_id"] = last_id_;
      }
      output.write_json(object);
    } else if (!cache_) {
      output.write_line(fmt::format("{} items can be imported", items_read_));
    } else if (items_read_ == 0) {
      output.write_line("0 items, nothing was written");
    } else {
      output.write_line(fmt::format("{} items in {} update{}, the last is update {}", items_read_,
                                    update_count, update_count == 1 ? "" : "s", last_id_));
    }
  }

 private:
  // Writes the items before bad input first, because the message says that those lines are done.
  bool next_item(Item& item) {
    try {
      return reader_.next(item);
    } catch (const Failure& failure) {
      write_batch();
      progress_.hide();
      if (!cache_) throw;
      throw Failure(failure.code(), failure.what(),
                    failure.next_step() + "; " + completed_message());
    }
  }

  void write_batch() {
    if (batch_.empty()) return;
    const std::vector<Item> items = batch_.items();
    if (cache_) {
      try {
        last_id_ = cache_->set_multi(items, {.note = arguments_.note});
      } catch (const Error& error) {
        progress_.hide();
        throw Error(
            error.kind(),
            fmt::format(
                "{} (at lines {}..{}; {})", error.what(), batch_.first_line(), batch_.last_line(),
                error.kind() == ErrorKind::uncertain ? uncertain_message() : completed_message()),
            error.system_error());
      }
    } else {
      check_item_fits(items);
    }
    last_line_ = batch_.last_line();
    batch_.clear();
  }

  // Makes the same check as the library before a write.
  void check_item_fits(const std::vector<Item>& items) const {
    Draft draft(Authorship{.note = arguments_.note});
    if (items.size() > 1 ||
        draft.add(Change::set(items[0].key, items[0].value), arguments_.target.update_bytes_max))
      return;
    throw Failure(
        ExitCode::limit,
        fmt::format("bad input: path={} line={} reason=\"the item does not fit into one update\" "
                    "bytes_max={}",
                    input_.name(), batch_.first_line(), arguments_.target.update_bytes_max),
        "split the value, or raise --update-bytes-max on every machine");
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
  ItemReader reader_;
  std::unique_ptr<Cache> cache_;
  ImportBatch batch_;
  Progress progress_;
  std::uint64_t items_read_ = 0;
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
  parser
      .add_option("--format", arguments->format,
                  "auto, jsonl, tsv, raw-tsv, null (auto: jsonl if it begins with {, else tsv)")
      ->type_name("NAME");
  add_null_option(parser, arguments->null_separated, "the same as --format null");
  parser.add_flag("--dry-run", arguments->dry_run,
                  "check the whole input without writing; needs no log");
  parser
      .add_option("--from-line", arguments->from_line,
                  "first line to import, to resume an import that stopped")
      ->type_name("N");
  add_note_option(parser, arguments->note);
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
            bytes; "typed":true for a value that is the JSON of a typed one; other fields and
            empty lines are ignored
  tsv       key, tab, value; \\ \t \n \r \xNN stand for bytes, as `whycache scan` prints them
  raw-tsv   key, tab, value; a backslash is a backslash
  null      key, zero byte, value, zero byte)",
    R"(Examples:
  whycache import flags.jsonl
  zcat words.tsv.gz | whycache import --format raw-tsv -
  whycache import --dry-run flags.jsonl              names the first bad line
  whycache scan --json --log sqlite:///old.db | whycache import --log sqlite:///new.db -

Exit codes: 0 all imported, 2 bad input, 3 the log did not answer, 5 log or state are damaged,
  7 permission, 9 an item does not fit into an update, or the disk is full)",
    prepare_import};

}  // namespace whycache::cli
