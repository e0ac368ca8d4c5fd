// The preflight: a fresh process gives the cold numbers of each case and runtime, proves its
// outputs and tells its peak memory. What fails here is not timed.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "controller/exporter_client.hpp"
#include "controller/worker_client.hpp"

namespace torchpace::cli {

/// One case before the preflight.
struct PreflightCase {
  const Case& item;
  CaseResult& result;
  const Exported& files;
  std::filesystem::path values;  // where the reference writes what the others check
  int curve_steps = 0;           // of training in each runtime that passes; 0: none
  bool written = false;          // the reference's values are there
};

class Preflight {
 public:
  struct Options {
    std::vector<WorkerSpec> runtimes;  // the reference among them
    double worker_timeout_s = 30;
    double compile_timeout_s = 0;
    std::function<void(const PreflightCase&, const std::string&)> before;  // a runtime loads a case
    std::function<void()> after;                                           // and its row is there
    std::function<void(Warning)> warn;
  };
  explicit Preflight(Options options) : options_(std::move(options)) {}

  /// Adds a row for each case and runtime that has none, and the A/A copies'. Runtime by runtime,
  /// the reference first: a worker of ours, which obeys each load in a fork of itself, serves all
  /// cases and so starts once; a worker of the user's own is started for each. Throws Interrupted;
  /// rows that were done by then are kept.
  void pass(std::vector<PreflightCase>& cases);

 private:
  void pass_one(PreflightCase& preflight_case, const WorkerSpec& spec);
  RuntimeResult row_of(PreflightCase& preflight_case, const WorkerSpec& spec);
  void serve(PreflightCase& preflight_case, const WorkerSpec& spec, RuntimeResult& row);
  void load(PreflightCase& preflight_case, RuntimeResult& row);
  void write_values(PreflightCase& preflight_case, double step_s);
  void check_reference(PreflightCase& preflight_case, RuntimeResult& row, double step_s);
  void check_values(PreflightCase& preflight_case, RuntimeResult& row, double step_s);
  bool is_needed(const PreflightCase& preflight_case, const WorkerSpec& spec) const;
  void warn(const PreflightCase& preflight_case, const std::string& code,
            const std::string& severity, const std::string& runtime, const std::string& text);

  Options options_;
  std::optional<WorkerClient> worker_;  // of the runtime that is being served
};

/// Name of the second copy of the reference.
inline std::string copy_name(const std::string& reference) { return reference + "#2"; }

/// Sorts the rows as the runtimes are, the A/A copy last.
void sort_as_planned(CaseResult& result, const std::vector<WorkerSpec>& runtimes);

}  // namespace torchpace::cli
