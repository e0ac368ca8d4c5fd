// What one workload took: raw samples and the summary that is derived from them. Free of torch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/detail/json.hpp"
#include "torchpace/statistics.hpp"

namespace torchpace {

/// The recorded steps of one turn. A sample is the mean of `steps_per_sample` steps.
struct Block {
  std::vector<double> step_ns;     // wall time per step
  std::vector<double> device_ns;   // CUDA: time between events; empty on the CPU
  std::vector<double> enqueue_ns;  // CUDA: host time until the step was enqueued; empty on the CPU
  double page_faults = 0;          // of the whole block, minor and major
  double involuntary_switches = 0;
};

/// True where the host needs at least 0.9 of the device's time to enqueue a step: the device waits
/// for the host.
constexpr bool is_launch_bound(double host_ns, double device_ns) {
  return host_ns >= 0.9 * device_ns;
}

struct Measurement {
  std::string name;
  std::string device = "cpu";
  std::string phase = "throughput";  // or latency: synchronized every step
  std::string optimizer;             // empty for inference

  std::vector<double> step_ns;  // raw samples, in the order taken
  std::vector<double> device_ns;
  std::vector<double> enqueue_ns;
  int64_t steps_per_sample = 1;
  int64_t warmup_steps = 0;
  bool warmup_stable = true;  // false: its cap came before the running median was stable
  std::string stopped;        // why sampling ended, with the criterion that was not met

  double page_faults_per_step = 0;
  double involuntary_switches_per_step = 0;
  double peak_resident_bytes = 0;   // high-water mark above the start of the measurement
  double peak_allocated_bytes = 0;  // CUDA caching allocator
  double peak_reserved_bytes = 0;

  double flops = 0;  // of one step; 0: not known
  double items = 0;  // of one step
  std::string item = "items";

  /// Median step time in ns with its exact interval (95 % or a little more).
  Interval step() const { return sign_test_interval(step_ns); }
  double median_absolute_deviation_ns() const { return median_absolute_deviation(step_ns); }
  /// Percentile in ns, or nothing where the samples cannot bound it on both sides at 95 %.
  std::optional<Interval> percentile(double q) const {
    return percentile_of_sorted(sorted(step_ns), q);
  }
  double steps_per_second() const { return 1e9 / step().median; }
  double items_per_second() const { return items * steps_per_second(); }
  double flops_per_second() const { return flops * steps_per_second(); }
  bool launch_bound() const {
    return !device_ns.empty() && is_launch_bound(median(enqueue_ns), median(device_ns));
  }

  /// One line of JSON with the samples and the summary; times in ns, sizes in bytes.
  std::string json() const;
};

/// 12.3 ms, 4.56 us: three significant digits; n/a of what is no number.
inline std::string format_ns(double ns) {
  if (!std::isfinite(ns)) return "n/a";
  const auto [scale, unit] = ns < 1e3   ? std::pair{1.0, "ns"}
                             : ns < 1e6 ? std::pair{1e3, "us"}
                             : ns < 1e9 ? std::pair{1e6, "ms"}
                                        : std::pair{1e9, "s"};
  char text[32];
  std::snprintf(text, sizeof text, "%.*f %s",
                ns / scale < 10    ? 2
                : ns / scale < 100 ? 1
                                   : 0,
                ns / scale, unit);
  return text;
}

/// [1.20 ms, 1.31 ms], or [n/a] of too few samples.
inline std::string format_bounds_ns(const Interval& interval) {
  if (!interval.bounded()) return "[n/a]";
  return '[' + format_ns(interval.low) + ", " + format_ns(interval.high) + ']';
}

/// 1.23 G, 45.6 M: three significant digits with an SI prefix; append the unit.
inline std::string format_si(double value) {
  static constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T", "P"};
  std::size_t prefix = 0;
  while (value >= 1000 && prefix + 1 < std::size(kPrefixes)) {
    value /= 1000;
    ++prefix;
  }
  char text[32];
  std::snprintf(text, sizeof text, "%.*f %s",
                value < 10    ? 2
                : value < 100 ? 1
                              : 0,
                value, kPrefixes[prefix]);
  return text;
}

inline std::string Measurement::json() const {
  const auto interval = step();
  const auto ordered = sorted(step_ns);
  JsonObject percentiles;
  for (const auto& [key, q] :
       {std::pair{"p50", 0.5}, std::pair{"p90", 0.9}, std::pair{"p99", 0.99}}) {
    if (const auto p = percentile_of_sorted(ordered, q)) percentiles.add(key, p->median);
  }
  JsonObject json;
  json.add("name", name).add("device", device).add("phase", phase).add("optimizer", optimizer);
  json.raw("step_ns", JsonObject()
                          .add("median", interval.median)
                          .add("low", interval.low)
                          .add("high", interval.high)
                          .add("confidence", interval.confidence)
                          .add("mad", median_absolute_deviation_ns())
                          .str());
  json.raw("percentiles_ns", percentiles.str());
  json.add("steps_per_s", steps_per_second()).add("items_per_s", items_per_second());
  json.add("flop_per_s", flops_per_second())
      .add("item", item)
      .add("flops", flops)
      .add("items", items);
  json.add("steps_per_sample", steps_per_sample).add("warmup_steps", warmup_steps);
  json.add("warmup_stable", warmup_stable).add("stopped", stopped);
  json.add("page_faults_per_step", page_faults_per_step);
  json.add("involuntary_switches_per_step", involuntary_switches_per_step);
  json.add("peak_resident_bytes", peak_resident_bytes)
      .add("peak_allocated_bytes", peak_allocated_bytes);
  json.add("peak_reserved_bytes", peak_reserved_bytes);
  json.add("samples_ns", std::span<const double>(step_ns));
  json.add("samples_device_ns", std::span<const double>(device_ns));
  json.add("samples_enqueue_ns", std::span<const double>(enqueue_ns));
  return json.str();
}

/// Three lines: the step with its interval and percentiles; rates; what else the numbers depend on.
inline std::ostream& operator<<(std::ostream& out, const Measurement& m) {
  const auto step = m.step();
  out << m.name << " on " << m.device << (m.optimizer.empty() ? "" : ", " + m.optimizer) << ": "
      << format_ns(step.median) << " a step " << format_bounds_ns(step);
  const auto ordered = sorted(m.step_ns);
  for (const auto& [label, q] : {std::pair{"p90", 0.9}, std::pair{"p99", 0.99}}) {
    const auto p = percentile_of_sorted(ordered, q);
    out << ", " << label << ' '
        << (p ? format_ns(p->median) : "n/a (needs " + std::to_string(percentile_needs(q)) + ")");
  }
  out << "\n  " << format_si(m.steps_per_second()) << "steps/s";
  if (m.items > 0) out << ", " << format_si(m.items_per_second()) << m.item << "/s";
  if (m.flops > 0) out << ", " << format_si(m.flops_per_second()) << "FLOP/s";
  char faults[64];
  std::snprintf(faults, sizeof faults, "%.3g page faults a step", m.page_faults_per_step);
  out << ", " << faults << ", peak memory +" << format_si(m.peak_resident_bytes) << "B";
  if (m.device != "cpu") {
    out << ", on the device " << format_si(m.peak_allocated_bytes) << "B allocated, "
        << format_si(m.peak_reserved_bytes) << "B reserved";
    if (m.launch_bound()) out << ", launch bound";
  }
  return out << "\n  " << m.step_ns.size() << " samples"
             << (m.steps_per_sample > 1 ? " of " + std::to_string(m.steps_per_sample) + " steps"
                                        : "")
             << " after " << m.warmup_steps << " warm-up steps"
             << (m.warmup_stable ? "" : " (not stable)") << "; stopped: " << m.stopped;
}

}  // namespace torchpace
