// The catalogue: values that hold JSON, parsed once per update and not once per request.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include <whycache/cache.h>
#include <nlohmann/json.hpp>

namespace service {

inline constexpr const char* catalogue_prefix = "catalogue/";

struct Product {
  std::string text;  // the value, as it is in the cache
  nlohmann::json fields;
};

// The catalogue as of one update id. It never changes, so any number of threads can read it.
struct Catalogue {
  struct Entry {
    whycache::UpdateId version = 0;  // for Cache::set_if_version()
    std::shared_ptr<const Product> product;
  };

  whycache::UpdateId id = 0;
  whycache::Digest digest;
  std::map<std::string, Entry, std::less<>> entries;  // by name
  std::size_t invalid_count = 0;                      // values that are no products, left out
};

// Keeps the newest catalogue of this process.
class CatalogueReader {
 public:
  explicit CatalogueReader(const whycache::Cache& cache) : cache_(cache) {}

  // Returns the catalogue as of the applied id. Parses what has changed since the last call, while
  // other threads that call it wait. Throws whycache::Error.
  std::shared_ptr<const Catalogue> current();

 private:
  const whycache::Cache& cache_;
  std::mutex mutex_;
  std::shared_ptr<const Catalogue> latest_;
};

// Options::guards: returns why a change must not be written to the catalogue, or nullopt.
std::optional<std::string> find_fault(const whycache::Change& change);

}  // namespace service
