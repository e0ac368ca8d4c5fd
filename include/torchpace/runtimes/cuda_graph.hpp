// cpp-cuda-graph: a whole step of the eager module, or of an AOTInductor package, captured once
// with at::cuda::CUDAGraph and replayed: copies of the inputs, two kernels that set the random
// state, as in torch, and the graph. Training takes the fused optimizer, whose step count and
// learning rate are on the device: any other would replay its first step.
// Source: CUDA programming guide, "CUDA Graphs"; the recipe is that of torch.cuda.graph: a stream
// of its own, warm-up on it, inputs and outputs in fixed places.
#pragma once

#include <torch/torch.h>

#if defined(TORCHPACE_WITH_CUDA_HEADERS)
#include <ATen/cuda/CUDAGraph.h>
#endif
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/runtimes/aot.hpp"
#include "torchpace/runtimes/detail/inference_workload.hpp"
#include "torchpace/runtimes/eager.hpp"

namespace torchpace {

/// Work that was captured on a CUDA device. Needs a build with CUDA's headers.
class CapturedGraph {
 public:
  /// Runs `work` some times on a stream of its own, so that libraries have their workspaces and
  /// autograd its nodes there, then captures it once more. `work` must not wait for the device and
  /// must read and write the same memory each time. Throws DeviceUnavailable in a build without
  /// CUDA's headers, c10::Error where the work cannot be captured.
  explicit CapturedGraph([[maybe_unused]] const torch::Device& device,
                         [[maybe_unused]] const std::function<void()>& work) {
#if defined(TORCHPACE_WITH_CUDA_HEADERS)
    const auto stream =
        c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device, false);
    synchronize(device);
    {
      const c10::StreamGuard guard(stream);
      for (int i = 0; i < kWarmUps; ++i) work();
      synchronize(device);
      // Of this thread only: autograd allocates in a thread of its own.
      graph_.capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
      try {
        work();
      } catch (...) {
        end_quietly();
        throw;
      }
      graph_.capture_end();
    }
    synchronize(device);
#else
    require_headers();
#endif
  }

  /// Enqueues the captured work on the current stream.
  void replay() {
#if defined(TORCHPACE_WITH_CUDA_HEADERS)
    graph_.replay();
#endif
  }

  static void require_headers() {
#if !defined(TORCHPACE_WITH_CUDA_HEADERS)
    throw DeviceUnavailable(
        "built without CUDA headers: install the toolkit's or the wheel's (cuda_runtime_api.h) and "
        "build again");
#endif
  }

 private:
#if defined(TORCHPACE_WITH_CUDA_HEADERS)
  static constexpr int kWarmUps = 5;

  /// A capture that failed must end, or the stream stays in it; what it says is the same error.
  void end_quietly() {
    try {
      graph_.capture_end();
    } catch (const std::exception&) {
      return;
    }
  }

  at::cuda::CUDAGraph graph_;
#endif
};

namespace detail {

/// A training step whose kernels are those of the captured one. Batches are copied to its inputs.
struct GraphedTraining : EagerTraining {
  GraphedTraining(Model m, Batches all, const Settings& settings)
      : EagerTraining(std::move(m), std::move(all), settings),
        input(batches.input(0).clone()),
        target(batches.target(0).clone()) {
    TORCH_CHECK(optimizer->capturable(), "cuda graph: expected a capturable optimizer, got ",
                optimizer->name());
    graph = std::make_unique<CapturedGraph>(device,
                                            [this] { loss = EagerTraining::train(input, target); });
    restore();
  }

  torch::Tensor train(const torch::Tensor& x, const torch::Tensor& y) override {
    input.copy_(x);
    target.copy_(y);
    graph->replay();
    return loss;
  }

  std::vector<Part> parts() override { return {}; }

  torch::Tensor input, target, loss;
  std::unique_ptr<CapturedGraph> graph;
};

/// The settings with the fused implementation of their optimizer.
inline Settings with_fused_optimizer(Settings settings) {
  settings.set("optimizer", std::string(optimizer_choice(settings).first.name) + "-fused");
  return settings;
}

/// `outputs` on copies of the inputs, captured. What it gives is overwritten by the next call.
inline CompiledForward graphed(std::function<Tensors(const Tensors&)> outputs,
                               const torch::Device& device, const Tensors& example) {
  struct Captured {
    std::function<Tensors(const Tensors&)> work;  // owns the weights and code that the graph uses
    Tensors inputs, outputs;
    std::unique_ptr<CapturedGraph> graph;
  };
  auto captured = std::make_shared<Captured>();
  captured->work = std::move(outputs);
  for (const auto& input : example) captured->inputs.push_back(input.clone());
  captured->graph = std::make_unique<CapturedGraph>(device, [&] {
    c10::InferenceMode inference;
    captured->outputs = captured->work(captured->inputs);
  });
  const auto call = [captured](const Tensors& inputs) {
    for (std::size_t i = 0; i < inputs.size(); ++i) captured->inputs[i].copy_(inputs[i]);
    captured->graph->replay();
  };
  return {.call = call, .outputs = [captured, call](const Tensors& inputs) {
            call(inputs);
            return captured->outputs;
          }};
}

/// The device of a case that is captured. Throws DeviceUnavailable where there is none.
inline torch::Device graph_device(const Settings& settings) {
  const auto device = choose_device(settings.get("device", "cpu"));
  if (!device.is_cuda()) throw DeviceUnavailable("CUDA graphs: the case is for the CPU");
  CapturedGraph::require_headers();
  return device;
}

inline Workload load_graphed(const Settings& s, const Model& model) {
  const auto device = graph_device(s);
  auto& module = require_module(model);
  auto batches = load_state(s, model);
  if (case_phase(s).trains) {
    auto workload = training_workload(
        std::make_shared<GraphedTraining>(model, std::move(batches), with_fused_optimizer(s)),
        text_source(s));
    workload.compiled_kernels = true;
    return workload;
  }
  const auto phase = inference_phase(s, "");
  module.eval();
  const auto execution = ExecutionOptions::from(s);
  execution.apply();
  const auto forward = graphed(
      [model, execution, device](const Tensors& inputs) {
        AutocastScope scope(execution, device);
        return Tensors{model.forward(inputs.at(0))};
      },
      device, batches.inputs(0));
  return inference_workload(forward, std::move(batches), model.cost, s, phase);
}

inline Workload load_graphed_aot(const Settings& s, const Model& model) {
  const auto phase =
      inference_phase(s, "AOTInductor packages are for inference; cpp-cuda-graph trains");
  const auto device = graph_device(s);
  auto batches = load_batches(s, device);
  const AotPackage package(s.require<std::string>("artifact"), s.get("model_name", ""));
  const double check_s = check_foreign(package, device, batches.inputs(0));
  const auto loaded = load_aot(package, device, s.get("threads", 0), batches.inputs(0));
  auto workload = inference_workload(graphed(loaded.outputs, device, batches.inputs(0)),
                                     std::move(batches), model.cost, s, phase);
  workload.check_s = check_s;
  return workload;
}

}  // namespace detail

inline std::vector<Runtime> cuda_graph_runtimes() {
  return {{.name = "cpp-cuda-graph",
           .description =
               "the whole step of cpp-eager as one CUDA graph; trains with the fused optimizer",
           .load = detail::load_graphed},
          {.name = "cpp-cuda-graph:aot",
           .description = "an AOTInductor package as one CUDA graph",
           .load = detail::load_graphed_aot,
           .artifact = "aot"}};
}

}  // namespace torchpace
