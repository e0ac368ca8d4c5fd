// The optimizer that a case names: adam, adamw or sgd, per tensor, foreach or fused. Table:
// docs/worker-protocol.md. Twin: python/torchpace/optim/factory.py.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/optim/algorithms.hpp"
#include "torchpace/optim/multi_tensor.hpp"
#include "torchpace/optim/optimizer.hpp"
#include "torchpace/settings.hpp"

namespace torchpace {

enum class OptimizerImplementation { kPerTensor, kForeach, kFused };

/// The key `optimizer` of a case: adam, adamw or sgd, and -foreach or -fused behind it. Throws
/// SettingsError on another.
inline std::pair<OptimizerAlgorithm, OptimizerImplementation> optimizer_choice(
    const Settings& settings) {
  const auto text = settings.one_of("optimizer", optimizer_names());
  const auto algorithm = text.substr(0, text.find('-'));
  return {*find_optimizer_algorithm(algorithm),
          text.ends_with("-foreach") ? OptimizerImplementation::kForeach
          : text.ends_with("-fused") ? OptimizerImplementation::kFused
                                     : OptimizerImplementation::kPerTensor};
}

/// The optimizer of a case: keys `optimizer`, `lr`, `eps`. Throws SettingsError on a bad value.
inline std::unique_ptr<Optimizer> make_optimizer(const Settings& settings,
                                                 std::vector<torch::Tensor> parameters) {
  const auto [algorithm, implementation] = optimizer_choice(settings);
  const auto kind = algorithm.kind;
  const double lr = settings.get("lr", kLearningRate), eps = settings.get("eps", kAdamEps);
  const auto adam = torch::optim::AdamOptions(lr).eps(eps);
  const auto adamw = torch::optim::AdamWOptions(lr).eps(eps).weight_decay(algorithm.weight_decay);
  const auto sgd = torch::optim::SGDOptions(lr).momentum(kSgdMomentum);
  // Not make_unique of each: eight of its instantiations cost a tenth of what this header may.
  const auto owned = [](Optimizer* optimizer) { return std::unique_ptr<Optimizer>(optimizer); };
  if (implementation == OptimizerImplementation::kForeach) {
    if (kind == OptimizerKind::kAdam) return owned(new ForeachAdam(parameters, adam));
    if (kind == OptimizerKind::kAdamW) return owned(new ForeachAdam(parameters, adamw));
    return owned(new ForeachSgd(parameters, sgd));
  }
  if (implementation == OptimizerImplementation::kFused) {
    if (kind == OptimizerKind::kAdam) return owned(new FusedAdam(parameters, adam));
    if (kind == OptimizerKind::kAdamW) return owned(new FusedAdam(parameters, adamw));
    return owned(new FusedSgd(parameters, sgd));
  }
  const auto per_tensor = [&](const char* name, torch::optim::Optimizer* optimizer) {
    std::unique_ptr<torch::optim::Optimizer> own(optimizer);
    return owned(new PerTensorOptimizer(name, std::move(own)));
  };
  if (kind == OptimizerKind::kAdam)
    return per_tensor("adam per-tensor", new torch::optim::Adam(parameters, adam));
  if (kind == OptimizerKind::kAdamW)
    return per_tensor("adamw per-tensor", new torch::optim::AdamW(parameters, adamw));
  return per_tensor("sgd per-tensor", new torch::optim::SGD(parameters, sgd));
}

/// What the first step subtracts from `before`, divided by the learning rate, in float64. With an
/// eps of 1e-8 and not the case's, so that parity sees a wrong one.
inline torch::Tensor update_direction(const OptimizerAlgorithm& algorithm,
                                      const torch::Tensor& gradient, const torch::Tensor& before) {
  const auto g = gradient.to(torch::kFloat64);
  const auto direction = algorithm.is_adam() ? g / (g.abs() + kAdamEps) : g;
  return direction + algorithm.weight_decay * before.to(torch::kFloat64);
}

}  // namespace torchpace
