// `torchpace export-training TARGET --out FILE.pt2`: has Python compile a training step.
#pragma once

#include <string>
#include <vector>

namespace torchpace::cli {

struct ExportTrainingOptions {
  std::string target, python;
  std::vector<std::string> words;  // what Python is given beside the target: --size=quick, ...
};

/// Runs python -m torchpace.aot.export_training and passes its progress through. Returns its exit
/// code. Throws Error where there is no Python, no package or no torch, and where the compiler
/// died; Interrupted after Ctrl-C, once Python has put away what it had begun.
int export_training(const ExportTrainingOptions& options);

}  // namespace torchpace::cli
