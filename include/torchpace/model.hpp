// A model as runtimes see it: what it computes, its loss, and what a step of it costs.
// Its Python half is in python/torchpace/models/__init__.py.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "torchpace/device.hpp"
#include "torchpace/settings.hpp"

namespace torchpace {

/// What one step costs, counted from the shapes. A multiply-add is two FLOPs, element-wise work
/// none.
struct Cost {
  double forward_flops = 0;
  double training_flops = 0;  // forward and backward; the optimizer's work is element-wise
  double parameter_bytes = 0;
  double forward_minimum_bytes = 0;  // parameters and inputs read once, outputs written once
  // Parameters and both Adam moments read and written once, inputs and targets read.
  double training_minimum_bytes = 0;
  double items = 0;
  std::string item = "samples";
};

/// A model as runtimes see it. `forward` and `loss` keep `module` alive. Without a module it can
/// only be run from an artifact, and `absent` says why.
struct Model {
  std::shared_ptr<torch::nn::Module> module;
  std::function<torch::Tensor(const torch::Tensor& input)> forward;
  std::function<torch::Tensor(const torch::Tensor& output, const torch::Tensor& target)> loss;
  Cost cost;
  std::string absent = {};
};

/// Throws DeviceUnavailable, with the model's reason, where there is no module to run.
inline torch::nn::Module& require_module(const Model& model) {
  if (!model.module) throw DeviceUnavailable(model.absent);
  return *model.module;
}

/// Bytes of one number in the dtype of a case.
inline int64_t element_bytes(const Settings& settings) {
  const auto dtype = settings.get("dtype", "float32");
  return dtype == "float64" ? 8 : dtype == "float32" ? 4 : 2;
}

}  // namespace torchpace
