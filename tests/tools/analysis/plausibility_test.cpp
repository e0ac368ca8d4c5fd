#include "analysis/plausibility.hpp"

#include <gtest/gtest.h>

#include "analysis/analyze.hpp"
#include "analysis/regression_check.hpp"
#include "results/results.hpp"
#include "support/error.hpp"

namespace torchpace::cli {
namespace {

constexpr double kFlops = 1e9, kPeak = 200e9;  // of a step: at least 5 ms

RuntimeResult row(const std::string& name, double step_ns) {
  RuntimeResult result;
  result.runtime = name;
  result.cold_s = {{"start", 1}, {"load", 0}, {"first_step", step_ns * 1e-9}};
  for (int g = 1; g <= 6; ++g) {
    Invocation invocation;
    invocation.invocation = g;
    for (int r = 0; r < 3; ++r) {
      Round round;
      round.round = r;
      round.step_ns = {step_ns, step_ns * (1 + 0.001 * g), step_ns * 1.002};
      invocation.rounds.push_back(round);
    }
    result.invocations.push_back(invocation);
  }
  return result;
}

/// A reference of 10 ms, a runtime of 8 and one of 10 us, which skips nearly everything.
Results example() {
  Results results;
  results.plan.reference = "old";
  results.plan.device = "cpu";
  results.plan.dtype = "float32";
  results.plan.threads = 2;
  results.limits =
      Limits{.threads = 2, .isa = "avx2", .fma_flops_per_s = {{"float32", kPeak}}, .read = {}};
  CaseResult result;
  result.name = "toy_inference";
  result.phase = "inference";
  result.reference = "old";
  result.flops = kFlops;
  result.runtimes = {row("old", 10e6), row("new", 8e6), row("empty", 10e3), row("old#2", 10e6)};
  result.runtimes[3].copy_of = "old";
  results.cases.push_back(result);
  analyze(results);
  return results;
}

const RuntimeResult& found(const Results& results, const char* name) {
  return *results.cases[0].find(name);
}

bool warns(const Results& results, const std::string& code) {
  return std::any_of(results.warnings.begin(), results.warnings.end(),
                     [&](const Warning& w) { return w.code == code; });
}

TEST(Plausible, MoreThanTheFmaPeakIsMarkedWithItsFigures) {
  const auto results = example();
  const auto& empty = found(results, "empty");
  EXPECT_EQ(empty.status, Status::ok);
  EXPECT_EQ(empty.speedup.verdict, "IMPLAUSIBLE");
  EXPECT_EQ(empty.implausible,
            "499 times the FMA peak (99.8 TFLOP/s where 200 GFLOP/s were measured): the row does "
            "less work than the case; it does not count");
  EXPECT_TRUE(found(results, "old").implausible.empty());
  EXPECT_TRUE(found(results, "new").implausible.empty());
  EXPECT_EQ(found(results, "new").speedup.verdict, "FASTER");
  EXPECT_TRUE(warns(results, "implausible"));
  EXPECT_EQ(exit_code(results, std::nullopt), kOk);
}

TEST(Plausible, SuchARowCountsNowhere) {
  const auto results = example();
  ASSERT_TRUE(results.cases[0].fastest);
  EXPECT_EQ(results.cases[0].fastest->runtime, "new");
  EXPECT_TRUE(std::isnan(found(results, "empty").break_even_steps));
  EXPECT_EQ(results.cases[0].notes,
            std::vector<std::string>{"empty: implausible: " + found(results, "empty").implausible});
  const auto regressions = find_regressions(results, {.below = 1e6});
  ASSERT_EQ(regressions.found.size(), 1u);
  EXPECT_NE(regressions.found[0].find("new"), std::string::npos);
  ASSERT_EQ(regressions.not_judged.size(), 1u);
  EXPECT_NE(regressions.not_judged[0].find("empty is implausible"), std::string::npos);
}

TEST(Plausible, TheMarkFollowsFromTheFileAlone) {
  const auto results = example();
  auto again = from_json(Json::parse(to_json(results).dump()), "test");
  analyze(again);
  EXPECT_EQ(to_json(again).dump(), to_json(results).dump());
  again.limits.reset();
  analyze(again);
  EXPECT_TRUE(found(again, "empty").implausible.empty()) << "no limit is known";
  EXPECT_FALSE(warns(again, "implausible"));
}

TEST(Plausible, NothingIsJudgedByWorkThatIsNotKnown) {
  auto results = example();
  results.cases[0].flops = 0;
  analyze(results);
  EXPECT_TRUE(found(results, "empty").implausible.empty());
}

TEST(Plausible, MeasuringExplainsTenPercent) {
  auto results = example();
  for (auto [peak, marked] :
       {std::pair{kFlops / 8e-3 / 1.09, false}, {kFlops / 8e-3 / 1.12, true}}) {
    results.limits->fma_flops_per_s["float32"] = peak;
    analyze(results);
    EXPECT_EQ(found(results, "new").implausible.empty(), !marked) << peak;
  }
}

TEST(Plausible, AProductThatWasFasterThanTheLoopIsTheLimit) {
  auto results = example();
  results.cases[0].find("old")->invocations[0].gemm_peak =
      GemmPeak{.size = 1000, .ns = {2e9 / 120e3}};
  analyze(results);
  EXPECT_TRUE(found(results, "empty").implausible.empty());  // 100 of 120 TFLOP/s
}

TEST(Plausible, OtherArithmeticIsJudgedByProductsOfTheRun) {
  for (const auto& [key, value] : std::map<std::string, std::string>{
           {"dtype", "bfloat16"}, {"autocast", "bfloat16"}, {"device", "cuda:0"}}) {
    auto results = example();
    results.cases[0].settings[key] = value;
    analyze(results);
    EXPECT_TRUE(found(results, "empty").implausible.empty()) << "no product was measured";
    auto& gemm_peak = results.cases[0].find("old")->invocations[0].gemm_peak;
    gemm_peak = GemmPeak{.size = 1000, .ns = {2e9 / 60e3}};  // 60 TFLOP/s
    analyze(results);
    EXPECT_TRUE(found(results, "empty").implausible.empty()) << "below twice the rate: " << key;
    gemm_peak->ns = {2e9 / 40e3};
    analyze(results);
    EXPECT_EQ(found(results, "empty").implausible.substr(0, 39),
              "2.5 times the rate of matrix products (");
  }
}

TEST(Plausible, AProductThatIsSlowerThanTheRestOfAStepIsNoLimit) {
  auto results = example();
  results.cases[0].settings["dtype"] = "bfloat16";  // without units for it: computed in float32
  results.cases[0].flops = 1e6;                     // 100 GFLOP/s in 10 us, half of the FMA peak
  results.cases[0].find("old")->invocations[0].gemm_peak = GemmPeak{.size = 1000, .ns = {2e9 / 1}};
  analyze(results);
  EXPECT_TRUE(found(results, "empty").implausible.empty());
  results.cases[0].flops = 1e7;
  analyze(results);
  EXPECT_EQ(found(results, "empty").implausible.substr(0, 33), "5.0 times the FMA peak of float32");
}

TEST(Plausible, AStepThatIsShorterThanItsReadsIsMarked) {
  auto results = example();
  auto& result = results.cases[0];
  result.flops = 0;
  result.minimum_bytes = 3 << 20;
  results.limits->read = {{2 << 20, 100e-6}};
  analyze(results);
  EXPECT_EQ(found(results, "empty").implausible,
            "a step of 10 µs, where reading its 3.00 MiB takes 150 µs: the row does less work than "
            "the case; it does not count");
  EXPECT_TRUE(found(results, "new").implausible.empty());
  result.settings["dtype"] = "bfloat16";  // reading takes no arithmetic
  analyze(results);
  EXPECT_FALSE(found(results, "empty").implausible.empty());
  result.settings["dtype"] = "float32";
  result.phase = "train";  // reads and writes 1.5 MiB
  analyze(results);
  EXPECT_TRUE(found(results, "empty").implausible.empty()) << "no such size was measured";
  results.limits->read = {{1 << 20, 4e-6}};  // 12 us for the 3 MiB: more than measuring explains
  analyze(results);
  EXPECT_TRUE(found(results, "empty").implausible.empty());
  result.settings["device"] = "cuda:0";
  results.limits->read = {{1 << 20, 1}};
  analyze(results);
  EXPECT_TRUE(found(results, "empty").implausible.empty());
}

TEST(Plausible, RowsOfOtherArithmeticOrMoreThreadsAreNotJudged) {
  for (const auto& [key, theirs, ours] :
       {std::tuple{"dtype", "float32", "bfloat16"}, {"threads", "2", "64"}}) {
    auto results = example();
    results.cases[0].find("old")->environment[key] = theirs;
    results.cases[0].find("empty")->environment[key] = ours;
    analyze(results);
    EXPECT_TRUE(found(results, "empty").implausible.empty()) << key;
  }
}

TEST(Plausible, AnImplausibleReferenceLeavesNoVerdict) {
  auto results = example();
  results.cases[0].reference = "empty";
  analyze(results);
  EXPECT_EQ(found(results, "empty").speedup.verdict, "IMPLAUSIBLE");
  EXPECT_EQ(found(results, "new").speedup.verdict, "NONE");
  EXPECT_TRUE(std::isnan(found(results, "new").break_even_steps));
  EXPECT_FALSE(results.cases[0].fastest);
}

TEST(Plausible, LimitsAreMeasuredForTheCasesThatNeedThem) {
  auto results = example();
  results.plan.preset = "smoke";
  results.limits.reset();
  auto cuda = results.cases[0], unknown = results.cases[0], failed = results.cases[0];
  cuda.settings["device"] = "cuda:0";
  unknown.flops = 0;
  for (auto& each : failed.runtimes) each.status = Status::failed;
  results.cases = {cuda, unknown, failed};
  measure_limits(results);
  EXPECT_FALSE(results.limits);

  results.cases.push_back(example().cases[0]);
  results.cases.back().minimum_bytes = 100e3;
  measure_limits(results);
  ASSERT_TRUE(results.limits);
  EXPECT_EQ(results.limits->threads, 2);
  EXPECT_EQ(results.limits->fma_flops_per_s.size(), 1u);
  ASSERT_EQ(results.limits->read.size(), 1u);
  const auto before = to_json(results).dump();
  measure_limits(results);  // once a run
  EXPECT_EQ(to_json(results).dump(), before);
}

TEST(Plausible, ALimitOfABadMomentIsMeasuredAgain) {
  auto results = example();
  results.plan.preset = "smoke";
  results.cases[0].runtimes.erase(results.cases[0].runtimes.begin() + 2);
  results.cases[0].flops = 1e3;
  results.limits->fma_flops_per_s["float32"] = 1;
  analyze(results);
  EXPECT_FALSE(found(results, "new").implausible.empty());
  confirm_implausible(results);
  EXPECT_TRUE(found(results, "new").implausible.empty());
  EXPECT_FALSE(warns(results, "implausible"));
}

TEST(Plausible, APeakBelowTheProductsIsMeasuredAgain) {
  auto results = example();
  results.plan.preset = "smoke";
  results.cases[0].runtimes.erase(results.cases[0].runtimes.begin() + 2);
  results.cases[0].flops = 1;  // no row comes near
  results.cases[0].find("old")->invocations[0].gemm_peak = GemmPeak{.size = 1, .ns = {1e3}};
  results.limits->fma_flops_per_s["float32"] = 1e6;
  confirm_implausible(results);  // 2 MFLOP/s of products
  const double peak = results.limits->flops_per_s("float32");
  EXPECT_GT(peak, 2e6);
  confirm_implausible(results);
  EXPECT_EQ(results.limits->flops_per_s("float32"), peak) << "nothing is faster than that";
}

}  // namespace
}  // namespace torchpace::cli
