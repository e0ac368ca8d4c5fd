// The three implementations of each optimizer against each other and against Python's.
#include <torchpace/models/dnn.hpp>
#include <torchpace/optim/factory.hpp>
#include <torchpace/runtimes/eager.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

using testing::error_of;
using testing::fixture_settings;

struct Problem {
  Problem() {
    torch::manual_seed(3);
    for (const auto& shape : {std::vector<int64_t>{4, 3}, {7}, {1}, {2, 2, 2}}) {
      parameters.push_back(torch::randn(shape).requires_grad_());
    }
  }
  /// Gradients of step i, the same for every problem.
  void differentiate(int64_t i, std::size_t first = 0) {
    torch::manual_seed(static_cast<uint64_t>(100 + i));
    for (std::size_t p = 0; p < parameters.size(); ++p) {
      const auto gradient = torch::randn_like(parameters[p]);
      if (p >= first) parameters[p].mutable_grad() = gradient;
    }
  }
  void step(Optimizer& optimizer, int64_t i, std::size_t first = 0) {
    optimizer.zero_grad();
    differentiate(i, first);
    optimizer.step();
  }
  std::vector<torch::Tensor> parameters;
};

double difference(const Problem& a, const Problem& b) {
  double largest = 0;
  for (std::size_t i = 0; i < a.parameters.size(); ++i) {
    const auto moved = (a.parameters[i] - b.parameters[i]).detach().abs().max().item<double>();
    largest = std::max(largest, moved);
  }
  return largest;
}

class Optimizers : public ::testing::TestWithParam<std::string> {};

TEST_P(Optimizers, ForeachAndFusedEqualPerTensor) {
  for (const char* suffix : {"-foreach", "-fused"}) {
    Problem expected, found;
    const auto reference =
        make_optimizer({{"optimizer", GetParam()}, {"lr", "0.01"}}, expected.parameters);
    const auto other =
        make_optimizer({{"optimizer", GetParam() + suffix}, {"lr", "0.01"}}, found.parameters);
    EXPECT_EQ(other->name(), GetParam() + " " + (suffix + 1));
    EXPECT_EQ(reference->name(), GetParam() + " per-tensor");
    for (int64_t i = 0; i < 10; ++i) {
      if (i == 5) {
        reference->set_learning_rate(0.05);
        other->set_learning_rate(0.05);
      }
      expected.step(*reference, i);
      found.step(*other, i);
      EXPECT_LT(difference(expected, found), 2e-6) << other->name() << ", step " << i;
    }
    EXPECT_GT(difference(expected, Problem()), 0.01);
    EXPECT_EQ(other->learning_rate(), 0.05);
  }
}

TEST_P(Optimizers, ALearningRateTakesEffectAtOnce) {
  for (const char* suffix : {"", "-foreach", "-fused"}) {
    Problem still;
    const auto optimizer = make_optimizer({{"optimizer", GetParam() + suffix}}, still.parameters);
    still.step(*optimizer, 0);
    EXPECT_GT(difference(still, Problem()), 0);
    Problem moved = still;
    for (auto& p : moved.parameters) p = p.detach().clone();
    optimizer->set_learning_rate(0);
    still.step(*optimizer, 1);
    EXPECT_EQ(difference(still, moved), 0) << optimizer->name();
  }
}

TEST_P(Optimizers, RestoreForgetsEveryStep) {
  for (const char* suffix : {"", "-foreach", "-fused"}) {
    Problem used, fresh;
    const Settings settings{{"optimizer", GetParam() + suffix}, {"lr", "0.01"}};
    const auto optimizer = make_optimizer(settings, used.parameters);
    for (int64_t i = 0; i < 3; ++i) used.step(*optimizer, i);
    optimizer->restore();
    {
      torch::NoGradGuard no_grad;
      for (std::size_t i = 0; i < used.parameters.size(); ++i)
        used.parameters[i].copy_(fresh.parameters[i]);
    }
    const auto other = make_optimizer(settings, fresh.parameters);
    for (int64_t i = 5; i < 8; ++i) {
      used.step(*optimizer, i);
      fresh.step(*other, i);
    }
    EXPECT_EQ(difference(used, fresh), 0) << optimizer->name();
  }
}

TEST_P(Optimizers, AParameterWithoutAGradientStaysAndCountsItsOwnSteps) {
  for (const char* suffix : {"-foreach", "-fused"}) {
    Problem expected, found;
    const auto reference =
        make_optimizer({{"optimizer", GetParam()}, {"lr", "0.01"}}, expected.parameters);
    const auto other =
        make_optimizer({{"optimizer", GetParam() + suffix}, {"lr", "0.01"}}, found.parameters);
    for (int64_t i = 0; i < 9; ++i) {
      // All, then all but two, then all again: the two are three steps behind.
      const std::size_t first = i / 3 == 1 ? 2 : 0;
      expected.step(*reference, i, first);
      found.step(*other, i, first);
      EXPECT_LT(difference(expected, found), 2e-6) << other->name() << ", step " << i;
    }
    found.step(*other, 9, found.parameters.size());
    EXPECT_LT(difference(expected, found), 2e-6) << "no gradient at all";
  }
}

/// Python's parameters after each of ten steps, from the fixture.
TEST_P(Optimizers, EqualPython) {
  const auto fixture = read_tensors(std::string(TORCHPACE_FIXTURES) + "/optimizers.pt");
  const auto worst = [&](const std::string& suffix, const char* key, const char* value) {
    const auto name = GetParam() + suffix;
    auto parameter = fixture.at("initial").clone().requires_grad_();
    Settings settings{{"optimizer", name}, {"lr", "0.01"}};
    settings.set(key, value);
    const auto optimizer = make_optimizer(settings, {parameter});
    double largest = 0;
    for (int64_t i = 0; i < 10; ++i) {
      parameter.mutable_grad() = fixture.at("gradients")[i].clone();
      optimizer->step();
      const auto moved = (parameter.detach() - fixture.at(name)[i]).abs().max().item<double>();
      largest = std::max(largest, moved);
    }
    return largest;
  };
  for (const char* suffix : {"", "-foreach", "-fused"}) {
    EXPECT_LT(worst(suffix, "eps", "1e-8"), 2e-6) << suffix;
    EXPECT_GT(worst(suffix, "lr", "0.0101"), 2e-5) << suffix;
    if (GetParam() != "sgd") {
      EXPECT_GT(worst(suffix, "eps", "1e-3"), 1e-5) << suffix;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Optimizers, ::testing::Values("adam", "adamw", "sgd"),
                         [](const auto& instance) { return instance.param; });

TEST(OptimizersOfUsers, TakeTheOptionsOfTorch) {
  Problem expected, found;
  const auto options = torch::optim::SGDOptions(0.1).momentum(0.5).nesterov(true).weight_decay(0.1);
  PerTensorOptimizer reference("sgd",
                               std::make_unique<torch::optim::SGD>(expected.parameters, options));
  FusedSgd fused(found.parameters, options);
  Problem third;
  ForeachSgd foreach (third.parameters, options);
  const auto adam = torch::optim::AdamOptions(0.1).betas({0.5, 0.6}).weight_decay(0.1);
  Problem a, b, c;
  PerTensorOptimizer reference_adam("adam",
                                    std::make_unique<torch::optim::Adam>(a.parameters, adam));
  FusedAdam fused_adam(b.parameters, adam);
  ForeachAdam foreach_adam(c.parameters, adam);
  for (int64_t i = 0; i < 10; ++i) {
    expected.step(reference, i);
    found.step(fused, i);
    third.step(foreach, i);
    a.step(reference_adam, i);
    b.step(fused_adam, i);
    c.step(foreach_adam, i);
  }
  EXPECT_LT(difference(expected, found), 1e-5);
  EXPECT_LT(difference(expected, third), 1e-5);
  EXPECT_LT(difference(a, b), 1e-5);
  EXPECT_LT(difference(a, c), 1e-5);
}

TEST(OptimizersOfUsers, RefuseWhatTheyDoNotDo) {
  Problem p;
  EXPECT_NE(error_of([&] {
              FusedAdam(p.parameters, torch::optim::AdamOptions().amsgrad(true));
            }).find("expected amsgrad false"),
            std::string::npos);
  EXPECT_NE(error_of([&] {
              FusedSgd(p.parameters, torch::optim::SGDOptions(0.1).dampening(0.5));
            }).find("expected dampening 0"),
            std::string::npos);
  EXPECT_EQ(error_of([&] { FusedAdam({}, torch::optim::AdamOptions()); }),
            "adam fused: expected parameters, got none");
  EXPECT_NE(error_of([&] {
              make_optimizer({{"optimizer", "adam-fast"}}, p.parameters);
            }).find("settings: optimizer: expected one of adam, adam-foreach"),
            std::string::npos);
}

TEST(OptimizersOfUsers, OnlyFusedMayBeCaptured) {
  Problem p;
  for (const char* name : {"adam", "adam-foreach", "sgd", "sgd-foreach"})
    EXPECT_FALSE(make_optimizer({{"optimizer", name}}, p.parameters)->capturable()) << name;
  for (const char* name : {"adam-fused", "adamw-fused", "sgd-fused"})
    EXPECT_TRUE(make_optimizer({{"optimizer", name}}, p.parameters)->capturable()) << name;
}

/// `update.<name>` is 1 for the right optimizer, whichever it is, and shows a wrong one.
TEST(ParityOfOptimizers, TheFirstUpdateIsOneOnlyForTheRightOptimizer) {
  const auto worst = [](const Settings& changes) {
    auto settings = fixture_settings("dnn");
    for (const auto& [key, value] : changes.values()) settings.set(key, value);
    const auto values = eager_runtimes().front().load(settings, make_dnn(settings)).values();
    double largest = 0;
    for (const auto& [name, value] : values) {
      if (name.starts_with("update."))
        largest = std::max(largest, (value - 1).abs().max().item<double>());
    }
    return largest;
  };
  for (const char* name : {"adam", "adam-foreach", "adam-fused", "adamw", "adamw-foreach",
                           "adamw-fused", "sgd", "sgd-foreach", "sgd-fused"}) {
    EXPECT_LT(worst({{"optimizer", name}, {"lr", "0.01"}}), 1e-4) << name;
    const bool sgd = std::string(name).starts_with("sgd");
    if (!sgd) {
      EXPECT_GT(worst({{"optimizer", name}, {"lr", "0.01"}, {"eps", "1e-3"}}), 1e-3) << name;
    }
  }
}

}  // namespace
}  // namespace torchpace
