// The experiment: files, preflight, invocations of rounds, results.json after every step.
#pragma once

#include <filesystem>
#include <string>
#include <utility>

#include "controller/experiment_state.hpp"

namespace torchpace::cli {

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
  Experiment(ExperimentOptions options, Results& results, Progress& progress)
      : run_(std::move(options), results, progress) {}

  /// Runs what is missing and writes results.json. Throws Interrupted after writing what there is,
  /// Error when the disk fails.
  void run();

  /// Whether nothing could be measured because of what the user has given: models above all.
  bool met_bad_input_only() const;

 private:
  ExperimentState run_;
};

}  // namespace torchpace::cli
