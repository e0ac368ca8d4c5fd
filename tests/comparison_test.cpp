#include <gtest/gtest.h>

#include <torchpace/comparison.hpp>
#ifdef TORCHPACE_WITH_RAPIDCHECK
#include <rapidcheck.h>
#endif

#include <functional>
#include <random>
#include <sstream>

namespace torchpace {
namespace {

Interval interval(double low, double high) {
  return {.median = (low + high) / 2, .low = low, .high = high, .confidence = 0.97};
}

TEST(Comparison, SpeedupAboveOneIsFaster) {
  const std::vector<double> reference{20, 22, 24};
  const std::vector<double> runtime{10, 11, 12};
  for (const double ratio : round_log_ratios(reference, runtime))
    EXPECT_NEAR(std::exp(ratio), 2, 1e-12);
}

TEST(Comparison, MethodFollowsTheNumberOfInvocations) {
  const std::vector<double> ratios{0.01, 0.02, 0.03, 0.04, 0.05, 0.06};
  const std::span<const double> all(ratios);
  EXPECT_FALSE(speedup_interval(all.first(3)).bounded());
  EXPECT_NEAR(speedup_interval(all.first(3)).median, std::exp(0.02), 1e-12);
  EXPECT_EQ(speedup_method(4), "Student t");
  EXPECT_EQ(speedup_method(6), "order statistics");
  EXPECT_EQ(speedup_method(6, 0.99), "Student t");
  EXPECT_EQ(speedup_method(8, 0.99), "order statistics");
  EXPECT_NEAR(std::log(speedup_interval(all.first(4)).low),
              0.025 - 3.18245 * std::sqrt(1.25e-4 * 4 / 3 / 4), 1e-6);
  const auto six = speedup_interval(all);
  EXPECT_NEAR(six.low, std::exp(0.01), 1e-12);
  EXPECT_NEAR(six.high, std::exp(0.06), 1e-12);
  EXPECT_DOUBLE_EQ(six.confidence, 0.96875);
}

TEST(Comparison, VerdictsFollowTheIntervals) {
  const auto quiet = interval(0.99, 1.01);
  EXPECT_EQ(judge(interval(1.05, 1.10), quiet), Verdict::kFaster);
  EXPECT_EQ(judge(interval(0.90, 0.95), quiet), Verdict::kSlower);
  EXPECT_EQ(judge(interval(0.995, 1.005), quiet), Verdict::kSame);
  EXPECT_EQ(judge(interval(0.95, 1.05), quiet), Verdict::kUnsure);
  EXPECT_EQ(judge(interval(1.005, 1.10), quiet), Verdict::kUnsure) << "inside the A/A interval";
  EXPECT_EQ(judge(interval(1.02, 1.03), interval(0.9, 1.1)), Verdict::kUnsure);
  EXPECT_EQ(judge(interval(1.02, 1.03), interval(1.005, 1.015)), Verdict::kFaster);
  EXPECT_EQ(judge({.median = 2}, quiet), Verdict::kUnsure) << "no interval";
  EXPECT_EQ(judge(interval(1.5, 2), {.median = 1}), Verdict::kUnsure) << "no noise floor";
}

TEST(Comparison, AdviceOnlyForUnsure) {
  const auto quiet = interval(0.99, 1.01);
  EXPECT_EQ(advice(interval(1.05, 1.10), quiet), "");
  EXPECT_NE(advice(interval(0.95, 1.05), quiet).find("--invocations"), std::string::npos);
  EXPECT_NE(advice({.median = 2}, quiet).find("at least 4 invocations"), std::string::npos);
  EXPECT_NE(advice(interval(0.95, 1.05), interval(0.9, 1.1)).find("noise"), std::string::npos);
}

TEST(Comparison, PrintsOneLine) {
  Comparison c{.speedup = {1.234, 1.22, 1.251, 0.96},
               .noise = {1, 0.995, 1.004, 0.96},
               .rounds = 60,
               .verdict = Verdict::kFaster};
  std::ostringstream text;
  text << c;
  EXPECT_EQ(text.str(),
            "speedup 1.234x [1.220, 1.251], FASTER; noise [0.995, 1.004], 60 rounds, outputs agree "
            "to 0 (allowed 0)");
  c.verdict = Verdict::kInvalid;
  c.max_abs_error = 0.5;
  text.str("");
  text << c;
  EXPECT_EQ(text.str(), "INVALID: outputs differ by 0.5, allowed 0");
  c.note = "output.1: 3 of 8 elements differ";
  text.str("");
  text << c;
  EXPECT_EQ(text.str(), "INVALID: output.1: 3 of 8 elements differ");
  text.str("");
  text << Comparison{.speedup = {.median = 2}};
  EXPECT_NE(text.str().find("speedup 2.000x [n/a], UNSURE; noise [n/a]"), std::string::npos)
      << text.str();
}

/// One simulated invocation: log ratio of the invocation plus rounds of noise; returns the median
/// of its rounds.
using Noise = std::function<double(std::mt19937&)>;
double invocation(std::mt19937& random, const Noise& process, const Noise& round, double drift) {
  const double effect = process(random);
  std::vector<double> reference, runtime;
  for (int r = 0; r < 15; ++r) {
    // Drift multiplies both sides of a round alike: pairing must cancel it.
    const double machine = std::exp(drift * r);
    reference.push_back(machine * std::exp(round(random)));
    runtime.push_back(machine * std::exp(round(random) - effect));
  }
  return median(round_log_ratios(reference, runtime));
}

double coverage(std::size_t invocations, const Noise& process, const Noise& round, double drift,
                int trials) {
  std::mt19937 random(7);
  int covered = 0;
  for (int trial = 0; trial < trials; ++trial) {
    std::vector<double> ratios;
    for (std::size_t g = 0; g < invocations; ++g)
      ratios.push_back(invocation(random, process, round, drift));
    const auto speedup = speedup_interval(ratios);
    covered += speedup.low <= 1 && 1 <= speedup.high;
  }
  return covered / static_cast<double>(trials);
}

// Effects per invocation have median 0, so the true speedup is 1. The order-statistic interval is
// exact for every distribution; Student's t is exact for the normal one. Error of a simulated share
// p of n trials: sqrt(p (1 - p) / n).
TEST(Comparison, CoverageIsTheExactOneWithAnEffectPerInvocation) {
  std::normal_distribution<double> normal(0, 0.01);
  std::exponential_distribution<double> exponential_distribution(1);
  std::lognormal_distribution<double> lognormal(0, 1);
  const Noise normal_effect = [&](auto& r) { return normal(r); };
  // Skewed with median 0: exp(N(0, 1)) has median 1.
  const Noise skewed_effect = [&](auto& r) { return 0.01 * (lognormal(r) - 1); };
  const Noise normal_round = [&](auto& r) { return normal(r); };
  const Noise spiky_round = [&](auto& r) { return 0.02 * exponential_distribution(r); };
  constexpr int kTrials = 4000;
  struct Row {
    const char* name;
    std::size_t invocations;
    Noise process, round;
    double drift, exact;
  };
  for (const auto& row : {
           Row{"normal, 6", 6, normal_effect, normal_round, 0, 0.96875},
           Row{"normal, 10", 10, normal_effect, normal_round, 0, 1 - 22 / 1024.0},
           Row{"drifting, 6", 6, normal_effect, normal_round, 0.05, 0.96875},
           Row{"spiky rounds, 6", 6, normal_effect, spiky_round, 0.01, 0.96875},
           Row{"normal, 4 (t)", 4, normal_effect, normal_round, 0, 0.95},
           Row{"normal, 5 (t)", 5, normal_effect, spiky_round, 0, 0.95},
       }) {
    const double error = std::sqrt(row.exact * (1 - row.exact) / kTrials);
    EXPECT_NEAR(coverage(row.invocations, row.process, row.round, row.drift, kTrials), row.exact,
                4 * error)
        << row.name;
  }
  // Log-normal effects: rounds without noise keep the invocation's median at 0 exactly.
  const Noise no_round = [](auto&) { return 0.0; };
  const double error = std::sqrt(0.96875 * 0.03125 / kTrials);
  EXPECT_NEAR(coverage(6, skewed_effect, no_round, 0.01, kTrials), 0.96875, 4 * error)
      << "log-normal";
}

TEST(Comparison, IdenticalSidesAreRarelyJudgedDifferent) {
  std::mt19937 random(3);
  std::normal_distribution<double> normal(0, 0.01);
  const Noise effect = [&](auto& r) { return normal(r); };
  int wrong = 0;
  constexpr int kTrials = 2000;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<double> copy, noise;
    for (int g = 0; g < 6; ++g) {
      const double reference = normal(random);  // shared by both pairs, as in a run
      copy.push_back(reference + effect(random));
      noise.push_back(reference + effect(random));
    }
    const auto verdict = judge(speedup_interval(copy), speedup_interval(noise));
    wrong += verdict == Verdict::kFaster || verdict == Verdict::kSlower;
  }
  EXPECT_LT(wrong,
            kTrials / 50);  // 3.1 % would exclude 1; lying beyond the noise as well leaves fewer
}

#ifdef TORCHPACE_WITH_RAPIDCHECK
TEST(Comparison, SwappingTheSidesInvertsTheSpeedup) {
  EXPECT_TRUE(rc::check([](const std::vector<int>& raw) {
    RC_PRE(raw.size() >= 6);
    std::vector<double> ratios, inverse;
    for (const int value : raw) {
      ratios.push_back((value % 1000) / 1000.0);
      inverse.push_back(-ratios.back());
    }
    const auto a = speedup_interval(ratios);
    const auto b = speedup_interval(inverse);
    RC_ASSERT(std::abs(a.low * b.high - 1) < 1e-12);
    RC_ASSERT(std::abs(a.high * b.low - 1) < 1e-12);
    RC_ASSERT(std::abs(a.median * b.median - 1) < 1e-12);
  }));
}
#endif

}  // namespace
}  // namespace torchpace
