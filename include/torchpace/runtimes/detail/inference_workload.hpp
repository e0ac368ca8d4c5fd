// What the runtimes of compiled files share: the case's batches without the module, an inference
// workload, and warm-up until steps take what they will take.
#pragma once

#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/io/case_files.hpp"
#include "torchpace/outputs.hpp"
#include "torchpace/workload.hpp"

namespace torchpace {

/// A compiled forward pass. A step is `call`; `outputs` is the same call and gives every tensor
/// that it returns, which steps do not pay for.
struct CompiledForward {
  std::function<void(const Tensors& inputs)> call;
  std::function<Tensors(const Tensors& inputs)> outputs;
  std::function<TensorDict()> state = {};  // tensors by name that a call must leave as they are
};

/// How an inference case is timed. Throws DeviceUnavailable, with `why_not`, for training.
inline Phase inference_phase(const Settings& settings, const std::string& why_not) {
  if (case_phase(settings).trains) throw DeviceUnavailable(why_not);
  return timing_of(settings);
}

/// The batches of a case for a runtime that needs no module: its weights are in the artifact.
inline Batches load_batches(const Settings& settings, const torch::Device& device) {
  const auto path = settings.require<std::string>("state");
  return read_batches(read_tensors(path), path, device, dtype_of(settings),
                      ExecutionOptions::from(settings),
                      /*needs_target=*/false);
}

/// Runs `step` in groups of 5, at least 10 and at most 50 times, until two neighboring medians
/// agree to 2 %: profiling executors specialize in their first runs, libraries choose kernels.
inline void warm_up_steps(const std::function<void()>& step, const torch::Device& device) {
  double previous = 0;
  for (int run = 5; run <= 50; run += 5) {
    const double own = median(run_block(step, device, Phase::kLatency, 5).step_ns);
    if (run >= 10 && std::abs(own - previous) <= 0.02 * own) return;
    previous = own;
  }
}

/// The mode of autograd that a case's inference runs in, the key `grad_mode`: inference unless the
/// model needs autograd inside, such as forces as gradients of an energy.
class GradScope {
 public:
  explicit GradScope(const std::string& mode) {
    if (mode == "inference") inference_.emplace();
    if (mode != "inference") grad_.emplace(mode == "enable_grad");
  }
  static std::string mode_of(const Settings& settings) {
    return settings.one_of("grad_mode", {"inference", "no_grad", "enable_grad"});
  }

 private:
  std::optional<c10::InferenceMode> inference_;
  std::optional<torch::AutoGradMode> grad_;
};

/// Every output of every batch, `batch0.output`, ... Throws c10::Error where the model changes its
/// inputs or what it keeps.
inline TensorDict output_values(const CompiledForward& forward, const Batches& batches,
                                const Settings& settings) {
  const StateWatch state(forward.state);
  TensorDict values;
  for (int64_t b = 0; b < batches.count(); ++b) {
    const auto inputs = copies_of(batches.inputs(b));
    const ChangeWatch watch(inputs, /*by_value=*/true);
    const GradScope scope(GradScope::mode_of(settings));
    values.merge(named_outputs(b, forward.outputs(inputs), settings.get("outputs", "output")));
    expect_unchanged(watch);
  }
  expect_unchanged(state);
  return values;
}

/// Forward passes without autograd, the batches in turn. `compiled_kernels` run outside of
/// operators.
inline Workload inference_workload(const CompiledForward& forward, Batches batches,
                                   const Cost& cost, const Settings& settings, Phase phase,
                                   bool compiled_kernels = true) {
  const auto device = batches.device();
  const auto execution = ExecutionOptions::from(settings);
  execution.apply();
  auto shared = std::make_shared<const Batches>(std::move(batches));
  auto next = std::make_shared<int64_t>(0);
  const auto mode = GradScope::mode_of(settings);
  const auto step = [call = forward.call, shared, next, mode] {
    const GradScope scope(mode);
    call(shared->inputs((*next)++));
  };
  return {
      .step = step,
      .restore = [next] { *next = 0; },
      .values = [forward, shared, settings] { return output_values(forward, *shared, settings); },
      .warm_up = [step, device] { warm_up_steps(step, device); },
      .parts = {{"forward", step}},
      .compiled_kernels = compiled_kernels,
      .device = device,
      .execution = execution,
      .dtype = dtype_of(settings),
      .phase = phase,
      .flops = cost.forward_flops,
      .items = cost.items,
      .item = cost.item,
      .parameter_bytes = cost.parameter_bytes,
      .minimum_bytes = cost.forward_minimum_bytes,
      .note = mode == "inference"
                  ? ""
                  : "runs under torch." + mode + ": the module needs autograd inside"};
}

}  // namespace torchpace
