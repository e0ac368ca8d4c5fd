// `torchpace list`: what can be asked for.
#pragma once

#include <string>

namespace torchpace::cli {

/// Prints families with their sizes, phases, presets and the runtimes found here, as text or as one
/// JSON object. Returns the exit code.
int list(const std::string& python, bool json);

}  // namespace torchpace::cli
