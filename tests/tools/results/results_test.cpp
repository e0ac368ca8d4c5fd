#include "results/results.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "analysis/analyze.hpp"
#include "analysis/regression_check.hpp"
#include "support/error.hpp"
#include "torchpace/comparison.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

class Folder {
 public:
  Folder() {
    auto name = (fs::temp_directory_path() / "torchpace-results-XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path); }
  fs::path path;
};

RuntimeResult row(const std::string& name, double step_ns, int invocations = 6, double faults = 0) {
  RuntimeResult result;
  result.runtime = name;
  result.environment = {{"torch", "2.0"}, {"threads", 2}, {"language", name}};
  result.cold_s = {{"start", 0.5}};
  result.peak_bytes = {{"resident", 1e6}};
  for (int g = 1; g <= invocations; ++g) {
    Invocation invocation;
    invocation.invocation = g;
    for (int r = 0; r < 4; ++r) {
      Round round;
      round.round = r;
      // The same drift for all runtimes of a round: pairs cancel it.
      const double drift = 1 + 0.3 * r + 0.1 * g;
      round.step_ns = {step_ns * drift, step_ns * drift * (1 + 0.001 * g), step_ns * drift * 1.01};
      round.page_faults = faults * 3;
      invocation.rounds.push_back(round);
    }
    result.invocations.push_back(invocation);
  }
  return result;
}

Results example() {
  Results results;
  results.torchpace = "0.1.0";
  results.created = "2026-01-01T00:00:00Z";
  results.complete = true;
  results.plan.reference = "old";
  results.plan.runtimes = {"old", "new"};
  results.plan.arguments = {"compare", "--text", "a \"b\" \\ \n"};
  results.warn({"note", "info", "text", "toy_train", "new"});
  CaseResult c;
  c.name = "toy_train";
  c.phase = "train";
  c.reference = "old";
  c.settings = {{"batch", "4"}};
  c.memory_bytes = {{"parameters", 400}};
  c.curves["old"] = {4.0, kUnknown, 3.5};
  c.runtimes = {row("old", 1000), row("new", 800), row("old#2", 1000)};
  c.runtimes[2].copy_of = "old";
  c.runtimes[1].parity = Parity{.passed = true,
                                .max_abs_error = 1e-7,
                                .tolerance = 1e-6,
                                .worst = "w",
                                .compared = 3,
                                .note = ""};
  c.runtimes[1].artifact = "aot";
  c.runtimes[1].compile_s = 41;
  c.runtimes[1].compile_cached = true;
  results.cases.push_back(c);
  analyze(results);
  return results;
}

Results reread(const Results& results) {
  return from_json(Json::parse(to_json(results).dump()), "test");
}

std::string error_of(const fs::path& file, const std::string& text) {
  std::ofstream(file) << text;
  try {
    load_results(file);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), kBadInput);
    return error.what();
  }
  return "no error";
}

TEST(Results, AFileAloneGivesBackEveryNumber) {
  const auto results = example();
  auto again = reread(results);
  analyze(again);
  EXPECT_EQ(to_json(again).dump(), to_json(results).dump());
  analyze(again);  // twice changes nothing
  EXPECT_EQ(to_json(again).dump(), to_json(results).dump());
}

TEST(Results, AnApproximateRowIsReadBack) {
  auto results = example();
  auto& row = *results.cases[0].find("new");
  EXPECT_FALSE(to_json(results)["cases"][0]["runtimes"][1].contains("approximate"));
  row.approximate = true;
  row.parity->cosine = 0.5;
  row.parity->top1 = 0.25;
  const auto again = reread(results);
  const auto& found = *again.cases[0].find("new");
  EXPECT_TRUE(found.approximate);
  EXPECT_EQ(found.parity->cosine, 0.5);
  EXPECT_EQ(found.parity->top1, 0.25);
}

TEST(Results, DerivedNumbersOfAFileAreNotTrusted) {
  auto json = to_json(example());
  json["cases"][0]["runtimes"][1]["speedup"]["median"] = 99.0;
  json["cases"][0]["runtimes"][1]["speedup"]["verdict"] = "SLOWER";
  auto results = from_json(json, "test");
  analyze(results);
  EXPECT_NEAR(results.cases[0].find("new")->speedup.ratio.median, 1.25, 1e-9);
  EXPECT_EQ(results.cases[0].find("new")->speedup.verdict, "FASTER");
}

TEST(Results, UnknownNumbersAreNull) {
  auto results = example();
  results.cases[0].runtimes[1].status = Status::failed;
  analyze(results);
  const auto json = Json::parse(to_json(results).dump());
  EXPECT_TRUE(json["cases"][0]["runtimes"][1]["speedup"]["low"].is_null());
  EXPECT_TRUE(std::isnan(reread(results).cases[0].curves["old"][1]));
}

TEST(Derive, PairsCancelDrift) {
  const auto results = example();
  const auto& faster = *results.cases[0].find("new");
  EXPECT_NEAR(faster.speedup.ratio.median, 1.25, 1e-12);
  EXPECT_NEAR(faster.speedup.ratio.low, 1.25, 1e-12);
  EXPECT_NEAR(faster.speedup.ratio.confidence, 1 - 2.0 / 64, 1e-12);
  EXPECT_EQ(faster.speedup.verdict, "FASTER");
  EXPECT_EQ(results.cases[0].find("old")->speedup.verdict, "REFERENCE");
  EXPECT_EQ(results.cases[0].find("old#2")->speedup.verdict, "NONE");
  EXPECT_NEAR(results.cases[0].noise_floor.high, 1, 1e-12);
  EXPECT_EQ(faster.samples, 72);
  EXPECT_EQ(faster.percentiles_ns.count("p90"), 1u);
  EXPECT_EQ(faster.percentiles_ns.count("p99"), 0u);  // needs 368
}

TEST(Derive, ShareOfTheMatmulRate) {
  auto results = example();
  EXPECT_TRUE(std::isnan(results.cases[0].find("new")->gemm_peak_share));
  auto& reference = *results.cases[0].find("old");
  reference.invocations[0].gemm_peak = GemmPeak{.size = 100, .ns = {1e4, 2e4}};
  reference.invocations[1].gemm_peak = GemmPeak{.size = 100, .ns = {4e4}};
  results.cases[0].flops = 5e4;
  analyze(results);
  const auto again = reread(results);
  EXPECT_EQ(again.cases[0].find("old")->invocations[1].gemm_peak->ns, std::vector<double>{4e4});
  EXPECT_DOUBLE_EQ(results.cases[0].gemm_peak_flops_per_s, 2 * 1e6 / 2e4 * 1e9);
  const double step_ns = results.cases[0].find("new")->step_ns.median;
  EXPECT_DOUBLE_EQ(results.cases[0].find("new")->gemm_peak_share, 5e4 / step_ns / 100);
}

TEST(Derive, OnlyRoundsThatBothMeasuredArePaired) {
  auto results = example();
  auto& rounds = results.cases[0].find("new")->invocations[0].rounds;
  rounds.erase(rounds.begin());  // positions now differ from the reference's
  rounds.pop_back();
  analyze(results);
  EXPECT_NEAR(results.cases[0].find("new")->speedup.ratio.low, 1.25, 1e-12);
  EXPECT_NEAR(results.cases[0].find("new")->speedup.ratio.high, 1.25, 1e-12);
}

/// A vCPU has migrated in some rounds of an invocation, where the reference needs twice the
/// time.
void move_cores(Results& results, int invocation, int first_round) {
  for (auto& row : results.cases[0].runtimes) {
    for (auto& g : row.invocations) {
      for (auto& round : g.rounds) {
        const bool moved = g.invocation == invocation && round.round >= first_round;
        if (std::isnan(round.core_latency_ns) || moved)
          round.core_latency_ns = moved ? 270 : 60 + g.invocation;
        if (!moved || row.runtime == "new") continue;
        for (double& ns : round.step_ns) ns *= 2;
      }
    }
  }
}

bool warns(const Results& results, const std::string& code) {
  return std::any_of(results.warnings.begin(), results.warnings.end(),
                     [&](const Warning& w) { return w.code == code; });
}

TEST(Derive, RoundsWithTheCoresElsewhereAreSetAside) {
  auto results = example();
  EXPECT_TRUE(std::isnan(results.cores.usual_ns));  // not asked
  move_cores(results, 2, 3);                        // the last of four
  analyze(results);
  const auto& faster = *results.cases[0].find("new");
  EXPECT_NEAR(faster.speedup.ratio.low, 1.25, 1e-12);
  EXPECT_NEAR(faster.speedup.ratio.high, 1.25, 1e-12);
  EXPECT_EQ(faster.samples, 72 - 3);
  EXPECT_EQ(results.cases[0].find("old")->samples, 72 - 3);
  EXPECT_DOUBLE_EQ(results.cases[0].excluded_share, 1 / 24.0);
  EXPECT_FALSE(results.cases[0].mixed);
  EXPECT_NEAR(results.cores.usual_ns, 63, 3);
  EXPECT_EQ(results.cores.migrated_ns, 270);
  EXPECT_DOUBLE_EQ(results.cores.migrated_share, 1 / 24.0);
  EXPECT_TRUE(warns(results, "vcpus-migrated"));

  auto again = reread(results);
  analyze(again);
  EXPECT_EQ(to_json(again).dump(), to_json(results).dump());
  for (auto& row : again.cases[0].runtimes) {
    for (auto& g : row.invocations) {
      for (auto& round : g.rounds) round.core_latency_ns = 270;  // always there: that is usual
    }
  }
  analyze(again);
  EXPECT_EQ(again.cases[0].excluded_share, 0);
  EXPECT_EQ(again.cores.migrated_share, 0);
  EXPECT_FALSE(warns(again, "vcpus-migrated"));
}

TEST(Derive, ABlockThatMetTheCoresElsewhereTakesItsWholeRoundAlong) {
  auto results = example();
  move_cores(results, 0, 0);                                                    // nowhere
  results.cases[0].find("new")->invocations[3].rounds[1].core_latency_ns = 20;  // nearer
  analyze(results);
  for (const auto& row : results.cases[0].runtimes) {
    EXPECT_TRUE(row.invocations[3].rounds[1].excluded) << row.runtime;
    EXPECT_EQ(row.samples, 72 - 3) << row.runtime;
  }
}

// Five invocations have no interval of order statistics: then a sixth that met the cores elsewhere
// counts, and the case says so. One usual round of four does not make an invocation usual.
TEST(Derive, AInvocationIsLeftOutOnlyWhereEnoughRemain) {
  for (const int first_round : {0, 1}) {
    auto results = example();
    move_cores(results, 2, first_round);
    analyze(results);
    EXPECT_NEAR(results.cases[0].find("new")->speedup.ratio.high, 2.5, 1e-12);
    EXPECT_EQ(results.cases[0].excluded_share, 0);
    EXPECT_TRUE(results.cases[0].mixed);
    EXPECT_TRUE(warns(results, "vcpus-mixed"));

    results.cases[0].runtimes = {row("old", 1000, 7), row("new", 800, 7), row("old#2", 1000, 7)};
    results.cases[0].runtimes[2].copy_of = "old";
    move_cores(results, 2, first_round);
    analyze(results);
    const auto& faster = *results.cases[0].find("new");
    EXPECT_NEAR(faster.speedup.ratio.high, 1.25, 1e-12);
    EXPECT_NEAR(faster.speedup.ratio.confidence, 1 - 2.0 / 64, 1e-12);
    EXPECT_FALSE(results.cases[0].mixed);
    EXPECT_FALSE(warns(results, "vcpus-mixed"));
  }
}

// Pairs share the number of an invocation, not the state of the machine.
TEST(Derive, EachPairHasItsOwnUsualInvocations) {
  auto results = example();
  auto& runtimes = results.cases[0].runtimes;  // old, new, old#2
  for (size_t i = 1; i < runtimes.size(); ++i) {
    for (auto& g : runtimes[i].invocations) {
      for (auto& round : g.rounds) {
        round.round += 4 * static_cast<int>(i);
        round.core_latency_ns = i == 1 && g.invocation <= 2 ? 270 : 65;
      }
    }
  }
  for (auto& g : runtimes[0].invocations) {
    g.rounds = runtimes[1].invocations[static_cast<size_t>(g.invocation - 1)].rounds;
    const auto& others = runtimes[2].invocations[static_cast<size_t>(g.invocation - 1)].rounds;
    g.rounds.insert(g.rounds.end(), others.begin(), others.end());
  }
  analyze(results);
  EXPECT_TRUE(
      results.cases[0].find("new")->speedup.ratio.bounded());  // 4 alone would be fewer than 6
  EXPECT_TRUE(results.cases[0].noise_floor.bounded());
  EXPECT_TRUE(results.cases[0].mixed);
  EXPECT_EQ(results.cases[0].find("new")->samples, 72);
}

TEST(Derive, ARowInsideOfTheNoiseIsNotFasterThanTheReference) {
  auto results = example();
  auto& result = results.cases[0];
  result.runtimes[1] = row("new", 990);  // 1.01 times as fast, in each invocation
  analyze(results);
  ASSERT_TRUE(result.fastest);
  EXPECT_EQ(result.fastest->runtime, "new");
  EXPECT_TRUE(result.fastest->equals.empty());
  for (auto& invocation : result.runtimes[2].invocations) {
    const double factor = invocation.invocation % 2 == 0 ? 0.95 : 1.05;
    for (auto& round : invocation.rounds) {
      for (auto& ns : round.step_ns) ns *= factor;
    }
  }
  analyze(results);
  EXPECT_EQ(result.fastest->equals, std::vector<std::string>{"old"});
}

TEST(Derive, FewInvocationsGiveNoInterval) {
  auto results = example();
  for (auto& r : results.cases[0].runtimes) r.invocations.resize(2);
  analyze(results);
  const auto& speedup = results.cases[0].find("new")->speedup;
  EXPECT_NEAR(speedup.ratio.median, 1.25, 1e-12);
  EXPECT_FALSE(speedup.ratio.bounded());
  EXPECT_EQ(speedup.verdict, "UNSURE");
  EXPECT_FALSE(speedup.advice.empty());
}

TEST(Derive, InvalidAndFailedRowsAreNotJudgedByTime) {
  auto results = example();
  results.cases[0].find("new")->status = Status::invalid;
  analyze(results);
  EXPECT_EQ(results.cases[0].find("new")->speedup.verdict, "INVALID");
  EXPECT_TRUE(std::isnan(results.cases[0].find("new")->speedup.ratio.median));
  results.cases[0].find("new")->status = Status::failed;
  analyze(results);
  EXPECT_EQ(results.cases[0].find("new")->speedup.verdict, "NONE");
}

TEST(Derive, StepsOfASampleLoseTheirTail) {
  auto results = example();
  for (auto& g : results.cases[0].find("new")->invocations) {
    for (auto& r : g.rounds) r.steps_per_sample = 10;
  }
  analyze(results);
  EXPECT_TRUE(results.cases[0].find("new")->percentiles_ns.empty());
}

TEST(Derive, UnequalEnvironmentsAreMarkedOnce) {
  auto results = example();
  auto second = results.cases[0];
  second.name = "toy_inference";
  results.cases.push_back(second);
  for (auto& c : results.cases) c.find("new")->environment["threads"] = 1;
  analyze(results);
  analyze(results);
  int threads = 0, languages = 0;
  for (const auto& w : results.warnings) {
    threads += w.code == "unequal-threads" ? 1 : 0;
    languages += w.code == "unequal-language" ? 1 : 0;
  }
  EXPECT_EQ(threads, 1);
  EXPECT_EQ(languages, 0);
  for (auto& c : results.cases) c.find("new")->environment["threads"] = 2;
  analyze(results);
  for (const auto& w : results.warnings) EXPECT_EQ(w.code, "note");
}

TEST(Derive, UnfairPairsHaveAMark) {
  auto results = example();
  const auto& row = *results.cases[0].find("new");
  EXPECT_TRUE(row.differs.empty());  // the language differs by nature
  for (const char* key : {"dtype", "autocast", "tf32", "memory_format", "threads", "optimizer"}) {
    auto changed = results;
    changed.cases[0].find("old")->environment[key] = "this";
    analyze(changed);
    const auto judged_before = row.environment.contains(key);
    EXPECT_EQ(changed.cases[0].find("new")->differs.empty(), !judged_before) << key;
    changed.cases[0].find("new")->environment[key] = "that";
    analyze(changed);
    EXPECT_EQ(changed.cases[0].find("new")->differs, std::vector<std::string>{key});
    EXPECT_TRUE(std::any_of(
        changed.warnings.begin(), changed.warnings.end(),
        [&](const Warning& w) {
          return w.text ==
                 fmt::format("new runs with {} = that, the reference old with this: marked *", key);
        }))
        << key;
  }
  auto other = results;
  other.cases[0].find("new")->environment["torch"] = "1.0";
  analyze(other);
  EXPECT_TRUE(other.cases[0].find("new")->differs.empty());
}

TEST(Derive, ColdStartAndBreakEven) {
  auto results = example();
  auto& old_one = *results.cases[0].find("old");
  auto& new_one = *results.cases[0].find("new");
  old_one.cold_s = {{"start", 2}, {"load", 0.5}, {"first_step", 0.25}};
  new_one.cold_s = {{"start", 2}, {"load", 1.5}, {"compile", 3}, {"first_step", 0.25}};
  new_one.compile_s = kUnknown;
  analyze(results);
  EXPECT_DOUBLE_EQ(old_one.cold_total_s, 2.75);
  EXPECT_DOUBLE_EQ(new_one.cold_total_s, 6.75);
  EXPECT_TRUE(std::isnan(old_one.break_even_steps));
  const auto& ratio = new_one.speedup.ratio;
  const double gain_s = old_one.step_ns.median * 1e-9 * (1 - 1 / ratio.median);
  EXPECT_DOUBLE_EQ(new_one.break_even_steps, std::ceil(4 / gain_s));
  new_one.compile_s = 36;  // with the artifact
  analyze(results);
  EXPECT_DOUBLE_EQ(new_one.break_even_steps, std::ceil(40 / gain_s));
  EXPECT_EQ(to_json(results)["cases"][0]["runtimes"][1]["break_even_steps"],
            std::ceil(40 / gain_s));
  old_one.compile_s = 100;  // costs less than the reference
  analyze(results);
  EXPECT_EQ(new_one.break_even_steps, 0);
  old_one.compile_s = kUnknown;
  new_one.invocations = row("new", 1200).invocations;  // slower
  analyze(results);
  EXPECT_EQ(new_one.break_even_steps, INFINITY);
  EXPECT_EQ(to_json(results)["cases"][0]["runtimes"][1]["break_even_steps"], "never");
  new_one.cold_s.erase("first_step");
  analyze(results);
  EXPECT_TRUE(to_json(results)["cases"][0]["runtimes"][1]["break_even_steps"].is_null());
}

TEST(Derive, TheSameThingInAnotherSpellingIsNoDifference) {
  auto results = example();
  auto& old_one = results.cases[0].find("old")->environment;
  auto& new_one = results.cases[0].find("new")->environment;
  const std::vector<std::tuple<const char*, Json, Json>> spellings = {
      {"threads", 2, "2"},          {"torch", "2.0+cpu", "2.0"},
      {"mkldnn", true, "true"},     {"deterministic", "off", false},
      {"optimizer", "", "adam"},    {"openmp", "/a/b/libgomp.so.1", "libgomp.so.1"},
      {"compiler", "GCC", "clang"}, {"build_type", "Release", "Debug"}};
  for (const auto& [key, ours, theirs] : spellings) {
    old_one[key] = ours;
    new_one[key] = theirs;
  }
  analyze(results);
  for (const auto& w : results.warnings) EXPECT_EQ(w.code, "note") << w.text;
}

TEST(Derive, PageFaultsThatDifferNameTheRerun) {
  auto results = example();
  const auto has = [&] {
    analyze(results);
    for (const auto& w : results.warnings) {
      if (w.code == "page-faults-differ")
        return w.text.find("--allocator tuned") != std::string::npos;
    }
    return false;
  };
  *results.cases[0].find("new") = row("new", 800, 6, 9);
  EXPECT_FALSE(has());  // too few to matter
  *results.cases[0].find("new") = row("new", 800, 6, 500);
  EXPECT_TRUE(has());
  *results.cases[0].find("old") = row("old", 1000, 6, 100);
  EXPECT_FALSE(has());  // five times is not tenfold
  EXPECT_DOUBLE_EQ(results.cases[0].find("new")->page_faults_per_step, 500);
}

TEST(Derive, NotesOfACaseAreGroupedByTheirText) {
  auto results = example();
  results.warnings.clear();
  results.warn({"artifact", "info", "a TracerWarning", "toy_train", "new"});
  results.warn({"note", "info", "a TracerWarning", "toy_train", "old"});
  results.warn({"note", "info", "of another case", "toy_inference", "old"});
  results.warn({"export", "info", "cast to float32", "toy_train", ""});
  results.warn({"note", "info", "of the whole run", "", ""});
  auto& row = *results.cases[0].find("new");
  row.parity->note = "checked at dropout 0";
  analyze(results);
  EXPECT_EQ(results.cases[0].notes,
            (std::vector<std::string>{"new, old: a TracerWarning", "cast to float32",
                                      "new: checked at dropout 0"}));
  row.status = Status::invalid;
  row.reason = "outputs differ";
  row.parity->passed = false;
  results.warn({"no-golden", "warning", "no float64 run (cast to float32)", "toy_train", ""});
  analyze(results);
  EXPECT_EQ(results.cases[0].notes,
            (std::vector<std::string>{"new: invalid: outputs differ", "new, old: a TracerWarning",
                                      "no float64 run (cast to float32)"}));
}

TEST(ResultsFile, IsWrittenWholeOrNotAtAll) {
  const Folder folder;
  const auto file = folder.path / "results.json";
  save_json(to_json(example()), file);
  EXPECT_EQ(to_json(load_results(folder.path)).dump(), to_json(load_results(file)).dump());
  EXPECT_FALSE(fs::exists(file.string() + ".tmp"));
  EXPECT_THROW(save_json(to_json(example()), folder.path / "none" / "results.json"), Error);
  // A device that is always full stands for the disk.
  fs::create_symlink("/dev/full", file.string() + ".tmp");
  const auto before = fs::file_size(file);
  try {
    save_json(to_json(example()), file);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("No space left"), std::string::npos) << error.what();
  }
  EXPECT_EQ(fs::file_size(file), before);
}

TEST(ResultsFile, BytesThatAreNoTextAreReplaced) {
  const Folder folder;
  auto results = example();
  results.cases[0].runtimes[1].reason = "last words: \xff\xfe";
  save_json(to_json(results), folder.path / "results.json");
  EXPECT_NO_THROW(load_results(folder.path));
}

TEST(ResultsFile, BadOnesAreOneClearLine) {
  const Folder folder;
  const auto file = folder.path / "results.json";
  const auto whole = to_json(example());
  const auto has = [](const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos && text.find('\n') == std::string::npos;
  };
  const auto changed = [&](const std::string& pointer, const Json& value) {
    auto json = whole;
    json[Json::json_pointer(pointer)] = value;
    const auto message = error_of(file, json.dump());
    EXPECT_TRUE(has(message, file.string())) << message;
    EXPECT_TRUE(has(message, pointer)) << message;
    return message;
  };
  EXPECT_PRED2(has, error_of(file, whole.dump().substr(0, 500)), "truncated");
  EXPECT_PRED2(has, error_of(file, ""), "truncated");
  EXPECT_PRED2(has, error_of(file, "[1]"), "expected an object, found [1]");
  EXPECT_PRED2(has, error_of(file, "{}"), "expected a member 'schema', found none");
  EXPECT_PRED2(has, changed("/schema", 1), "expected schema 2");
  EXPECT_PRED2(has, changed("/schema", "1"), "expected schema 2");
  EXPECT_PRED2(has, changed("/complete", "yes"), "expected true or false, found \"yes\"");
  EXPECT_PRED2(has, changed("/cases", 3), "expected an array, found 3");
  EXPECT_PRED2(has, changed("/cases/0/phase", "sleep"), "expected one of train");
  EXPECT_PRED2(has, changed("/cases/0/runtimes/1/status", "fine"), "expected one of ok");
  EXPECT_PRED2(has, changed("/cases/0/runtimes/1/invocations/0/rounds/1/step_ns/0", "fast"),
               "expected a number");
  EXPECT_PRED2(has, changed("/cases/0/settings/batch", 4), "expected a string, found 4");
  EXPECT_PRED2(has, changed("/plan/invocations", 1.5), "expected an integer");
  auto missing = whole;
  missing["cases"][0].erase("reference");
  EXPECT_PRED2(has, error_of(file, missing.dump()), "/cases/0: expected a member 'reference'");
  fs::remove(file);
  try {
    load_results(file);
    FAIL();
  } catch (const Error& error) {
    EXPECT_PRED2(has, error.what(), "cannot be read");
  }
}

TEST(FailOn, ParsesAndJudgesTheBound) {
  EXPECT_DOUBLE_EQ(parse_fail_on("speedup<0.9").below, 0.9);
  EXPECT_DOUBLE_EQ(parse_fail_on(" speedup < 1 ").below, 1);
  for (const char* text :
       {"speedup>1", "time<3", "speedup<", "speedup<x", "speedup<0.9x", "speedup<-1", ""}) {
    EXPECT_THROW(parse_fail_on(text), Error) << text;
  }
  const auto results = example();
  EXPECT_EQ(find_regressions(results, {1.2}).found.size(), 0u);
  EXPECT_EQ(find_regressions(results, {1.3}).found.size(), 1u);
  auto few = results;
  for (auto& r : few.cases[0].runtimes) r.invocations.resize(2);
  analyze(few);
  EXPECT_EQ(find_regressions(few, {9}).found.size(), 0u);
  EXPECT_EQ(find_regressions(few, {9}).not_judged.size(), 1u);
}

TEST(ExitCode, TheFirstThatHolds) {
  const auto code = [](std::vector<Status> statuses, std::optional<FailOn> rule = {}) {
    auto results = example();
    for (size_t i = 0; i < statuses.size(); ++i) results.cases[0].runtimes[i].status = statuses[i];
    analyze(results);
    return exit_code(results, rule);
  };
  using enum Status;
  EXPECT_EQ(code({}), kOk);
  EXPECT_EQ(code({ok, skipped}), kOk);
  EXPECT_EQ(code({skipped, skipped, skipped}), kSkipped);
  EXPECT_EQ(code({ok, failed}), kCaseFailed);
  EXPECT_EQ(code({failed, invalid}), kParityFailed);
  EXPECT_EQ(code({}, FailOn{2}), kRegression);
  EXPECT_EQ(code({ok, failed}, FailOn{2}), kCaseFailed);
}

}  // namespace
}  // namespace torchpace::cli
