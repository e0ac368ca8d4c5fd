#include <torchpace/models/dnn.hpp>
#include <torchpace/runtimes/cuda_graph.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

TEST(CudaGraph, SkipsTheCpu) {
  for (const auto& runtime : cuda_graph_runtimes()) {
    EXPECT_THROW(runtime.load({{"phase", "inference"}, {"device", "cpu"}}, {}), DeviceUnavailable)
        << runtime.name;
  }
}

TEST(CudaGraph, TakesTheFusedImplementationOfTheOptimizer) {
  EXPECT_EQ(detail::with_fused_optimizer({}).get("optimizer", ""), "adam-fused");
  EXPECT_EQ(detail::with_fused_optimizer({{"optimizer", "sgd-foreach"}}).get("optimizer", ""),
            "sgd-fused");
}

/// Losses of 10 steps, the learning rate changed after 5, and the parameters after them.
template <class Training>
std::pair<torch::Tensor, torch::Tensor> ten_steps() {
  auto settings = testing::fixture_settings("dnn");
  settings.set("device", "cuda");
  settings.set("optimizer", "adam-fused");
  const auto model = make_dnn(settings);
  Training training(model, load_state(settings, model), settings);
  std::vector<torch::Tensor> losses;
  for (int64_t i = 0; i < 10; ++i) {
    if (i == 5) training.optimizer->set_learning_rate(0.1);
    losses.push_back(training.train(training.batches.input(i), training.batches.target(i)).clone());
  }
  std::vector<torch::Tensor> parameters;
  for (const auto& p : model.module->parameters()) parameters.push_back(p.detach().flatten());
  return {torch::stack(losses).cpu(), torch::cat(parameters).cpu()};
}

TEST(CudaGraph, ReplaysWhatEagerDoesAlsoWithAnotherLearningRate) {
  if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
  const auto [losses, parameters] = ten_steps<detail::GraphedTraining>();
  const auto [eager_losses, eager_parameters] = ten_steps<detail::EagerTraining>();
  EXPECT_TRUE(torch::allclose(losses, eager_losses, 1e-5, 1e-6)) << losses << eager_losses;
  EXPECT_TRUE(torch::allclose(parameters, eager_parameters, 1e-5, 1e-6));
}

}  // namespace
}  // namespace torchpace
