// Options of `compare` and `explain` that say how to measure.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "plan/comparison_plan.hpp"

namespace torchpace::cli {

/// Defaults that the two commands have of their own, as their help says them.
struct MeasuringDefaults {
  std::string invocations, max_seconds;
};

void add_measuring_options(CLI::App& app, CompareOptions& options,
                           const MeasuringDefaults& defaults);

}  // namespace torchpace::cli
