// Rows that are too fast to have done the work of their case: more multiply-adds in a second than
// the machine can do, or fewer seconds than it takes to read what a step must read.
#pragma once

#include <string>

#include "results/results.hpp"

namespace torchpace::cli {

/// Why a row cannot have done the work of its case, one line with the figures; empty where it can
/// have, or where no limit is known. Takes derived step times.
std::string implausible(const Results& results, const CaseResult& result, const RuntimeResult& row);

/// Measures the limits that the cases of a run need and that it lacks. Nothing else may run.
void measure_limits(Results& results);

/// Measures again the limits that rows have passed, a few times at most, and those that matrix
/// products have, once, and derives: a limit that was taken in a bad moment must not condemn a row,
/// nor show it nearer than it is.
void confirm_implausible(Results& results);

}  // namespace torchpace::cli
