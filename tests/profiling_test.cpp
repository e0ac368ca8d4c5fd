#include <map>
#include <memory>
#include <torchpace/models/dnn.hpp>
#include <torchpace/profiling.hpp>
#include <torchpace/runtimes/eager.hpp>
#include <torchpace/worker.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

constexpr int kLayers = 3;
const Settings kCase = {{"layers", "3"}, {"width", "8"}, {"batch", "4"}, {"lr", "0.1"}};

std::shared_ptr<detail::EagerTraining> training() {
  torch::manual_seed(7);
  const TensorDict state = {{"input", torch::randn({2, 4, 8})},
                            {"target", torch::randint(8, {2, 4}, torch::kInt64)}};
  auto batches =
      read_batches(state, "test", torch::kCPU, torch::kFloat32, ExecutionOptions(), true);
  return std::make_shared<detail::EagerTraining>(make_dnn(kCase), std::move(batches), kCase);
}

/// (part, operator) -> its totals.
std::map<std::pair<std::string, std::string>, OperatorTotals> by_name(const OperatorProfile& all) {
  std::map<std::pair<std::string, std::string>, OperatorTotals> result;
  for (const auto& each : all.operators) result[{each.part, each.name}] = each;
  return result;
}

TEST(Profile, PartsMakeUpAStep) {
  const auto whole = training(), apart = training();
  const auto step = detail::training_workload(whole, nullptr).step;
  const auto parts = detail::training_workload(apart, nullptr).parts;
  for (int i = 0; i < 3; ++i) {
    step();
    for (const auto& part : parts) part.run();
  }
  const auto expected = whole->model.module->named_parameters();
  for (const auto& p : apart->model.module->named_parameters())
    EXPECT_TRUE(torch::equal(p.value(), expected[p.key()])) << p.key();
  EXPECT_EQ(apart->step, whole->step);
}

TEST(Profile, TimesEachPartOnce) {
  const auto times = time_parts(detail::training_workload(training(), nullptr), 4);
  ASSERT_EQ(times.size(), 3u);
  for (const auto& [name, ns] : times) {
    EXPECT_TRUE(name == "forward" || name == "backward" || name == "optimizer") << name;
    ASSERT_EQ(ns.size(), 4u) << name;
    for (const double each : ns) EXPECT_GT(each, 0) << name;
  }
}

/// Counts by hand: y = W3 relu(W2 relu(W1 x + b1) + b2) + b3. Backward has a product for each
/// weight and for the input of each layer but the first.
TEST(Profile, CountsTheOperatorsOfAKnownModel) {
  const auto profile = profile_operators(detail::training_workload(training(), nullptr), 5);
  EXPECT_EQ(profile.step_ns.size(), 5u);
  EXPECT_EQ(profile.synchronizations, 0);
  auto found = by_name(profile);
  const auto expect = [&](const std::string& part, const std::string& name, double calls,
                          double outer) {
    const auto& total = found[{part, name}];
    EXPECT_EQ(total.calls, calls) << part << ' ' << name;
    EXPECT_EQ(total.outer_calls, outer) << part << ' ' << name;
    EXPECT_GT(total.self_ns, 0) << part << ' ' << name;
  };
  expect("forward", "aten::addmm", kLayers, kLayers);
  expect("forward", "aten::relu", kLayers - 1, kLayers - 1);
  expect("forward", "aten::clamp_min", kLayers - 1, 0);
  expect("backward", "aten::mm", kLayers + kLayers - 1, 0);
  expect("backward", "aten::threshold_backward", kLayers - 1, 0);
  expect("optimizer", "aten::addcdiv_", 2 * kLayers, 2 * kLayers);
  double self_ns = 0, step_ns = 0;
  for (const auto& each : profile.operators) {
    EXPECT_TRUE(each.name.find("::") != std::string::npos && !each.name.starts_with("autograd"));
    self_ns += each.self_ns;
  }
  for (const double each : profile.step_ns) step_ns += each / 5;
  EXPECT_LT(self_ns, step_ns) << "a self time holds no other operator's";
}

detail::Worker worker_of(const std::shared_ptr<detail::EagerTraining>& shared) {
  return {{.runtime = "test"},
          [shared](const Settings&) { return detail::training_workload(shared, nullptr); }};
}

std::size_t numbers_in(const std::string& answer, const std::string& key) {
  const auto begin = answer.find('"' + key + "\": [");
  if (begin == std::string::npos) return 0;
  const auto list = answer.substr(begin, answer.find(']', begin) - begin);
  EXPECT_EQ(list.find('-'), std::string::npos) << answer;
  return 1 + static_cast<std::size_t>(std::count(list.begin(), list.end(), ','));
}

TEST(Profile, AWorkerAnswersTheProbes) {
  auto worker = worker_of(training());
  EXPECT_NE(worker.answer("gemm_peak 8 3").find("expected a load command first"),
            std::string::npos);
  worker.answer("load case=default");
  EXPECT_EQ(numbers_in(worker.answer("gemm_peak 8 3"), "gemm_peak_ns"), 3u);
  const auto dispatch = worker.answer("dispatch 4");
  for (const char* key : {"operator_ns", "profiled_ns", "profiled_self_ns"})
    EXPECT_EQ(numbers_in(dispatch, key), 4u) << dispatch;
  EXPECT_EQ(numbers_in(worker.answer("parts 2"), "backward"), 2u);
  const auto operators = worker.answer("operators 2");
  EXPECT_EQ(numbers_in(operators, "step_ns"), 2u);
  EXPECT_NE(operators.find(R"("name": "aten::addmm", "part": "forward", "calls": 3)"),
            std::string::npos);
  EXPECT_NE(operators.find(R"("compiled": false)"), std::string::npos);
  for (const char* bad : {"gemm_peak", "gemm_peak 8", "gemm_peak 0 3", "gemm_peak 8 x", "parts",
                          "parts 0", "operators -1", "dispatch 1 2"}) {
    EXPECT_TRUE(worker.answer(bad).starts_with(R"({"error": )")) << bad;
  }
}

TEST(Profile, AStepOfOnePieceHasOperatorsAndNoParts) {
  const auto x = torch::ones({3});
  const Workload workload{.step = [x] { torch::relu(x); }};
  EXPECT_THROW(time_parts(workload, 1), SettingsError);
  EXPECT_EQ(by_name(profile_operators(workload, 2)).at({"step", "aten::relu"}).calls, 1);
}

}  // namespace
}  // namespace torchpace
