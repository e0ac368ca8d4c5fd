// `torchpace run FILE`: times a compiled file in the program torchpace_run.
#pragma once

#include <string>
#include <vector>

namespace torchpace::cli {

/// As on the command line; empty: the default.
struct RunOptions {
  std::string file;
  std::vector<std::string> inputs;
  std::string below, dynamic, device, threads, streams, seconds, torchscript, compare, model_name,
      python;
  std::vector<std::string> libraries;
  bool json = false;
};

/// Runs torchpace_run as a child with a temporary folder of its own, removed afterwards whatever
/// the child did. Returns the exit code. Throws Error where the program is not there, or died.
int run_file(const RunOptions& options);

}  // namespace torchpace::cli
