// Before anything is timed: the files of each case, its artifacts, and the preflight.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "controller/experiment_state.hpp"

namespace torchpace::cli {

class Preparation {
 public:
  explicit Preparation(ExperimentState& run) : run_(run) {}

  /// What a worker or a compiler unpacks and leaves behind goes with the run.
  void give_folders();

  /// Asks the exporters for weights, inputs, golden values and artifacts. A case or a row that
  /// cannot be had says why.
  void export_all();

  /// Adds the rows that are missing: cold start, parity, peak memory.
  void run_preflight();

 private:
  void export_cases(std::vector<Exporter>& exporters);
  void export_case(size_t index, Exporter& exporter, std::set<std::string>& notes);
  void drop(const std::vector<size_t>& indices);
  void make_artifacts(std::vector<Exporter>& exporters);
  void make_artifact(size_t index, const WorkerSpec& spec, Exporter& exporter);
  bool needs_artifact(const CaseResult& result, const WorkerSpec& spec) const;
  void run_preflight(size_t first, size_t end);

  ExperimentState& run_;
};

}  // namespace torchpace::cli
