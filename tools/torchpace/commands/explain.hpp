// `torchpace explain CASE A B`: a comparison of two runtimes on one case, with the same two under
// other conditions and with probes, from which analyze() makes a waterfall (docs/explain.md).
#pragma once

#include <string>

#include "plan/comparison_plan.hpp"

namespace torchpace::cli {

struct ExplainOptions {
  std::string case_name, from, to;
  CompareOptions how;  // what of it says how to measure
};

/// Returns the exit code. Throws Error.
int explain(const ExplainOptions& options);

/// Leaves the two runtimes of an experiment, adds their conditions and says which are probed.
/// Throws Error unless there is one case and the two are two.
void plan_explanation(const ExplainOptions& options, ExperimentOptions& experiment);

}  // namespace torchpace::cli
