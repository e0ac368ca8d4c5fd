// The limit of a case: the shortest time in which this machine can do a step's multiply-adds and
// read its bytes, and how near each row comes to it.
#pragma once

#include <optional>
#include <string>

#include "results/results.hpp"

namespace torchpace::cli {

std::string dtype_of(const Results& results, const CaseResult& result);
bool is_on_cpu(const Results& results, const CaseResult& result);

/// Whether its arithmetic is what the loops of machine_limits.hpp measure.
bool is_measurable(const Results& results, const CaseResult& result);

/// What a step reads over and over, in bytes. Training counts its parameters and moments twice,
/// read and written.
double working_set(const CaseResult& result);

/// Whether the limits of this run are not the row's: other arithmetic, or more threads. Takes the
/// derived `differs`.
bool is_incomparable(const Results& results, const RuntimeResult& row);

/// Nothing where neither time is known: on CUDA, without measured limits, or without counts.
std::optional<StepLimit> step_limit(const Results& results, const CaseResult& result);

/// Fills in the shares of a row from its derived step time; NaN where a limit is not known or is
/// not the row's.
void analyze_shares(const Results& results, const CaseResult& result, RuntimeResult& row);

}  // namespace torchpace::cli
