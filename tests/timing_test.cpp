#include <torchpace/timing.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

/// Spins for a time: a step must never be timed below its own length.
auto step_of(double us) {
  return [us] {
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::nanoseconds(static_cast<int64_t>(us * 1e3));
    while (std::chrono::steady_clock::now() < until) {
    }
  };
}

TEST(Measure, NeverBelowTheLengthOfTheStep) {
  auto step = step_of(200);
  const auto block = run_block(step, torch::kCPU, Phase::kThroughput, 20);
  ASSERT_EQ(block.step_ns.size(), 20u);
  EXPECT_TRUE(block.device_ns.empty());
  for (const double ns : block.step_ns) EXPECT_GE(ns, 200e3);
  EXPECT_GE(time_once_s(step, torch::kCPU), 200e-6);
}

TEST(Measure, BlocksRunExactlyTheirSteps) {
  int64_t steps = 0;
  auto step = [&] { ++steps; };
  run_block(step, torch::kCPU, Phase::kThroughput, 7, 11);
  EXPECT_EQ(steps, 77);
}

TEST(Measure, ShortStepsAreTimedInBlocks) {
  const auto m =
      measure(step_of(1), torch::kCPU, {.stop = {.relative_width = 10, .min_samples = 20}});
  EXPECT_GT(m.steps_per_sample, 1);
  EXPECT_GE(m.step().median, 1e3);
  EXPECT_EQ(measure(step_of(400), torch::kCPU, {.stop = {.relative_width = 10}}).steps_per_sample,
            1);
}

TEST(Measure, SaysWhyItStopped) {
  const auto narrow =
      measure(step_of(100), torch::kCPU, {.stop = {.relative_width = 10, .min_samples = 20}});
  EXPECT_NE(narrow.stopped.find("% wide"), std::string::npos) << narrow.stopped;
  EXPECT_GE(narrow.step_ns.size(), 20u);
  EXPECT_GT(narrow.warmup_steps, 0);

  const auto hurried =
      measure(step_of(20e3), torch::kCPU,
              {.stop = {.relative_width = 1e-9, .min_samples = 1000, .max_seconds = 0.1},
               .max_warmup_steps = 5});
  EXPECT_NE(hurried.stopped.find("samples (target 1000)"), std::string::npos) << hurried.stopped;

  double us = 100;
  const auto restless = [&us] { step_of(us = us > 1000 ? 100 : us * 1.3)(); };
  const auto wide =
      measure(restless, torch::kCPU, {.stop = {.relative_width = 1e-9, .max_seconds = 0.2}});
  EXPECT_NE(wide.stopped.find("(target 1e-07%)"), std::string::npos) << wide.stopped;
}

TEST(Measure, CountsFaultsPerBlock) {
  auto touch = [] {
    std::vector<char> fresh(64 << 20);  // above every malloc threshold: mapped anew at each step
    for (std::size_t i = 0; i < fresh.size(); i += 4096) fresh[i] = 1;
  };
  EXPECT_GT(run_block(touch, torch::kCPU, Phase::kThroughput, 2).page_faults, 2);
  auto nothing = [] {};
  EXPECT_LT(run_block(nothing, torch::kCPU, Phase::kThroughput, 100).page_faults, 50);
}

TEST(Measure, PeakMemoryIsAboveTheStart) {
  const auto m = measure([] { torch::ones({32 << 20}, torch::kByte); }, torch::kCPU,
                         {.stop = {.relative_width = 10, .min_samples = 3}, .max_warmup_steps = 5});
  EXPECT_GE(m.peak_resident_bytes, 16 << 20);
}

TEST(Measure, RefusesARuleThatCannotBeMet) {
  EXPECT_NE(testing::error_of([] {
              measure([] {}, torch::kCPU, {.stop = {.min_samples = 0}});
            }).find("above 0"),
            std::string::npos);
}

TEST(Device, UnknownAndMissingAreToldApart) {
  EXPECT_EQ(choose_device("cpu"), torch::Device(torch::kCPU));
  for (const std::string name : {"warp", "mps", "cuda:x", ""}) {
    EXPECT_THROW(choose_device(name), SettingsError);
    EXPECT_EQ(testing::error_of([&] { choose_device(name); }),
              "device: expected auto, cpu, cuda or cuda:N, got '" + name + "'");
  }
  EXPECT_THROW(choose_device("cuda:99"), DeviceUnavailable);
}

TEST(Device, MemoryOfAnUnusedDeviceIsZeroAndNoError) {
  const torch::Device device(torch::kCUDA, 0);
  if (c10::GetAllocator(torch::kCUDA) == nullptr) GTEST_SKIP() << "this torch has no CUDA";
  if (torch::cuda::is_available()) GTEST_SKIP() << "a GPU, which another test may have used";
  reset_peak_memory(device);
  EXPECT_EQ(memory(device).device_allocated_peak_bytes, 0);
  EXPECT_EQ(memory(device).device_reserved_peak_bytes, 0);
}

TEST(Device, SeedsAsTorchDoes) {
  torch::manual_seed(7);
  const auto expected = torch::randn({4});
  torch::manual_seed(8);
  seed_generators(7, torch::kCPU);
  EXPECT_TRUE(torch::equal(torch::randn({4}), expected));
}

TEST(Device, CudaEventsAgreeWithTheWallClock) {
  if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device here";
  const torch::Device device(torch::kCUDA, 0);
  const auto x = torch::randn({2048, 2048}, device);
  auto step = [&] { x.matmul(x); };
  for (int i = 0; i < 5; ++i) step();
  for (const auto phase : {Phase::kThroughput, Phase::kLatency}) {
    auto block = run_block(step, device, phase, 50);
    device_times(step, device, phase, block);
    ASSERT_EQ(block.device_ns.size(), phase == Phase::kLatency ? 13u : 50u);
    ASSERT_EQ(block.enqueue_ns.size(), block.device_ns.size());
    EXPECT_GT(median(block.device_ns), 2.0 * 2048 * 2048 * 2048 / 1e15 * 1e9)
        << "faster than any device";
    EXPECT_GE(median(block.step_ns), 0.8 * median(block.device_ns));
  }
  EXPECT_GT(memory(device).device_allocated_peak_bytes, 2048.0 * 2048 * 4);
}

}  // namespace
}  // namespace torchpace
