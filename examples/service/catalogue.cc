#include "catalogue.h"

#include <string_view>
#include <utility>

namespace service {
namespace {

// Returns null if the value is no product: another program may have written it.
std::shared_ptr<const Product> parse_product(std::string_view text) {
  nlohmann::json fields = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!fields.is_object() || !fields.contains("price") || !fields["price"].is_number())
    return nullptr;
  return std::make_shared<const Product>(Product{std::string(text), std::move(fields)});
}

// Takes over the products of `previous` whose text is the same.
Catalogue read_catalogue(const whycache::View& view, const Catalogue* previous) {
  Catalogue catalogue{.id = view.id(), .digest = view.digest(), .entries = {}, .invalid_count = 0};
  const std::size_t prefix_bytes = std::string_view(catalogue_prefix).size();
  for (const auto [key, text] : view.items(whycache::KeyRange::prefix(catalogue_prefix))) {
    const std::string_view name = key.substr(prefix_bytes);
    std::shared_ptr<const Product> product;
    if (previous != nullptr) {
      const auto known = previous->entries.find(name);
      if (known != previous->entries.end() && known->second.product->text == text)
        product = known->second.product;
    }
    if (!product) product = parse_product(text);
    if (!product) {
      ++catalogue.invalid_count;
      continue;
    }
    catalogue.entries.emplace(name, Catalogue::Entry{view.version(key).value_or(0), product});
  }
  return catalogue;
}

}  // namespace

std::shared_ptr<const Catalogue> CatalogueReader::current() {
  const std::lock_guard lock(mutex_);
  // The id alone would do, but for a log that is restored from a backup and then reaches the id
  // again with other updates.
  if (!latest_ || latest_->id != cache_.applied_id() || latest_->digest != cache_.digest()) {
    const whycache::View view = cache_.view();
    latest_ = std::make_shared<const Catalogue>(read_catalogue(view, latest_.get()));
  }
  return latest_;
}

std::optional<std::string> find_fault(const whycache::Change& change) {
  if (change.kind == whycache::Change::Kind::erase || !change.key.starts_with(catalogue_prefix))
    return std::nullopt;
  if (parse_product(change.value)) return std::nullopt;
  return "a product is a JSON object with a number `price`";
}

}  // namespace service
