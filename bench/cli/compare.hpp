// `torchpace compare`: from the words of the command line to results.json and the report.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace torchpace::cli {

/// As given; an empty text and nullopt mean the default.
struct CompareOptions {
  std::vector<std::string> arguments;  // recorded
  std::string preset = "quick";
  std::vector<std::string> cases, set, runtimes, workers, torch, models, inputs;
  std::string reference;
  std::string device = "auto", dtype = "float32", allocator = "tuned";
  std::optional<int> threads, rounds, generations;
  std::optional<double> max_seconds, compile_limit;
  double delta = 0.02;
  long long seed = 0;
  std::string output = "torchpace-report", cache, text, python, fail_on;
  double patience_s = 30;
  bool resume = false;
  bool no_html = false;
};

/// Of weights and inputs: the option, else TORCHPACE_CACHE, XDG_CACHE_HOME or ~/.cache.
std::filesystem::path cache_folder(const std::string& option);

/// Returns the exit code. Throws Error.
int compare(const CompareOptions& options);

}  // namespace torchpace::cli
