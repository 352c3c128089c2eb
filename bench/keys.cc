// Measures the key index alone, in private memory: nanoseconds per operation and bytes of nodes per
// key.
//
//   build/release/bin/bench_keys [keys] [rounds]
//
// Each figure is processor time, the least of all rounds, because the machine may be busy.
// "Published every n": after n keys every node is copied before it is changed again, as the state
// does after an update of n changes.
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "state/btree/cursor.h"
#include "state/btree/writer.h"

namespace {

using whycache::BTreeCursor;
using whycache::BTreeWriter;
using whycache::node_bytes_of;
using whycache::NodeHeader;
using whycache::NodeOffset;

// Nodes in one block of memory. There are no views, so a retired node is free after the next
// publish.
class BenchmarkNodes : public whycache::NodeStore {
 public:
  BenchmarkNodes()
      : base_(static_cast<std::byte*>(::mmap(nullptr, bytes_max, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (base_ == MAP_FAILED) std::abort();
  }
  BenchmarkNodes(const BenchmarkNodes&) = delete;
  BenchmarkNodes& operator=(const BenchmarkNodes&) = delete;
  ~BenchmarkNodes() override { ::munmap(base_, bytes_max); }

  const std::byte* node(NodeOffset offset, std::size_t& bytes) const override {
    if (offset < node_bytes_of(0) || offset >= end_) std::abort();
    bytes = end_ - offset;
    return base_ + offset;
  }
  NodeOffset allocate_node(std::size_t size_class) override {
    live_bytes_ += node_bytes_of(size_class);
    NodeOffset& free = free_[size_class];
    NodeOffset offset = free;
    if (offset != 0) {
      free = header(offset).next;
    } else {
      offset = end_;
      end_ += node_bytes_of(size_class);
      if (end_ > bytes_max) std::abort();
    }
    header(offset) = {0, version_, static_cast<std::uint8_t>(size_class), {}};
    return offset;
  }
  void retire_node(NodeOffset offset) override {
    live_bytes_ -= node_bytes_of(header(offset).size_class);
    if (is_private(offset)) {
      release(offset);
    } else {
      retired_.push_back(offset);
    }
  }
  std::byte* writable_node(NodeOffset offset) override { return base_ + offset; }
  bool is_private(NodeOffset offset) const override { return header(offset).stamp == version_; }

  void publish() {
    for (const NodeOffset offset : retired_) release(offset);
    retired_.clear();
    ++version_;
  }
  std::size_t live_bytes() const { return live_bytes_; }

 private:
  static constexpr std::size_t bytes_max = std::size_t{8} << 30;

  NodeHeader& header(NodeOffset offset) const {
    return *reinterpret_cast<NodeHeader*>(base_ + offset);
  }
  void release(NodeOffset offset) {
    NodeOffset& free = free_[header(offset).size_class];
    header(offset).next = free;
    free = offset;
  }

  std::byte* base_;
  std::size_t end_ = node_bytes_of(0);
  std::size_t live_bytes_ = 0;
  std::uint64_t version_ = 1;
  NodeOffset free_[whycache::node_size_class_count] = {};
  std::vector<NodeOffset> retired_;
};

using Keys = std::vector<std::string>;

// Keeps the compiler from removing the measured code.
void do_not_optimize(std::string_view key) {
  asm volatile("" : : "r"(key.data()), "r"(key.size()));
}

double process_cpu_time_ns() {
  timespec time;
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

class Workload {
 public:
  Workload(std::string shape, Keys keys)
      : shape_(std::move(shape)), shuffled_(std::move(keys)), sorted_(shuffled_) {
    std::sort(sorted_.begin(), sorted_.end());
    sorted_batches_ = shuffled_;
    for (std::size_t i = 0; i < sorted_batches_.size(); i += keys_per_batch) {
      std::sort(sorted_batches_.begin() + static_cast<std::ptrdiff_t>(i),
                sorted_batches_.begin() + static_cast<std::ptrdiff_t>(std::min(
                                              i + keys_per_batch, sorted_batches_.size())));
    }
  }

  void run() {
    measure_set();
    measure_changes();
    measure_publishing_each();
    measure_sorted_batches();
    measure_one_batch();
    measure_ordered_inserts();
  }

  void print() const {
    std::printf("%s, %zu keys\n", shape_.c_str(), shuffled_.size());
    for (const std::string& name : names_) {
      std::printf("  %-52s %9.2f%s\n", name.c_str(), values_.at(name), name[0] == ' ' ? "" : " ns");
    }
    std::fflush(stdout);
  }

 private:
  void measure_set() {
    std::set<std::string, std::less<>> set;
    measure("std::set, insert, random", shuffled_.size(), [&] {
      for (const std::string& key : shuffled_) set.insert(key);
    });
    measure("std::set, lower_bound, random", shuffled_.size(), [&] {
      for (const std::string& key : shuffled_) do_not_optimize(*set.lower_bound(key));
    });
  }

  void measure_changes() {
    Tree tree;
    change_each_key("insert, random, published every 1000", shuffled_, tree,
                    [&](std::string_view key) { tree.insert(key); });
    record("  bytes per key", tree.bytes_per_key());
    measure_reads(tree, "");
    const Keys most(shuffled_.begin(),
                    shuffled_.begin() + static_cast<std::ptrdiff_t>(shuffled_.size() / 10 * 9));
    change_each_key("erase 90 %, random, published every 1000", most, tree,
                    [&](std::string_view key) { tree.erase(key); });
    tree.key_count = shuffled_.size() - most.size();
    record("  bytes per key", tree.bytes_per_key());
    Tree fresh;
    change_each_key(
        "", Keys(shuffled_.begin() + static_cast<std::ptrdiff_t>(most.size()), shuffled_.end()),
        fresh, [&](std::string_view key) { fresh.insert(key); });
    record("  bytes per key of a tree of the rest", fresh.bytes_per_key());
  }

  void measure_publishing_each() {
    Tree tree;
    change_each_key("insert, random, published every 1", shuffled_, tree,
                    [&](std::string_view key) {
                      tree.insert(key);
                      tree.nodes.publish();
                    });
  }

  void measure_sorted_batches() {
    Tree tree;
    change_in_batches("insert_sorted, 1000 random keys at a time", sorted_batches_, keys_per_batch,
                      tree,
                      [&](std::span<const std::string_view> keys) { tree.insert_sorted(keys); });
    record("  bytes per key", tree.bytes_per_key());
    change_in_batches("erase_sorted, 1000 random keys at a time", sorted_batches_, keys_per_batch,
                      tree,
                      [&](std::span<const std::string_view> keys) { tree.erase_sorted(keys); });
  }

  void measure_one_batch() {
    Tree tree;
    change_in_batches("insert_sorted, everything at once", sorted_, sorted_.size(), tree,
                      [&](std::span<const std::string_view> keys) { tree.insert_sorted(keys); });
    record("  bytes per key", tree.bytes_per_key());
    measure_reads(tree, ", dense");
  }

  void measure_ordered_inserts() {
    {
      Tree tree;
      change_in_batches("insert_sorted, 1000 ascending keys at a time", sorted_, keys_per_batch,
                        tree,
                        [&](std::span<const std::string_view> keys) { tree.insert_sorted(keys); });
      record("  bytes per key", tree.bytes_per_key());
    }
    {
      Tree tree;
      change_each_key("insert, ascending, published every 1000", sorted_, tree,
                      [&](std::string_view key) { tree.insert(key); });
      record("  bytes per key", tree.bytes_per_key());
    }
    {
      Tree tree;
      change_each_key("insert, descending, published every 1000",
                      Keys(sorted_.rbegin(), sorted_.rend()), tree,
                      [&](std::string_view key) { tree.insert(key); });
      record("  bytes per key", tree.bytes_per_key());
    }
  }

  static constexpr std::size_t keys_per_batch = 1000;

  struct Tree {
    BenchmarkNodes nodes;
    BTreeWriter writer{nodes};
    NodeOffset root = 0;
    std::size_t key_count = 0;

    void insert(std::string_view key) { root = writer.insert(root, key); }
    void erase(std::string_view key) { root = writer.erase(root, key); }
    void insert_sorted(std::span<const std::string_view> keys) {
      root = writer.insert_sorted(root, keys);
    }
    void erase_sorted(std::span<const std::string_view> keys) {
      root = writer.erase_sorted(root, keys);
    }
    double bytes_per_key() const {
      return static_cast<double>(nodes.live_bytes()) / static_cast<double>(key_count);
    }
  };

  void measure_reads(const Tree& tree, const std::string& what) {
    BTreeCursor cursor(tree.nodes);
    measure("scan, next" + what, tree.key_count, [&] {
      for (cursor.seek(tree.root, ""); !cursor.at_end(); cursor.next())
        do_not_optimize(cursor.key());
    });
    std::vector<std::string_view> keys;
    measure("scan, next_batch" + what, tree.key_count, [&] {
      cursor.seek(tree.root, "");
      while (cursor.next_batch(keys) > 0) {
        for (const std::string_view key : keys) do_not_optimize(key);
      }
    });
    measure("seek, random" + what, shuffled_.size(), [&] {
      for (const std::string& key : shuffled_) {
        cursor.seek(tree.root, key);
        do_not_optimize(cursor.key());
      }
    });
  }

  void change_each_key(const std::string& name, const Keys& keys, Tree& tree,
                       const std::function<void(std::string_view)>& change) {
    measure(name, keys.size(), [&] {
      for (std::size_t i = 0; i < keys.size(); ++i) {
        change(keys[i]);
        if (i % keys_per_batch == keys_per_batch - 1) tree.nodes.publish();
      }
    });
    tree.key_count = keys.size();
  }

  void change_in_batches(const std::string& name, const Keys& keys, std::size_t batch_size,
                         Tree& tree,
                         const std::function<void(std::span<const std::string_view>)>& change) {
    const std::vector<std::string_view> views(keys.begin(), keys.end());
    measure(name, keys.size(), [&] {
      for (std::size_t i = 0; i < views.size(); i += batch_size) {
        change(std::span(views).subspan(i, std::min(batch_size, views.size() - i)));
        tree.nodes.publish();
      }
    });
    tree.key_count = keys.size();
  }

  void measure(const std::string& name, std::size_t count, const std::function<void()>& work) {
    const double begin = process_cpu_time_ns();
    work();
    const double took = process_cpu_time_ns() - begin;
    if (!name.empty()) record(name, took / static_cast<double>(count));
  }

  // Bytes per key are printed below the figure they belong to, because their names are alike.
  void record(const std::string& name, double value) {
    const std::string unique = name[0] == ' ' ? name + ": " + last_heading_ : name;
    if (name[0] != ' ') last_heading_ = name.substr(0, name.find(','));
    const auto [at, is_new] = values_.emplace(unique, value);
    at->second = std::min(at->second, value);
    if (is_new) names_.push_back(unique);
  }

  std::string shape_;
  Keys shuffled_;  // in random order
  Keys sorted_;
  Keys sorted_batches_;  // in random order, but every 1,000 sorted
  std::string last_heading_;
  std::vector<std::string> names_;
  std::map<std::string, double> values_;
};

std::string formatted(const char* format, unsigned long long number) {
  char text[256];
  std::snprintf(text, sizeof text, format, number);
  return text;
}

}  // namespace

int main(int argument_count, char** arguments) {
  const std::size_t count =
      argument_count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 1'000'000;
  const int rounds = argument_count > 2 ? std::atoi(arguments[2]) : 3;
  std::mt19937_64 random(1);

  Keys numbers;
  Keys hexadecimal;
  Keys paths;
  for (std::size_t i = 0; i < count; ++i) {
    numbers.push_back(formatted("user:%010llu", i));
    hexadecimal.push_back(formatted("%016llx", random()) + formatted("%016llx", random()));
    paths.push_back(formatted("https://example.org/shop/%llu/", random() % 1000) +
                    formatted("category/%llu/", random() % 50) +
                    formatted("article-%llx?color=blue&size=12&sort=price", random()));
  }
  std::shuffle(numbers.begin(), numbers.end(), random);

  std::vector<Workload> workloads;
  workloads.emplace_back("user:%010d", std::move(numbers));
  workloads.emplace_back("32 hexadecimal digits", std::move(hexadecimal));
  workloads.emplace_back("URLs", std::move(paths));
  for (Workload& workload : workloads) {
    for (int round = 0; round < rounds; ++round) workload.run();
    workload.print();
  }
}
