// When a measurement has samples enough: its interval is narrow, or its time is up. Free of torch
// and of clocks: the caller says how much time has gone by.
#pragma once

#include <cstddef>
#include <cstdio>
#include <limits>
#include <span>
#include <string>

#include "torchpace/statistics.hpp"

namespace torchpace {

/// Sampling ends when the median's 95 % interval is narrow enough, or when time is up.
struct StopRule {
  double relative_width = 0.01;  // of the median's interval
  std::size_t min_samples = 20;
  double max_seconds = 10;
};

class StoppingCriterion {
 public:
  explicit StoppingCriterion(const StopRule& rule) : rule_(rule), next_look_(rule.min_samples) {}

  /// Whether sampling ends with these samples, `seconds` after its begin. The interval, for which
  /// all samples are sorted, is looked at each time there are a tenth more of them.
  bool is_met(std::span<const double> samples, double seconds) {
    count_ = samples.size();
    const bool time_is_up = seconds >= rule_.max_seconds;
    if (count_ >= next_look_ || time_is_up) {
      width_ = sign_test_interval(samples).relative_width();
      next_look_ = count_ + count_ / 10;
    }
    return time_is_up || (count_ >= rule_.min_samples && is_narrow());
  }

  /// Why it ended: `95% CI is 0.8% wide`, `10 s time limit reached; 95% CI is 1.6% wide (target
  /// 1%)`.
  std::string reason() const {
    char text[160];
    if (count_ < rule_.min_samples) {
      std::snprintf(text, sizeof text, "%.3g s time limit reached; %zu samples (target %zu)",
                    rule_.max_seconds, count_, rule_.min_samples);
    } else if (is_narrow()) {
      std::snprintf(text, sizeof text, "95%% CI is %.2g%% wide", 100 * width_);
    } else {
      std::snprintf(text, sizeof text,
                    "%.3g s time limit reached; 95%% CI is %.2g%% wide (target %.2g%%)",
                    rule_.max_seconds, 100 * width_, 100 * rule_.relative_width);
    }
    return text;
  }

 private:
  bool is_narrow() const { return width_ <= rule_.relative_width; }

  StopRule rule_;
  std::size_t next_look_;
  std::size_t count_ = 0;
  double width_ = std::numeric_limits<double>::infinity();
};

}  // namespace torchpace
