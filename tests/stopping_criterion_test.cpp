#include "torchpace/stopping_criterion.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace torchpace {
namespace {

/// Around 100; every fourth one `spread` above.
std::vector<double> samples(std::size_t count, double spread) {
  std::vector<double> values;
  for (std::size_t i = 0; i < count; ++i) {
    values.push_back(100 + spread * static_cast<double>(i % 4));
  }
  return values;
}

TEST(StoppingCriterion, EndsWhenTheIntervalIsNarrow) {
  StoppingCriterion criterion({.relative_width = 0.01, .min_samples = 20, .max_seconds = 10});
  EXPECT_FALSE(criterion.is_met(samples(19, 0), 1));
  EXPECT_TRUE(criterion.is_met(samples(20, 0), 2));
  EXPECT_EQ(criterion.reason(), "95% CI is 0% wide");
}

TEST(StoppingCriterion, GoesOnWhileItIsWide) {
  StoppingCriterion criterion({.relative_width = 0.01, .min_samples = 20, .max_seconds = 10});
  EXPECT_FALSE(criterion.is_met(samples(20, 2), 1));
  EXPECT_FALSE(criterion.is_met(samples(21, 0), 1)) << "not looked at before a tenth more";
  EXPECT_TRUE(criterion.is_met(samples(22, 0), 1));
}

TEST(StoppingCriterion, SaysWhatTheTimeDidNotSufficeFor) {
  const StopRule rule{.relative_width = 0.01, .min_samples = 20, .max_seconds = 10};
  StoppingCriterion wide(rule), few(rule);
  EXPECT_TRUE(wide.is_met(samples(40, 2), 10));
  EXPECT_EQ(wide.reason(), "10 s time limit reached; 95% CI is 1.9% wide (target 1%)");
  EXPECT_TRUE(few.is_met(samples(7, 0), 11));
  EXPECT_EQ(few.reason(), "10 s time limit reached; 7 samples (target 20)");
}

}  // namespace
}  // namespace torchpace
