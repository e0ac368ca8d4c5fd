// What only a GPU can show, in a minute. TORCHPACE_TEST_DEVICE=cpu tries what a CPU can do too.
#include <torchpace/benchmark.hpp>
#include <torchpace/optim/factory.hpp>
#include <torchpace/parity.hpp>
#include <torchpace/profiling.hpp>
#include <torchpace/runtimes/cuda_graph.hpp>
#include <torchpace/runtimes/eager.hpp>

#include "registry/registry.hpp"
#include "testing.hpp"

namespace torchpace {
namespace {

std::string device_name() {
  const char* named = std::getenv("TORCHPACE_TEST_DEVICE");
  return named == nullptr ? "cuda:0" : named;
}

class Cuda : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      device = choose_device(device_name());
    } catch (const DeviceUnavailable& e) {
      if (std::getenv("TORCHPACE_TEST_DEVICE") != nullptr) FAIL() << e.what();
      GTEST_SKIP() << e.what();
    }
  }
  bool on_gpu() const { return device.is_cuda(); }

  torch::Device device = torch::kCPU;
};

/// The parameters of ten steps on the device, flat and on the CPU.
torch::Tensor trained(const std::string& optimizer, const torch::Device& device) {
  torch::manual_seed(3);
  std::vector<torch::Tensor> parameters;
  for (const auto& shape : {std::vector<int64_t>{40, 30}, {70}, {1}, {2, 2, 2}})
    parameters.push_back(torch::randn(shape).to(device).requires_grad_());
  const auto made = make_optimizer({{"optimizer", optimizer}, {"lr", "0.01"}}, parameters);
  for (int64_t i = 0; i < 10; ++i) {
    if (i == 5) made->set_learning_rate(0.05);
    for (auto& p : parameters) p.mutable_grad() = torch::randn(p.sizes()).to(device);
    made->step();
  }
  std::vector<torch::Tensor> flat;
  for (const auto& p : parameters) flat.push_back(p.detach().cpu().flatten());
  return torch::cat(flat);
}

TEST_F(Cuda, OptimizersAreThoseOfTheCpu) {
  for (const auto& algorithm : kOptimizerAlgorithms) {
    const auto expected = trained(std::string(algorithm.name), torch::kCPU);
    for (const char* suffix : {"", "-foreach", "-fused"}) {
      const auto found = trained(std::string(algorithm.name) + suffix, device);
      EXPECT_TRUE(torch::allclose(found, expected, 1e-5, 1e-5)) << algorithm.name << suffix;
    }
  }
}

/// Every output, loss, gradient and parameter against Python's float64 run.
TEST_F(Cuda, ModelsAgreeInEveryRuntimeWithoutArtifacts) {
  std::vector<Runtime> runtimes = eager_runtimes();
  if (on_gpu()) runtimes.push_back(cuda_graph_runtimes().front());
  for (const std::string model : {"gptlite", "dnn"}) {
    for (const std::string phase : {"inference", "train"}) {
      auto settings = testing::fixture_settings(model);
      settings.set("phase", phase);
      settings.set("device", device_name());
      settings.set("optimizer", "adam-fused");
      const auto fixture = read_tensors(settings.require<std::string>("state"));
      TensorDict reference, golden;
      for (const auto& [name, tensor] : fixture) {
        const auto begins = [&, &key = name](const std::string& prefix, TensorDict& part) {
          if (key.starts_with(prefix)) part[key.substr(prefix.size())] = tensor;
        };
        begins(phase + ".reference.", reference);
        begins(phase + ".golden.", golden);
      }
      for (const auto& runtime : runtimes) {
        auto workload = runtime.load(settings, make_model(model, settings));
        const auto parity = check_parity(workload.values(), reference, &golden,
                                         workload.execution.precision(workload.dtype));
        EXPECT_TRUE(parity.passed)
            << runtime.name << ' ' << model << ' ' << phase << ": " << parity.worst << ' '
            << parity.max_abs_error << " > " << parity.tolerance << ' ' << parity.note;
      }
    }
  }
}

TEST_F(Cuda, MemoryOfATensorIsCounted) {
  if (!on_gpu()) GTEST_SKIP() << "of a device's allocator";
  synchronize(device);
  torch::zeros({1}, device);
  reset_peak_memory(device);
  const auto before = memory(device);
  const auto tensor = torch::zeros({64 << 20}, torch::dtype(torch::kUInt8).device(device));
  const auto after = memory(device);
  EXPECT_GE(after.device_allocated_peak_bytes, before.device_allocated_peak_bytes + (64 << 20));
  EXPECT_LT(after.device_allocated_peak_bytes, before.device_allocated_peak_bytes + (80 << 20));
  EXPECT_GE(after.device_reserved_peak_bytes, after.device_allocated_peak_bytes);
  EXPECT_GT(driver_bytes(device), 64 << 20);
}

TEST_F(Cuda, WhatDoesNotFitIsAnErrorAndTheNextLoadWorks) {
  if (!on_gpu()) GTEST_SKIP() << "of a device's memory";
  EXPECT_THROW(torch::empty({int64_t{1} << 50}, device), c10::Error);
  EXPECT_EQ(torch::ones({4}, device).sum().item<float>(), 4);
}

TEST_F(Cuda, OperatorsAreProfiled) {
  auto settings = testing::fixture_settings("dnn");
  settings.set("phase", "train");
  settings.set("device", device_name());
  auto workload = eager_runtimes().front().load(settings, make_model("dnn", settings));
  workload.restore();
  const auto profile = profile_operators(workload, 3);
  ASSERT_FALSE(profile.operators.empty());
  double device_ns = 0;
  for (const auto& each : profile.operators) device_ns += each.device_ns;
  if (on_gpu()) {
    EXPECT_GT(device_ns, 0);
  }
}

TEST_F(Cuda, SamplesAreCompleteInBothPhases) {
  const auto x = torch::randn({64, 64}, device);
  int steps = 0;
  auto step = [&] {
    ++steps;
    x.matmul(x);
  };
  const auto busy = run_block(step, device, Phase::kThroughput, 8, 3);
  EXPECT_EQ(busy.step_ns.size(), 8u);
  EXPECT_EQ(steps, 24);
  auto latency = run_block(step, device, Phase::kLatency, 8);
  device_times(step, device, Phase::kLatency, latency);
  EXPECT_EQ(latency.step_ns.size(), 8u);
  if (!on_gpu()) return;
  EXPECT_EQ(busy.device_ns.size(), 8u);
  EXPECT_EQ(latency.device_ns.size(), 2u);
  EXPECT_EQ(latency.enqueue_ns.size(), 2u);
  EXPECT_GE(median(latency.device_ns), 0.9 * median(latency.enqueue_ns));
}

TEST_F(Cuda, TheSameSeedDrawsTheSame) {
  seed_generators(5, device);
  const auto first = torch::randn({16}, device).cpu();
  seed_generators(5, device);
  EXPECT_TRUE(torch::equal(torch::randn({16}, device).cpu(), first));
}

TEST_F(Cuda, TheFrontDoorMeasures) {
  auto model = torch::nn::Linear(32, 8);
  model->to(device);
  const auto x = torch::randn({16, 32}, device);
  const auto m = benchmark_inference(model, x, {.measure = {.stop = {.max_seconds = 0.5}}});
  EXPECT_GT(m.step().median, 0);
  if (on_gpu()) {
    EXPECT_FALSE(m.device_ns.empty());
  }
}

}  // namespace
}  // namespace torchpace
