// A subject of the benchmarks: whycache or a rival, each in a file subject_<name>.cc. README.md
// says how to add one.
//
// The file contains a class (a store) with the functions that StoreSubject below calls. The store
// leaves out what it cannot do, and the table then has no figure there. Each file compiles the
// loops of workload.h around the functions of its store, so that a
// loop calls the rival as directly as a user's program does.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "bench/data.h"
#include "bench/workload.h"

namespace bench {

class Subject {
 public:
  virtual ~Subject() = default;

  virtual bool supports(ReadLoop loop) const = 0;
  virtual ReadChecksum run(ReadLoop loop, std::span<const std::string_view> keys) = 0;
  // Makes one copying get, for programs that time single gets.
  virtual bool get(std::string_view key, std::string& value) = 0;

  // Whether writes are measured; if not, the subject is only for reading.
  virtual bool measures_writes() const = 0;
  // Sets items, as one atomic batch if the subject has batches.
  virtual void set(std::span<const Item> items) = 0;
  // Called after the last set() and before the first read.
  virtual void finish_writing() = 0;

  // Returns the bytes of its files or of its server's memory. The caller counts its heap.
  virtual std::uint64_t external_bytes() const = 0;
  // Whether other processes can read it, through files or a server.
  virtual bool is_shared() const = 0;
  // Whether other processes can read it while one writes.
  virtual bool allows_concurrent_writer() const = 0;
  // Whether it uses a server: then figures are wall time, and fewer keys are read.
  virtual bool uses_server() const = 0;

  // close() closes its files; open_and_get() opens them again and reads `key`.
  virtual bool can_reopen() const = 0;
  virtual void close() = 0;
  virtual bool open_and_get(std::string_view key, std::string& value) = 0;
};

using MakeSubject = std::unique_ptr<Subject>(const std::string& directory, std::uint64_t items_max);

template <typename Store>
class StoreSubject final : public Subject {
 public:
  // A store may put its files into `directory`, which is empty at first and removed afterwards.
  StoreSubject(const std::string& directory, std::uint64_t items_max)
      : store_(directory, items_max) {}

  bool supports(ReadLoop loop) const override {
    switch (loop) {
      case ReadLoop::get: return CanGet<Store>;
      case ReadLoop::get_serial: return CanGet<Store>;
      case ReadLoop::get_miss: return CanGet<Store>;
      case ReadLoop::get_new: return CanGetNew<Store>;
      case ReadLoop::view_get: return CanView<Store>;
      case ReadLoop::get_multi: return CanGetMulti<Store>;
      case ReadLoop::scan_items: return CanScan<Store>;
      case ReadLoop::scan_keys: return CanScan<Store>;
    }
    return false;
  }

  ReadChecksum run(ReadLoop loop, std::span<const std::string_view> keys) override {
    return bench::run(loop, store_, keys);
  }
  bool get(std::string_view key, std::string& value) override { return store_.get(key, value); }

  bool measures_writes() const override {
    if constexpr (requires { Store::is_read_only; }) return false;
    return true;
  }
  void set(std::span<const Item> items) override { store_.set(items); }
  void finish_writing() override {
    if constexpr (requires { store_.finish_writing(); }) store_.finish_writing();
  }

  std::uint64_t external_bytes() const override {
    if constexpr (requires { store_.external_bytes(); }) return store_.external_bytes();
    return 0;
  }
  bool is_shared() const override {
    return requires(Store & store) { store.close(); };
  }
  bool allows_concurrent_writer() const override {
    if constexpr (requires { Store::writer_excludes_readers; }) return false;
    return is_shared() && measures_writes();
  }
  bool uses_server() const override {
    return requires { Store::server_name; };
  }

  bool can_reopen() const override { return is_shared() && measures_writes(); }
  void close() override {
    if constexpr (requires { store_.close(); }) store_.close();
  }
  bool open_and_get(std::string_view key, std::string& value) override {
    if constexpr (requires { store_.open(); }) store_.open();
    return store_.get(key, value);
  }

 private:
  Store store_;
};

}  // namespace bench
