// --fail-on judges all rows of a run together: many rows must not make a run red by chance.
#include "analysis/regression_check.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "analysis/analyze.hpp"
#include "results/results.hpp"

namespace torchpace::cli {
namespace {

constexpr int kCases = 9;
constexpr int kRows = 10;  // of a case, beside the reference
constexpr double kNoise = 0.03;

/// A run in which `slow` of the first case takes `factor` times the time of the reference and all
/// others take the same, each invocation with noise of its own.
Results simulated(std::mt19937_64& generator, int invocations, double factor = 1) {
  std::normal_distribution<double> noise(0, kNoise);
  Results results;
  for (int c = 0; c < kCases; ++c) {
    CaseResult result;
    result.name = "case" + std::to_string(c);
    result.reference = "reference";
    for (int r = 0; r <= kRows; ++r) {
      RuntimeResult row;
      row.runtime = r == 0 ? "reference" : "row" + std::to_string(r);
      const double mean_ns = c == 0 && r == 1 ? 1e6 * factor : 1e6;
      for (int i = 0; i < invocations; ++i) {
        Round round;
        round.step_ns = {mean_ns * std::exp(noise(generator))};
        Invocation invocation;
        invocation.invocation = i;
        invocation.rounds.push_back(std::move(round));
        row.invocations.push_back(std::move(invocation));
      }
      result.runtimes.push_back(std::move(row));
    }
    results.cases.push_back(std::move(result));
  }
  return results;
}

TEST(FailOn, NinetyEqualRowsAreRedInFiveOfAHundredRunsAtMost) {
  std::mt19937_64 generator(1);
  int red = 0;
  for (int run = 0; run < 1000; ++run) {
    const auto regressions = find_regressions(simulated(generator, 12), {.below = 1});
    ASSERT_TRUE(regressions.not_judged.empty()) << regressions.not_judged.front();
    red += !regressions.found.empty();
  }
  EXPECT_LE(red, 50);
}

TEST(FailOn, OneSlowRowOfNinetyIsFound) {
  std::mt19937_64 generator(1);
  int found = 0;
  for (int run = 0; run < 20; ++run) {
    const auto regressions = find_regressions(simulated(generator, 17, 1.15), {.below = 1});
    found +=
        regressions.found.size() == 1 && regressions.found[0].starts_with("case0: speedup of row1");
  }
  EXPECT_GE(found, 18);
}

TEST(FailOn, AnApproximateRowIsNotJudged) {
  std::mt19937_64 generator(1);
  auto results = simulated(generator, 17, 2);
  ASSERT_EQ(find_regressions(results, {.below = 1}).found.size(), 1U);
  results.cases[0].runtimes[1].approximate = true;
  const auto regressions = find_regressions(results, {.below = 1});
  EXPECT_TRUE(regressions.found.empty() && regressions.not_judged.empty());
}

TEST(FailOn, TooFewInvocationsSayHowManyItNeeds) {
  std::mt19937_64 generator(1);
  const auto regressions = find_regressions(simulated(generator, 6, 2), {.below = 1});
  EXPECT_TRUE(regressions.found.empty());
  ASSERT_EQ(regressions.not_judged.size(), 90);
  EXPECT_EQ(regressions.not_judged.front(),
            "case0: row1 has 6 invocations, and --fail-on needs 11 to judge 90 rows at 95 %: "
            "--invocations 11");
}

}  // namespace
}  // namespace torchpace::cli
