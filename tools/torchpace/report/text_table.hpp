// The tables of cold start and memory, and rows that need no place in any table: what the
// terminal's report and Markdown share.
#pragma once

#include <string>
#include <vector>

#include "results/results.hpp"

namespace torchpace::cli {

/// The rows of a case; the first cell of each is the runtime.
struct TableGroup {
  std::string name;
  std::string note;  // one line; empty if there is none
  std::vector<std::vector<std::string>> rows;
};

struct Table {
  std::string title;
  std::string note;
  std::vector<std::string> head;
  std::vector<TableGroup> groups;  // of cases that have rows
};

/// Bytes counted tensor by tensor: `parameters 13 MiB, gradients 13 MiB`; empty if not known.
std::string counted_bytes(const CaseResult& result);

/// Whether any row of a case ran on a device whose time is known apart from the host's.
bool has_device_time(const CaseResult& result);

/// `290 us, host 305 us: launch bound`; n/a on the CPU.
std::string device_text(const RuntimeResult& row);

/// What bounds a step: `bound by compute (FMA peak 190 GFLOP/s)`; empty where it is not known.
std::string bound_text(const CaseResult& result);

/// What stands above a case's table: noise, FLOPs and items of a step, GEMM peak, what bounds it.
std::string about_text(const CaseResult& result);

/// The stages of a fresh process until its first step, and what they cost in steps.
Table cold_table(const Results& results);

/// Peaks of a fresh process; the note of each case has what was counted.
Table memory_table(const Results& results);

/// A runtime that was measured on no case of several, for the same reason everywhere.
struct Folded {
  std::string runtime;
  std::string text;  // skipped on all 9 cases: reason
};
std::vector<Folded> folded_rows(const Results& results);
bool is_folded(const std::vector<Folded>& folded, const std::string& runtime);

/// One line for all rows of a case that were skipped for the same reason; without those folded.
std::vector<std::string> skipped_lines(const CaseResult& result, const std::vector<Folded>& folded);

/// What the rounds that are excluded show of a case, in one line; empty where there are
/// hardly any.
std::string excluded_text(const CaseResult& result);

/// The error of an approximate row, `cos 0.9998, top-1 99.1 %`, each rounded down; empty of others.
std::string approximation_text(const RuntimeResult& row);

/// The verdict's word, with * where the environment differs from the reference's.
std::string verdict_text(const RuntimeResult& row);

}  // namespace torchpace::cli
