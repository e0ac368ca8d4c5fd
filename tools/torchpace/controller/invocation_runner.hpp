// The invocations of a comparison: which are missing, how many the time allows, and which case a
// further session helps most.
#pragma once

#include <cstddef>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "controller/experiment_state.hpp"
#include "controller/round_runner.hpp"

namespace torchpace::cli {

/// The number of invocations, at most `asked`, whose fixed costs fit into the time: of those whose
/// intervals are no wider for their number (12, 9, 6), and 6 or `asked` where none fits.
int affordable_invocations(int asked, double budget_s, double invocation_s);

/// The case that a further session helps most, of some with the width of each one's interval and
/// its sessions in this invocation: where its tensors lie and how the machine is are drawn with
/// each session, so the width falls with their root. Alike where widths are not yet known (NaN);
/// first those whose width is infinite, the one of fewest sessions. A width below 0 is of a case
/// that cannot take part. Returns an index, nothing where none can.
std::optional<size_t> next_session(const std::vector<double>& widths,
                                   const std::vector<int>& sessions);

class InvocationRunner {
 public:
  explicit InvocationRunner(ExperimentState& run)
      : run_(run), random_(static_cast<uint64_t>(run.options.plan.seed)) {}

  /// Runs what is missing and writes results.json after each group.
  void run();

 private:
  /// Rows that are measured together in one invocation.
  struct Group {
    int invocation;
    std::vector<std::string> rows;  // runtimes, the reference first
    std::vector<size_t> cases;      // in order
  };

  void plan_invocations(int done);
  double invocation_s() const;
  size_t parallel_loads() const;
  void note_clock();
  void run_group(const Group& group, double groups_left);
  SessionTime run_one_session(WorkerPool& pool, const Group& group, size_t index, bool probes,
                              double budget_s);
  std::vector<Group> missing_groups();  // of all invocations that were asked for
  std::vector<std::vector<std::string>> row_groups() const;
  bool is_done(const CaseResult& result, const std::vector<std::string>& rows,
               int invocation) const;
  bool memory_is_short() const;
  WorkerSpec spec_of(const std::string& row) const;

  ExperimentState& run_;
  std::mt19937_64 random_;
  double fixed_s_ = 0;  // what the last group took besides rounds and further sessions
};

}  // namespace torchpace::cli
