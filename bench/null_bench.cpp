// What the harness itself costs: steps that do nothing, and steps of a known length.
#include <chrono>
#include <torchpace/google_benchmark.hpp>

namespace {

torchpace::Workload null_step(torchpace::Phase phase) {
  return {.step = [] { benchmark::ClobberMemory(); },
          .device = torchpace::benchmark_device(),
          .phase = phase};
}

torchpace::Workload null_work() { return null_step(torchpace::Phase::kThroughput); }
torchpace::Workload null_latency() { return null_step(torchpace::Phase::kLatency); }

/// Waits `us` microseconds by the clock: a self-test, since a step must never be timed below its
/// length.
torchpace::Workload known_length(int64_t us) {
  return {.step = [us] {
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(us);
    while (std::chrono::steady_clock::now() < until) {
    }
  }};
}

}  // namespace

TORCHPACE_BENCHMARK(null_work)->Unit(benchmark::kNanosecond);
TORCHPACE_BENCHMARK(null_latency)->Unit(benchmark::kNanosecond);
TORCHPACE_BENCHMARK(known_length)->ArgName("us")->Arg(100);
TORCHPACE_BENCHMARK_MAIN()
