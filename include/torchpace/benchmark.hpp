// The front door: benchmark_inference, benchmark_train and compare, for any torch::nn module or
// callable. Each leaves parameters, buffers, gradients, train/eval mode and random state as it
// found them.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <concepts>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "torchpace/comparison.hpp"
#include "torchpace/measure.hpp"
#include "torchpace/optim/choice.hpp"
#include "torchpace/parity.hpp"

namespace torchpace {

/// One or several input tensors: `x` or `{x, mask}`.
struct Inputs : std::vector<torch::Tensor> {
  Inputs(torch::Tensor x) : vector{std::move(x)} {}
  Inputs(std::initializer_list<torch::Tensor> all) : vector(all) {}
};

using Loss = std::function<torch::Tensor(const torch::Tensor& output, const torch::Tensor& target)>;
using OptimizerFactory =
    std::function<std::unique_ptr<Optimizer>(std::vector<torch::Tensor> parameters)>;

/// Cross-entropy on class indices: logits [..., V] against int64 targets of the leading shape.
inline torch::Tensor cross_entropy(const torch::Tensor& logits, const torch::Tensor& target) {
  return torch::nn::functional::cross_entropy(logits.reshape({-1, logits.size(-1)}),
                                              target.reshape({-1}));
}

/// By name: adam, adamw (weight decay 0.01) or sgd (momentum 0.9), as torch::optim has them, or
/// with -foreach or -fused behind it. Throws SettingsError on another name.
inline OptimizerFactory optimizer_named(const std::string& name,
                                        double learning_rate = kLearningRate) {
  optimizer_choice({{"optimizer", name}});
  return [name, learning_rate](std::vector<torch::Tensor> parameters) {
    auto made = make_optimizer({{"optimizer", name}}, std::move(parameters));
    made->set_learning_rate(learning_rate);
    return made;
  };
}

struct BenchmarkOptions {
  std::string name = {};  // of the row; "inference" or "training" unless given
  // The model and its inputs are there for the time of the benchmark; else where they are.
  std::optional<torch::Device> device = {};
  std::optional<torch::ScalarType> dtype = {};  // of parameters and floating inputs, likewise
  MeasureOptions measure = {};
  double flops = 0;  // of one step, for FLOP/s
  double items = 0;  // of one step; 0: the first input's first dimension
  std::string item = "items";
};

struct TrainOptions : BenchmarkOptions {
  OptimizerFactory optimizer = optimizer_named("adam");  // or one of your own: PerTensorOptimizer
  Loss loss = cross_entropy;
  std::vector<torch::Tensor> parameters = {};  // of a callable, which has none of its own
};

namespace detail {

template <class M>
inline constexpr bool kIsHolder = requires(M& m) {
  { m.ptr().get() } -> std::convertible_to<torch::nn::Module*>;
};

/// The torch::nn::Module behind a holder or a module; null for another callable.
template <class M>
torch::nn::Module* module_of(M& model) {
  if constexpr (std::is_base_of_v<torch::nn::Module, std::remove_cvref_t<M>>) {
    return const_cast<torch::nn::Module*>(static_cast<const torch::nn::Module*>(&model));
  } else if constexpr (kIsHolder<M>) {
    return model.ptr().get();
  } else {
    return nullptr;
  }
}

/// A holder's own operator() claims to take anything, so its module's forward is asked.
template <class M, class... Tensors>
torch::Tensor call(M& model, const Tensors&... inputs) {
  if constexpr (kIsHolder<M>) {
    if constexpr (requires { model.ptr()->forward(inputs...); })
      return model.ptr()->forward(inputs...);
  } else if constexpr (requires { model.forward(inputs...); }) {
    return model.forward(inputs...);
  } else if constexpr (requires { model(inputs...); }) {
    return model(inputs...);
  }
  TORCH_CHECK(false, "benchmark: the model cannot be called with ", sizeof...(inputs), " tensors");
}

template <class M>
torch::Tensor call(M& model, const std::vector<torch::Tensor>& x) {
  switch (x.size()) {
    case 1:
      return call(model, x[0]);
    case 2:
      return call(model, x[0], x[1]);
    case 3:
      return call(model, x[0], x[1], x[2]);
    case 4:
      return call(model, x[0], x[1], x[2], x[3]);
    default:
      TORCH_CHECK(false, "benchmark: expected 1 to 4 inputs, got ", x.size());
  }
}

/// Random state of the CPU and, where there is one, of the device.
class RandomState {
 public:
  explicit RandomState(const torch::Device& device) {
    save(at::detail::getDefaultCPUGenerator());
    if (!device.is_cpu()) save(at::globalContext().defaultGenerator(device));
  }
  ~RandomState() {
    for (auto& [generator, state] : states_) generator.set_state(state);
  }
  RandomState(const RandomState&) = delete;
  RandomState& operator=(const RandomState&) = delete;

 private:
  void save(at::Generator generator) { states_.emplace_back(generator, generator.get_state()); }
  std::vector<std::pair<at::Generator, at::Tensor>> states_;
};

/// Puts a model on a device and dtype and, when it goes, everything back: storage, values,
/// gradients, modes.
class Borrowed {
 public:
  /// `options` needs `device` and `dtype`.
  Borrowed(torch::nn::Module* module, std::vector<torch::Tensor> parameters, const auto& options,
           bool training)
      : module_(module), mode_(module != nullptr && module->is_training()) {
    if (module != nullptr) {
      parameters = module->parameters();
      // Without itself: a module on the stack has no shared pointer.
      for (const auto& m : module->modules(/*include_self=*/false))
        modes_.emplace_back(m, m->is_training());
      for (const auto& b : module->buffers()) keep(b, options, true);
      training ? module->train() : module->eval();
    }
    for (const auto& p : parameters) keep(p, options, training);
  }
  ~Borrowed() {
    torch::NoGradGuard no_grad;
    for (auto& t : tensors_) {
      t.tensor.set_data(t.data);
      if (t.values.defined()) t.data.copy_(t.values);
      t.tensor.mutable_grad() = t.gradient;
    }
    if (module_ != nullptr) module_->train(mode_);
    for (auto& [module, mode] : modes_) module->train(mode);
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;

 private:
  struct Kept {
    torch::Tensor tensor, data, values, gradient;
  };

  void keep(torch::Tensor tensor, const auto& options, bool changes) {
    torch::NoGradGuard no_grad;
    const auto data = tensor.tensor_data();  // the same storage, its own metadata
    tensors_.push_back({tensor, data, changes ? data.clone() : torch::Tensor(), tensor.grad()});
    if (tensor.is_leaf()) tensor.mutable_grad() = torch::Tensor();
    const auto dtype = tensor.is_floating_point() ? options.dtype.value_or(tensor.scalar_type())
                                                  : tensor.scalar_type();
    const auto device = options.device.value_or(tensor.device());
    if (dtype != tensor.scalar_type() || device != tensor.device())
      tensor.set_data(data.to(device, dtype));
  }

  torch::nn::Module* module_;
  bool mode_;
  std::vector<Kept> tensors_;
  // Parents before children: restoring in this order lets each child's own mode win.
  std::vector<std::pair<std::shared_ptr<torch::nn::Module>, bool>> modes_;
};

/// Inputs where the options want them; throws on a mismatch with the parameters that the options do
/// not settle.
inline std::vector<torch::Tensor> place_inputs(std::vector<torch::Tensor> inputs,
                                               const std::vector<torch::Tensor>& parameters,
                                               const auto& options) {
  TORCH_CHECK(!inputs.empty() && inputs[0].defined(),
              "benchmark: expected at least one input, got none");
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    auto& x = inputs[i];
    if (options.device) x = x.to(*options.device);
    if (options.dtype && x.is_floating_point()) x = x.to(*options.dtype);
    if (parameters.empty()) continue;
    const auto& p = parameters.front();
    TORCH_CHECK(x.device() == p.device(), "benchmark: input ", i, ": expected device ", p.device(),
                " as the parameters, got ", x.device());
    TORCH_CHECK(!x.is_floating_point() || x.scalar_type() == p.scalar_type(), "benchmark: input ",
                i, ": expected dtype ", p.scalar_type(), " as the parameters, got ",
                x.scalar_type());
  }
  return inputs;
}

inline Measurement finish(Measurement m, const BenchmarkOptions& options,
                          const torch::Tensor& first_input, const char* name) {
  m.name = options.name.empty() ? name : options.name;
  m.flops = options.flops;
  m.items = options.items > 0       ? options.items
            : first_input.dim() > 0 ? static_cast<double>(first_input.size(0))
                                    : 1;
  m.item = options.item;
  return m;
}

template <class M>
std::vector<torch::Tensor> parameters_of(M& model) {
  auto* module = module_of(model);
  return module == nullptr ? std::vector<torch::Tensor>() : module->parameters();
}

}  // namespace detail

/// Times `model` on `inputs` in eval mode and InferenceMode. `model`: a torch::nn holder or module,
/// or any callable Tensor... -> Tensor. Throws c10::Error where an input's device or dtype is not
/// the parameters'.
template <class M>
Measurement benchmark_inference(M&& model, Inputs inputs, const BenchmarkOptions& options = {}) {
  detail::Borrowed borrowed(detail::module_of(model), {}, options, /*training=*/false);
  const auto x = detail::place_inputs(std::move(inputs), detail::parameters_of(model), options);
  const auto device = x[0].device();
  detail::RandomState random_state(device);
  {
    // What a model caches at its first call (a mask) must not be an inference tensor: training
    // could not use it.
    torch::NoGradGuard no_grad;
    detail::call(model, x);
  }
  c10::InferenceMode inference;
  const auto step = [&] { detail::call(model, x); };
  return detail::finish(measure(step, device, options.measure), options, x[0], "inference");
}

/// Times whole training steps in train mode: zero_grad, forward, loss, backward, optimiser. Adam at
/// 2e-4 and cross-entropy on class indices unless the options say otherwise. `model` as for
/// benchmark_inference; a callable needs options.parameters. Throws c10::Error on a mismatch of
/// device, dtype or batch.
template <class M>
Measurement benchmark_train(M&& model, Inputs inputs, torch::Tensor target,
                            const TrainOptions& options = {}) {
  auto parameters = options.parameters;
  if (detail::module_of(model) != nullptr) parameters = detail::parameters_of(model);
  TORCH_CHECK(
      !parameters.empty(),
      "benchmark_train: expected parameters to train, got none; a callable names its own in "
      "TrainOptions::parameters");
  detail::Borrowed borrowed(detail::module_of(model), parameters, options, /*training=*/true);
  const auto x = detail::place_inputs(std::move(inputs), parameters, options);
  if (options.device) target = target.to(*options.device);
  TORCH_CHECK(target.device() == x[0].device(), "benchmark_train: target: expected device ",
              x[0].device(), ", got ", target.device());
  TORCH_CHECK(target.dim() == 0 || x[0].dim() == 0 || target.size(0) == x[0].size(0),
              "benchmark_train: target: expected batch ", x[0].size(0), " as input 0, got ",
              target.size(0));
  detail::RandomState random_state(x[0].device());
  const auto optimizer = options.optimizer(parameters);
  const auto step = [&] {
    optimizer->zero_grad();
    options.loss(detail::call(model, x), target).backward();
    optimizer->step();
  };
  auto m = detail::finish(measure(step, x[0].device(), options.measure), options, x[0], "training");
  m.optimizer = optimizer->name();
  return m;
}

struct CompareOptions {
  std::optional<torch::Device> device = {};  // as in BenchmarkOptions
  std::optional<torch::ScalarType> dtype = {};
  double max_seconds = 10;
  double delta = 0.02;  // SAME: within 1 +- delta
  /// Largest difference of the outputs that is allowed; the default is sqrt(eps) x max|reference
  /// output|.
  std::optional<double> tolerance = {};
};

/// Which of two models or callables is faster on the same inputs, by inference steps in interleaved
/// rounds of this process: the reference, the candidate and the reference again (the A/A noise), in
/// Latin-square order. The outputs are compared first; where they differ the verdict is INVALID and
/// nothing is timed. One process sees one memory layout only: `torchpace compare` repeats it over
/// fresh ones.
template <class A, class B>
Comparison compare(A&& reference, B&& candidate, Inputs inputs,
                   const CompareOptions& options = {}) {
  detail::Borrowed borrowed_a(detail::module_of(reference), {}, options, false);
  detail::Borrowed borrowed_b(detail::module_of(candidate), {}, options, false);
  auto parameters = detail::parameters_of(reference);
  const auto x = detail::place_inputs(std::move(inputs), parameters, options);
  const auto device = x[0].device();
  detail::RandomState random_state(device);

  Comparison result;
  {
    torch::NoGradGuard no_grad;
    const auto expected = detail::call(reference, x);
    const auto found = detail::call(candidate, x);
    auto parity =
        check_parity({{"output", found}}, {{"output", expected}}, nullptr, expected.scalar_type());
    if (options.tolerance && parity.compared > 0) {
      parity.tolerance = *options.tolerance;
      parity.passed = parity.max_abs_error <= parity.tolerance;
    }
    result.max_abs_error = parity.max_abs_error;
    result.tolerance = parity.tolerance;
    if (!parity.passed) {
      result.verdict = Verdict::kInvalid;
      return result;
    }
  }

  c10::InferenceMode inference;
  const std::function<void()> steps[] = {[&] { detail::call(reference, x); },
                                         [&] { detail::call(candidate, x); },
                                         [&] { detail::call(reference, x); }};
  for (const auto& step : steps)
    measure(step, device, {.stop = {.relative_width = 1, .min_samples = 5}});
  const double pilot_ns = median(run_block(steps[0], device, Phase::kLatency, 5).step_ns);
  const auto block = static_cast<std::size_t>(std::clamp(20e6 / pilot_ns, 1.0, 1000.0));
  std::vector<double> medians[3];
  const auto start = detail::Clock::now();
  std::size_t order[] = {0, 1, 2};
  while (medians[0].size() < 15 ||
         detail::elapsed_ns(start, detail::Clock::now()) < options.max_seconds * 1e9) {
    std::next_permutation(std::begin(order), std::end(order));  // all six in turn
    for (std::size_t round = 0; round < 3; ++round) {
      for (std::size_t place = 0; place < 3; ++place) {
        const auto side = order[(round + place) % 3];
        steps[side]();  // the caches are another's: one unrecorded step
        medians[side].push_back(
            median(run_block(steps[side], device, Phase::kLatency, block).step_ns));
      }
    }
  }
  result.rounds = medians[0].size();
  result.speedup = exponential(sign_test_interval(round_log_ratios(medians[0], medians[1])));
  result.noise = exponential(sign_test_interval(round_log_ratios(medians[0], medians[2])));
  result.verdict = judge(result.speedup, result.noise, options.delta);
  return result;
}

}  // namespace torchpace
