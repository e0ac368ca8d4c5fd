// The models and runtimes that the worker and the benchmark programs know, by name.
#pragma once

#include <string>
#include <torchpace/settings.hpp>
#include <torchpace/workload.hpp>
#include <vector>

namespace torchpace {

/// Throws c10::Error, naming the known ones, for an unknown name.
Model make_model(const std::string& name, const Settings& settings);
std::vector<std::string> model_names();
std::vector<Runtime> all_runtimes();

}  // namespace torchpace
