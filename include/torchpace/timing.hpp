// The timed loop: warm-up, synchronize, sample, stop rule. The one place in C++ that reads a clock.
// CPU: k samples share one chain of k + 1 clock reads. CUDA: `latency` synchronizes every step;
// `throughput` keeps the device busy and reads events. Twin: python/torchpace/timing.py.
#pragma once

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/device.hpp"
#include "torchpace/measurement.hpp"
#include "torchpace/stopping_criterion.hpp"

namespace torchpace {

enum class Phase { kThroughput, kLatency };

struct MeasureOptions {
  Phase phase = Phase::kThroughput;
  StopRule stop = {};
  int64_t max_warmup_steps = 200;
  double max_warmup_seconds = 3;
  double block_below_ns = 50e3;  // steps shorter than this are timed several a sample
};

/// The shortest sample where events bound it: two of them and a wait cost 4 us in C++ and 5 in
/// Python.
constexpr double kShortestSampleByEvents_s = 1e-3;

namespace detail {

using Clock = std::chrono::steady_clock;

inline double elapsed_ns(Clock::time_point begin, Clock::time_point end) {
  return static_cast<double>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(end - begin).count());
}

/// Faults and involuntary switches of the whole process: read per block, since reading them costs
/// more than the loop.
inline std::pair<double, double> fault_counts() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return {static_cast<double>(usage.ru_minflt + usage.ru_majflt),
          static_cast<double>(usage.ru_nivcsw)};
}

template <class Step>
void sample_on_cpu(Step& step, std::size_t samples, int64_t steps_per_sample, Block& block) {
  block.step_ns.resize(samples);
  auto begin = Clock::now();
  for (std::size_t i = 0; i < samples; ++i) {
    for (int64_t s = 0; s < steps_per_sample; ++s) step();
    const auto end = Clock::now();
    block.step_ns[i] = elapsed_ns(begin, end) / static_cast<double>(steps_per_sample);
    begin = end;
  }
}

/// step_ns ends with the device's completion. Without events, which would cost a share of a short
/// step, and another one in Python.
template <class Step>
void sample_synchronized(Step& step, const torch::Device& device, std::size_t samples,
                         int64_t steps_per_sample, Block& block) {
  const auto steps = static_cast<double>(steps_per_sample);
  const auto stream = current_stream(device);
  stream.synchronize();
  for (std::size_t i = 0; i < samples; ++i) {
    double wall_ns = 0;
    for (int64_t s = 0; s < steps_per_sample; ++s) {
      const auto begin = Clock::now();
      step();
      stream.synchronize();
      wall_ns += elapsed_ns(begin, Clock::now());
    }
    block.step_ns.push_back(wall_ns / steps);
  }
}

/// device_ns and enqueue_ns of `count` steps of their own, each between two events.
template <class Step>
void sample_device(Step& step, const torch::Device& device, std::size_t count, Block& block) {
  const auto stream = current_stream(device);
  DeviceEvent start(stream), end(stream);
  for (std::size_t i = 0; i < count; ++i) {
    start.record();
    const auto begin = Clock::now();
    step();
    block.enqueue_ns.push_back(elapsed_ns(begin, Clock::now()));
    end.record();
    end.synchronize();
    block.device_ns.push_back(start.elapsed_ns(end));
  }
}

/// step_ns: from the completion of the sample before to this one's, which is wall time with the
/// device's gaps in it. device_ns: from a sample's own first event to its last, which leaves out
/// what the host does between samples. The host stays at most one sample ahead, so that enqueue_ns
/// is its own work and not the wait for a full queue.
template <class Step>
void sample_busy_device(Step& step, const torch::Device& device, std::size_t samples,
                        int64_t steps_per_sample, Block& block) {
  const auto steps = static_cast<double>(steps_per_sample);
  const auto stream = current_stream(device);
  std::vector<DeviceEvent> starts, ends;
  for (std::size_t i = 0; i <= samples; ++i) {
    starts.emplace_back(stream);
    ends.emplace_back(stream);
  }
  ends[0].record();  // the completion of what came before
  for (std::size_t i = 0; i < samples; ++i) {
    if (i > 0) ends[i - 1].synchronize();
    const auto begin = Clock::now();
    starts[i].record();
    for (int64_t s = 0; s < steps_per_sample; ++s) step();
    ends[i + 1].record();
    block.enqueue_ns.push_back(elapsed_ns(begin, Clock::now()) / steps);
  }
  synchronize(device);
  for (std::size_t i = 0; i < samples; ++i) {
    block.step_ns.push_back(ends[i].elapsed_ns(ends[i + 1]) / steps);
    block.device_ns.push_back(starts[i].elapsed_ns(ends[i + 1]) / steps);
  }
}

}  // namespace detail

/// Runs `samples` x `steps_per_sample` steps and times them; the device is idle afterwards.
/// `step()` may leave work enqueued on the device's current stream. Does not warm up. Latency steps
/// say nothing of the device by themselves: device_times asks it apart.
template <class Step>
Block run_block(Step& step, const torch::Device& device, Phase phase, std::size_t samples,
                int64_t steps_per_sample = 1) {
  Block block;
  const auto [faults, switches] = detail::fault_counts();
  if (device.is_cpu()) {
    detail::sample_on_cpu(step, samples, steps_per_sample, block);
  } else if (phase == Phase::kLatency) {
    detail::sample_synchronized(step, device, samples, steps_per_sample, block);
  } else {
    detail::sample_busy_device(step, device, samples, steps_per_sample, block);
  }
  const auto [faults_after, switches_after] = detail::fault_counts();
  block.page_faults = faults_after - faults;
  block.involuntary_switches = switches_after - switches;
  return block;
}

/// Adds device_ns and enqueue_ns to a block of latency steps: of further steps, one for four of its
/// samples. Nothing to do on the CPU and in the other phase.
template <class Step>
void device_times(Step& step, const torch::Device& device, Phase phase, Block& block) {
  if (device.is_cpu() || phase != Phase::kLatency) return;
  detail::sample_device(step, device, (block.step_ns.size() + 3) / 4, block);
}

/// Seconds that one call takes, the device idle before and after.
template <class Step>
double time_once_s(Step&& step, const torch::Device& device) {
  synchronize(device);
  const auto begin = detail::Clock::now();
  step();
  synchronize(device);
  return detail::elapsed_ns(begin, detail::Clock::now()) / 1e9;
}

/// Adds a block's samples to a measurement and keeps its per-step counts.
inline void append(Measurement& measurement, const Block& block) {
  const auto extend = [](auto& to, const auto& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  const double before = static_cast<double>(measurement.step_ns.size());
  const double added = static_cast<double>(block.step_ns.size());
  const double steps = (before + added) * static_cast<double>(measurement.steps_per_sample);
  const double steps_before = before * static_cast<double>(measurement.steps_per_sample);
  const auto mean = [&](double per_step, double count) {
    return (per_step * steps_before + count) / steps;
  };
  measurement.page_faults_per_step = mean(measurement.page_faults_per_step, block.page_faults);
  measurement.involuntary_switches_per_step =
      mean(measurement.involuntary_switches_per_step, block.involuntary_switches);
  extend(measurement.step_ns, block.step_ns);
  extend(measurement.device_ns, block.device_ns);
  extend(measurement.enqueue_ns, block.enqueue_ns);
}

/// Warms up until the running median is stable, then samples until `options.stop` is met or its
/// time is up. Throws what `step` throws.
template <class Step>
Measurement measure(Step&& step, const torch::Device& device, const MeasureOptions& options = {}) {
  TORCH_CHECK(options.stop.min_samples > 0 && options.stop.max_seconds > 0,
              "measure: expected min_samples and max_seconds above 0, got ",
              options.stop.min_samples, " and ", options.stop.max_seconds);
  Measurement m;
  m.device = device.str();
  m.phase = options.phase == Phase::kLatency ? "latency" : "throughput";
  reset_peak_memory(device);
  const double resident_before = memory(device).resident_bytes;

  // Warm-up: groups of 5 steps until two neighboring medians agree to 2 %.
  auto start = detail::Clock::now();
  const auto seconds = [&start] { return detail::elapsed_ns(start, detail::Clock::now()) / 1e9; };
  double step_ns = 0;
  do {
    const double previous =
        std::exchange(step_ns, median(run_block(step, device, options.phase, 5).step_ns));
    m.warmup_steps += 5;
    m.warmup_stable = std::abs(step_ns - previous) <= 0.02 * step_ns;
  } while (!m.warmup_stable && m.warmup_steps < options.max_warmup_steps &&
           seconds() < options.max_warmup_seconds);

  const bool by_events = !device.is_cpu() && options.phase == Phase::kThroughput;
  const double shortest_ns =
      std::max(options.block_below_ns, by_events ? 1e9 * kShortestSampleByEvents_s : 0.0);
  if (step_ns < shortest_ns) {
    m.steps_per_sample = static_cast<int64_t>(std::ceil(shortest_ns / std::max(step_ns, 1.0)));
  }
  start = detail::Clock::now();
  StoppingCriterion criterion(options.stop);
  do {
    const double sample_ns = std::max(step_ns, 1.0) * static_cast<double>(m.steps_per_sample);
    const auto samples = static_cast<std::size_t>(std::clamp(50e6 / sample_ns, 1.0, 1000.0));
    auto block = run_block(step, device, options.phase, samples, m.steps_per_sample);
    device_times(step, device, options.phase, block);
    append(m, block);
  } while (!criterion.is_met(m.step_ns, seconds()));
  m.stopped = criterion.reason();
  const auto peak = memory(device);
  m.peak_resident_bytes = std::max(0.0, peak.resident_peak_bytes - resident_before);
  m.peak_allocated_bytes = peak.device_allocated_peak_bytes;
  m.peak_reserved_bytes = peak.device_reserved_peak_bytes;
  return m;
}

}  // namespace torchpace
