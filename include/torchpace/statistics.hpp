// Order statistics: medians, exact distribution-free intervals, and Student's t for few values.
// Source: David & Nagaraja, Order Statistics (2003), section 7.1. The interval (x_k, x_{n+1-k}) of
// a quantile has coverage P(k <= Bin(n, q) <= n - k) whatever the distribution; for the median q =
// 1/2 it is the sign test's interval.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

namespace torchpace {

/// An estimate with its interval and the interval's confidence (0.969 = 96.9 %). Where the values
/// are too few for an interval, `low`, `high` and `confidence` are NaN; of no values all four are.
struct Interval {
  double median = std::numeric_limits<double>::quiet_NaN();
  double low = std::numeric_limits<double>::quiet_NaN();
  double high = std::numeric_limits<double>::quiet_NaN();
  double confidence = std::numeric_limits<double>::quiet_NaN();

  bool bounded() const { return !std::isnan(low) && !std::isnan(high); }
  /// (high - low) / median; infinite without bounds.
  double relative_width() const {
    return bounded() ? (high - low) / median : std::numeric_limits<double>::infinity();
  }
};

/// Sorted copy.
inline std::vector<double> sorted(std::span<const double> values) {
  std::vector<double> copy(values.begin(), values.end());
  std::sort(copy.begin(), copy.end());
  return copy;
}

/// Quantile of sorted values by linear interpolation (Hyndman & Fan 1996, type 7). NaN if there are
/// none.
inline double quantile_of_sorted(std::span<const double> values, double q) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const double position = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const auto above = std::min(below + 1, values.size() - 1);
  return std::lerp(values[below], values[above], position - static_cast<double>(below));
}

inline double median(std::span<const double> values) {
  return quantile_of_sorted(sorted(values), 0.5);
}

/// Median absolute deviation from the median, unscaled.
inline double median_absolute_deviation(std::span<const double> values) {
  const double center = median(values);
  std::vector<double> deviations(values.begin(), values.end());
  for (double& value : deviations) value = std::abs(value - center);
  return median(deviations);
}

/// P(Bin(n, p) = i), in logarithms until the end.
inline double binomial_probability(double i, double n, double p) {
  return std::exp(std::lgamma(n + 1) - std::lgamma(i + 1) - std::lgamma(n - i + 1) +
                  i * std::log(p) + (n - i) * std::log1p(-p));
}

/// The i below which P(Bin(n, p) = i) is 0 in double precision: 40 standard deviations under the
/// mean.
inline double binomial_begin(double n, double p) {
  return std::max(0.0, std::floor(n * p - 40 * std::sqrt(n * p * (1 - p))));
}

/// P(Bin(n, p) <= k), exact to rounding for any n that fits memory.
inline double binomial_cdf(std::ptrdiff_t k, std::size_t n, double p) {
  const auto count = static_cast<double>(n);
  double sum = 0;
  for (double i = binomial_begin(count, p); i <= std::min(static_cast<double>(k), count); ++i) {
    sum += binomial_probability(i, count, p);
  }
  return std::min(sum, 1.0);
}

/// Highest rank l with P(Bin(n, q) <= l - 1) <= tail, 0 where there is none: the l-th smallest of n
/// values lies above their quantile q with at most that probability.
inline std::size_t lower_rank(std::size_t n, double q, double tail) {
  const auto count = static_cast<double>(n);
  double sum = 0;
  double i = binomial_begin(count, q);
  for (; i <= count; ++i) {
    sum += binomial_probability(i, count, q);
    if (sum > tail * (1 + 1e-12)) break;  // 2^-n itself is reached
  }
  return static_cast<std::size_t>(i);
}

/// Exact interval of the median: the narrowest (x_k, x_{n+1-k}) with at least `confidence`.
/// Unbounded below 6 values at 95 %.
inline Interval sign_test_interval(std::span<const double> values, double confidence = 0.95) {
  const auto x = sorted(values);
  Interval result{.median = quantile_of_sorted(x, 0.5)};
  const std::size_t k = x.empty() ? 0 : lower_rank(x.size(), 0.5, (1 - confidence) / 2);
  if (k > 0) {
    result.low = x[k - 1];
    result.high = x[x.size() - k];
    result.confidence = 1 - 2 * binomial_cdf(static_cast<std::ptrdiff_t>(k) - 1, x.size(), 0.5);
  }
  return result;
}

/// Fewest values for which sign_test_interval is bounded: 6 at 95 %, 8 at 99 %.
inline std::size_t sign_test_needs(double confidence) {
  return static_cast<std::size_t>(std::ceil(1 - std::log2(1 - confidence)));
}

/// Fewest values that bound quantile q >= 1/2 on both sides at `confidence`: 36 for p90, 368 for
/// p99 at 95 %.
inline std::size_t percentile_needs(double q, double confidence = 0.95) {
  return static_cast<std::size_t>(std::ceil(std::log((1 - confidence) / 2) / std::log(q)));
}

/// Quantile q of sorted values with an exact interval, or nothing where the values cannot bound it
/// on both sides.
inline std::optional<Interval> percentile_of_sorted(std::span<const double> values, double q,
                                                    double confidence = 0.95) {
  const std::size_t n = values.size();
  if (n < percentile_needs(std::max(q, 1 - q), confidence)) return std::nullopt;
  const double tail = (1 - confidence) / 2;
  // By symmetry the lowest u with P(Bin(n, q) >= u) <= tail is n + 1 - (the lower rank of 1 - q).
  const std::size_t l = lower_rank(n, q, tail);
  const std::size_t u = n + 1 - lower_rank(n, 1 - q, tail);
  return Interval{.median = quantile_of_sorted(values, q),
                  .low = values[l - 1],
                  .high = values[u - 1],
                  .confidence = confidence};
}

/// P(T <= t) of Student's t with integer degrees of freedom. Source: Abramowitz & Stegun 26.7.3
/// and 26.7.4.
inline double student_t_cdf(double t, int degrees) {
  const double theta = std::atan(t / std::sqrt(static_cast<double>(degrees)));
  const double cosine = std::cos(theta);
  double sum = 0;
  if (degrees % 2 == 1) {
    double term = cosine;
    for (int i = 3; i <= degrees; i += 2) {
      sum += term;
      term *= cosine * cosine * (i - 1) / i;
    }
    return 0.5 + (theta + std::sin(theta) * sum) / 3.14159265358979323846;
  }
  double term = 1;
  for (int i = 2; i <= degrees; i += 2) {
    sum += term;
    term *= cosine * cosine * (i - 1) / i;
  }
  return 0.5 + std::sin(theta) * sum / 2;
}

/// t with P(T <= t) = p, p in (1/2, 1), by bisection.
inline double student_t_quantile(double p, int degrees) {
  double low = 0;
  double high = 1;
  while (student_t_cdf(high, degrees) < p) high *= 2;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (student_t_cdf(middle, degrees) < p ? low : high) = middle;
  }
  return (low + high) / 2;
}

/// Mean of the values with Student's t interval, for values too few for the sign test. Unbounded
/// below 2 values.
inline Interval student_t_interval(std::span<const double> values, double confidence = 0.95) {
  const auto n = static_cast<double>(values.size());
  if (values.empty()) return {};
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  Interval result{.median = mean};
  if (values.size() < 2) return result;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const double half =
      student_t_quantile((1 + confidence) / 2, static_cast<int>(values.size()) - 1) *
      std::sqrt(squares / (n - 1) / n);
  return {.median = mean, .low = mean - half, .high = mean + half, .confidence = confidence};
}

}  // namespace torchpace
