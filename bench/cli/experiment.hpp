// The experiment: export, gate, curves, generations of rounds, results.json after every step.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "exporter.hpp"
#include "plan.hpp"
#include "progress.hpp"
#include "results.hpp"
#include "worker_client.hpp"

namespace torchpace::cli {

struct ExperimentOptions {
  PlanRecord plan;
  std::vector<Case> cases;
  std::vector<WorkerSpec> runtimes;   // with the environment that all get; the reference among them
  std::map<std::string, int> curves;  // family -> steps
  Command exporter;                   // not run where all cases are the user's own
  std::filesystem::path output;       // folder, exists
  double patience_s = 30;
};

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
  /// Error when the export or the disk fails.
  void run();

 private:
  struct Visit {
    int generation;
    std::vector<std::string> rows;  // runtimes of this visit, the reference first
    std::vector<size_t> cases;      // in order
  };

  void export_all();
  void pass_gates();
  void run_generations();
  void run_visit(const Visit& visit, double later_visits);
  std::vector<Visit> missing_visits();
  std::vector<std::vector<std::string>> groups() const;
  bool is_done(const CaseResult& result, const std::vector<std::string>& rows,
               int generation) const;
  bool memory_is_short() const;
  WorkerSpec spec_of(const std::string& row) const;
  double elapsed_s() const;
  double budget_left_s() const { return options_.plan.max_seconds - elapsed_s(); }
  /// What is left of the run, to be shown; below 0 when it is not known.
  double left_s() const;
  void save();

  ExperimentOptions options_;
  Results& results_;
  Progress& progress_;
  std::vector<Settings> settings_;  // of each case, with the paths of its files
  std::mt19937_64 random_;
  Clock::time_point begin_ = Clock::now();
  double earlier_s_ = 0;  // measured by an earlier run
  double start_s_ = 0;    // what starting the workers took the last time
  // Where the number of rounds is given, the time left is told from the cases done.
  Clock::time_point turns_begin_{};
  size_t turns_done_ = 0, turns_left_ = 0;  // a turn: one case in one visit
};

}  // namespace torchpace::cli
