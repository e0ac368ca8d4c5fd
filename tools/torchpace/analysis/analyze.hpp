// From raw samples to every number, verdict and derived warning of a results.json.
#pragma once

#include <vector>

#include "results/results.hpp"

namespace torchpace::cli {

/// Computes all that is derived. Idempotent.
void analyze(Results& results);

/// The derived part of `cores`, and which rounds are excluded.
void exclude_rounds(Results& results);

/// The derived part of the case's explanation, if it has one; its rows are analyzed.
void analyze_breakdown(CaseResult& result);

/// log(reference / row), one value per invocation: the median over the rounds that both measured.
std::vector<double> invocation_log_ratios(const RuntimeResult& reference, const RuntimeResult& row);

}  // namespace torchpace::cli
