// cpp-aot: a package that AOTInductor compiled, in C++ (runtimes/aot_package.hpp).
// Twin: python/torchpace/runtimes/aot.py, which makes the packages.
#pragma once

#include <torch/torch.h>

#include <string>
#include <utility>
#include <vector>

#include "torchpace/aot/detail/package_checks.hpp"
#include "torchpace/aot/package.hpp"
#include "torchpace/runtimes/detail/inference_workload.hpp"

namespace torchpace {

/// The package of a case as a function, all that can be checked checked. `runners` may be called by
/// that many threads at a time. Throws ArchiveError.
inline CompiledForward load_aot(const AotPackage& package, const torch::Device& device, int threads,
                                const Tensors& inputs, std::size_t runners = 1) {
  package.check_environment(device, threads);
  package.check_inputs(inputs);
  return aot_forward(package.load(device, runners));
}

/// Seconds that it takes to run a package that does not say what it takes, once, on these inputs
/// with AOTInductor's own checks; 0 of another. Throws ArchiveError where it refuses them.
inline double check_foreign(const AotPackage& package, const torch::Device& device,
                            const Tensors& inputs) {
  if (package.made_by_torchpace()) return 0;
  return time_once_s(
      [&] { check_by_running(package, device, {inputs}, "give it those that it was made for"); },
      device);
}

/// The case's package as a workload. Throws DeviceUnavailable for training, SettingsError and
/// ArchiveError.
inline Workload load_package(const Settings& s, const Model& model) {
  const auto phase = inference_phase(s, "AOTInductor packages are for inference; cpp-eager trains");
  const auto device = choose_device(s.get("device", "cpu"));
  auto batches = load_batches(s, device);
  const auto runners = s.get<int64_t>("runners", 1);
  if (runners < 1)
    throw SettingsError("runners: expected 1 or more, got " + std::to_string(runners));
  const AotPackage package(s.require<std::string>("artifact"), s.get("model_name", ""));
  const double check_s = check_foreign(package, device, batches.inputs(0));
  const auto forward = load_aot(package, device, s.get("threads", 0), batches.inputs(0),
                                static_cast<std::size_t>(runners));
  auto workload = inference_workload(forward, std::move(batches), model.cost, s, phase);
  workload.check_s = check_s;
  if (package.get("torchpace.gemm") == "torchpace") workload.gemm = "torchpace";
  return workload;
}

inline std::vector<Runtime> aot_runtimes() {
  return {{.name = "cpp-aot",
           .description = "an AOTInductor package, in C++",
           .load = load_package,
           .artifact = "aot"}};
}

}  // namespace torchpace
