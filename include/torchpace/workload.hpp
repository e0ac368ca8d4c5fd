// What a runtime must offer: a Workload is one case loaded in one runtime. What it needs of a
// model: model.hpp. Twin: python/torchpace/workload.py.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "torchpace/case_phase.hpp"
#include "torchpace/device.hpp"
#include "torchpace/execution_options.hpp"
#include "torchpace/io/tensor_dict.hpp"
#include "torchpace/model.hpp"
#include "torchpace/settings.hpp"
#include "torchpace/timing.hpp"

namespace torchpace {

/// A part of a step: forward (with the loss), backward or optimizer.
struct Part {
  std::string name;
  std::function<void()> run;  // enqueues it; does not synchronize
};

/// One case loaded in one runtime, ready to run. Only `step` is required.
struct Workload {
  std::function<void()> step;          // enqueues one step; does not synchronize
  std::function<void()> restore = {};  // back to the initial state, before every turn
  // What parity compares, from the initial state; leaves it there.
  std::function<TensorDict()> values = {};
  // Of N training steps on fresh batches, from the initial state.
  std::function<std::vector<double>(int64_t)> losses = {};
  // Until steps take what they will take; once, before the first turn that is timed.
  std::function<void()> warm_up = {};
  std::vector<Part> parts = {};   // what a step does, in its order; empty where it is one piece
  bool compiled_kernels = false;  // they run outside of operators
  torch::Device device = torch::kCPU;
  ExecutionOptions execution = {};  // in force
  torch::ScalarType dtype = torch::kFloat32;
  Phase phase = Phase::kThroughput;
  std::string optimizer = {};  // as recorded: "adam per-tensor"
  std::string gemm = "torch";  // whose matrix products: torch, torchpace where an artifact says so
  std::string engine = {};     // what runs it where that is not PyTorch: "openvino 2026.4.1"
  double compile_s = 0;        // of the load, what compiled
  double check_s = 0;          // of the load, what only checks the file: it counts nowhere
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
  bool approximate = false;   // coarser arithmetic than the case's: parity only tells its errors
};

/// How the steps of a case are timed.
inline Phase timing_of(const Settings& settings) {
  return case_phase(settings).batch_of_one ? Phase::kLatency : Phase::kThroughput;
}

}  // namespace torchpace
