// cpp-compiled-train: a case's training step as one compiled package.
// Twin: python/torchpace/runtimes/compiled_training.py.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/aot/compiled_training.hpp"
#include "torchpace/io/tensor_file.hpp"
#include "torchpace/runtimes/detail/inference_workload.hpp"
#include "torchpace/runtimes/eager.hpp"
#include "torchpace/workload.hpp"

namespace torchpace {

namespace detail {

/// What the lambdas of the workload share.
struct CompiledTrainingWorkload {
  CompiledTrainingWorkload(const Settings& settings, const torch::Device& device)
      : training(settings.require<std::string>("artifact"), device),
        algorithm(optimizer_choice(settings).first),
        learning_rate(settings.get("lr", kLearningRate)) {
    const auto path = settings.require<std::string>("state");
    const auto state = read_tensors(path);
    batches = read_batches(state, path, device, dtype_of(settings),
                           ExecutionOptions::from(settings), true);
    const auto take = [&](const std::string& prefix, const TensorDict& own) {
      for (auto [name, tensor] : own) {
        const auto found = state.find(prefix + name);
        TORCH_CHECK(found != state.end() && found->second.sizes() == tensor.sizes(), path,
                    ": expected ", prefix, name, ' ', tensor.sizes(), ", found ",
                    found == state.end() ? "none" : c10::str(found->second.sizes()),
                    "; make the artifact again for this case");
        tensor.copy_(found->second);
      }
    };
    torch::NoGradGuard no_grad;
    find_other_names(state);
    take("parameter.", parameters());
    take("buffer.", training.buffers());
    if (settings.has("swap")) swap_parameters(parameters(), settings.get("swap", ""));
    training.keep_as_initial();
  }

  /// A package has a tied parameter under each of its names, a state file under its first.
  void find_other_names(const TensorDict& state) {
    const auto all = training.parameters();
    for (const auto& [name, p] : all) {
      if (state.contains("parameter." + name)) continue;
      for (const auto& [first, q] : all) {
        if (state.contains("parameter." + first) && q.data_ptr() == p.data_ptr()) {
          other_names.insert(name);
        }
      }
    }
  }

  TensorDict parameters() const {
    auto result = training.parameters();
    for (const auto& name : other_names) result.erase(name);
    return result;
  }

  torch::Tensor train(int64_t i) {
    return training.step(batches.inputs(i), batches.target(i), learning_rate);
  }
  void restore() {
    training.restart();
    step = 0;
  }

  TensorDict values() {
    restore();
    TensorDict before, result;
    for (const auto& [name, p] : parameters()) before[name] = p.clone();
    std::vector<torch::Tensor> losses;
    for (int64_t i = 0; i < kParitySteps; ++i) {
      losses.push_back(train(i));
      if (i > 0) continue;
      const auto after = parameters();
      for (const auto& [name, gradient] : training.first_gradients()) {
        if (other_names.contains(name)) continue;
        add_first_step(result, name, gradient, before.at(name), after.at(name), algorithm,
                       learning_rate);
      }
    }
    result["losses"] = torch::stack(losses);
    for (const auto& [name, p] : parameters()) result["parameter." + name] = p.clone();
    for (const auto& [name, b] : training.buffers()) result["buffer." + name] = b.clone();
    restore();
    return result;
  }

  std::vector<double> losses(const BatchSource& source, int64_t steps) {
    restore();
    auto curve = loss_curve(steps, [&](int64_t i) {
      if (!source) return train(i);
      const auto [x, y] = source(i);
      const auto& device = training.device();
      return training.step(x.to(device), y.to(device), learning_rate);
    });
    restore();
    return curve;
  }

  CompiledTraining training;
  std::set<std::string> other_names;  // of tied parameters
  Batches batches;
  OptimizerAlgorithm algorithm;
  double learning_rate;
  int64_t step = 0;  // of this turn
};

}  // namespace detail

inline std::vector<Runtime> compiled_training_runtimes() {
  const auto load = [](const Settings& s, const Model& model) -> Workload {
    if (!case_phase(s).trains) {
      throw DeviceUnavailable(
          "a compiled training step is for training; cpp-aot has a compiled forward");
    }
    const auto execution = ExecutionOptions::from(s);
    execution.apply();
    const auto device = choose_device(s.get("device", "cpu"));
    const auto shared = std::make_shared<detail::CompiledTrainingWorkload>(s, device);
    const auto fresh = detail::text_source(s);
    const auto& package = shared->training.package();
    const auto algorithm = shared->algorithm.name;
    TORCH_CHECK(package.kind() == algorithm && package.autocast == execution.autocast_name(),
                "artifact: expected a step of ", algorithm, " with autocast ",
                execution.autocast_name(), ", found ", package.kind(), " with ", package.autocast,
                "; make it again for this case");
    return {.step = [shared] { shared->train(shared->step++); },
            .restore = [shared] { shared->restore(); },
            .values = [shared] { return shared->values(); },
            .losses = [shared, fresh](int64_t steps) { return shared->losses(fresh, steps); },
            .compiled_kernels = true,
            .device = device,
            .execution = execution,
            .dtype = dtype_of(s),
            .optimizer = package.kind() + " compiled",
            .gemm = package.gemm,
            .flops = model.cost.training_flops,
            .items = model.cost.items,
            .item = model.cost.item,
            .parameter_bytes = model.cost.parameter_bytes,
            .minimum_bytes = model.cost.training_minimum_bytes};
  };
  return {{.name = "cpp-compiled-train",
           .description = "the whole training step as one compiled package, in C++",
           .load = load,
           .artifact = "compiled-train"}};
}

}  // namespace torchpace
