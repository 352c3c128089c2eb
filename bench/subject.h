// What is measured: whycache, or a rival, each in a file of its own, subject_<name>.cc. See
// README.md for how to add one.
//
// Such a file holds a class (a store) with the functions named in StoreSubject below; what it
// cannot do it leaves out, and the table then has no figure there. The loops of workload.h are
// compiled into each of these files around the store's functions, so that nothing lies between a
// loop and the rival that its users would not have.
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
  // One copying get, for who times them singly.
  virtual bool get(std::string_view key, std::string& value) = 0;

  // Sets items, as one atomic batch if there is such a thing. False: it is there for reading only.
  virtual bool measures_writes() const = 0;
  virtual void set(std::span<const Item> items) = 0;
  // After the last set(): from here on it is read.
  virtual void finish_writing() = 0;

  // Bytes of its files, or of its server's memory. What lies on our heap is counted by who asks.
  virtual std::uint64_t external_bytes() const = 0;
  // Whether it has files that another process can open, or a server: not so in private memory.
  virtual bool is_shared() const = 0;
  // The same, while yet another process writes.
  virtual bool allows_concurrent_writer() const = 0;
  // Whether a server answers: then it is the time on the wall that counts, and it reads fewer keys.
  virtual bool uses_server() const = 0;

  // Lets go of its files, and opens them again so far that `key` is read.
  virtual bool can_reopen() const = 0;
  virtual void close() = 0;
  virtual bool open_and_get(std::string_view key, std::string& value) = 0;
};

using MakeSubject = std::unique_ptr<Subject>(const std::string& folder, std::uint64_t items_max);

template <typename Store>
class StoreSubject final : public Subject {
 public:
  // A store may put its files into `folder`, which it finds empty, and is removed afterwards.
  StoreSubject(const std::string& folder, std::uint64_t items_max) : store_(folder, items_max) {}

  bool supports(ReadLoop loop) const override {
    switch (loop) {
      case ReadLoop::get: return CanGet<Store>;
      case ReadLoop::get_serial: return CanGet<Store>;
      case ReadLoop::get_miss: return CanGet<Store>;
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
