// From the words of a command line to what is to be measured.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "controller/experiment.hpp"
#include "plan/runtime_discovery.hpp"

namespace torchpace::cli {

/// As given; an empty text and nullopt mean the default.
struct CompareOptions {
  std::vector<std::string> arguments;  // recorded
  std::string preset = "quick";
  std::vector<std::string> cases, set, runtimes, workers, torch, models, inputs, libraries;
  std::string reference;
  std::string device = "auto", dtype = "float32", allocator = "tuned";
  std::optional<int> threads, rounds, invocations;
  std::optional<double> max_seconds, compile_timeout, export_timeout;
  double delta = 0.02;
  double confidence = 0.95;
  long long seed = 0;
  std::string below;  // of the integer inputs of files
  std::string output = "torchpace-report", cache, text, python, fail_on;
  double worker_timeout_s = 30;
  bool resume = false;
  bool no_html = false;
};

/// Throws Error naming the first option with a value that it cannot have.
void check_values(const CompareOptions& options);

/// Nothing is measured and nothing slow is done before all that can be wrong with the words is
/// known. Throws Error.
ExperimentOptions planned(const CompareOptions& options, const Installation& installation,
                          const Json& host);

/// Of weights and inputs: the option, else TORCHPACE_CACHE, XDG_CACHE_HOME or ~/.cache.
std::filesystem::path cache_folder(const std::string& option);

}  // namespace torchpace::cli
