// Puts an exported case into a model: parameters and buffers by name, and its batches of inputs and
// targets.
#pragma once

#include <torch/torch.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/device.hpp"
#include "torchpace/execution_options.hpp"
#include "torchpace/io/tensor_file.hpp"
#include "torchpace/model.hpp"
#include "torchpace/settings.hpp"

namespace torchpace {

/// Inputs and targets of a case, one entry a batch, on the device of the model.
struct Batches {
  std::vector<std::vector<torch::Tensor>> all_inputs;  // of a batch, each input of the model
  std::vector<torch::Tensor> targets;                  // empty for a model without a loss

  int64_t count() const { return static_cast<int64_t>(all_inputs.size()); }
  /// Of step `i`: the batches are used in turn.
  const std::vector<torch::Tensor>& inputs(int64_t i) const {
    return all_inputs[static_cast<std::size_t>(i) % all_inputs.size()];
  }
  /// The first input.
  const torch::Tensor& input(int64_t i) const { return inputs(i).front(); }
  const torch::Tensor& target(int64_t i) const {
    return targets[static_cast<std::size_t>(i) % targets.size()];
  }
  torch::Device device() const { return input(0).device(); }
};

/// The dtype of a case: float32 unless its settings name another. Throws c10::Error on one that no
/// case has. float16 and float64 are for files, which run as they are.
inline torch::ScalarType dtype_of(const Settings& settings) {
  const auto name = settings.get("dtype", "float32");
  if (name == "float32") return torch::kFloat32;
  if (name == "float64") return torch::kFloat64;
  if (name == "float16") return torch::kFloat16;
  TORCH_CHECK(name == "bfloat16", "dtype: expected float32, float64, float16 or bfloat16, got '",
              name, "'");
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
inline void swap_parameters(const TensorDict& parameters, const std::string& names) {
  const auto comma = names.find(',');
  const auto a = parameters.find(names.substr(0, comma));
  const auto b =
      comma == std::string::npos ? parameters.end() : parameters.find(names.substr(comma + 1));
  TORCH_CHECK(
      a != parameters.end() && b != parameters.end() && a->second.sizes() == b->second.sizes(),
      "swap: expected two parameters of one shape, NAME,NAME, got '", names, "'");
  torch::NoGradGuard no_grad;
  auto first = a->second, second = b->second;
  const auto copy = first.clone();
  first.copy_(second);
  second.copy_(copy);
}
inline void swap_parameters(const torch::nn::Module& module, const std::string& names) {
  TensorDict parameters;
  for (const auto& p : module.named_parameters()) parameters[p.key()] = p.value();
  swap_parameters(parameters, names);
}

/// The batches of a state file, on the device: floating point in `dtype`, in the memory format of
/// `execution`. `path` names the file in the message. Throws c10::Error where they are missing or
/// not as many, SettingsError where the execution options do not fit them.
inline Batches read_batches(const TensorDict& state, const std::string& path,
                            const torch::Device& device, torch::ScalarType dtype,
                            const ExecutionOptions& execution, bool needs_target) {
  const auto unbind = [&](const std::string& key) {
    const auto found = state.find(key);
    TORCH_CHECK(found != state.end() && found->second.dim() > 0 && found->second.size(0) > 0, path,
                ": expected ", key, " [N, ...], found none; export the case again");
    std::vector<torch::Tensor> list;
    for (const auto& batch : found->second.unbind()) {
      list.push_back(execution.place(
          batch.to(device, batch.is_floating_point() ? dtype : batch.scalar_type()).contiguous()));
    }
    return list;
  };
  const auto check_count = [&](const std::string& key, std::size_t found, std::size_t expected) {
    TORCH_CHECK(found == expected, path, ": expected as many batches of ", key,
                " as inputs, found ", found, " and ", expected);
  };
  Batches batches;
  for (const auto& batch : unbind("input")) batches.all_inputs.push_back({batch});
  for (int64_t n = 1; state.contains("input." + std::to_string(n)); ++n) {
    const auto key = "input." + std::to_string(n);
    const auto more = unbind(key);
    check_count(key, more.size(), batches.all_inputs.size());
    for (std::size_t i = 0; i < more.size(); ++i) batches.all_inputs[i].push_back(more[i]);
  }
  if (needs_target || state.contains("target")) {
    batches.targets = unbind("target");
    check_count("target", batches.targets.size(), batches.all_inputs.size());
  }
  execution.check_inputs(batches.inputs(0));
  return batches;
}

/// Loads the case that `settings` describe (state, device, dtype, execution options, swap) and
/// returns its batches; parameters and buffers go into the model if it has a module. Throws
/// c10::Error on a bad file, DeviceUnavailable where the device is not here.
inline Batches load_state(const Settings& settings, const Model& model) {
  const auto execution = ExecutionOptions::from(settings);
  const auto device = choose_device(settings.get("device", "cpu"));
  const auto dtype = dtype_of(settings);
  const auto path = settings.require<std::string>("state");
  const auto state = read_tensors(path);
  if (model.module) {
    load_parameters(*model.module, state, path);
    if (settings.has("swap")) swap_parameters(*model.module, settings.get("swap", ""));
    model.module->to(device, dtype);
    execution.place(*model.module);
  }
  return read_batches(state, path, device, dtype, execution, model.module != nullptr);
}

}  // namespace torchpace
