// `torchpace compare`: from the words of the command line to results.json and the report.
#pragma once

#include <functional>

#include "plan/comparison_plan.hpp"

namespace torchpace::cli {

/// Returns the exit code. Throws Error.
int compare(const CompareOptions& options);

/// The same with another plan: `change` is called with what the words say before anything is
/// measured.
int compare(const CompareOptions& options, const std::function<void(ExperimentOptions&)>& change);

}  // namespace torchpace::cli
