#include "analysis/step_limit.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <tuple>

#include "analysis/analyze.hpp"
#include "report/text_table.hpp"
#include "results/results.hpp"

namespace torchpace::cli {
namespace {

RuntimeResult row(const std::string& name, double step_ns) {
  RuntimeResult result;
  result.runtime = name;
  for (int i = 0; i < 6; ++i) {
    Invocation invocation;
    invocation.invocation = i;
    Round round;
    round.step_ns = {step_ns, step_ns, step_ns};
    invocation.rounds = {round, round, round};
    for (int number = 0; number < 3; ++number) {
      invocation.rounds[static_cast<size_t>(number)].round = number;
    }
    result.invocations.push_back(invocation);
  }
  return result;
}

/// A step of 1 GFLOP, which takes 5 ms at the FMA peak, and 3 MiB, which take 150 us.
Results example() {
  Results results;
  results.plan.reference = "old";
  results.plan.device = "cpu";
  results.plan.dtype = "float32";
  results.plan.threads = 2;
  results.limits = Limits{.threads = 2,
                          .isa = "avx2",
                          .fma_flops_per_s = {{"float32", 200e9}},
                          .read = {{1 << 20, 25e-6}, {2 << 20, 100e-6}}};
  CaseResult result;
  result.name = "toy_inference";
  result.phase = "inference";
  result.reference = "old";
  result.flops = 1e9;
  result.minimum_bytes = 3 << 20;
  result.runtimes = {row("old", 20e6), row("new", 10e6)};
  results.cases.push_back(result);
  analyze(results);
  return results;
}

const RuntimeResult& found(const Results& results, const char* name) {
  return *results.cases[0].find(name);
}

void expect_no_shares(const Results& results, const char* name) {
  EXPECT_TRUE(std::isnan(found(results, name).fma_peak_share));
  EXPECT_TRUE(std::isnan(found(results, name).bandwidth_share));
  EXPECT_TRUE(std::isnan(found(results, name).limit_share));
}

TEST(StepLimit, TheLongerTimeBoundsTheCase) {
  auto results = example();
  const auto& limit = results.cases[0].limit;
  ASSERT_TRUE(limit);
  EXPECT_DOUBLE_EQ(limit->flops_per_s, 200e9);
  EXPECT_NEAR(limit->bytes_per_s, (2 << 20) / 100e-6, 1);
  EXPECT_DOUBLE_EQ(limit->compute_ns, 5e6);
  EXPECT_DOUBLE_EQ(limit->memory_ns, 150e3);
  EXPECT_EQ(limit->bound, "compute");
  EXPECT_NEAR(found(results, "old").fma_peak_share, 0.25, 1e-12);
  EXPECT_NEAR(found(results, "new").fma_peak_share, 0.5, 1e-12);
  EXPECT_NEAR(found(results, "new").bandwidth_share, 0.015, 1e-12);
  EXPECT_NEAR(found(results, "new").limit_share, 0.5, 1e-12);
  EXPECT_EQ(bound_text(results.cases[0]), "bound by compute (FMA peak 200 GFLOP/s)");
  EXPECT_NE(about_text(results.cases[0]).find("; bound by compute"), std::string::npos);

  results.cases[0].flops = 1e6;  // 5 us
  analyze(results);
  EXPECT_EQ(results.cases[0].limit->bound, "memory");
  EXPECT_NEAR(found(results, "new").limit_share, 0.015, 1e-12);
  EXPECT_NEAR(found(results, "new").fma_peak_share, 0.0005, 1e-12);
  EXPECT_EQ(bound_text(results.cases[0]), "bound by memory reads (21.0 GB/s at this size)");
}

TEST(StepLimit, TrainingReadsAndWritesHalfOfItsBytes) {
  auto results = example();
  results.cases[0].phase = "train";  // 3 MiB of a working set of 1.5
  analyze(results);
  EXPECT_NEAR(results.cases[0].limit->bytes_per_s, (1 << 20) / 25e-6, 1);
  EXPECT_DOUBLE_EQ(results.cases[0].limit->memory_ns, 75e3);
}

TEST(StepLimit, WhatIsNotKnownHasNoShareAndNoWords) {
  const auto changed = [](const std::function<void(Results&)>& change) {
    auto results = example();
    change(results);
    analyze(results);
    EXPECT_EQ(bound_text(results.cases[0]), "");
    EXPECT_TRUE(std::isnan(found(results, "new").limit_share));
    return results;
  };
  expect_no_shares(changed([](Results& r) { r.limits.reset(); }), "new");
  expect_no_shares(changed([](Results& r) { r.cases[0].settings["device"] = "cuda:0"; }), "new");
  expect_no_shares(changed([](Results& r) { r.cases[0].flops = r.cases[0].minimum_bytes = 0; }),
                   "new");
  const auto no_flops = changed([](Results& r) { r.cases[0].flops = 0; });
  EXPECT_TRUE(std::isnan(found(no_flops, "new").fma_peak_share));
  EXPECT_NEAR(found(no_flops, "new").bandwidth_share, 0.015, 1e-12);
  const auto no_bytes = changed([](Results& r) { r.cases[0].minimum_bytes = 0; });
  EXPECT_NEAR(found(no_bytes, "new").fma_peak_share, 0.5, 1e-12);
  EXPECT_TRUE(std::isnan(found(no_bytes, "new").bandwidth_share));
  const auto no_size = changed([](Results& r) { r.limits->read.clear(); });
  EXPECT_TRUE(std::isnan(found(no_size, "new").bandwidth_share));
  const auto sgd = changed([](Results& r) {
    r.cases[0].phase = "train";
    r.cases[0].settings["optimizer"] = "sgd";  // its bytes are counted as Adam's
  });
  EXPECT_NEAR(found(sgd, "new").fma_peak_share, 0.5, 1e-12);
  EXPECT_TRUE(std::isnan(found(sgd, "new").bandwidth_share));
  // The loop measures no arithmetic of 16 bits.
  for (const char* key : {"dtype", "autocast"}) {
    const auto half = changed([&](Results& r) { r.cases[0].settings[key] = "bfloat16"; });
    EXPECT_TRUE(std::isnan(found(half, "new").fma_peak_share)) << key;
  }
}

TEST(StepLimit, RowsOfOtherArithmeticMoreThreadsOrNoTimeHaveNoShare) {
  for (const auto& [key, theirs, ours] :
       {std::tuple{"dtype", "float32", "bfloat16"}, {"threads", "2", "64"}}) {
    auto results = example();
    results.cases[0].find("old")->environment[key] = theirs;
    results.cases[0].find("new")->environment[key] = ours;
    analyze(results);
    expect_no_shares(results, "new");
    EXPECT_NEAR(found(results, "old").limit_share, 0.25, 1e-12) << key;
  }
  auto results = example();
  results.cases[0].find("new")->status = Status::failed;
  results.cases[0].find("new")->invocations.clear();
  analyze(results);
  expect_no_shares(results, "new");
}

TEST(StepLimit, TheFileHasWhatIsKnown) {
  auto results = example();
  auto json = to_json(results)["cases"][0];
  EXPECT_EQ(json["limit"]["bound"], "compute");
  EXPECT_EQ(json["limit"]["compute_ns"], 5e6);
  EXPECT_NEAR(json["runtimes"][1]["limit_share"].get<double>(), 0.5, 1e-12);
  auto again = from_json(Json::parse(to_json(results).dump()), "test");
  analyze(again);
  EXPECT_EQ(to_json(again).dump(), to_json(results).dump());
  results.limits.reset();
  analyze(results);
  json = to_json(results)["cases"][0];
  EXPECT_FALSE(json.contains("limit"));
  EXPECT_FALSE(json["runtimes"][1].contains("limit_share"));
}

}  // namespace
}  // namespace torchpace::cli
