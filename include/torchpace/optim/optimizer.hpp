// What torchpace asks of an optimizer, and those of torch::optim behind it: a set of kernels per
// tensor. One kernel for many tensors: multi_tensor.hpp. By name: factory.hpp.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace torchpace {

/// What torchpace asks of an optimizer. Parameters without a gradient are left alone by a step.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// Drops the gradients; the next backward makes new ones.
  void zero_grad() {
    for (const auto& p : parameters_) p.mutable_grad().reset();
  }
  virtual void step() = 0;
  /// Back to the state before the first step, in place. Does not touch the parameters.
  virtual void restore() = 0;
  virtual double learning_rate() const = 0;
  virtual void set_learning_rate(double value) = 0;
  /// Whether a step reads all that changes from step to step (count, learning rate) on the device:
  /// then a CUDA graph may replay it, and set_learning_rate between two replays takes effect.
  virtual bool capturable() const { return false; }

  /// As recorded: "adam per-tensor", "adamw fused".
  const std::string& name() const { return name_; }
  const std::vector<torch::Tensor>& parameters() const { return parameters_; }

 protected:
  Optimizer(std::string name, std::vector<torch::Tensor> parameters)
      : name_(std::move(name)), parameters_(std::move(parameters)) {
    TORCH_CHECK(!parameters_.empty(), name_, ": expected parameters, got none");
  }

 private:
  std::string name_;
  std::vector<torch::Tensor> parameters_;
};

/// An optimizer of torch::optim, which is what a C++ program has by default. Only Adam, AdamW and
/// SGD can be restored: c10::Error on another.
class PerTensorOptimizer : public Optimizer {
 public:
  PerTensorOptimizer(std::string name, std::unique_ptr<torch::optim::Optimizer> optimizer)
      : Optimizer(std::move(name), all_parameters(*optimizer)), optimizer_(std::move(optimizer)) {}

  void step() override { optimizer_->step(); }

  void restore() override {
    torch::NoGradGuard no_grad;
    const auto restore_adam = [](auto* state) {
      if (state == nullptr) return false;
      state->step(0);
      state->exp_avg().zero_();
      state->exp_avg_sq().zero_();
      if (state->max_exp_avg_sq().defined()) state->max_exp_avg_sq().zero_();
      return true;
    };
    for (auto& [key, state] : optimizer_->state()) {
      if (restore_adam(dynamic_cast<torch::optim::AdamParamState*>(state.get()))) continue;
      if (restore_adam(dynamic_cast<torch::optim::AdamWParamState*>(state.get()))) continue;
      auto* sgd = dynamic_cast<torch::optim::SGDParamState*>(state.get());
      TORCH_CHECK(sgd != nullptr, name(), ": expected Adam, AdamW or SGD to restore");
      // Not the same as no buffer if there is dampening, which PyTorch leaves out of the first
      // step.
      if (sgd->momentum_buffer().defined()) sgd->momentum_buffer().zero_();
    }
  }

  double learning_rate() const override {
    return optimizer_->param_groups().front().options().get_lr();
  }
  void set_learning_rate(double value) override {
    for (auto& group : optimizer_->param_groups()) group.options().set_lr(value);
  }

 private:
  static std::vector<torch::Tensor> all_parameters(torch::optim::Optimizer& optimizer) {
    std::vector<torch::Tensor> all;
    for (auto& group : optimizer.param_groups())
      all.insert(all.end(), group.params().begin(), group.params().end());
    return all;
  }

  std::unique_ptr<torch::optim::Optimizer> optimizer_;
};

}  // namespace torchpace
