// A Python module of the user (`torchpace compare --model module:factory`), which C++ knows only
// through the artifacts that Python makes of it. Twin: python/torchpace/models/imported.py.
#pragma once

#include <torch/torch.h>

#include "torchpace/model.hpp"

namespace torchpace {

/// Settings, all of them optional: flops and training_flops of a step, items, parameter_bytes,
/// minimum_bytes. Its forward and its loss throw DeviceUnavailable.
inline Model make_imported(const Settings& s) {
  Model model;
  model.absent =
      "a Python module: C++ runs it from an artifact (cpp-torchscript, cpp-aot), not as a module";
  model.forward = [why = model.absent](const torch::Tensor&) -> torch::Tensor {
    throw DeviceUnavailable(why);
  };
  model.loss = [why = model.absent](const torch::Tensor&, const torch::Tensor&) -> torch::Tensor {
    throw DeviceUnavailable(why);
  };
  const double minimum_bytes = s.get("minimum_bytes", 0.0);
  model.cost = {.forward_flops = s.get("flops", 0.0),
                .training_flops = s.get("training_flops", 0.0),
                .parameter_bytes = s.get("parameter_bytes", 0.0),
                .forward_minimum_bytes = minimum_bytes,
                .training_minimum_bytes = minimum_bytes,
                .items = s.get("items", s.get("batch", 1.0))};
  return model;
}

}  // namespace torchpace
