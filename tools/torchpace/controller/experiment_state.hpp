// What the stages of an experiment share.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "controller/exporter_client.hpp"
#include "controller/time_budget.hpp"
#include "controller/worker_client.hpp"
#include "plan/sweep.hpp"
#include "results/results.hpp"
#include "support/files.hpp"
#include "support/progress.hpp"

namespace torchpace::cli {

struct ExperimentOptions {
  PlanRecord plan;
  std::vector<Case> cases;
  std::vector<WorkerSpec> runtimes;   // with the environment that all get; the reference among them
  std::map<std::string, int> curves;  // family -> steps
  std::vector<Command> exporters;  // the first makes cases; a runtime says whose artifacts it loads
  double export_timeout_s = 3600;  // for the files of one case
  std::filesystem::path output;    // folder, exists
  double worker_timeout_s = 30;
  bool adapts_invocations = false;  // fewer where the time does not suffice
  std::function<double()>
      core_latency_ns;           // core-to-core latency (core_latency.hpp); empty: not asked
  std::set<std::string> probed;  // runtimes that are asked for probes in each invocation
  std::optional<Explanation> explanation;  // the names of the two that each case explains
  std::vector<Warning> warnings;           // of the plan
};

struct ExperimentState {
  ExperimentState(ExperimentOptions given, Results& into, Progress& shown);

  /// Derives what results.json says and writes it. Throws Error when the disk fails.
  void save();

  ExperimentOptions options;
  Results& results;
  Progress& progress;
  TemporaryFolder folder;       // of this run: what workers unpack and what they compare
  std::vector<Exported> files;  // of each case
  TimeBudget budget;
};

}  // namespace torchpace::cli
