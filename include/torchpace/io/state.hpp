// Puts an exported case into a model: parameters and buffers by name, and its batches of inputs and
// targets.
#pragma once

#include <torch/torch.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/device.hpp"
#include "torchpace/workload.hpp"

namespace torchpace {

/// Inputs and targets of a case, one entry a batch, on the device of the model.
struct Batches {
  std::vector<torch::Tensor> inputs;
  std::vector<torch::Tensor> targets;

  /// Batch of step `i`: they are used in turn.
  const torch::Tensor& input(int64_t i) const {
    return inputs[static_cast<std::size_t>(i) % inputs.size()];
  }
  const torch::Tensor& target(int64_t i) const {
    return targets[static_cast<std::size_t>(i) % targets.size()];
  }
};

/// The dtype of a case: float32 unless its settings say bfloat16. Throws c10::Error on another.
inline torch::ScalarType dtype_of(const Settings& settings) {
  const auto name = settings.get("dtype", "float32");
  if (name == "float32") return torch::kFloat32;
  TORCH_CHECK(name == "bfloat16", "dtype: expected float32 or bfloat16, got '", name, "'");
  return torch::kBFloat16;
}

/// Copies parameter.<name> and buffer.<name> into the module. Throws c10::Error on a missing, an
/// extra or a wrong-shaped one; `source` names the dictionary in the message.
inline void load_parameters(torch::nn::Module& module, const TensorDict& state,
                            const std::string& source) {
  torch::NoGradGuard no_grad;
  std::set<std::string> used;
  const auto copy = [&](const std::string& name, torch::Tensor tensor) {
    const auto found = state.find(name);
    TORCH_CHECK(found != state.end(), source, ": expected ", name, " ", tensor.sizes(),
                ", found none; export the case again");
    TORCH_CHECK(found->second.sizes() == tensor.sizes(), source, ": ", name, ": expected shape ",
                tensor.sizes(), ", found ", found->second.sizes(), "; export the case again");
    tensor.copy_(found->second);
    used.insert(name);
  };
  for (const auto& p : module.named_parameters()) copy("parameter." + p.key(), p.value());
  for (const auto& b : module.named_buffers()) copy("buffer." + b.key(), b.value());
  for (const auto& [name, tensor] : state) {
    const bool belongs = name.starts_with("parameter.") || name.starts_with("buffer.");
    TORCH_CHECK(!belongs || used.contains(name), source, ": the model has no ", name,
                "; export the case again");
  }
}

/// Exchanges two parameters, `NAME,NAME`: with it tests see parity fail.
inline void swap_parameters(torch::nn::Module& module, const std::string& names) {
  const auto comma = names.find(',');
  auto parameters = module.named_parameters();
  auto* a = parameters.find(names.substr(0, comma));
  auto* b = comma == std::string::npos ? nullptr : parameters.find(names.substr(comma + 1));
  TORCH_CHECK(a != nullptr && b != nullptr && a->sizes() == b->sizes(),
              "swap: expected two parameters of one shape, NAME,NAME, got '", names, "'");
  torch::NoGradGuard no_grad;
  const auto copy = a->clone();
  a->copy_(*b);
  b->copy_(copy);
}

/// Loads the case that `settings` describe (state, device, dtype, swap) into the model and returns
/// its batches. Throws c10::Error on a bad file, DeviceUnavailable where the device is not here.
inline Batches load_state(const Settings& settings, const Model& model) {
  const auto device = choose_device(settings.get("device", "cpu"));
  const auto dtype = dtype_of(settings);
  const auto path = settings.require<std::string>("state");
  const auto state = read_tensors(path);
  load_parameters(*model.module, state, path);
  if (settings.has("swap")) swap_parameters(*model.module, settings.get("swap", ""));
  model.module->to(device, dtype);

  Batches batches;
  for (const auto& [key, list] :
       {std::pair{"input", &batches.inputs}, std::pair{"target", &batches.targets}}) {
    const auto found = state.find(key);
    TORCH_CHECK(found != state.end() && found->second.dim() > 0 && found->second.size(0) > 0, path,
                ": expected ", key, " [N, ...], found none; export the case again");
    for (const auto& batch : found->second.unbind()) {
      list->push_back(
          batch.to(device, batch.is_floating_point() ? dtype : batch.scalar_type()).contiguous());
    }
  }
  TORCH_CHECK(batches.inputs.size() == batches.targets.size(), path,
              ": expected as many targets as inputs, found ", batches.targets.size(), " and ",
              batches.inputs.size());
  return batches;
}

}  // namespace torchpace
