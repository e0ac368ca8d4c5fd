// cpp-eager: the module as it is, run operator by operator. Twin: python/torchpace/runtimes/eager.py.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/data/text.hpp"
#include "torchpace/device.hpp"
#include "torchpace/workload.hpp"

namespace torchpace {

/// Steps that parity compares in training.
inline constexpr int64_t kParitySteps = 10;

/// The inputs and targets of a case, one entry a batch, on the case's device.
struct Batches {
  std::vector<torch::Tensor> inputs;
  std::vector<torch::Tensor> targets;
};

/// Copies `prefix<name>` of the dictionary into the module's parameters and buffers by name. Throws c10::Error on a missing, an
/// extra or a wrong-shaped one; `source` names the dictionary in the message.
inline void load_parameters(torch::nn::Module& module, const TensorDict& state, const std::string& source,
                            const std::string& prefix = "parameter.") {
  torch::NoGradGuard no_grad;
  std::set<std::string> used;
  const auto copy = [&](const std::string& name, torch::Tensor tensor, const std::string& kind) {
    const auto found = state.find(kind + name);
    TORCH_CHECK(found != state.end(), source, ": expected ", kind, name, " ", tensor.sizes(),
                ", found none; export the case again");
    TORCH_CHECK(found->second.sizes() == tensor.sizes(), source, ": ", kind, name, ": expected shape ", tensor.sizes(),
                ", found ", found->second.sizes(), "; export the case again");
    tensor.copy_(found->second);
    used.insert(kind + name);
  };
  for (const auto& p : module.named_parameters()) copy(p.key(), p.value(), prefix);
  for (const auto& b : module.named_buffers()) copy(b.key(), b.value(), "buffer.");
  for (const auto& [key, tensor] : state) {
    TORCH_CHECK(!(key.starts_with(prefix) || key.starts_with("buffer.")) || used.contains(key), source,
                ": the model has no ", key, "; export the case again");
  }
}

/// Exchanges two parameters: `swap=NAME,NAME` of the settings, with which tests see parity fail.
inline void swap_parameters(torch::nn::Module& module, const std::string& names) {
  if (names.empty()) return;
  const auto comma = names.find(',');
  auto parameters = module.named_parameters();
  auto* a = parameters.find(names.substr(0, comma));
  auto* b = comma == std::string::npos ? nullptr : parameters.find(names.substr(comma + 1));
  TORCH_CHECK(a != nullptr && b != nullptr && a->sizes() == b->sizes(),
              "swap: expected two parameters of one shape, got '", names, "'");
  torch::NoGradGuard no_grad;
  const auto copy = a->clone();
  a->copy_(*b);
  b->copy_(copy);
}

inline torch::ScalarType dtype_of(const Settings& s) {
  const auto name = s.get("dtype", "float32");
  if (name == "float32") return torch::kFloat32;
  TORCH_CHECK(name == "bfloat16", "dtype: expected float32 or bfloat16, got '", name, "'");
  return torch::kBFloat16;
}

namespace detail {

/// Everything that the lambdas of an eager workload share.
struct Eager {
  Eager(const Settings& s, const Model& m)
      : model(m), device(choose_device(s.get("device", "cpu"))), dtype(dtype_of(s)) {
    const auto path = s.require<std::string>("state");
    const auto state = read_tensors(path);
    load_parameters(*model.module, state, path);
    swap_parameters(*model.module, s.get("swap", ""));
    model.module->to(device, dtype);
    load_batches(state, path);
  }

  void load_batches(const TensorDict& state, const std::string& path) {
    for (const auto& [key, list] : {std::pair{"input", &batches.inputs}, std::pair{"target", &batches.targets}}) {
      const auto found = state.find(key);
      TORCH_CHECK(found != state.end() && found->second.dim() > 0, path, ": expected ", key,
                  " [N, ...], found none; export the case again");
      for (const auto& batch : found->second.unbind()) list->push_back(to_device(batch));
    }
    TORCH_CHECK(batches.inputs.size() == batches.targets.size(), path, ": expected as many targets as inputs, found ",
                batches.targets.size(), " and ", batches.inputs.size());
  }

  torch::Tensor to_device(const torch::Tensor& x) const {
    return x.is_floating_point() ? x.to(device, dtype).contiguous() : x.to(device).contiguous();
  }

  const torch::Tensor& input(int64_t index) const {
    return batches.inputs[static_cast<std::size_t>(index) % batches.inputs.size()];
  }
  const torch::Tensor& target(int64_t index) const {
    return batches.targets[static_cast<std::size_t>(index) % batches.targets.size()];
  }

  Model model;
  torch::Device device;
  torch::ScalarType dtype;
  Batches batches;
  int64_t step = 0;  // of this turn
};

struct EagerTraining : Eager {
  EagerTraining(const Settings& s, const Model& m)
      : Eager(s, m),
        optimizer(model.module->parameters(),
                  torch::optim::AdamOptions(s.get<double>("lr", 2e-4)).eps(s.get<double>("eps", 1e-8))) {
    model.module->train();
    torch::NoGradGuard no_grad;
    for (const auto& p : model.module->parameters()) initial.emplace_back(p, p.clone());
    for (const auto& b : model.module->buffers()) initial.emplace_back(b, b.clone());
  }

  torch::Tensor train(const torch::Tensor& x, const torch::Tensor& y) {
    optimizer.zero_grad();
    auto loss = model.loss(model.forward(x), y);
    loss.backward();
    optimizer.step();
    return loss;
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
      losses.push_back(train(input(i), target(i)).detach());
      if (i > 0) continue;
      for (const auto& p : model.module->named_parameters()) {
        result["gradient." + p.key()] = p.value().grad().defined() ? p.value().grad().clone() : torch::zeros_like(p.value());
      }
    }
    result["losses"] = torch::stack(losses);
    for (const auto& p : model.module->named_parameters()) result["parameter." + p.key()] = p.value().detach().clone();
    restore();
    return result;
  }

  torch::optim::Adam optimizer;
  std::vector<std::pair<torch::Tensor, torch::Tensor>> initial;
};

inline Workload eager_training(const Settings& s, const Model& model) {
  auto state = std::make_shared<EagerTraining>(s, model);
  return {.step = [state] {
            state->train(state->input(state->step), state->target(state->step));
            ++state->step;
          },
          .restore = [state] { state->restore(); },
          .values = [state] { return state->values(); },
          .losses =
              [state, s](int64_t steps) {
                std::optional<TextBatches> text;
                if (s.has("tokens") && !s.get("tokens", "").empty()) {
                  text.emplace(read_tokens(s.get("tokens", "")), s.require<int64_t>("batch"),
                               s.require<int64_t>("context"), s.get<int64_t>("seed", 0));
                }
                state->restore();
                std::vector<torch::Tensor> losses;
                for (int64_t i = 0; i < steps; ++i) {
                  const auto [x, y] = text ? (*text)(i) : std::pair(state->input(i), state->target(i));
                  losses.push_back(state->train(state->to_device(x), state->to_device(y)).detach());
                }
                const auto all = torch::stack(losses).to(torch::kCPU, torch::kFloat64).contiguous();
                state->restore();
                return std::vector<double>(all.data_ptr<double>(), all.data_ptr<double>() + all.numel());
              },
          .device = state->device,
          .dtype = state->dtype,
          .optimizer = "adam per-tensor",
          .flops = model.cost.training_flops,
          .items = model.cost.items,
          .item = model.cost.item,
          .parameter_bytes = model.cost.parameter_bytes,
          .minimum_bytes = model.cost.training_minimum_bytes};
}

inline Workload eager_inference(const Settings& s, const Model& model, Phase phase) {
  auto state = std::make_shared<Eager>(s, model);
  state->model.module->eval();
  return {.step =
              [state] {
                c10::InferenceMode inference;
                state->model.forward(state->input(state->step++));
              },
          .restore = [state] { state->step = 0; },
          .values =
              [state] {
                c10::InferenceMode inference;
                return TensorDict{{"output", state->model.forward(state->input(0))}};
              },
          .device = state->device,
          .dtype = state->dtype,
          .phase = phase,
          .flops = model.cost.forward_flops,
          .items = model.cost.items,
          .item = model.cost.item,
          .parameter_bytes = model.cost.parameter_bytes,
          .minimum_bytes = model.cost.forward_minimum_bytes};
}

}  // namespace detail

inline std::vector<Runtime> eager_runtimes() {
  return {{.name = "cpp-eager",
           .description = "LibTorch modules in C++, operator by operator",
           .load = [](const Settings& s, const Model& model) {
             const auto phase = s.require<std::string>("phase");
             if (phase == "train") return detail::eager_training(s, model);
             TORCH_CHECK(phase == "inference" || phase == "latency",
                         "phase: expected train, inference or latency, got '", phase, "'");
             return detail::eager_inference(s, model, phase == "latency" ? Phase::kLatency : Phase::kThroughput);
           }}};
}

}  // namespace torchpace
