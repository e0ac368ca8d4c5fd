// The waterfall: its arithmetic on probes with a known answer, what is left out, and how it prints.
#include "commands/explain.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>

#include "analysis/analyze.hpp"
#include "report/console_report.hpp"
#include "support/error.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;
const fs::path kFixtures = TORCHPACE_FIXTURES;

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// py-eager and cpp-eager, invented by tests/fixtures/make_explanation.py.
Results fixture() {
  auto results = load_results(kFixtures / "explanation.json");
  analyze(results);
  return results;
}

Explanation explained(Results& results) {
  analyze(results);
  return results.cases[0].explanation.value();
}

const Bar* find_bar(const Explanation& explanation, const std::string& name) {
  for (const auto& bar : explanation.bars) {
    if (bar.name == name) return &bar;
  }
  return nullptr;
}

std::vector<std::string> names_of(const Explanation& explanation) {
  std::vector<std::string> names;
  for (const auto& bar : explanation.bars) names.push_back(bar.name);
  return names;
}

double sum_of(const Explanation& explanation) {
  return std::accumulate(explanation.bars.begin(), explanation.bars.end(), 0.0,
                         [](double sum, const Bar& bar) { return sum + bar.ns.median; });
}

/// The probes of a runtime in all invocations, under the run's allocator and others.
template <class Change>
void change_probes(Results& results, const std::string& runtime, const Change& change) {
  for (auto& row : results.cases[0].runtimes) {
    if (row.runtime != runtime && row.condition_of != runtime) continue;
    for (auto& invocation : row.invocations) {
      if (invocation.probes) change(*invocation.probes);
    }
  }
}

/// Numbers agree to rounding, all else exactly.
void expect_alike(const Json& found, const Json& expected, const std::string& where) {
  if (expected.is_number() && found.is_number()) {
    const double value = expected.get<double>();
    EXPECT_NEAR(found.get<double>(), value, 1e-9 * std::max(1.0, std::abs(value)) + 1e-3) << where;
  } else if (expected.is_structured() && found.is_structured()) {
    ASSERT_EQ(found.size(), expected.size()) << where;
    for (const auto& item : expected.items()) {
      const auto part = where + "/" + item.key();
      if (expected.is_array()) {
        expect_alike(found[std::stoul(item.key())], item.value(), part);
      } else {
        ASSERT_TRUE(found.contains(item.key())) << part;
        expect_alike(found[item.key()], item.value(), part);
      }
    }
  } else {
    EXPECT_EQ(found, expected) << where;
  }
}

TEST(Explanation, OfTheFixtureIsTheKnownAnswer) {
  const auto file = Json::parse(read(kFixtures / "explanation.json"));
  const auto derived = Json::parse(to_json(fixture()).dump());  // NaN as the file has it
  expect_alike(derived["cases"][0]["explanation"], file["cases"][0]["explanation"], "");
}

TEST(Explanation, SurvivesTheFile) {
  const auto results = fixture();
  auto again = from_json(to_json(results), "again");
  analyze(again);
  EXPECT_EQ(to_json(again).dump(), to_json(results).dump());
}

TEST(Explanation, BarsAddUpToTheDifferenceOfTheSteps) {
  auto results = fixture();
  const auto whole = explained(results);
  EXPECT_DOUBLE_EQ(sum_of(whole), whole.from_ns.median - whole.to_ns.median);
  EXPECT_DOUBLE_EQ(whole.total_ns.median, whole.from_ns.median - whole.to_ns.median);
  EXPECT_EQ(names_of(whole).back(), "unexplained");
  for (const auto& bar : whole.bars) {
    EXPECT_LE(bar.ns.low, bar.ns.median) << bar.name;
    EXPECT_GE(bar.ns.high, bar.ns.median) << bar.name;
    EXPECT_NEAR(bar.from_ns - bar.to_ns, bar.ns.median, 1) << bar.name;
  }
}

TEST(Explanation, ACauseThatIsPutInIsFoundInItsOwnBar) {
  auto results = fixture();
  const auto before = explained(results);
  constexpr double kSleep_ns = 660e3;  // 3 % of the step
  for (auto& row : results.cases[0].runtimes) {
    if (row.runtime.starts_with("cpp-eager")) continue;
    for (auto& invocation : row.invocations) {
      for (auto& round : invocation.rounds) {
        for (auto& ns : round.step_ns) ns += kSleep_ns;
      }
    }
  }
  change_probes(results, "py-eager", [](Probes& probes) {
    for (auto& ns : probes.profile->step_ns) ns += kSleep_ns;
  });
  const auto after = explained(results);
  for (const auto& bar : after.bars) {
    const double expected = bar.name == "host code between operators" ? kSleep_ns : 0;
    EXPECT_NEAR(bar.ns.median - find_bar(before, bar.name)->ns.median, expected, 1) << bar.name;
  }
}

TEST(Explanation, WithoutAnAnswerItsBarsAreLeftOutAndItIsSaid) {
  auto results = fixture();
  change_probes(results, "cpp-eager", [](Probes& probes) {
    probes.dispatch.reset();
    probes.unanswered["dispatch"] = "unknown command 'dispatch'";
  });
  const auto found = explained(results);
  EXPECT_EQ(names_of(found), (std::vector<std::string>{"allocator", "unexplained"}));
  EXPECT_DOUBLE_EQ(sum_of(found), found.total_ns.median);
  EXPECT_EQ(found.notes, (std::vector<std::string>{
                             "no bars of operators: they need the profiles of both",
                             "cpp-eager does not answer dispatch: unknown command 'dispatch'"}));
}

TEST(Explanation, WithoutConditionsThereIsNoAllocator) {
  auto results = fixture();
  std::erase_if(results.cases[0].runtimes, [](const auto& row) { return row.is_condition(); });
  const auto found = explained(results);
  EXPECT_EQ(find_bar(found, "allocator"), nullptr);
  EXPECT_DOUBLE_EQ(sum_of(found), found.total_ns.median);
  EXPECT_TRUE(found.notes.empty());
}

TEST(Explanation, AnAllocatorThatIsNoBetterHasNoBar) {
  auto results = fixture();
  for (auto& row : results.cases[0].runtimes) {
    if (row.runtime.find("jemalloc") == std::string::npos) continue;
    row.status = Status::failed;
  }
  const auto found = explained(results);
  EXPECT_EQ(find_bar(found, "allocator"), nullptr);
  EXPECT_EQ(
      found.notes,
      (std::vector<std::string>{"no bar for the allocator: no other one makes the steps shorter"}));
}

TEST(Explanation, KernelsInOnePieceHaveABarOfTheirOwn) {
  auto results = fixture();
  const auto eager = explained(results);
  change_probes(results, "cpp-eager", [](Probes& probes) { probes.profile->compiled = true; });
  const auto found = explained(results);
  const auto& host = *find_bar(found, "host code between operators");
  const auto& compiled = *find_bar(found, "compiled code");
  EXPECT_EQ(host.to_ns, 0);
  EXPECT_EQ(compiled.from_ns, 0);
  EXPECT_EQ(compiled.to_ns, find_bar(eager, "host code between operators")->to_ns);
  EXPECT_DOUBLE_EQ(sum_of(found), found.total_ns.median);
}

TEST(Explanation, WithoutOuterCallsAllCountAsTheLanguages) {
  auto results = fixture();
  change_probes(results, "py-eager", [](Probes& probes) {
    for (auto& time : probes.profile->operators) time.outer_calls = kUnknown;
  });
  // 261 operators at 1.5 us.
  EXPECT_NEAR(find_bar(explained(results), "dispatch")->from_ns, 261 * 1500, 1);
}

TEST(Explanation, OnADeviceTimesAreThoseOfItsKernels) {
  auto results = fixture();
  std::erase_if(results.cases[0].runtimes, [](const auto& row) { return row.is_condition(); });
  for (auto& row : results.cases[0].runtimes) {
    for (auto& invocation : row.invocations) {
      for (auto& round : invocation.rounds) round.device_ns = round.step_ns;
    }
  }
  for (const auto& [runtime, kernels_ns] : {std::pair{"py-eager", 9e6}, {"cpp-eager", 8.5e6}}) {
    change_probes(results, runtime, [&, ns = kernels_ns](Probes& probes) {
      for (auto& time : probes.profile->operators) {
        time.device_ns = time.name == "aten::mm" ? ns : time.name == "aten::relu" ? 1e6 : 0;
      }
    });
  }
  const auto found = explained(results);
  EXPECT_EQ(names_of(found), (std::vector<std::string>{"matrix products", "element-wise",
                                                       "device idle", "unexplained"}));
  EXPECT_NEAR(find_bar(found, "matrix products")->ns.median, 0.5e6, 1e-3);
  EXPECT_NEAR(find_bar(found, "device idle")->from_ns, 12e6, 1);  // of 22 ms
  EXPECT_NEAR(find_bar(found, "device idle")->to_ns, 10e6, 1);    // of 19.5 ms
  EXPECT_NEAR(find_bar(found, "unexplained")->ns.median, 0, 1);
}

TEST(Explanation, OfARuntimeThatFailedSaysSo) {
  auto results = fixture();
  results.cases[0].find("cpp-eager")->status = Status::failed;
  const auto found = explained(results);
  EXPECT_TRUE(found.bars.empty());
  EXPECT_EQ(found.notes,
            (std::vector<std::string>{"nothing can be explained: cpp-eager is failed"}));
}

TEST(Explanation, StepsThatDoNotDifferHaveNoShare) {
  auto results = fixture();
  auto& result = results.cases[0];
  result.find("cpp-eager")->invocations = result.find("py-eager")->invocations;
  const auto found = explained(results);
  EXPECT_TRUE(std::isnan(found.explained));
  EXPECT_EQ(found.total_ns.median, 0);
}

/// Compares with a file beside the fixture; TORCHPACE_UPDATE_GOLDEN writes it instead.
void expect_golden(const std::string& text, const std::string& name) {
  const auto path = kFixtures / name;
  if (std::getenv("TORCHPACE_UPDATE_GOLDEN") != nullptr) std::ofstream(path) << text;
  EXPECT_EQ(text, read(path)) << "if the change is meant: TORCHPACE_UPDATE_GOLDEN=1";
}

TEST(Explanation, ReportIsTheGoldenOne) {
  std::ostringstream out;
  print_report(fixture(), out, false);
  expect_golden(out.str(), "explanation.txt");
}

TEST(Explanation, MarkdownIsTheGoldenOne) {
  expect_golden(markdown_report(fixture()), "explanation.md");
}

ExperimentOptions planned_pair(const std::string& artifact = "") {
  ExperimentOptions experiment;
  experiment.cases.resize(1);
  for (const char* name : {"py-eager", "cpp-eager", "cpp-aot"}) {
    auto& spec = experiment.runtimes.emplace_back();
    spec.runtime = name;
    spec.command.environment = allocator_environment("tuned");
  }
  experiment.runtimes[1].artifact = artifact;
  experiment.plan.reference = "py-eager";
  experiment.plan.allocator = "tuned";
  experiment.plan.device = "cpu";
  experiment.plan.threads = 2;
  experiment.plan.invocations = experiment.plan.invocations_asked = 9;
  experiment.plan.max_seconds = 335;
  return experiment;
}

const ExplainOptions kPair{
    .case_name = "gptlite_train", .from = "py-eager", .to = "cpp-eager", .how = {}};

const WorkerSpec* find_spec(const ExperimentOptions& experiment, const std::string& name) {
  for (const auto& spec : experiment.runtimes) {
    if (spec.runtime == name) return &spec;
  }
  return nullptr;
}

TEST(ExplainPlan, HasTheTwoAndTheirConditions) {
  auto experiment = planned_pair();
  plan_explanation(kPair, experiment);
  EXPECT_EQ(find_spec(experiment, "cpp-aot"), nullptr);
  const auto* system = find_spec(experiment, "py-eager@allocator:system");
  ASSERT_NE(system, nullptr);
  EXPECT_EQ(system->condition_of, "py-eager");
  EXPECT_FALSE(system->command.environment.contains("MALLOC_TRIM_THRESHOLD_"));
  const auto* alone = find_spec(experiment, "cpp-eager@threads:1");
  ASSERT_NE(alone, nullptr);
  EXPECT_EQ(alone->command.environment.at("OMP_NUM_THREADS"), "1");
  EXPECT_EQ(alone->settings.get("threads", ""), "1");
  EXPECT_TRUE(experiment.probed.contains("cpp-eager@allocator:system"));
  EXPECT_FALSE(experiment.probed.contains("cpp-eager@threads:1"));
  EXPECT_EQ(experiment.plan.invocations, 6);
  EXPECT_EQ(experiment.plan.max_seconds, 167.5);
  EXPECT_EQ(experiment.plan.runtimes.size(), experiment.runtimes.size());
}

TEST(ExplainPlan, WhatIsCompiledForItsThreadsHasNoOther) {
  auto experiment = planned_pair("aot");
  plan_explanation(kPair, experiment);
  EXPECT_EQ(find_spec(experiment, "py-eager@threads:1"), nullptr);
  EXPECT_EQ(experiment.warnings.back().text,
            "no condition with one thread: cpp-eager is compiled for 2");
}

TEST(ExplainPlan, NeedsOneCase) {
  auto experiment = planned_pair();
  experiment.cases.resize(2);
  EXPECT_THROW(plan_explanation(kPair, experiment), Error);
}

}  // namespace
}  // namespace torchpace::cli
