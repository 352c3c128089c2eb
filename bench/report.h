// Collects measurements over the repetitions, prints them as a table, and writes them as JSON, one
// object per line:
//
//   {"workload": "get_uniform", "items": 1000000, "subject": "absl", "unit": "ns",
//    "median": 171.2, "min": 168.9, "max": 180.3}
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace bench {

class Report {
 public:
  // Adds the figure of one repetition.
  void add(const std::string& workload, std::uint64_t items, const std::string& subject,
           const std::string& unit, double figure);

  // Prints the table of one workload, with ratios to the first subject that has a figure.
  void print(const std::string& workload, std::uint64_t items) const;

  // Returns nullopt if there is no figure.
  std::optional<double> median(const std::string& workload, std::uint64_t items,
                               const std::string& subject) const;

  // Throws std::runtime_error if the file cannot be written.
  void write_json(const std::string& path) const;

 private:
  struct Measurement {
    std::string workload;
    std::uint64_t items;
    std::string subject;
    std::string unit;
    std::vector<double> figures;  // one per repetition
  };

  std::vector<Measurement> measurements_;
};

}  // namespace bench
