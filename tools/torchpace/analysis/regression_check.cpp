#include "analysis/regression_check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "support/error.hpp"

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
  Regressions regressions;
  for (const auto& result : results.cases) {
    for (const auto& row : result.runtimes) {
      if (row.is_copy() || row.runtime == result.reference || row.status != Status::ok) continue;
      if (!result.counts(row)) {
        regressions.not_judged.push_back(
            fmt::format("{}: the speedup of {} is implausible, so --fail-on does not judge it",
                        result.name, row.runtime));
        continue;
      }
      const auto& ratio = row.speedup.ratio;
      if (!ratio.bounded()) {
        regressions.not_judged.push_back(fmt::format(
            "{}: {} has no interval, so --fail-on cannot judge it", result.name, row.runtime));
      } else if (ratio.high < rule.below) {
        regressions.found.push_back(
            fmt::format("{}: speedup of {} is {:.3f} [{:.3f}, {:.3f}], below {}", result.name,
                        row.runtime, ratio.median, ratio.low, ratio.high, rule.below));
      }
    }
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
