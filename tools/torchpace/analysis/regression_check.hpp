// What a run means to a script: its exit code, and --fail-on.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "results/results.hpp"

namespace torchpace::cli {

/// `speedup<X` of --fail-on: fires where the whole interval lies below X.
struct FailOn {
  double below = 0;
};

/// Throws Error unless the text is speedup<NUMBER.
FailOn parse_fail_on(const std::string& text);

/// One line for each row that regressed, and for each that cannot be judged.
struct Regressions {
  std::vector<std::string> found;
  std::vector<std::string> not_judged;
};

/// Judges all rows together: where none is slower, a run is red in at most 1 - plan.confidence of
/// all runs. The more rows, the wider their intervals and the more invocations they need.
Regressions find_regressions(const Results& results, const FailOn& rule);

/// 3 parity failed, 1 a case failed, 5 a regression, 77 all was skipped, 0 else; the first that
/// holds. Takes results that are derived.
int exit_code(const Results& results, const std::optional<FailOn>& rule);

}  // namespace torchpace::cli
