// The front door: benchmark_inference, benchmark_train and compare, for any torch::nn module or
// callable. Each leaves parameters, buffers, gradients, train/eval mode and random state as it
// found them.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "torchpace/comparison.hpp"
#include "torchpace/optim/factory.hpp"
#include "torchpace/outputs.hpp"
#include "torchpace/parity.hpp"
#include "torchpace/timing.hpp"

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
inline constexpr bool kIsAny = std::is_same_v<std::remove_cvref_t<M>, torch::nn::AnyModule>;
template <class M>
concept HoldsModule = requires(M& m) {
  { m.ptr().get() } -> std::convertible_to<torch::nn::Module*>;
};
template <class M>
concept PointsToModule = requires(M& m) {
  { &*m } -> std::convertible_to<const torch::nn::Module*>;
  static_cast<bool>(m);
};

/// What is called: of a holder or a pointer the module behind it. A holder's own operator() claims
/// to take anything. Throws c10::Error where there is nothing behind it.
template <class M>
auto& callee(M& model) {
  if constexpr (HoldsModule<M> && !kIsAny<M>) {
    return *model.ptr();
  } else if constexpr (PointsToModule<M>) {
    TORCH_CHECK(static_cast<bool>(model), "benchmark: expected a model, got a null pointer");
    return *model;
  } else {
    return model;
  }
}

/// The torch::nn::Module that is called; null for another callable.
template <class M>
torch::nn::Module* module_of(M& model) {
  auto& called = callee(model);
  using Called = std::remove_cvref_t<decltype(called)>;
  if constexpr (kIsAny<Called>) {
    return called.ptr().get();
  } else if constexpr (std::is_base_of_v<torch::nn::Module, Called>) {
    return const_cast<torch::nn::Module*>(static_cast<const torch::nn::Module*>(&called));
  } else {
    return nullptr;
  }
}

template <class M, class... T>
inline constexpr bool kHasForward = requires(M& m, T&... x) {
  m.forward(x...);
};
template <class M, class... T>
inline constexpr bool kHasCall = requires(M& m, T&... x) {
  m(x...);
};
template <class M, class... T>
inline constexpr bool kTakes = kIsAny<M> || kHasForward<M, T...> || kHasCall<M, T...>;

template <class M, class... T>
auto invoke(M& model, T&... inputs) {
  if constexpr (kIsAny<M>) {
    return const_cast<torch::nn::AnyModule&>(model).any_forward(inputs...);
  } else if constexpr (kHasForward<M, T...>) {
    return model.forward(inputs...);
  } else {
    return model(inputs...);
  }
}

/// Passes what the model returns to `use`.
template <class M, class Use, class... T>
void invoke_for(M& model, const Use& use, T&... inputs) {
  if constexpr (std::is_void_v<decltype(invoke(model, inputs...))>) {
    invoke(model, inputs...);
  } else {
    use(invoke(model, inputs...));
  }
}

template <std::size_t>
using ConstTensor = const torch::Tensor;
template <std::size_t>
using OwnTensor = torch::Tensor;

template <class M, class Use, std::size_t... I>
void call_with(M& model, const Tensors& x, const Use& use, std::index_sequence<I...>) {
  if constexpr (kTakes<M, ConstTensor<I>...>) {
    invoke_for(model, use, x[I]...);
  } else if constexpr (kTakes<M, OwnTensor<I>...>) {
    Tensors own = x;  // forward(torch::Tensor& x) may put another tensor in its place
    invoke_for(model, use, own[I]...);
  } else {
    TORCH_CHECK(false, "benchmark: the model cannot be called with ", sizeof...(I),
                " tensors; a model is a callable such as a lambda, or a torch::nn::Module with a "
                "forward that takes as many: as an object, a std::shared_ptr or another pointer "
                "to it, a holder, a torch::nn::Sequential or a torch::nn::AnyModule");
  }
}

/// Calls the model and passes what it returns to `use`.
template <class M, class Use>
void call(M& model, const Tensors& x, const Use& use) {
  auto& called = callee(model);
  switch (x.size()) {
    case 1:
      return call_with(called, x, use, std::make_index_sequence<1>());
    case 2:
      return call_with(called, x, use, std::make_index_sequence<2>());
    case 3:
      return call_with(called, x, use, std::make_index_sequence<3>());
    case 4:
      return call_with(called, x, use, std::make_index_sequence<4>());
    default:
      TORCH_CHECK(false, "benchmark: expected 1 to 4 inputs, got ", x.size());
  }
}

/// A step: what it returns is not looked at.
template <class M>
void call(M& model, const Tensors& x) {
  call(model, x, [](const auto&) {});
}

template <class T, class... Others>
bool add_any(torch::nn::AnyValue& value, Tensors& all) {
  if (const auto* found = value.try_get<T>()) {
    add_tensors(*found, all);
    return true;
  }
  if constexpr (sizeof...(Others) == 0) {
    return false;
  } else {
    return add_any<Others...>(value, all);
  }
}

/// Of an AnyModule, whose type is known only when it runs.
inline Tensors tensors_of_any(torch::nn::AnyValue value) {
  using T = torch::Tensor;
  Tensors all;
  const bool known =
      add_any<T, std::vector<T>, std::tuple<T, T>, std::pair<T, T>, std::tuple<T, std::tuple<T, T>>,
              std::tuple<T, T, T>, std::tuple<T, T, T, T>>(value, all);
  TORCH_CHECK(known, "benchmark: expected an AnyModule that returns tensors, or a std::tuple, ",
              "std::pair or std::vector of them, got ", c10::demangle(value.type_info().name()),
              "; pass the module itself");
  return all;
}

/// Every tensor that the model returns.
template <class M>
Tensors outputs_of(M& model, const Tensors& x) {
  Tensors all;
  call(model, x, [&all](auto&& result) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(result)>, torch::nn::AnyValue>) {
      all = tensors_of_any(std::move(result));
    } else {
      all = tensors_of(result);
    }
  });
  TORCH_CHECK(!all.empty(), "benchmark: expected a model that returns a tensor, found none");
  return all;
}

/// Calls the model on copies of the inputs. Throws c10::Error where it changes them, or, from the
/// second call on, its buffers: what it caches at the first is another's.
template <class M>
void expect_repeatable(M& model, const Tensors& x, bool keeps_buffers) {
  torch::NoGradGuard no_grad;
  const auto inputs = copies_of(x);
  const ChangeWatch watch(inputs, /*by_value=*/true);
  call(model, inputs);
  expect_unchanged(watch);
  const auto* module = module_of(model);
  if (!keeps_buffers || module == nullptr) return;
  const StateWatch state([module] {
    TensorDict buffers;
    for (const auto& b : module->named_buffers()) buffers[b.key()] = b.value();
    return buffers;
  });
  call(model, inputs);
  expect_unchanged(state);
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

/// Inputs where the options want them; throws where they do not match the parameters and the
/// options give no device or dtype.
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

/// Times `model` on `inputs` in eval mode and InferenceMode. `model`: a torch::nn module as an
/// object, a pointer to one (std::shared_ptr<Net>), a holder, a Sequential, an AnyModule, or any
/// callable of tensors. Throws c10::Error where an input's device or dtype is not the parameters',
/// and where the model changes its inputs or buffers: each step would see others.
template <class M>
Measurement benchmark_inference(M&& model, Inputs inputs, const BenchmarkOptions& options = {}) {
  detail::Borrowed borrowed(detail::module_of(model), {}, options, /*training=*/false);
  const auto x = detail::place_inputs(std::move(inputs), detail::parameters_of(model), options);
  const auto device = x[0].device();
  detail::RandomState random_state(device);
  // Not in InferenceMode: what a model caches at its first call (a mask) must not be an inference
  // tensor, which training could not use.
  detail::expect_repeatable(model, x, /*keeps_buffers=*/true);
  c10::InferenceMode inference;
  const auto step = [&] { detail::call(model, x); };
  return detail::finish(measure(step, device, options.measure), options, x[0], "inference");
}

/// Times whole training steps in train mode: zero_grad, forward, loss, backward, optimizer. Adam at
/// 2e-4 and cross-entropy on class indices unless the options say otherwise. `model` as for
/// benchmark_inference; a callable needs options.parameters. The loss is of the first tensor that
/// the model returns. Throws c10::Error on a mismatch of device, dtype or batch, and where the
/// model changes its inputs.
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
  detail::expect_repeatable(model, x, /*keeps_buffers=*/false);
  const auto optimizer = options.optimizer(parameters);
  const auto step = [&] {
    optimizer->zero_grad();
    options.loss(detail::outputs_of(model, x)[0], target).backward();
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

namespace detail {

/// The dtype whose rounding the comparison of a tensor must allow.
inline torch::ScalarType precision_of(const torch::Tensor& x) {
  if (x.is_complex()) return c10::toRealValueType(x.scalar_type());
  return x.is_floating_point() ? x.scalar_type() : torch::kFloat32;
}

/// Why two tensors of this name differ, in words.
inline std::string difference_text(const std::string& name, const Parity& parity,
                                   const torch::Tensor& expected) {
  if (std::isnan(parity.max_abs_error)) return parity.note;
  if (is_exact(expected)) {
    return c10::str(name, ": ", parity.max_abs_error, " of ", expected.numel(),
                    " elements differ, and integers and bools must not");
  }
  char text[96];
  std::snprintf(text, sizeof text, " differs by %.3g, allowed %.3g", parity.max_abs_error,
                parity.tolerance);
  return name + text;
}

}  // namespace detail

/// Whether two models return the same tensors, as a comparison without times; where not, it is
/// INVALID and says which one. Floating ones may differ by sqrt(eps) of the reference's norms, or
/// in every element by `tolerance`; all others must be equal.
inline Comparison compare_outputs(const Tensors& reference, const Tensors& candidate,
                                  std::optional<double> tolerance = {}) {
  Comparison result;
  const auto invalid = [&result](const std::string& note) {
    result.verdict = Verdict::kInvalid;
    result.note = note;
    return result;
  };
  if (reference.size() != candidate.size()) {
    return invalid(c10::str("expected ", reference.size(), " tensors as the reference returns, ",
                            "found ", candidate.size()));
  }
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const auto name = reference.size() == 1 ? "output" : "output." + std::to_string(i);
    const auto expected = plain(reference[i]);
    auto parity = check_parity({{name, plain(candidate[i])}}, {{name, expected}}, nullptr,
                               detail::precision_of(expected));
    if (tolerance && !is_exact(expected) && !std::isnan(parity.max_abs_error)) {
      parity.tolerance = *tolerance;
      parity.passed = parity.max_abs_error <= *tolerance;
    }
    if (i == 0 || !parity.passed || parity.max_abs_error > result.max_abs_error) {
      result.max_abs_error = parity.max_abs_error;
      result.tolerance = parity.tolerance;
    }
    if (!parity.passed) return invalid(detail::difference_text(name, parity, expected));
  }
  return result;
}

/// Times two steps in interleaved rounds of this process: the reference, the candidate and the
/// reference again (the A/A noise), in Latin-square order, and judges. Writes to `result` what
/// `compare_outputs` leaves open.
inline void compare_steps(const std::function<void()>& reference,
                          const std::function<void()>& candidate, const torch::Device& device,
                          const CompareOptions& options, Comparison& result) {
  const std::function<void()> steps[] = {reference, candidate, reference};
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
}

/// Which of two models or callables is faster on the same inputs, by inference steps. All tensors
/// that they return are compared first, each from copies of the inputs; where they differ the
/// verdict is INVALID and nothing is timed. Throws c10::Error where one changes its inputs or
/// buffers. One process sees one memory layout only: `torchpace compare` repeats it over fresh
/// ones.
template <class A, class B>
Comparison compare(A&& reference, B&& candidate, Inputs inputs,
                   const CompareOptions& options = {}) {
  detail::Borrowed borrowed_a(detail::module_of(reference), {}, options, false);
  detail::Borrowed borrowed_b(detail::module_of(candidate), {}, options, false);
  auto parameters = detail::parameters_of(reference);
  const auto x = detail::place_inputs(std::move(inputs), parameters, options);
  const auto device = x[0].device();
  detail::RandomState random_state(device);

  const auto outputs = [&x](auto& model) {
    torch::NoGradGuard no_grad;
    return copies_of(detail::outputs_of(model, copies_of(x)));
  };
  auto result = compare_outputs(outputs(reference), outputs(candidate), options.tolerance);
  if (result.verdict == Verdict::kInvalid) return result;
  detail::expect_repeatable(reference, x, /*keeps_buffers=*/true);
  detail::expect_repeatable(candidate, x, /*keeps_buffers=*/true);
  c10::InferenceMode inference;
  compare_steps([&] { detail::call(reference, x); }, [&] { detail::call(candidate, x); }, device,
                options, result);
  return result;
}

}  // namespace torchpace
