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
  const auto training = benchmark_train(model, b.tokens, b.targets, options);
  EXPECT_EQ(training.optimizer, "adam per-tensor");
  EXPECT_GT(training.step().median, inference.step().median / 2);
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
