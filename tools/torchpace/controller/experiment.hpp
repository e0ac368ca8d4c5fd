// The experiment: export, preflight, curves, invocations of rounds, results.json after every step.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "controller/core_latency.hpp"
#include "controller/exporter_client.hpp"
#include "support/files.hpp"
#include "plan/sweep.hpp"
#include "support/progress.hpp"
#include "results/results.hpp"
#include "controller/worker_pool.hpp"
#include "controller/worker_client.hpp"

namespace torchpace::cli {

struct ExperimentOptions {
  PlanRecord plan;
  std::vector<Case> cases;
  std::vector<WorkerSpec> runtimes;   // with the environment that all get; the reference among them
  std::map<std::string, int> curves;  // family -> steps
  std::vector<Command> exporters;  // the first makes cases; a runtime says whose artifacts it loads
  double export_timeout_s = 3600;    // for the files of one case
  std::filesystem::path output;    // folder, exists
  double worker_timeout_s = 30;
  bool adapts_invocations = false;         // fewer where the time does not suffice
  std::function<double()> message_ns;      // where the cores are (cores.hpp); empty: not asked
  std::set<std::string> probed;            // runtimes that are asked for probes in each invocation
  std::optional<Explanation> explanation;  // the names of the two that each case explains
  std::vector<Warning> warnings;           // of the plan
};

/// The number of invocations, at most `asked`, whose fixed costs fit into the time: of those whose
/// intervals are no wider for their number (12, 9, 6), and 6 or `asked` where none fits.
int affordable_invocations(int asked, double budget_s, double invocation_s);

/// The case that a further load helps most, of some with the width of each one's interval and its
/// loads in this invocation: where its tensors lie and how the machine is are drawn with each load,
/// so the width falls with their root. Alike where widths are not yet known (NaN); first those
/// whose width is infinite, the one of fewest loads. A width below 0 is of a case that cannot play.
/// Returns an index, nothing where none can.
std::optional<size_t> next_load(const std::vector<double>& widths, const std::vector<int>& loads);

/// A case with nothing measured.
CaseResult empty_result(const Case& item, const std::string& reference);

/// Creates the folder and proves that a file can be written there. Throws Error.
void prepare_output(const std::filesystem::path& folder);

/// What an earlier run left, for --resume. Throws Error naming the first difference of the plans.
void check_same_plan(const Results& earlier, const Results& now, const std::string& file);

class Experiment {
 public:
  /// `results` holds the plan, the environment and the cases in the order of the options, empty or
  /// with what an earlier run measured.
  Experiment(ExperimentOptions options, Results& results, Progress& progress);

  /// Runs what is missing and writes results.json. Throws Interrupted after writing what there is,
  /// Error when the disk fails.
  void run();

  /// Whether nothing could be measured because of what the user has given: models above all.
  bool met_bad_input_only() const;

 private:
  struct Visit {
    int invocation;
    std::vector<std::string> rows;  // runtimes of this visit, the reference first
    std::vector<size_t> cases;      // in order
  };

  void give_folders();
  void export_all();
  void export_cases(std::vector<Exporter>& exporters);
  void export_case(size_t index, Exporter& exporter, std::set<std::string>& notes);
  void leave_out(const std::vector<size_t>& indices);
  void make_artifacts(std::vector<Exporter>& exporters);
  void make_artifact(size_t index, const WorkerSpec& spec, Exporter& exporter);
  bool needs_artifact(const CaseResult& result, const WorkerSpec& spec) const;
  void add_row(CaseResult& result, const std::string& runtime, Status status,
               const std::string& reason, const std::string& artifact = "");
  void pass_gates();
  void uncounted(const std::function<void()>& make);
  void pass_gates(size_t first, size_t end);
  void plan_invocations(int done);
  double invocation_s() const;
  size_t parallel_loads() const;
  void run_invocations();
  void run_visit(const Visit& visit, double visits_left);
  bool await_cores(double spare_s);
  bool met_cores_near(const Visit& visit, size_t index) const;
  LoadTime play(Team& team, const Visit& visit, size_t index, bool probes, double budget_s);
  std::vector<Visit> missing_visits();  // of all invocations that were asked for
  std::vector<std::vector<std::string>> groups() const;
  bool is_done(const CaseResult& result, const std::vector<std::string>& rows,
               int invocation) const;
  bool memory_is_short() const;
  WorkerSpec spec_of(const std::string& row) const;
  double elapsed_s() const;
  double budget_left_s() const { return results_.plan.max_seconds - elapsed_s(); }
  /// What is left of the run, to be shown; below 0 when it is not known.
  double left_s() const;
  void save();

  ExperimentOptions options_;
  Results& results_;
  Progress& progress_;
  TemporaryFolder folder_;       // of this run: what workers unpack and what they compare
  std::vector<Exported> files_;  // of each case
  std::mt19937_64 random_;
  Clock::time_point begin_ = Clock::now();
  double earlier_s_ = 0;  // measured by an earlier run
  double fixed_s_ = 0;    // what the last visit took besides rounds and further loads
  CoreWatch cores_;
  double least_load_s_ = 0;  // a first load's share of a visit without further loads and waiting
  // First loads: what is left of them needs its time, and tells what is left where the number of
  // rounds is given.
  Clock::time_point loads_begin_{};
  size_t loads_done_ = 0, loads_left_ = 0;
};

}  // namespace torchpace::cli
