#include "analysis/regression_check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "analysis/analyze.hpp"
#include "support/error.hpp"
#include "support/strings.hpp"
#include "torchpace/comparison.hpp"

namespace torchpace::cli {

FailOn parse_fail_on(const std::string& text) {
  std::string compact = text;
  std::erase(compact, ' ');
  const std::string start = "speedup<";
  try {
    if (!compact.starts_with(start)) throw std::invalid_argument(text);
    size_t used = 0;
    const double below = std::stod(compact.substr(start.size()), &used);
    if (start.size() + used != compact.size() || !(below > 0) || std::isinf(below)) {
      throw std::invalid_argument(text);
    }
    return {below};
  } catch (const std::logic_error&) {
    throw Error(
        fmt::format("--fail-on: expected speedup<NUMBER such as speedup<0.9, found '{}'", text));
  }
}

Regressions find_regressions(const Results& results, const FailOn& rule) {
  struct Row {
    const CaseResult* result;
    const RuntimeResult* row;
    std::vector<double> logs;
  };
  Regressions regressions;
  std::vector<Row> rows;
  for (const auto& result : results.cases) {
    const auto* reference = result.find(result.reference);
    for (const auto& row : result.runtimes) {
      if (row.is_copy() || &row == reference || row.status != Status::ok) continue;
      if (row.approximate) continue;
      if (reference == nullptr || !result.counts(row)) {
        regressions.not_judged.push_back(
            fmt::format("{}: the speedup of {} is implausible, so --fail-on does not judge it",
                        result.name, row.runtime));
        continue;
      }
      rows.push_back({&result, &row, invocation_log_ratios(*reference, row)});
    }
  }
  if (rows.empty()) return regressions;
  // Bonferroni: a row alone may be wrong in one of rows.size() times as many runs.
  const double error = (1 - results.plan.confidence) / static_cast<double>(rows.size());
  const double confidence = 1 - 2 * error;  // one bound of the interval is used
  const auto needed = sign_test_needs(confidence);
  for (const auto& [result, row, logs] : rows) {
    if (logs.size() < needed) {
      regressions.not_judged.push_back(fmt::format(
          "{}: {} has {} invocations, and --fail-on needs {} to judge {} at {:g} %: --invocations "
          "{}",
          result->name, row->runtime, logs.size(), needed, counted(std::ssize(rows), "row"),
          100 * results.plan.confidence, needed));
      continue;
    }
    const auto ratio = exponential(sign_test_interval(logs, confidence));
    if (ratio.high >= rule.below) continue;
    regressions.found.push_back(
        fmt::format("{}: speedup of {} is {:.3f} [{:.3f}, {:.3f}], below {} ({} at {:g} % in all)",
                    result->name, row->runtime, ratio.median, ratio.low, ratio.high, rule.below,
                    counted(std::ssize(rows), "row"), 100 * results.plan.confidence));
  }
  return regressions;
}

int exit_code(const Results& results, const std::optional<FailOn>& rule) {
  const auto any = [&](Status status) {
    return std::any_of(results.cases.begin(), results.cases.end(), [&](const CaseResult& result) {
      return std::any_of(result.runtimes.begin(), result.runtimes.end(),
                         [&](const RuntimeResult& row) { return row.status == status; });
    });
  };
  if (any(Status::invalid)) return kParityFailed;
  if (any(Status::failed)) return kCaseFailed;
  if (rule && !find_regressions(results, *rule).found.empty()) return kRegression;
  return any(Status::ok) || !any(Status::skipped) ? kOk : kSkipped;
}

}  // namespace torchpace::cli
