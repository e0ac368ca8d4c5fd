// What a run shows, in words: who leads, by how much, and what may be made of it. Every report says
// these lines. Takes results that are analyzed.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "results/results.hpp"

namespace torchpace::cli {

/// A case's speedup with `*` where a setting that decides about time differs: `1.33x*
/// [1.31, 1.36]`.
std::string speedup_text(const RuntimeResult& row);

/// Rows whose speedup counts, the fastest first: without the reference, copies and conditions.
std::vector<const RuntimeResult*> ranking(const CaseResult& result);

/// What a case shows, in sentences.
struct Headline {
  std::string leader;    // the fastest runtime; empty where none is
  std::string sentence;  // of the leader, or why there is none
  std::string others;    // the rest by verdict; may be empty
};
Headline headline(const CaseResult& result, double delta);

/// The fastest runtime of a case, and those that are not significantly different from it, in a
/// line. Empty where none is known.
std::string fastest_text(const CaseResult& result);

/// How often each verdict fell, in the order of to_string; without those that never did.
std::vector<std::pair<std::string, int>> tally(const Results& results);

/// The lines of the summary: whether the run may be quoted, the tally, what may be wrong by chance,
/// and the geometric mean of each runtime.
std::vector<std::string> summary_lines(const Results& results);

/// What `*` stands for, a line for each setting that differs.
std::vector<std::string> footnotes(const Results& results);

/// Whether several runtimes were compared with a reference.
bool has_several(const Results& results);

}  // namespace torchpace::cli
