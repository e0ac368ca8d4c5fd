// cpp-eager: the module as it is, run operator by operator. Twin:
// python/torchpace/runtimes/eager.py.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/data/text.hpp"
#include "torchpace/io/state.hpp"
#include "torchpace/workload.hpp"

namespace torchpace {

/// Steps that parity compares in training.
inline constexpr int64_t kParitySteps = 10;

/// Input and target of step i, on the CPU or the device.
using BatchSource = std::function<std::pair<torch::Tensor, torch::Tensor>(int64_t)>;

namespace detail {

/// What the lambdas of a training workload share.
struct EagerTraining {
  EagerTraining(Model m, Batches all, torch::optim::AdamOptions options)
      : model(std::move(m)),
        batches(std::move(all)),
        optimizer(model.module->parameters(), std::move(options)) {
    model.module->train();
    torch::NoGradGuard no_grad;
    for (const auto& p : model.module->named_parameters())
      initial.emplace_back(p.value(), p.value().clone());
    for (const auto& b : model.module->buffers()) initial.emplace_back(b, b.clone());
  }

  torch::Tensor train(const torch::Tensor& x, const torch::Tensor& y) {
    optimizer.zero_grad();
    auto loss = model.loss(model.forward(x), y);
    loss.backward();
    optimizer.step();
    return loss.detach();
  }

  /// In place, so that a turn begins with the same numbers in the same memory.
  void restore() {
    torch::NoGradGuard no_grad;
    for (auto& [tensor, value] : initial) tensor.copy_(value);
    for (auto& [key, state] : optimizer.state()) {
      auto& adam = static_cast<torch::optim::AdamParamState&>(*state);
      adam.step(0);
      adam.exp_avg().zero_();
      adam.exp_avg_sq().zero_();
    }
    step = 0;
  }

  TensorDict values() {
    TensorDict result;
    std::vector<torch::Tensor> losses;
    restore();
    for (int64_t i = 0; i < kParitySteps; ++i) {
      losses.push_back(train(batches.input(i), batches.target(i)));
      if (i == 0) add_first_step(result);
    }
    result["losses"] = torch::stack(losses);
    for (const auto& p : model.module->named_parameters()) {
      result["parameter." + p.key()] = p.value().detach().clone();
    }
    restore();
    return result;
  }

  /// Gradients, and update = (before - after) / lr - g / (|g| + 1e-8) + 1 in float64: 1 for an Adam
  /// of eps 1e-8, whatever the gradient g. It sees the optimiser alone, also where rounding that
  /// flips one ReLU of a deep network moves the gradients by more than a wrong eps does.
  void add_first_step(TensorDict& result) const {
    const double learning_rate =
        static_cast<const torch::optim::AdamOptions&>(optimizer.defaults()).lr();
    auto before = initial.begin();
    for (const auto& p : model.module->named_parameters()) {
      const auto gradient =
          p.value().grad().defined() ? p.value().grad().clone() : torch::zeros_like(p.value());
      const auto g = gradient.to(torch::kFloat64);
      const auto moved =
          (before->second.to(torch::kFloat64) - p.value().detach().to(torch::kFloat64)) /
          learning_rate;
      result["gradient." + p.key()] = gradient;
      result["update." + p.key()] = moved - g / (g.abs() + 1e-8) + 1;
      ++before;
    }
  }

  std::vector<double> losses(const BatchSource& source, int64_t steps) {
    restore();
    const auto device = batches.inputs[0].device();
    std::vector<torch::Tensor> losses;
    for (int64_t i = 0; i < steps; ++i) {
      const auto [x, y] = source ? source(i) : std::pair(batches.input(i), batches.target(i));
      losses.push_back(train(x.to(device), y.to(device)));
    }
    restore();
    const auto all = torch::stack(losses).to(torch::kCPU, torch::kFloat64);
    return {all.data_ptr<double>(), all.data_ptr<double>() + all.numel()};
  }

  Model model;
  Batches batches;
  torch::optim::Adam optimizer;
  std::vector<std::pair<torch::Tensor, torch::Tensor>> initial;
  int64_t step = 0;  // of this turn
};

}  // namespace detail

/// Training steps of `model` on its batches with per-tensor Adam: zero_grad, forward, loss,
/// backward, step. `fresh` feeds `losses`; without it they use the batches in turn.
inline Workload eager_training(const Model& model, Batches batches,
                               torch::optim::AdamOptions options = {2e-4},
                               BatchSource fresh = nullptr) {
  const auto device = batches.inputs.at(0).device();
  const auto dtype = model.module->parameters().at(0).scalar_type();
  auto shared =
      std::make_shared<detail::EagerTraining>(model, std::move(batches), std::move(options));
  return {.step =
              [shared] {
                shared->train(shared->batches.input(shared->step),
                              shared->batches.target(shared->step));
                ++shared->step;
              },
          .restore = [shared] { shared->restore(); },
          .values = [shared] { return shared->values(); },
          .losses = [shared, fresh](int64_t steps) { return shared->losses(fresh, steps); },
          .device = device,
          .dtype = dtype,
          .optimizer = "adam per-tensor",
          .flops = model.cost.training_flops,
          .items = model.cost.items,
          .item = model.cost.item,
          .parameter_bytes = model.cost.parameter_bytes,
          .minimum_bytes = model.cost.training_minimum_bytes};
}

/// Forward passes of `model` in eval mode and InferenceMode, its batches in turn.
inline Workload eager_inference(const Model& model, Batches batches,
                                Phase phase = Phase::kThroughput) {
  const auto device = batches.inputs.at(0).device();
  const auto dtype = model.module->parameters().at(0).scalar_type();
  auto shared = std::make_shared<const Batches>(std::move(batches));
  auto next = std::make_shared<int64_t>(0);
  model.module->eval();
  return {.step =
              [model, shared, next] {
                c10::InferenceMode inference;
                model.forward(shared->input((*next)++));
              },
          .restore = [next] { *next = 0; },
          .values =
              [model, shared] {
                c10::InferenceMode inference;
                return TensorDict{{"output", model.forward(shared->input(0))}};
              },
          .device = device,
          .dtype = dtype,
          .phase = phase,
          .flops = model.cost.forward_flops,
          .items = model.cost.items,
          .item = model.cost.item,
          .parameter_bytes = model.cost.parameter_bytes,
          .minimum_bytes = model.cost.forward_minimum_bytes};
}

inline std::vector<Runtime> eager_runtimes() {
  const auto load = [](const Settings& s, const Model& model) {
    auto batches = load_state(s, model);
    const auto phase = s.require<std::string>("phase");
    if (phase == "inference") return eager_inference(model, std::move(batches), Phase::kThroughput);
    if (phase == "latency") return eager_inference(model, std::move(batches), Phase::kLatency);
    TORCH_CHECK(phase == "train", "phase: expected train, inference or latency, got '", phase, "'");
    const auto options =
        torch::optim::AdamOptions(s.get<double>("lr", 2e-4)).eps(s.get<double>("eps", 1e-8));
    const auto tokens = s.get("tokens", "");
    if (tokens.empty()) return eager_training(model, std::move(batches), options);
    return eager_training(model, std::move(batches), options,
                          TextBatches(read_tokens(tokens), s.require<int64_t>("batch"),
                                      s.require<int64_t>("context"), s.get<int64_t>("seed", 0)));
  };
  return {{.name = "cpp-eager",
           .description = "LibTorch modules in C++, operator by operator",
           .load = load}};
}

}  // namespace torchpace
