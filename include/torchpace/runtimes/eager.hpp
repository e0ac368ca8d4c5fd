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
#include "torchpace/io/case_files.hpp"
#include "torchpace/optim/factory.hpp"
#include "torchpace/outputs.hpp"
#include "torchpace/workload.hpp"

namespace torchpace {

/// Steps that parity compares in training.
inline constexpr int64_t kParitySteps = 10;

/// Input and target of step i, on the CPU or the device.
using BatchSource = std::function<std::pair<torch::Tensor, torch::Tensor>(int64_t)>;

namespace detail {

/// The gradient of a parameter, and update = (before - after) / lr - direction + 1 in float64: 1
/// for the optimizer of the case, whatever the gradient. It sees the optimizer alone, also where
/// rounding that flips one ReLU of a deep network moves the gradients by more than a wrong eps
/// does.
inline void add_first_step(TensorDict& result, const std::string& name,
                           const torch::Tensor& gradient, const torch::Tensor& before,
                           const torch::Tensor& after, const OptimizerAlgorithm& algorithm,
                           double learning_rate) {
  const auto moved =
      (before.to(torch::kFloat64) - after.detach().to(torch::kFloat64)) / learning_rate;
  result["gradient." + name] = gradient;
  result["update." + name] = moved - update_direction(algorithm, gradient, before) + 1;
}

/// Losses of as many steps, read from the device at the end.
inline std::vector<double> loss_curve(int64_t steps,
                                      const std::function<torch::Tensor(int64_t)>& loss_of_step) {
  std::vector<torch::Tensor> losses;
  for (int64_t i = 0; i < steps; ++i) losses.push_back(loss_of_step(i).clone());
  const auto all = torch::stack(losses).to(torch::kCPU, torch::kFloat64);
  return {all.data_ptr<double>(), all.data_ptr<double>() + all.numel()};
}

/// What the lambdas of a training workload share.
struct EagerTraining {
  virtual ~EagerTraining() = default;
  EagerTraining(Model m, Batches all, const Settings& settings)
      : model(std::move(m)),
        batches(std::move(all)),
        execution(ExecutionOptions::from(settings)),
        device(batches.device()),
        algorithm(optimizer_choice(settings).first),
        optimizer(make_optimizer(settings, require_module(model).parameters())) {
    model.module->train();
    torch::NoGradGuard no_grad;
    for (const auto& p : model.module->named_parameters())
      initial.emplace_back(p.value(), p.value().clone());
    for (const auto& b : model.module->buffers()) initial.emplace_back(b, b.clone());
  }

  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& y) {
    AutocastScope scope(execution, device);
    return model.loss(model.forward(x), y);
  }

  /// One step. Returns its loss, which the next may overwrite.
  virtual torch::Tensor train(const torch::Tensor& x, const torch::Tensor& y) {
    optimizer->zero_grad();
    auto loss = forward(x, y);
    loss.backward();
    optimizer->step();
    return loss.detach();
  }

  /// What `train` does, by the same functions; none where that is one piece.
  virtual std::vector<Part> parts() {
    return {{"optimizer", [this] { optimizer->zero_grad(); }},
            {"forward", [this] { pending = forward(batches.input(step), batches.target(step)); }},
            {"backward", [this] { pending.backward(); }},
            {"optimizer", [this] {
               optimizer->step();
               pending.reset();
               ++step;
             }}};
  }

  /// In place, so that a turn begins with the same numbers in the same memory.
  void restore() {
    torch::NoGradGuard no_grad;
    for (auto& [tensor, value] : initial) tensor.copy_(value);
    optimizer->restore();
    step = 0;
  }

  TensorDict values() {
    TensorDict result;
    std::vector<torch::Tensor> losses;
    restore();
    for (int64_t i = 0; i < kParitySteps; ++i) {
      losses.push_back(train(batches.input(i), batches.target(i)).clone());
      if (i == 0) add_first_step(result);
    }
    result["losses"] = torch::stack(losses);
    for (const auto& p : model.module->named_parameters()) {
      result["parameter." + p.key()] = p.value().detach().clone();
    }
    for (const auto& b : model.module->named_buffers()) {
      result["buffer." + b.key()] = b.value().detach().clone();
    }
    restore();
    return result;
  }

  void add_first_step(TensorDict& result) const {
    auto before = initial.begin();
    for (const auto& p : model.module->named_parameters()) {
      const auto gradient =
          p.value().grad().defined() ? p.value().grad().clone() : torch::zeros_like(p.value());
      detail::add_first_step(result, p.key(), gradient, before->second, p.value(), algorithm,
                             optimizer->learning_rate());
      ++before;
    }
  }

  std::vector<double> losses(const BatchSource& source, int64_t steps) {
    restore();
    auto curve = loss_curve(steps, [&](int64_t i) {
      const auto [x, y] = source ? source(i) : std::pair(batches.input(i), batches.target(i));
      return train(x.to(device), y.to(device));
    });
    restore();
    return curve;
  }

  Model model;
  Batches batches;
  ExecutionOptions execution;
  torch::Device device;
  OptimizerAlgorithm algorithm;
  std::unique_ptr<Optimizer> optimizer;
  std::vector<std::pair<torch::Tensor, torch::Tensor>> initial;
  int64_t step = 0;       // of this turn
  torch::Tensor pending;  // the loss, between the parts of a step
};

}  // namespace detail

namespace detail {

inline Workload training_workload(const std::shared_ptr<EagerTraining>& shared, BatchSource fresh) {
  shared->execution.apply();
  const auto& model = shared->model;
  return {.step =
              [shared] {
                shared->train(shared->batches.input(shared->step),
                              shared->batches.target(shared->step));
                ++shared->step;
              },
          .restore = [shared] { shared->restore(); },
          .values = [shared] { return shared->values(); },
          .losses = [shared, fresh](int64_t steps) { return shared->losses(fresh, steps); },
          .parts = shared->parts(),
          .device = shared->device,
          .execution = shared->execution,
          .dtype = model.module->parameters().at(0).scalar_type(),
          .optimizer = shared->optimizer->name(),
          .flops = model.cost.training_flops,
          .items = model.cost.items,
          .item = model.cost.item,
          .parameter_bytes = model.cost.parameter_bytes,
          .minimum_bytes = model.cost.training_minimum_bytes};
}

/// Fresh batches of the case's text; null for a case without one.
inline BatchSource text_source(const Settings& s) {
  const auto tokens = s.get("tokens", "");
  if (tokens.empty()) return nullptr;
  return TextBatches(read_tokens(tokens), s.require<int64_t>("batch"),
                     s.require<int64_t>("context"), s.get<int64_t>("seed", 0));
}

}  // namespace detail

/// Training steps of `model` on its batches: zero_grad, forward, loss, backward, optimizer. Keys of
/// `settings`: optimizer, lr, eps, and the execution options. `fresh` feeds `losses`; without it
/// they use the batches in turn. Throws DeviceUnavailable for a model without a module.
inline Workload eager_training(const Model& model, Batches batches, const Settings& settings = {},
                               BatchSource fresh = nullptr) {
  require_module(model);
  return detail::training_workload(
      std::make_shared<detail::EagerTraining>(model, std::move(batches), settings),
      std::move(fresh));
}

/// Forward passes of `model` in eval mode and InferenceMode, its batches in turn. Keys of
/// `settings`: the execution options. Throws DeviceUnavailable for a model without a module.
inline Workload eager_inference(const Model& model, Batches batches,
                                Phase phase = Phase::kThroughput, const Settings& settings = {}) {
  const auto device = batches.device();
  const auto dtype = require_module(model).parameters().at(0).scalar_type();
  const auto execution = ExecutionOptions::from(settings);
  execution.apply();
  auto shared = std::make_shared<const Batches>(std::move(batches));
  auto next = std::make_shared<int64_t>(0);
  model.module->eval();
  const auto forward = [model, execution, device](const torch::Tensor& x) {
    c10::InferenceMode inference;
    AutocastScope scope(execution, device);
    return model.forward(x);
  };
  const auto step = [forward, shared, next] { forward(shared->input((*next)++)); };
  return {.step = step,
          .restore = [next] { *next = 0; },
          .values =
              [forward, shared, names = settings.get("outputs", "output")] {
                TensorDict values;
                for (int64_t b = 0; b < shared->count(); ++b)
                  values.merge(named_outputs(b, {forward(shared->input(b))}, names));
                return values;
              },
          .parts = {{"forward", step}},
          .device = device,
          .execution = execution,
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
    require_module(model);
    auto batches = load_state(s, model);
    if (case_phase(s).trains)
      return eager_training(model, std::move(batches), s, detail::text_source(s));
    return eager_inference(model, std::move(batches), timing_of(s), s);
  };
  return {{.name = "cpp-eager",
           .description = "LibTorch modules in C++, operator by operator",
           .load = load}};
}

}  // namespace torchpace
