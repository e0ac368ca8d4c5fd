#include <torchpace/execution_options.hpp>
#include <torchpace/models/dnn.hpp>
#include <torchpace/runtimes/eager.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

using testing::error_of;
using testing::fixture_settings;

TEST(ExecutionOptions, ReadsTheCaseAndRefusesOtherValues) {
  const auto none = ExecutionOptions::from({});
  EXPECT_FALSE(none.autocast || none.tf32 || none.channels_last);
  const auto all = ExecutionOptions::from({{"autocast", "bfloat16"},
                                           {"memory_format", "channels_last"},
                                           {"tf32", "1"},
                                           {"device", "cuda:0"}});
  EXPECT_EQ(all.autocast, torch::kBFloat16);
  EXPECT_TRUE(all.tf32 && all.channels_last);
  EXPECT_EQ(error_of([] {
              ExecutionOptions::from({{"autocast", "float16"}});
            }),
            "settings: autocast: expected one of none, bfloat16, got 'float16'");
  EXPECT_EQ(error_of([] {
              ExecutionOptions::from({{"memory_format", "nhwc"}});
            }),
            "settings: memory_format: expected one of contiguous, channels_last, got 'nhwc'");
  EXPECT_THROW(ExecutionOptions::from({{"tf32", "1"}, {"device", "cpu"}}), DeviceUnavailable);
  EXPECT_THROW(ExecutionOptions::from({{"tf32", "fast"}}), SettingsError);
}

TEST(ExecutionOptions, BothSwitchesOfTf32AreSet) {
  for (const bool on : {true, false}) {
    ExecutionOptions{.tf32 = on}.apply();
    EXPECT_EQ(at::globalContext().allowTF32CuBLAS(), on);
    EXPECT_EQ(at::globalContext().allowTF32CuDNN(), on);
  }
}

TEST(ExecutionOptions, AutocastCastsWithinItsScopeAlone) {
  const ExecutionOptions execution{.autocast = torch::kBFloat16};
  const auto a = torch::randn({4, 4}), b = torch::randn({4, 4});
  const auto dtype = [&] { return a.matmul(b).scalar_type(); };
  EXPECT_EQ(dtype(), torch::kFloat32);
  {
    AutocastScope scope(execution, torch::kCPU);
    EXPECT_EQ(dtype(), torch::kBFloat16);
    {
      AutocastScope inner(execution, torch::kCPU);
      EXPECT_EQ(dtype(), torch::kBFloat16);
    }
    EXPECT_EQ(dtype(), torch::kBFloat16) << "the inner scope restores the outer one's state";
    AutocastScope nothing({}, torch::kCPU);
    EXPECT_EQ(dtype(), torch::kBFloat16);
  }
  EXPECT_EQ(dtype(), torch::kFloat32);
  EXPECT_FALSE(at::autocast::is_autocast_enabled(torch::kCPU));
  try {
    AutocastScope scope(execution, torch::kCPU);
    throw std::runtime_error("a step fails");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(dtype(), torch::kFloat32);
}

TEST(ExecutionOptions, ACastWeightDoesNotOutliveItsScope) {
  const ExecutionOptions execution{.autocast = torch::kBFloat16};
  auto weight = torch::ones({2, 2}).requires_grad_();
  const auto product = [&] {
    AutocastScope scope(execution, torch::kCPU);
    return torch::ones({2, 2}).matmul(weight).sum().item<double>();
  };
  EXPECT_EQ(product(), 8);
  {
    torch::NoGradGuard no_grad;
    weight.fill_(2);
  }
  EXPECT_EQ(product(), 16) << "the cache of the scope before";
}

TEST(ExecutionOptions, ChannelsLastPlacesWhatHasFourDimensions) {
  const ExecutionOptions execution{.channels_last = true};
  const auto image = torch::randn({2, 3, 4, 5});
  EXPECT_TRUE(execution.place(image).is_contiguous(torch::MemoryFormat::ChannelsLast));
  EXPECT_TRUE(torch::equal(execution.place(image), image));
  EXPECT_TRUE(execution.place(torch::randn({3, 4})).is_contiguous());
  EXPECT_TRUE(ExecutionOptions{}.place(image).is_contiguous());
  torch::nn::Conv2d convolution(3, 6, 3);
  const auto before = convolution->weight.detach().clone();
  execution.place(*convolution);
  EXPECT_TRUE(convolution->weight.is_contiguous(torch::MemoryFormat::ChannelsLast));
  EXPECT_TRUE(torch::equal(convolution->weight, before));
  EXPECT_TRUE(convolution->weight.requires_grad());
  EXPECT_NO_THROW(execution.check_inputs({torch::randn({2}), image}));
  EXPECT_EQ(error_of([&] {
              execution.check_inputs({torch::randn({2, 3})});
            }),
            "memory_format=channels_last: expected a case with a 4-D input, found [2, 3]; take "
            "memory_format=contiguous");
}

TEST(ExecutionOptions, EagerRunsForwardAndLossUnderAutocast) {
  auto settings = fixture_settings("dnn");
  settings.set("phase", "inference");
  settings.set("autocast", "bfloat16");
  const auto load = [&] { return eager_runtimes().front().load(settings, make_dnn(settings)); };
  EXPECT_EQ(load().values().at("batch0.output").scalar_type(), torch::kBFloat16);
  EXPECT_EQ(load().execution.precision(torch::kFloat32), torch::kBFloat16);
  settings.set("phase", "train");
  const auto values = load().values();
  EXPECT_EQ(values.at("gradient.layers.0.weight").scalar_type(), torch::kFloat32);
  settings.set("autocast", "none");
  EXPECT_FALSE(torch::equal(values.at("losses"), load().values().at("losses")));
  settings.set("memory_format", "channels_last");
  EXPECT_NE(error_of([&] { load(); }).find("expected a case with a 4-D input"), std::string::npos);
}

}  // namespace
}  // namespace torchpace
