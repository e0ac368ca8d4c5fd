// Versions of torch side by side: an environment and a build of its own for each, made by
// scripts/setup.sh and kept.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "plan/runtime_discovery.hpp"

namespace torchpace::cli {

/// Throws Error unless each is a version of torch that this source compiles with.
void check_versions(const std::vector<std::string>& versions);

/// The installation of a version: `current` if its torch is that one, else .venv-V and
/// build/release-V of the source tree (scripts/common.sh), which setup.sh makes or brings up to
/// date; `log` gets its output line by line. Throws Error, Interrupted on Ctrl-C.
Installation installation_of_version(const std::string& version, const Installation& current,
                                     const std::function<void(const std::string&)>& log);

}  // namespace torchpace::cli
