// From raw samples to every number, verdict and derived warning of a results.json.
#pragma once

#include <vector>

#include "results/results.hpp"

namespace torchpace::cli {

/// Computes all that is derived. Idempotent.
void analyze(Results& results);

/// The derived part of `cores`, and which rounds are excluded.
void exclude_rounds(Results& results);

/// Core-to-core latencies of all rounds, in ns.
std::vector<double> all_core_latency_ns(const Results& results);

/// The derived part of the case's explanation, if it has one; its rows are analyzed.
void analyze_breakdown(CaseResult& result);

/// log(reference / row), one value per invocation: the median over the rounds that both measured,
/// of the rounds that count or of those excluded.
std::vector<double> invocation_log_ratios(const RuntimeResult& reference, const RuntimeResult& row,
                                          bool excluded = false);

}  // namespace torchpace::cli
