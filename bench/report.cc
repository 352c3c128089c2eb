#include "bench/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace bench {
namespace {

struct Summary {
  double median;
  double min;
  double max;
};

Summary summarize(std::vector<double> figures) {
  std::ranges::sort(figures);
  const std::size_t half = figures.size() / 2;
  const double median =
      figures.size() % 2 == 1 ? figures[half] : (figures[half - 1] + figures[half]) / 2;
  return {median, figures.front(), figures.back()};
}

std::string format_figure(double value) {
  return fmt::format("{:.{}f}", value, value < 1000 ? 1 : 0);
}

}  // namespace

void Report::add(const std::string& workload, std::uint64_t items, const std::string& subject,
                 const std::string& unit, double figure) {
  for (Measurement& row : measurements_) {
    if (row.workload == workload && row.items == items && row.subject == subject) {
      row.figures.push_back(figure);
      return;
    }
  }
  measurements_.push_back({workload, items, subject, unit, {figure}});
}

void Report::print(const std::string& workload, std::uint64_t items) const {
  double first = 0;
  for (const Measurement& row : measurements_) {
    if (row.workload != workload || row.items != items) continue;
    const Summary summary = summarize(row.figures);
    if (first == 0) {
      first = summary.median;
      fmt::print("\n{}, {} items, {}\n", workload, items, row.unit);
    }
    fmt::print("  {:<19}{:>9}   {:>10} .. {:<10} {:>6.2f} x\n", row.subject,
               format_figure(summary.median), format_figure(summary.min),
               format_figure(summary.max), summary.median / first);
  }
  std::fflush(stdout);
}

std::optional<double> Report::median(const std::string& workload, std::uint64_t items,
                                     const std::string& subject) const {
  for (const Measurement& row : measurements_) {
    if (row.workload == workload && row.items == items && row.subject == subject)
      return summarize(row.figures).median;
  }
  return std::nullopt;
}

void Report::write_json(const std::string& path) const {
  std::ofstream file(path);
  for (const Measurement& row : measurements_) {
    const Summary summary = summarize(row.figures);
    nlohmann::ordered_json line;
    line["workload"] = row.workload;
    line["items"] = row.items;
    line["subject"] = row.subject;
    line["unit"] = row.unit;
    line["median"] = summary.median;
    line["min"] = summary.min;
    line["max"] = summary.max;
    file << line << '\n';
  }
  if (!file.flush()) throw std::runtime_error("cannot write: path=" + path);
}

}  // namespace bench
