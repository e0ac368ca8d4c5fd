// What the runtimes of compiled files share: the case's batches without the module, an inference
// workload, and warm-up until steps take what they will take.
#pragma once

#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/io/state.hpp"
#include "torchpace/workload.hpp"

namespace torchpace {

using TensorFunction = std::function<torch::Tensor(const std::vector<torch::Tensor>& inputs)>;

/// The phase of an inference case. Throws DeviceUnavailable, with `why_not`, for training.
inline Phase inference_phase(const Settings& settings, const std::string& why_not) {
  const auto phase = settings.require<std::string>("phase");
  if (phase == "train") throw DeviceUnavailable(why_not);
  TORCH_CHECK(phase == "inference" || phase == "latency",
              "phase: expected train, inference or latency, got '", phase, "'");
  return phase == "latency" ? Phase::kLatency : Phase::kThroughput;
}

/// The batches of a case for a runtime that needs no module: its weights are in the artifact.
inline Batches load_batches(const Settings& settings, const torch::Device& device) {
  const auto path = settings.require<std::string>("state");
  return read_batches(read_tensors(path), path, device, dtype_of(settings), Axes::from(settings),
                      /*needs_target=*/false);
}

/// Runs `step` in groups of 5, at least 10 and at most 50 times, until two neighbouring medians
/// agree to 2 %: profiling executors specialise in their first runs, libraries choose kernels.
inline void settle_steps(const std::function<void()>& step, const torch::Device& device) {
  double previous = 0;
  for (int run = 5; run <= 50; run += 5) {
    const double own = median(run_block(step, device, Phase::kLatency, 5).step_ns);
    if (run >= 10 && std::abs(own - previous) <= 0.02 * own) return;
    previous = own;
  }
}

/// Forward passes in InferenceMode, the batches in turn. `compiled_kernels` run outside of
/// operators.
inline Workload inference_workload(TensorFunction forward, Batches batches, const Cost& cost,
                                   const Settings& settings, Phase phase,
                                   bool compiled_kernels = true) {
  const auto device = batches.device();
  const auto axes = Axes::from(settings);
  axes.apply();
  auto shared = std::make_shared<const Batches>(std::move(batches));
  auto next = std::make_shared<int64_t>(0);
  const auto step = [forward, shared, next] {
    c10::InferenceMode inference;
    forward(shared->inputs((*next)++));
  };
  return {.step = step,
          .restore = [next] { *next = 0; },
          .values =
              [forward, shared] {
                c10::InferenceMode inference;
                return TensorDict{{"output", forward(shared->inputs(0)).clone()}};
              },
          .settle = [step, device] { settle_steps(step, device); },
          .parts = {{"forward", step}},
          .compiled_kernels = compiled_kernels,
          .device = device,
          .axes = axes,
          .dtype = dtype_of(settings),
          .phase = phase,
          .flops = cost.forward_flops,
          .items = cost.items,
          .item = cost.item,
          .parameter_bytes = cost.parameter_bytes,
          .minimum_bytes = cost.forward_minimum_bytes};
}

}  // namespace torchpace
