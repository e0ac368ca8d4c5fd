// How models and runtimes meet: a Model is what a runtime needs of any model; a Workload is one
// case loaded in one runtime. Twin: python/torchpace/workload.py.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "torchpace/axes.hpp"
#include "torchpace/device.hpp"
#include "torchpace/io/tensors.hpp"
#include "torchpace/measure.hpp"
#include "torchpace/settings.hpp"

namespace torchpace {

/// What one step costs, counted from the shapes. A multiply-add is two FLOPs, element-wise work
/// none.
struct Cost {
  double forward_flops = 0;
  double training_flops = 0;  // forward and backward; the optimiser's work is element-wise
  double parameter_bytes = 0;
  double forward_minimum_bytes = 0;  // parameters and inputs read once, outputs written once
  double training_minimum_bytes =
      0;  // parameters and both Adam moments read and written once, inputs and targets read
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

/// One case loaded in one runtime, ready to run. Only `step` is required.
struct Workload {
  std::function<void()> step;          // enqueues one step; does not synchronise
  std::function<void()> restore = {};  // back to the initial state, before every turn
  std::function<TensorDict()> values =
      {};  // what parity compares, from the initial state; leaves it there
  std::function<std::vector<double>(int64_t)> losses =
      {};  // of N training steps on fresh batches, from the initial state
  std::function<void()> settle =
      {};  // until steps take what they will take; once, before the first turn that is timed
  torch::Device device = torch::kCPU;
  Axes axes = {};  // in force
  torch::ScalarType dtype = torch::kFloat32;
  Phase phase = Phase::kThroughput;
  std::string optimizer = {};  // as recorded: "adam per-tensor"
  double compile_s = 0;        // of the load, what compiled
  double flops = 0;
  double items = 0;
  std::string item = "items";
  double parameter_bytes = 0;
  double minimum_bytes = 0;
  std::string note = {};
};

/// A way to run any model, by name.
struct Runtime {
  std::string name;
  std::string description;
  std::function<Workload(const Settings&, const Model&)> load;
  std::string artifact = {};  // the kind of compiled file that it loads, as the key `artifact`
};

/// Bytes of one number in the dtype of a case: 4, or 2 where its settings say bfloat16.
inline int64_t element_bytes(const Settings& settings) {
  return settings.get("dtype", "float32") == "bfloat16" ? 2 : 4;
}

}  // namespace torchpace
