// The optimizers that a case may name, in one table. Free of torch. Twin:
// python/torchpace/optim/algorithms.py.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace torchpace {

enum class OptimizerKind { kAdam, kAdamW, kSgd };

inline constexpr double kLearningRate = 2e-4;
inline constexpr double kAdamEps = 1e-8;
inline constexpr double kSgdMomentum = 0.9;

struct OptimizerAlgorithm {
  std::string_view name;
  OptimizerKind kind;
  // Flat tensors that a compiled step keeps; the first is of the gradient itself.
  std::array<std::string_view, 2> moments;
  double weight_decay = 0;  // unless another is asked for

  bool is_adam() const { return kind != OptimizerKind::kSgd; }
  std::vector<std::string> moment_names() const {
    std::vector<std::string> names;
    for (const auto moment : moments) {
      if (!moment.empty()) names.emplace_back(moment);
    }
    return names;
  }
};

inline constexpr std::array kOptimizerAlgorithms{
    OptimizerAlgorithm{"adam", OptimizerKind::kAdam, {"first_moment", "second_moment"}},
    OptimizerAlgorithm{"adamw", OptimizerKind::kAdamW, {"first_moment", "second_moment"}, 0.01},
    OptimizerAlgorithm{"sgd", OptimizerKind::kSgd, {"momentum"}},
};

/// The algorithm of that name; none where there is no such algorithm.
constexpr const OptimizerAlgorithm* find_optimizer_algorithm(std::string_view name) {
  for (const auto& algorithm : kOptimizerAlgorithms) {
    if (algorithm.name == name) return &algorithm;
  }
  return nullptr;
}

inline std::vector<std::string> optimizer_algorithm_names() {
  std::vector<std::string> names;
  for (const auto& algorithm : kOptimizerAlgorithms) names.emplace_back(algorithm.name);
  return names;
}

/// What the key `optimizer` may be: each algorithm per tensor, foreach and fused.
inline std::vector<std::string> optimizer_names() {
  std::vector<std::string> names;
  for (const auto& algorithm : kOptimizerAlgorithms) {
    for (const char* suffix : {"", "-foreach", "-fused"})
      names.push_back(std::string(algorithm.name) + suffix);
  }
  return names;
}

}  // namespace torchpace
