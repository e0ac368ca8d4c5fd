#include <gtest/gtest.h>

#include <torchpace/statistics.hpp>
#ifdef TORCHPACE_WITH_RAPIDCHECK
#include <rapidcheck.h>
#endif

#include <random>

namespace torchpace {
namespace {

std::vector<double> one_to(int n) {
  std::vector<double> values(static_cast<std::size_t>(n));
  std::iota(values.begin(), values.end(), 1.0);
  return values;
}

TEST(Statistics, MedianAndQuantilesInterpolate) {
  EXPECT_DOUBLE_EQ(median(std::vector<double>{3, 1, 2}), 2);
  EXPECT_DOUBLE_EQ(median(std::vector<double>{4, 1, 2, 3}), 2.5);
  EXPECT_TRUE(std::isnan(median(std::vector<double>{})));
  EXPECT_DOUBLE_EQ(quantile_of_sorted(one_to(11), 0.9), 10);
  EXPECT_DOUBLE_EQ(median_absolute_deviation(std::vector<double>{1, 1, 2, 2, 4, 6, 9}), 1);
}

// Ranks and confidences of the sign test's interval: Dixon & Massey, Introduction to Statistical
// Analysis, table A-25.
TEST(Statistics, SignTestIntervalHasThePublishedRanks) {
  struct Row {
    int n;
    double low, high;
  };
  for (const auto& row : {Row{6, 1, 6}, Row{8, 1, 8}, Row{9, 2, 8}, Row{10, 2, 9}, Row{12, 3, 10},
                          Row{15, 4, 12}, Row{20, 6, 15}, Row{30, 10, 21}, Row{50, 18, 33}}) {
    const auto interval = sign_test_interval(one_to(row.n));
    EXPECT_EQ(interval.low, row.low) << row.n;
    EXPECT_EQ(interval.high, row.high) << row.n;
    EXPECT_GE(interval.confidence, 0.95) << row.n;
  }
  EXPECT_DOUBLE_EQ(sign_test_interval(one_to(6)).confidence, 1 - 2 / 64.0);
  EXPECT_FALSE(sign_test_interval(one_to(5)).bounded());
  for (const double confidence : {0.5, 0.9, 0.95, 0.99, 0.999, 1 - 1e-6}) {
    const auto fewest = sign_test_needs(confidence);
    EXPECT_TRUE(sign_test_interval(one_to(fewest), confidence).bounded()) << confidence;
    EXPECT_FALSE(sign_test_interval(one_to(fewest - 1), confidence).bounded()) << confidence;
  }
  EXPECT_DOUBLE_EQ(sign_test_interval(one_to(5)).median, 3);
}

TEST(Statistics, BinomialMatchesTheSum) {
  // n = 5, p = 0.3: 0.16807, 0.52822, 0.83692, 0.96922, 0.99757, 1.
  const double expected[] = {0.16807, 0.52822, 0.83692, 0.96922, 0.99757, 1};
  for (int k = 0; k <= 5; ++k) EXPECT_NEAR(binomial_cdf(k, 5, 0.3), expected[k], 1e-12) << k;
  EXPECT_EQ(binomial_cdf(-1, 5, 0.3), 0);
  EXPECT_NEAR(binomial_cdf(50'000, 100'000, 0.5), 0.5 + 0.5 * 0.00252313, 1e-6);
}

TEST(Statistics, PercentileNeedsEnoughValues) {
  EXPECT_EQ(percentile_needs(0.9), 36u);
  EXPECT_EQ(percentile_needs(0.99), 368u);
  EXPECT_FALSE(percentile_of_sorted(one_to(35), 0.9));
  EXPECT_TRUE(percentile_of_sorted(one_to(36), 0.9));
  EXPECT_FALSE(percentile_of_sorted(one_to(367), 0.99));
  EXPECT_TRUE(percentile_of_sorted(one_to(368), 0.99));
}

// By summing the binomial distribution in exact arithmetic.
TEST(Statistics, PercentileIntervalHasTheExactRanks) {
  struct Row {
    int n;
    double q, low, high;
  };
  for (const auto& row : {Row{36, 0.9, 29, 36}, Row{40, 0.9, 32, 40}, Row{100, 0.9, 84, 96},
                          Row{368, 0.9, 320, 343}, Row{368, 0.99, 360, 368}}) {
    const auto p = percentile_of_sorted(one_to(row.n), row.q);
    ASSERT_TRUE(p);
    EXPECT_EQ(p->low, row.low) << row.n;
    EXPECT_EQ(p->high, row.high) << row.n;
  }
}

// The normal approximation is good to 1 in so many values; done in linear time, which 200,000
// samples of a short step need.
TEST(Statistics, ManyValues) {
  const auto values = one_to(200'000);
  const auto interval = sign_test_interval(values);
  EXPECT_NEAR(interval.low, 100'000.5 - 1.96 * std::sqrt(50'000.0), 2);
  EXPECT_NEAR(interval.high, 100'000.5 + 1.96 * std::sqrt(50'000.0), 2);
  EXPECT_NEAR(percentile_of_sorted(values, 0.99)->high, 198'000 + 1.96 * std::sqrt(1980.0), 3);
}

// Table values of t at 0.975.
TEST(Statistics, StudentTMatchesTheTable) {
  for (const auto& [degrees, t] :
       {std::pair{1, 12.7062}, std::pair{2, 4.30265}, std::pair{3, 3.18245}, std::pair{4, 2.77645},
        std::pair{10, 2.22814}, std::pair{30, 2.04227}}) {
    EXPECT_NEAR(student_t_quantile(0.975, degrees), t, 1e-4) << degrees;
  }
  const auto interval = student_t_interval(std::vector<double>{1, 2, 3, 4});
  EXPECT_DOUBLE_EQ(interval.median, 2.5);
  EXPECT_NEAR(interval.high - 2.5, 3.18245 * std::sqrt(5.0 / 3 / 4), 1e-4);
}

#ifdef TORCHPACE_WITH_RAPIDCHECK
TEST(Statistics, IntervalsHoldTheirEstimateAndDoNotDependOnOrder) {
  EXPECT_TRUE(rc::check([](std::vector<int> raw, unsigned seed) {
    std::vector<double> values(raw.begin(), raw.end());
    const auto interval = sign_test_interval(values);
    std::shuffle(values.begin(), values.end(), std::minstd_rand(seed));
    const auto again = sign_test_interval(values);
    RC_ASSERT((values.size() >= 6) == interval.bounded());
    if (interval.bounded()) {
      RC_ASSERT(interval.low <= interval.median && interval.median <= interval.high);
      RC_ASSERT(interval.low == again.low && interval.high == again.high &&
                interval.median == again.median);
    }
  }));
}
#endif

}  // namespace
}  // namespace torchpace
