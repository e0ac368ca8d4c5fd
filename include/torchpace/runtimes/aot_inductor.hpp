// cpp-aot: a package that AOTInductor compiled, in C++ (runtimes/aot_package.hpp).
// Twin: python/torchpace/runtimes/aot.py, which makes the packages.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>
#include <vector>

#include "torchpace/runtimes/aot_package.hpp"
#include "torchpace/runtimes/artifact.hpp"

namespace torchpace {

/// The package of a case, all that can be checked checked, as a function: its first floating
/// output. `runners` may be called by that many threads at a time. Throws ArchiveError.
inline TensorFunction load_aot(const std::string& path, const torch::Device& device, int threads,
                               const std::vector<torch::Tensor>& inputs, std::size_t runners = 1) {
  const AotPackage package(path);
  package.check_environment(device, threads);
  package.check_inputs(inputs);
  return [runner = std::shared_ptr<AotRunner>(package.load(device, runners))](
             const std::vector<torch::Tensor>& x) { return first_floating(runner->run(x)); };
}

inline std::vector<Runtime> aot_inductor_runtimes() {
  const auto load = [](const Settings& s, const Model& model) {
    const auto phase =
        inference_phase(s, "AOTInductor packages are for inference; cpp-eager trains");
    const auto device = choose_device(s.get("device", "cpu"));
    auto batches = load_batches(s, device);
    const auto runners = s.get<int64_t>("runners", 1);
    if (runners < 1)
      throw SettingsError("runners: expected 1 or more, got " + std::to_string(runners));
    const auto forward = load_aot(s.require<std::string>("artifact"), device, s.get("threads", 0),
                                  batches.inputs(0), static_cast<std::size_t>(runners));
    return inference_workload(forward, std::move(batches), model.cost, s, phase);
  };
  return {{.name = "cpp-aot",
           .description = "an AOTInductor package, in C++",
           .load = load,
           .artifact = "aot"}};
}

}  // namespace torchpace
