// The gate of one case: a fresh process per runtime gives the cold numbers, proves its outputs and
// tells its peak memory. What fails here is not timed.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "plan.hpp"
#include "worker_client.hpp"

namespace torchpace::cli {

struct GateRequest {
  const Case& item;
  Settings settings;                 // with the paths of the files
  std::filesystem::path values;      // where the reference writes what the others check
  std::vector<WorkerSpec> runtimes;  // the reference among them
  int curve_steps = 0;               // of training in each runtime that passes; 0: none
  double patience_s = 30;
};

/// Adds a row for each runtime that has none, in the order of the request, and the A/A copy's.
/// The reference goes first. `before` is called with each runtime's name before its process starts.
/// Throws Interrupted; rows that were done by then are kept.
void pass_gate(CaseResult& result, std::vector<Warning>& warnings, const GateRequest& request,
               const std::function<void(const std::string&)>& before);

/// Name of the second copy of the reference.
inline std::string copy_name(const std::string& reference) { return reference + "#2"; }

}  // namespace torchpace::cli
