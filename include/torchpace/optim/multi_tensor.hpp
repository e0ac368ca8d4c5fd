// Adam, AdamW and SGD with momentum on all tensors at once: foreach (one kernel per operation) and
// fused (one kernel for the whole step).
// Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; Loshchilov and Hutter 2019,
// arXiv:1711.05101, algorithm 2; Sutskever et al. 2013, for momentum as PyTorch writes it.
// By name: factory.hpp.
//
//   torchpace::FusedAdam optimizer(model->parameters(), torch::optim::AdamOptions(1e-3));
//   optimizer.zero_grad(); loss(model(x), y).backward(); optimizer.step();
#pragma once

#include <torch/torch.h>

#include <cmath>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "torchpace/optim/optimizer.hpp"

namespace torchpace {

namespace detail {

/// Parameters of one device and dtype, as the kernels for many tensors want them, with their state.
/// `all` is every parameter, `active` those that have a gradient; which these are seldom changes.
struct TensorGroup {
  struct Lists {
    std::vector<torch::Tensor> parameters, first_moments, second_moments, steps;
  };
  Lists all, active;
  std::vector<bool> has_gradient;
  std::vector<torch::Tensor> gradients;  // of `active`; empty between steps
  std::vector<torch::Tensor> counters;   // the distinct tensors of active.steps
  torch::Tensor learning_rate;           // on the device; not defined on the CPU
};

/// What the optimizers for many tensors share: groups, lists that are kept from step to step, and
/// the count of steps. Tensors that always had their gradients together share one counter.
class MultiTensorOptimizer : public Optimizer {
 public:
  void step() override {
    torch::NoGradGuard no_grad;
    for (auto& group : groups_) {
      if (gather(group)) update(group);
      group.gradients.clear();  // the parameters'; zero_grad must be able to free them
    }
  }

  void restore() override {
    torch::NoGradGuard no_grad;
    for (auto& group : groups_) {
      for (auto* list : {&group.all.first_moments, &group.all.second_moments, &group.all.steps}) {
        if (!list->empty()) at::_foreach_zero_(*list);
      }
    }
  }

  double learning_rate() const override { return learning_rate_; }
  void set_learning_rate(double value) override {
    learning_rate_ = value;
    for (auto& group : groups_) {
      if (group.learning_rate.defined()) group.learning_rate.fill_(value);
    }
  }

 protected:
  MultiTensorOptimizer(std::string name, std::vector<torch::Tensor> parameters,
                       double learning_rate, int moments, bool on_device)
      : Optimizer(std::move(name), std::move(parameters)), learning_rate_(learning_rate) {
    torch::NoGradGuard no_grad;
    for (const auto& p : this->parameters()) {
      TORCH_CHECK(p.is_floating_point() && p.layout() == torch::kStrided, this->name(),
                  ": expected dense floating-point parameters, got ", p.toString());
      auto& group = group_of(p, on_device);
      auto& all = group.all;
      all.parameters.push_back(p);
      if (moments > 0) all.first_moments.push_back(torch::zeros_like(p));
      if (moments > 1) all.second_moments.push_back(torch::zeros_like(p));
      all.steps.push_back(group.counters.front());
    }
    for (auto& group : groups_) {
      group.active = group.all;
      group.has_gradient.assign(group.all.parameters.size(), true);
    }
  }

  /// One step of a group whose gradients are gathered and whose counters are not yet advanced.
  virtual void update(TensorGroup& group) = 0;

  std::vector<TensorGroup> groups_;

 private:
  /// Of the parameter's device and dtype; a new one where there is none.
  TensorGroup& group_of(const torch::Tensor& parameter, bool on_device) {
    for (auto& group : groups_) {
      const auto& first = group.all.parameters.front();
      if (first.device() == parameter.device() && first.scalar_type() == parameter.scalar_type())
        return group;
    }
    groups_.push_back(empty_group(parameter.device(), on_device));
    return groups_.back();
  }

  TensorGroup empty_group(const torch::Device& device, bool on_device) const {
    // What a kernel reads is on its device, in float32 as it expects; what the host reads is not.
    const auto options =
        torch::TensorOptions(torch::kFloat32).device(on_device ? device : torch::Device("cpu"));
    TensorGroup group;
    group.counters = {torch::zeros({}, options)};
    if (on_device && !device.is_cpu())
      group.learning_rate = torch::full({}, learning_rate_, options);
    return group;
  }

  /// False where no parameter has a gradient.
  static bool gather(TensorGroup& group) {
    bool changed = false;
    for (std::size_t i = 0; i < group.all.parameters.size(); ++i) {
      const auto& gradient = group.all.parameters[i].grad();
      if (gradient.defined()) group.gradients.push_back(gradient);
      if (gradient.defined() != group.has_gradient[i]) {
        group.has_gradient[i] = gradient.defined();
        changed = true;
      }
    }
    if (changed) select(group);
    return !group.gradients.empty();
  }

  /// Rebuilds `active`; its tensors leave the counters that they shared with others.
  static void select(TensorGroup& group) {
    group.active = {};
    group.counters.clear();
    std::vector<std::pair<torch::Tensor, torch::Tensor>>
        replaced;  // each shared counter by its own
    const auto own_counter = [&](const torch::Tensor& shared) {
      for (const auto& [old, own] : replaced) {
        if (old.is_same(shared)) return own;
      }
      group.counters.push_back(shared.clone());
      replaced.emplace_back(shared, group.counters.back());
      return group.counters.back();
    };
    for (std::size_t i = 0; i < group.all.parameters.size(); ++i) {
      if (!group.has_gradient[i]) continue;
      group.all.steps[i] = own_counter(group.all.steps[i]);
      group.active.parameters.push_back(group.all.parameters[i]);
      group.active.steps.push_back(group.all.steps[i]);
      if (!group.all.first_moments.empty())
        group.active.first_moments.push_back(group.all.first_moments[i]);
      if (!group.all.second_moments.empty())
        group.active.second_moments.push_back(group.all.second_moments[i]);
    }
  }

  double learning_rate_;
};

/// The numbers of Adam or AdamW.
struct AdamRule {
  AdamRule(const auto& options, bool decoupled_decay)
      : beta1(std::get<0>(options.betas())),
        beta2(std::get<1>(options.betas())),
        eps(options.eps()),
        weight_decay(options.weight_decay()),
        decoupled(decoupled_decay) {
    TORCH_CHECK(!options.amsgrad(), "adam: expected amsgrad false in foreach and fused, got true");
  }

  double beta1, beta2, eps, weight_decay;
  bool decoupled;  // AdamW: the decay is no part of the gradient
};

/// The numbers of SGD. Without dampening, which is refused, a momentum of zero before the first
/// step makes the same as none.
struct SgdRule {
  explicit SgdRule(const torch::optim::SGDOptions& options)
      : momentum(options.momentum()),
        weight_decay(options.weight_decay()),
        nesterov(options.nesterov()) {
    TORCH_CHECK(options.dampening() == 0, "sgd: expected dampening 0 in foreach and fused, got ",
                options.dampening());
  }

  int moments() const { return momentum == 0 ? 0 : 1; }

  double momentum, weight_decay;
  bool nesterov;
};

}  // namespace detail

/// Adam or AdamW, each operation one call for all tensors: on CUDA a few kernels, on the CPU a
/// loop.
class ForeachAdam : public detail::MultiTensorOptimizer {
 public:
  ForeachAdam(std::vector<torch::Tensor> parameters, const torch::optim::AdamOptions& options)
      : ForeachAdam("adam foreach", std::move(parameters), options.lr(), {options, false}) {}
  ForeachAdam(std::vector<torch::Tensor> parameters, const torch::optim::AdamWOptions& options)
      : ForeachAdam("adamw foreach", std::move(parameters), options.lr(), {options, true}) {}

 private:
  ForeachAdam(std::string name, std::vector<torch::Tensor> parameters, double learning_rate,
              detail::AdamRule rule)
      : MultiTensorOptimizer(std::move(name), std::move(parameters), learning_rate, 2, false),
        rule_(rule) {}

  void update(detail::TensorGroup& group) override {
    for (auto& counter : group.counters) counter.add_(1);
    step_sizes_.clear();
    corrections_.clear();
    for (const auto& step : group.active.steps) {
      const double t = *step.const_data_ptr<float>();
      step_sizes_.emplace_back(-learning_rate() / (1 - std::pow(rule_.beta1, t)));
      corrections_.emplace_back(std::sqrt(1 - std::pow(rule_.beta2, t)));
    }
    const auto& [parameters, first, second, steps] = group.active;
    if (rule_.weight_decay != 0 && rule_.decoupled)
      at::_foreach_mul_(parameters, 1 - learning_rate() * rule_.weight_decay);
    if (rule_.weight_decay != 0 && !rule_.decoupled)
      group.gradients = at::_foreach_add(group.gradients, parameters, rule_.weight_decay);
    at::_foreach_lerp_(first, group.gradients, 1 - rule_.beta1);
    at::_foreach_mul_(second, rule_.beta2);
    at::_foreach_addcmul_(second, group.gradients, group.gradients, 1 - rule_.beta2);
    const auto denominators = at::_foreach_sqrt(second);
    at::_foreach_div_(denominators, corrections_);
    at::_foreach_add_(denominators, rule_.eps);
    at::_foreach_addcdiv_(parameters, first, denominators, step_sizes_);
  }

  detail::AdamRule rule_;
  std::vector<at::Scalar> step_sizes_, corrections_;
};

/// SGD, each operation one call for all tensors.
class ForeachSgd : public detail::MultiTensorOptimizer {
 public:
  ForeachSgd(std::vector<torch::Tensor> parameters, const torch::optim::SGDOptions& options)
      : MultiTensorOptimizer("sgd foreach", std::move(parameters), options.lr(),
                             detail::SgdRule(options).moments(), false),
        rule_(options) {}

 private:
  void update(detail::TensorGroup& group) override {
    const auto& parameters = group.active.parameters;
    const auto& momenta = group.active.first_moments;
    if (rule_.weight_decay != 0)
      group.gradients = at::_foreach_add(group.gradients, parameters, rule_.weight_decay);
    if (rule_.momentum != 0) {
      at::_foreach_mul_(momenta, rule_.momentum);
      at::_foreach_add_(momenta, group.gradients, 1);
    }
    if (rule_.momentum != 0 && rule_.nesterov)
      group.gradients = at::_foreach_add(group.gradients, momenta, rule_.momentum);
    const auto& directions = rule_.momentum == 0 || rule_.nesterov ? group.gradients : momenta;
    at::_foreach_add_(parameters, directions, -learning_rate());
  }

  detail::SgdRule rule_;
};

/// Adam or AdamW, the whole step one kernel for all tensors (CPU and CUDA). On CUDA the step count
/// and the learning rate are on the device, so that a CUDA graph may replay a step. A step does not
/// synchronize, and allocates no tensor.
class FusedAdam : public detail::MultiTensorOptimizer {
 public:
  FusedAdam(std::vector<torch::Tensor> parameters, const torch::optim::AdamOptions& options)
      : FusedAdam("adam fused", std::move(parameters), options.lr(), {options, false}) {}
  FusedAdam(std::vector<torch::Tensor> parameters, const torch::optim::AdamWOptions& options)
      : FusedAdam("adamw fused", std::move(parameters), options.lr(), {options, true}) {}

  bool capturable() const override { return true; }

 private:
  FusedAdam(std::string name, std::vector<torch::Tensor> parameters, double learning_rate,
            detail::AdamRule rule)
      : MultiTensorOptimizer(std::move(name), std::move(parameters), learning_rate, 2, true),
        rule_(rule) {}

  void update(detail::TensorGroup& group) override {
    for (auto& counter : group.counters) counter.add_(1);
    group.learning_rate.defined() ? call(group, group.learning_rate) : call(group, learning_rate());
  }

  void call(detail::TensorGroup& group, const auto& learning_rate) {
    const auto& lists = group.active;
    const auto kernel = [&](auto&& function) {
      function(lists.parameters, group.gradients, lists.first_moments, lists.second_moments,
               at::TensorList(), lists.steps, learning_rate, rule_.beta1, rule_.beta2,
               rule_.weight_decay, rule_.eps, /*amsgrad=*/false, /*maximize=*/false);
    };
    rule_.decoupled ? kernel([](auto&&... x) { at::_fused_adamw_(x...); })
                    : kernel([](auto&&... x) { at::_fused_adam_(x...); });
  }

  detail::AdamRule rule_;
};

/// SGD, the whole step one kernel for all tensors (CPU and CUDA). As FusedAdam for CUDA graphs.
class FusedSgd : public detail::MultiTensorOptimizer {
 public:
  FusedSgd(std::vector<torch::Tensor> parameters, const torch::optim::SGDOptions& options)
      : MultiTensorOptimizer("sgd fused", std::move(parameters), options.lr(),
                             detail::SgdRule(options).moments(), true),
        rule_(options) {}

  bool capturable() const override { return true; }

 private:
  void update(detail::TensorGroup& group) override {
    group.learning_rate.defined() ? call(group, group.learning_rate) : call(group, learning_rate());
  }

  void call(detail::TensorGroup& group, const auto& learning_rate) {
    at::_fused_sgd_(group.active.parameters, group.gradients, group.active.first_moments,
                    rule_.weight_decay, rule_.momentum, learning_rate, /*dampening=*/0,
                    rule_.nesterov, /*maximize=*/false, /*is_first_step=*/false);
  }

  detail::SgdRule rule_;
};

}  // namespace torchpace
