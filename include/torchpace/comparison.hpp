// Speedup of a runtime over a reference, measured in pairs, and the verdict.
// Speedup = reference time / runtime time: above 1 is faster. Everything is computed on log ratios,
// so that swapping the two sides inverts the interval exactly. Free of torch: `torchpace compare`
// and `torchpace::compare` judge with this file.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "torchpace/statistics.hpp"

namespace torchpace {

enum class Verdict { kFaster, kSlower, kSame, kUnsure, kInvalid };

constexpr std::string_view to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kFaster:
      return "FASTER";
    case Verdict::kSlower:
      return "SLOWER";
    case Verdict::kSame:
      return "SAME";
    case Verdict::kInvalid:
      return "INVALID";
    case Verdict::kUnsure:
      break;
  }
  return "UNSURE";
}

inline constexpr double kConfidence = 0.95;

/// Fewest invocations for an interval of Student's t.
inline constexpr std::size_t kFewestForStudent = 4;

/// log(reference / runtime) of each round, from the medians of the two blocks of that round. Both
/// spans are of equal length.
inline std::vector<double> round_log_ratios(std::span<const double> reference_ns,
                                            std::span<const double> runtime_ns) {
  std::vector<double> ratios;
  for (std::size_t i = 0; i < std::min(reference_ns.size(), runtime_ns.size()); ++i) {
    ratios.push_back(std::log(reference_ns[i] / runtime_ns[i]));
  }
  return ratios;
}

/// Back from logarithms to a speedup.
inline Interval exponential(const Interval& logarithms) {
  return {.median = std::exp(logarithms.median),
          .low = std::exp(logarithms.low),
          .high = std::exp(logarithms.high),
          .confidence = logarithms.confidence};
}

/// The interval of one value per invocation (a fresh process each): they are the independent
/// units, since memory layout is drawn once per process. At 95 %: order statistics from 6 values
/// ([min, max] of 6 is exact at 96.9 %), Student's t for 4 and 5, only a median below.
inline Interval invocation_interval(std::span<const double> invocation_values,
                                    double confidence = kConfidence) {
  const std::size_t n = invocation_values.size();
  if (n >= sign_test_needs(confidence)) return sign_test_interval(invocation_values, confidence);
  if (n >= kFewestForStudent) return student_t_interval(invocation_values, confidence);
  return {.median = median(invocation_values)};
}

/// The speedup from one log ratio per invocation.
inline Interval speedup_interval(std::span<const double> invocation_log_ratios,
                                 double confidence = kConfidence) {
  return exponential(invocation_interval(invocation_log_ratios, confidence));
}

/// Name of the method that speedup_interval uses for n invocations.
inline std::string_view speedup_method(std::size_t n, double confidence = kConfidence) {
  if (n >= sign_test_needs(confidence)) return "order statistics";
  return n >= kFewestForStudent ? "Student t" : "too few invocations";
}

/// The verdict from the runtime's speedup and that of a second copy of the reference (the A/A
/// noise). FASTER and SLOWER: the interval excludes 1 and lies beyond the A/A interval. SAME: both
/// lie within 1 +- delta.
inline Verdict judge(const Interval& speedup, const Interval& noise, double delta = 0.02) {
  if (!speedup.bounded() || !noise.bounded()) return Verdict::kUnsure;
  if (speedup.low > std::max(1.0, noise.high)) return Verdict::kFaster;
  if (speedup.high < std::min(1.0, noise.low)) return Verdict::kSlower;
  const auto within = [delta](const Interval& i) {
    return i.low >= 1 - delta && i.high <= 1 + delta;
  };
  return within(speedup) && within(noise) ? Verdict::kSame : Verdict::kUnsure;
}

/// What would resolve an UNSURE, in one line; empty for the other verdicts.
inline std::string advice(const Interval& speedup, const Interval& noise, double delta = 0.02) {
  if (judge(speedup, noise, delta) != Verdict::kUnsure) return "";
  if (!speedup.bounded() || !noise.bounded())
    return "needs at least 4 invocations (--invocations 6)";
  if (noise.high - noise.low > 2 * delta) {
    return "this machine's noise (A/A) is wider than 1 +- delta: quiet it (torchpace doctor) or "
           "take more --invocations";
  }
  if (speedup.low > 1 || speedup.high < 1)
    return "lies inside the A/A noise: take more --invocations";
  return "interval reaches past 1 +- delta: take more --invocations or a longer --max-seconds";
}

/// Result of a comparison of two workloads: the runtime's speedup, the noise floor, and whether the
/// outputs agreed.
struct Comparison {
  Interval speedup;
  Interval noise;            // of a second copy of the reference over the reference
  double max_abs_error = 0;  // between the outputs
  double tolerance = 0;      // what was allowed
  std::size_t rounds = 0;
  Verdict verdict = Verdict::kUnsure;
  std::string note;  // of INVALID: what differs
};

/// "[0.995, 1.004]", or "[n/a]" of too few values.
inline std::string bounds_text(const Interval& interval) {
  if (!interval.bounded()) return "[n/a]";
  char text[64];
  std::snprintf(text, sizeof text, "[%.3f, %.3f]", interval.low, interval.high);
  return text;
}

/// One line: speedup 1.234x [1.220, 1.251], FASTER; noise [0.995, 1.004], 60 rounds, outputs agree
/// to 1.2e-07.
inline std::ostream& operator<<(std::ostream& out, const Comparison& c) {
  char line[160];
  if (c.verdict == Verdict::kInvalid) {
    std::snprintf(line, sizeof line, "outputs differ by %.3g, allowed %.3g", c.max_abs_error,
                  c.tolerance);
    return out << "INVALID: " << (c.note.empty() ? line : c.note);
  }
  std::snprintf(line, sizeof line, ", %zu rounds, outputs agree to %.2g (allowed %.2g)", c.rounds,
                c.max_abs_error, c.tolerance);
  char speedup[64];
  std::snprintf(speedup, sizeof speedup, "speedup %.3fx ", c.speedup.median);
  return out << speedup << bounds_text(c.speedup) << ", " << to_string(c.verdict) << "; noise "
             << bounds_text(c.noise) << line;
}

}  // namespace torchpace
