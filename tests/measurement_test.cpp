#include <gtest/gtest.h>

#include <sstream>
#include <torchpace/measurement.hpp>

namespace torchpace {
namespace {

Measurement example() {
  Measurement m;
  m.name = "training";
  m.optimizer = "adam per-tensor";
  for (int i = 0; i < 40; ++i) m.step_ns.push_back(1e6 + 1e3 * i);
  m.items = 512;
  m.item = "tokens";
  m.flops = 2e9;
  m.warmup_steps = 10;
  m.stopped = "95% CI is 0.5% wide";
  return m;
}

TEST(Measurement, RatesComeFromTheMedian) {
  const auto m = example();
  EXPECT_DOUBLE_EQ(m.step().median, 1.0195e6);
  EXPECT_DOUBLE_EQ(m.steps_per_second(), 1e9 / 1.0195e6);
  EXPECT_DOUBLE_EQ(m.items_per_second(), 512 * m.steps_per_second());
  EXPECT_DOUBLE_EQ(m.flops_per_second(), 2e9 * m.steps_per_second());
  EXPECT_TRUE(m.percentile(0.9));
  EXPECT_FALSE(m.percentile(0.99));
}

TEST(Measurement, PrintsWhatItCannotSay) {
  std::ostringstream text;
  text << example();
  EXPECT_NE(text.str().find("p90 1.04 ms, p99 n/a (needs 368)"), std::string::npos) << text.str();
  EXPECT_NE(text.str().find("stopped: 95% CI is 0.5% wide"), std::string::npos) << text.str();
  EXPECT_NE(text.str().find("tokens/s"), std::string::npos) << text.str();
}

TEST(Measurement, TooFewSamplesHaveNoInterval) {
  auto m = example();
  m.step_ns.resize(3);
  std::ostringstream text;
  text << m;
  EXPECT_NE(text.str().find("1.00 ms a step [n/a], p90 n/a"), std::string::npos) << text.str();
  EXPECT_EQ(text.str().find("nan"), std::string::npos) << text.str();
}

TEST(Measurement, LaunchBoundOnlyOnADevice) {
  auto m = example();
  EXPECT_FALSE(m.launch_bound());
  m.device_ns = {100, 100, 100};
  m.enqueue_ns = {95, 95, 95};
  EXPECT_TRUE(m.launch_bound());
  m.enqueue_ns = {50, 50, 50};
  EXPECT_FALSE(m.launch_bound());
}

TEST(Measurement, FormatsWithThreeDigits) {
  EXPECT_EQ(format_ns(123), "123 ns");
  EXPECT_EQ(format_ns(12345), "12.3 us");
  EXPECT_EQ(format_ns(1234567), "1.23 ms");
  EXPECT_EQ(format_ns(2.5e9), "2.50 s");
  EXPECT_EQ(format_si(1234), "1.23 k");
  EXPECT_EQ(format_si(5.6e12), "5.60 T");
}

}  // namespace
}  // namespace torchpace
