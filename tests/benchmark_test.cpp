#include <chrono>
#include <map>
#include <optional>
#include <sstream>
#include <thread>
#include <torchpace/benchmark.hpp>
#include <torchpace/models/dnn.hpp>
#include <torchpace/models/gptlite.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

using testing::error_of;

MeasureOptions brief() {
  return {.stop = {.relative_width = 1e9, .min_samples = 3, .max_seconds = 5},
          .max_warmup_steps = 5};
}

Gptlite small(Attention attention = Attention::kSdpa) {
  torch::manual_seed(1);
  return Gptlite(
      GptliteOptions{.layers = 2, .width = 16, .heads = 2, .context = 8, .attention = attention});
}

struct Batch {
  torch::Tensor tokens = torch::randint(65, {2, 8});
  torch::Tensor targets = torch::randint(65, {2, 8});
};

/// All that a benchmark may not change.
struct Snapshot {
  explicit Snapshot(torch::nn::Module& module) {
    for (const auto& p : module.named_parameters()) {
      values[p.key()] = p.value().detach().clone();
      storage[p.key()] = p.value().data_ptr();
      if (p.value().grad().defined()) gradients[p.key()] = p.value().grad().clone();
    }
    for (const auto& b : module.named_buffers()) values["buffer " + b.key()] = b.value().clone();
    training[""] = module.is_training();
    for (const auto& m : module.named_modules("", /*include_self=*/false))
      training[m.key()] = m.value()->is_training();
    random = at::detail::getDefaultCPUGenerator().get_state();
  }

  void expect_unchanged(torch::nn::Module& module) const {
    const Snapshot now(module);
    EXPECT_EQ(now.storage, storage);
    EXPECT_EQ(now.training, training);
    EXPECT_TRUE(torch::equal(now.random, random)) << "random state";
    ASSERT_EQ(now.values.size(), values.size());
    for (const auto& [name, value] : values)
      EXPECT_TRUE(torch::equal(now.values.at(name), value)) << name;
    ASSERT_EQ(now.gradients.size(), gradients.size());
    for (const auto& [name, value] : gradients)
      EXPECT_TRUE(torch::equal(now.gradients.at(name), value)) << name;
  }

  TensorDict values, gradients;
  std::map<std::string, void*> storage;
  std::map<std::string, bool> training;
  torch::Tensor random;
};

TEST(Benchmark, MeasuresInferenceAndTraining) {
  auto model = small();
  Batch b;
  const auto inference = benchmark_inference(model, b.tokens, {.measure = brief(), .flops = 1e6});
  EXPECT_GE(inference.step_ns.size(), 3u);
  EXPECT_GT(inference.step().median, 0);
  EXPECT_EQ(inference.items, 2);
  EXPECT_GT(inference.flops_per_second(), 0);
  TrainOptions options;
  options.measure = brief();
  std::size_t losses = 0;
  options.loss = [&](const torch::Tensor& output, const torch::Tensor& target) {
    ++losses;
    return cross_entropy(output, target);
  };
  const auto training = benchmark_train(model, b.tokens, b.targets, options);
  EXPECT_EQ(training.optimizer, "adam per-tensor");
  EXPECT_GE(training.step_ns.size(), 3u);
  EXPECT_GE(losses, training.step_ns.size()) << "each step computes its loss";
}

TEST(Benchmark, LeavesTheModelAsItFoundIt) {
  struct WithBufferImpl : torch::nn::Module {
    WithBufferImpl() {
      linear = register_module("linear", torch::nn::Linear(8, 8));
      norm = register_module("norm", torch::nn::BatchNorm1d(8));
      drop = register_module("drop", torch::nn::Dropout(0.5));
    }
    torch::Tensor forward(const torch::Tensor& x) { return drop(norm(linear(x))); }
    torch::nn::Linear linear{nullptr};
    torch::nn::BatchNorm1d norm{nullptr};
    torch::nn::Dropout drop{nullptr};
  };
  WithBufferImpl model;
  model.norm->eval();  // a mixture of modes
  const auto x = torch::randn({4, 8});
  const auto y = torch::randint(8, {4});
  model.forward(x).sum().backward();  // gradients that must survive
  TrainOptions options;
  options.measure = brief();
  for (const bool move : {false, true}) {
    if (move) options.dtype = torch::kFloat64;
    const Snapshot before(model);
    benchmark_train(model, x, y, options);
    before.expect_unchanged(model);
    benchmark_inference(model, x, options);
    before.expect_unchanged(model);
    compare(model, model, x, {.max_seconds = 0.01});
    before.expect_unchanged(model);
  }
}

TEST(Benchmark, RestoresEvenWhenAStepThrows) {
  auto model = small();
  Batch b;
  TrainOptions options;
  options.measure = brief();
  int calls = 0;
  options.loss = [&](const torch::Tensor& output, const torch::Tensor& target) {
    TORCH_CHECK(++calls < 3, "enough");
    return cross_entropy(output, target);
  };
  const Snapshot before(*model);
  EXPECT_NE(error_of([&] { benchmark_train(model, b.tokens, b.targets, options); }).find("enough"),
            std::string::npos);
  before.expect_unchanged(*model);
}

TEST(Benchmark, TrainingWorksAfterInferenceOfAModelThatCachesItsMask) {
  auto model = small(Attention::kExplicit);
  Batch b;
  benchmark_inference(model, b.tokens, {.measure = brief()});
  TrainOptions options;
  options.measure = brief();
  EXPECT_NO_THROW(benchmark_train(model, b.tokens, b.targets, options));
  EXPECT_NO_THROW(model->forward(b.tokens).sum().backward());
}

TEST(Benchmark, TakesHoldersModulesReferencesAndCallables) {
  auto holder = small();
  GptliteImpl& reference = *holder;
  Batch b;
  EXPECT_NO_THROW(benchmark_inference(holder, b.tokens, {.measure = brief()}));
  EXPECT_NO_THROW(benchmark_inference(reference, b.tokens, {.measure = brief()}));
  EXPECT_NO_THROW(
      benchmark_inference(torch::nn::Linear(4, 4), torch::randn({2, 4}), {.measure = brief()}));
  const auto two = [](const torch::Tensor& x, const torch::Tensor& y) { return x.matmul(y); };
  const auto m = benchmark_inference(two, {torch::randn({3, 3}), torch::randn({3, 3})},
                                     {.name = "mm", .measure = brief()});
  EXPECT_EQ(m.name, "mm");

  auto weight = torch::randn({4, 4}, torch::requires_grad());
  const auto callable = [&](const torch::Tensor& x) { return x.matmul(weight); };
  TrainOptions options;
  options.measure = brief();
  EXPECT_NE(error_of([&] {
              benchmark_train(callable, torch::randn({2, 4}), torch::randint(4, {2}), options);
            }).find("TrainOptions::parameters"),
            std::string::npos);
  options.parameters = {weight};
  const auto before = weight.detach().clone();
  EXPECT_NO_THROW(benchmark_train(callable, torch::randn({2, 4}), torch::randint(4, {2}), options));
  EXPECT_TRUE(torch::equal(weight, before));
}

struct Net : torch::nn::Module {
  Net() { fc = register_module("fc", torch::nn::Linear(16, 4)); }
  torch::Tensor forward(torch::Tensor x) { return fc->forward(x); }
  torch::nn::Linear fc{nullptr};
};

/// Returns what a test asks for.
template <class Result>
struct Returning : torch::nn::Module {
  explicit Returning(std::function<Result(const torch::Tensor&)> f) : function(std::move(f)) {
    weight = register_parameter("weight", torch::ones({4}));
  }
  Result forward(const torch::Tensor& x) { return function(x * weight); }
  std::function<Result(const torch::Tensor&)> function;
  torch::Tensor weight;
};

TEST(Benchmark, TakesEveryKindOfModule) {
  const auto x = torch::randn({8, 16});
  const auto y = torch::randint(4, {8});
  TrainOptions options;
  options.measure = brief();
  const auto nothing = [](const torch::Tensor& t) { return torch::zeros({t.size(0), 4}); };
  const auto takes = [&](auto&& model) {
    EXPECT_EQ(error_of([&] { benchmark_inference(model, x, options); }), "");
    EXPECT_EQ(error_of([&] { benchmark_train(model, x, y, options); }), "");
    EXPECT_EQ(compare(model, nothing, x).verdict, Verdict::kInvalid);
  };
  Net net;
  const auto shared = std::make_shared<Net>();
  auto unique = std::make_unique<Net>();
  const Net* const constant = &net;
  takes(net);
  takes(&net);
  takes(shared);
  takes(unique);
  takes(torch::nn::AnyModule(shared));
  takes(
      torch::nn::Sequential(torch::nn::Linear(16, 8), torch::nn::ReLU(), torch::nn::Linear(8, 4)));
  const torch::nn::Linear holder(16, 4);
  takes(holder);
  EXPECT_NE(error_of([&] { benchmark_inference(constant, x, options); }).find("cannot be called"),
            std::string::npos)
      << "its forward is not const";
  EXPECT_NE(error_of([&] {
              benchmark_inference(std::shared_ptr<Net>(), x, options);
            }).find("null pointer"),
            std::string::npos);
}

TEST(Benchmark, SaysWhichKindsCanBeCalled) {
  struct Empty : torch::nn::Module {};
  const auto x = torch::randn({8, 16});
  for (const auto& error : {error_of([&] { benchmark_inference(Empty(), x); }),
                            error_of([&] { benchmark_inference(std::make_shared<Empty>(), x); }),
                            error_of([&] { benchmark_inference(3, x); })}) {
    EXPECT_NE(error.find("cannot be called with 1 tensors; a model is a callable such as a lambda"),
              std::string::npos)
        << error;
    EXPECT_NE(error.find("std::shared_ptr"), std::string::npos) << error;
    EXPECT_NE(error.find("torch::nn::AnyModule"), std::string::npos) << error;
  }
  struct ByReference : torch::nn::Module {
    torch::Tensor forward(torch::Tensor& t) {
      t = t + 1;
      return t;
    }
  };
  EXPECT_EQ(error_of([&] { benchmark_inference(ByReference(), x, {.measure = brief()}); }), "");
}

TEST(Benchmark, TakesModulesThatReturnSeveralTensors) {
  using torch::Tensor;
  const auto x = torch::randn({2, 4});
  TrainOptions options;
  options.measure = brief();
  options.loss = [](const Tensor& first, const Tensor&) {
    EXPECT_EQ(first.dim(), 2) << "the first tensor";
    return first.sum();
  };
  const auto takes = [&]<class Result>(std::function<Result(const Tensor&)> function) {
    Returning<Result> model(function);
    EXPECT_EQ(error_of([&] { benchmark_inference(model, x, options); }), "");
    EXPECT_EQ(error_of([&] { benchmark_train(model, x, x, options); }), "");
    Returning<Result> other(function);
    EXPECT_EQ(compare_outputs(detail::outputs_of(model, {x}), detail::outputs_of(other, {x})).note,
              "");
    torch::NoGradGuard no_grad;
    other.weight[3] = 2;
    EXPECT_EQ(compare(model, other, x).verdict, Verdict::kInvalid);
  };
  takes(std::function([](const Tensor& t) { return std::tuple(t, t.sum(), int64_t{3}); }));
  takes(std::function([](const Tensor& t) { return std::pair(t, t.argmax(1)); }));
  takes(std::function([](const Tensor& t) { return std::vector{t, t.sum()}; }));
  takes(std::function([](const Tensor& t) { return std::map<std::string, Tensor>{{"a", t}}; }));
  takes(std::function([](const Tensor& t) { return std::tuple(t, std::optional<Tensor>()); }));
  takes(std::function([](const Tensor& t) { return c10::IValue(std::tuple(t, t.sum())); }));

  torch::nn::LSTM lstm(4, 8);
  const auto sequence = torch::randn({5, 2, 4});
  EXPECT_EQ(error_of([&] { benchmark_inference(lstm, sequence, options); }), "");
  torch::nn::AnyModule any(lstm);
  EXPECT_NE(compare(lstm, any, sequence, {.max_seconds = 0.01}).verdict, Verdict::kInvalid);
}

TEST(Benchmark, CompareSeesEveryTensor) {
  const auto x = torch::randn({4, 4});
  const auto invalid = [&](auto&& a, auto&& b) {
    const auto result = compare(a, b, x, {.max_seconds = 0.01});
    EXPECT_EQ(result.verdict, Verdict::kInvalid);
    EXPECT_EQ(result.rounds, 0u) << "nothing is timed";
    return result.note;
  };
  const auto both = [](const torch::Tensor& t) { return std::pair(t + 1, t.argmax(1)); };
  EXPECT_NE(invalid(both, [](const torch::Tensor& t) { return std::pair(t + 1, t.argmin(1)); })
                .find("output.1: 4 of 4 elements differ"),
            std::string::npos);
  EXPECT_NE(invalid(both, [](const torch::Tensor& t) { return std::pair(t + 2, t.argmax(1)); })
                .find("output.0 differs by 1, allowed"),
            std::string::npos);
  EXPECT_EQ(invalid(both, [](const torch::Tensor& t) { return t + 1; }),
            "expected 2 tensors as the reference returns, found 1");
  EXPECT_NE(
      invalid(both, [](const torch::Tensor& t) { return std::pair(t + 1, t.argmax(1, true)); })
          .find("output.1: expected shape [4] of the reference, found [4, 1]"),
      std::string::npos);
  const auto spectrum = [](const torch::Tensor& t) { return torch::fft_rfft(t); };
  EXPECT_NE(compare(spectrum, spectrum, x, {.max_seconds = 0.01}).verdict, Verdict::kInvalid);
  EXPECT_NE(invalid(spectrum, [&](const torch::Tensor& t) { return spectrum(t).conj(); }), "");
}

TEST(Benchmark, ModelsThatChangeTheirInputsAreToldApartAndRefused) {
  const auto x = torch::randn({8, 16});
  const auto kept = x.clone();
  const auto f = [](torch::Tensor t) { return t.mul_(1.5); };
  const auto g = [](torch::Tensor t) { return t.add_(3).relu_(); };
  EXPECT_EQ(compare(f, g, x, {.max_seconds = 0.01}).verdict, Verdict::kInvalid)
      << "both results are the input";
  const std::string line =
      "the model changes its input 0 in place, so every step would see another one; clone it first "
      "(x = x.clone())";
  EXPECT_EQ(error_of([&] { compare(f, f, x, {.max_seconds = 0.01}); }), line);
  EXPECT_EQ(error_of([&] { benchmark_inference(f, x, {.measure = brief()}); }), line);
  const auto unseen = [](torch::Tensor t) {
    t.data_ptr<float>()[0] += 1;
    return t.sum();
  };
  EXPECT_EQ(error_of([&] { benchmark_inference(unseen, x, {.measure = brief()}); }), line);
  TrainOptions options;
  options.measure = brief();
  options.parameters = {torch::ones({16}, torch::requires_grad())};
  EXPECT_EQ(error_of([&] { benchmark_train(f, x, torch::zeros({8}), options); }), line);
  EXPECT_TRUE(torch::equal(x, kept));
}

TEST(Benchmark, AModelThatChangesItsBuffersIsRefusedInInference) {
  struct Counting : torch::nn::Module {
    Counting() {
      calls = register_buffer("calls", torch::zeros({}));
      weight = register_parameter("weight", torch::ones({4}));
    }
    torch::Tensor forward(const torch::Tensor& x) {
      calls.add_(1);
      return x * weight;
    }
    torch::Tensor calls, weight;
  };
  const auto model = std::make_shared<Counting>();
  const auto x = torch::randn({2, 4});
  EXPECT_NE(error_of([&] { benchmark_inference(model, x); }).find("changes its buffer calls"),
            std::string::npos);
  TrainOptions options;
  options.measure = brief();
  EXPECT_EQ(error_of([&] { benchmark_train(model, x, torch::randint(4, {2}), options); }), "")
      << "as BatchNorm does";
  EXPECT_EQ(model->calls.item<float>(), 0) << "restored";
}

TEST(Benchmark, FewSamplesAreNoNumbers) {
  BenchmarkOptions quick;
  quick.measure.stop = {.min_samples = 1, .max_seconds = 1e-6};
  quick.measure.max_warmup_steps = 5;
  const auto slow = [](const torch::Tensor& x) {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    return x;
  };
  std::ostringstream text;
  text << benchmark_inference(slow, torch::ones({1}), quick);
  EXPECT_NE(text.str().find("a step [n/a]"), std::string::npos) << text.str();
}

TEST(Benchmark, OwnOptimizerAndLoss) {
  torch::nn::Linear model(4, 2);
  TrainOptions options;
  options.measure = brief();
  options.optimizer = [](std::vector<torch::Tensor> p) {
    return std::make_unique<PerTensorOptimizer>(
        "rmsprop", std::make_unique<torch::optim::RMSprop>(std::move(p)));
  };
  options.loss = [](const torch::Tensor& y, const torch::Tensor& t) {
    return torch::mse_loss(y, t);
  };
  const auto recorded = [&] {
    return benchmark_train(model, torch::randn({3, 4}), torch::randn({3, 2}), options).optimizer;
  };
  EXPECT_EQ(recorded(), "rmsprop");
  options.optimizer = optimizer_named("adamw-fused", 1e-3);
  EXPECT_EQ(recorded(), "adamw fused");
  EXPECT_THROW(optimizer_named("lion"), SettingsError);
}

TEST(Benchmark, MismatchesSayNameExpectedAndGot) {
  torch::nn::Linear model(4, 4);
  TrainOptions options;
  options.measure = brief();
  EXPECT_NE(error_of([&] {
              benchmark_inference(model, torch::randn({2, 4}, torch::kFloat64), options);
            }).find("input 0: expected dtype Float as the parameters, got Double"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              benchmark_train(model, torch::randn({2, 4}), torch::randint(4, {3}), options);
            }).find("target: expected batch 2 as input 0, got 3"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              benchmark_inference(model, torch::randn({2, 4}, torch::kMeta), options);
            }).find("input 0: expected device cpu as the parameters, got meta"),
            std::string::npos);
  const auto pair = [&] {
    benchmark_inference(model, {torch::randn({2, 4}), torch::randn({2, 4})}, options);
  };
  EXPECT_NE(error_of(pair).find("cannot be called with 2 tensors"), std::string::npos);
  EXPECT_NE(
      error_of([&] { benchmark_inference(model, Inputs{}, options); }).find("at least one input"),
      std::string::npos);
}

TEST(Benchmark, CompareFindsTheSlowerAndTheWrong) {
  const auto x = torch::randn({8, 8});
  const auto fast = [](const torch::Tensor& t) { return t + 1; };
  const auto slow = [](const torch::Tensor& t) {
    std::this_thread::sleep_for(std::chrono::microseconds(300));
    return t + 1;
  };
  const auto wrong = [](const torch::Tensor& t) { return t + 1.01; };
  const auto result = compare(slow, fast, x, {.max_seconds = 0.3});
  EXPECT_EQ(result.verdict, Verdict::kFaster) << result;
  EXPECT_EQ(result.max_abs_error, 0);
  EXPECT_GE(result.rounds, 15u);
  const auto invalid = compare(fast, wrong, x, {.max_seconds = 0.1});
  EXPECT_EQ(invalid.verdict, Verdict::kInvalid);
  EXPECT_NEAR(invalid.max_abs_error, 0.01, 1e-4);
  EXPECT_EQ(invalid.rounds, 0u) << "nothing is timed";
  EXPECT_NE(compare(fast, wrong, x, {.max_seconds = 0.1, .tolerance = 0.1}).verdict,
            Verdict::kInvalid);
}

}  // namespace
}  // namespace torchpace
