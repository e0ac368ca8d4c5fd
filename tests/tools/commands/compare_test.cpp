// `torchpace compare` from the command line to the exit code, with workers that need no torch.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "analysis/analyze.hpp"
#include "results/results.hpp"
#include "support/error.hpp"
#include "support/process.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

std::string program() {
  if (const char* named = std::getenv("TORCHPACE_PROGRAM")) return named;
  return fs::read_symlink("/proc/self/exe").parent_path() / "torchpace";
}

std::string fake() {
  return std::string("python3 -I -S ") + TORCHPACE_SOURCE_DIR + "/tests/tools/fake_worker.py";
}

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Outcome {
  int code;
  std::string out, err;
};

class Compare : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(program())) GTEST_SKIP() << program() << " is not built";
    auto name = (fs::temp_directory_path() / "torchpace-compare-XXXXXX").string();
    folder = mkdtemp(name.data());
  }
  void TearDown() override {
    if (!folder.empty()) fs::remove_all(folder);
  }

  Outcome run(const std::string& arguments, const std::string& before = "") const {
    const auto out = folder / "stdout", err = folder / "stderr";
    fs::create_directories(folder / "tmp");
    const auto line = before + "TMPDIR='" + (folder / "tmp").string() + "' timeout 60 '" +
                      program() + "' " + arguments + " >'" + out.string() + "' 2>'" + err.string() +
                      "'";
    const int status = std::system(line.c_str());
    Outcome outcome{WIFEXITED(status) ? WEXITSTATUS(status) : -1, text_of(out), text_of(err)};
    EXPECT_TRUE(fs::is_empty(folder / "tmp")) << "temporary files are left";
    return outcome;
  }

  /// Two workers, the reference `old`, on one case with few turns, unless the options say more.
  std::string pair(const std::string& new_options, const std::string& options = "",
                   const std::string& old_options = "",
                   const std::string& rounds = "--rounds 3") const {
    // On a machine with a GPU, the default would have each test import torch to look for it.
    const bool named = options.find("--device") != std::string::npos;
    return "compare --no-html --invocations 4 " + rounds + (named ? "" : " --device cpu") +
           " --cases toy_train --output '" + report().string() + "' --worker 'new=" + fake() +
           " --runtime new --cases toy_train,toy_inference " + new_options +
           "' --worker 'old=" + fake() + " --runtime old --cases toy_train,toy_inference " +
           old_options + "' " + options;
  }

  /// torchpace's own side of it, as tests/tools/fake_package has it; its log is `folder`/log.
  Outcome run_package(const std::string& options, const std::string& variables = "") const {
    const auto package = fs::absolute(TORCHPACE_SOURCE_DIR) / "tests/tools/fake_package";
    return run(
        "compare --no-html --python python3 --device cpu --preset smoke --invocations 2 "
        "--rounds 3 --output '" +
            report().string() + "' " + options,
        "FAKE_LOG='" + (folder / "log").string() + "' TORCHPACE_PYTHON_PATH='" + package.string() +
            "' " + variables);
  }

  /// Lines of the log that start with `start` and contain `part`.
  std::vector<std::string> logged(const std::string& start, const std::string& part) const {
    std::vector<std::string> found;
    std::istringstream lines(text_of(folder / "log"));
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with(start) && line.find(part) != std::string::npos) found.push_back(line);
    }
    return found;
  }

  fs::path report() const { return folder / "report"; }
  Results results() const {
    auto loaded = load_results(report());
    analyze(loaded);
    return loaded;
  }

  fs::path folder;
};

TEST_F(Compare, FindsTheFasterOne) {
  const auto outcome = run(pair("--step-ms 1.6", "--fail-on 'speedup<1.2'"));
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  const auto found = results();
  EXPECT_TRUE(found.complete);
  EXPECT_EQ(found.plan.reference, "old");
  ASSERT_EQ(found.cases.size(), 1u);
  const auto& c = found.cases[0];
  ASSERT_EQ(c.runtimes.size(), 3u);
  EXPECT_EQ(c.runtimes[2].copy_of, "old");
  EXPECT_EQ(c.find("new")->speedup.verdict, "FASTER");
  EXPECT_NEAR(c.find("new")->speedup.ratio.median, 1.25, 0.02);
  EXPECT_NEAR(c.find("new")->gemm_peak_share, 1e9 / 1.6e-3 / 2e12, 0.01);
  EXPECT_TRUE(c.find("new")->parity->passed);
  EXPECT_GT(c.find("new")->cold_s.at("start"), 0);
  EXPECT_EQ(c.find("new")->peak_bytes.at("resident"), 10 << 20);
  EXPECT_NE(outcome.out.find("FASTER"), std::string::npos);
  EXPECT_TRUE(fs::exists(report() / "report.md"));
}

TEST_F(Compare, OneProcessAInvocationAndBalancedPlaces) {
  const auto log = folder / "log";
  ASSERT_EQ(run(pair("--log " + log.string(), "--rounds 6")).code, kOk);
  const auto found = results();
  for (const auto& row : found.cases[0].runtimes) {
    ASSERT_EQ(row.invocations.size(), 4u);
    for (const auto& invocation : row.invocations) {
      ASSERT_EQ(invocation.rounds.size(), 6u);
      std::multiset<int> places;
      for (const auto& round : invocation.rounds) places.insert(round.position);
      for (int place = 1; place <= 3; ++place) EXPECT_EQ(places.count(place), 2u);
    }
  }
  std::set<std::string> pids;
  std::istringstream lines(text_of(log));
  for (std::string name, pid, rest; lines >> name >> pid && std::getline(lines, rest);)
    pids.insert(pid);
  EXPECT_EQ(pids.size(), 6u);  // asked for its cases, the preflight's, and one an invocation
}

TEST_F(Compare, ReportOfTheFileReproducesEveryNumber) {
  const auto compared = run(pair("--step-ms 1.9"));
  const auto reported = run("report '" + report().string() + "'");
  EXPECT_EQ(reported.code, kOk);
  EXPECT_EQ(reported.out, compared.out);
}

TEST_F(Compare, ARegressionHasItsExitCode) {
  EXPECT_EQ(run(pair("--step-ms 3", "--invocations 5 --fail-on 'speedup<0.9'")).code, kRegression);
  EXPECT_EQ(results().cases[0].find("new")->speedup.verdict, "SLOWER");
  const auto reported = run("report --fail-on 'speedup<0.9' '" + report().string() + "'");
  EXPECT_EQ(reported.code, kRegression);
}

TEST_F(Compare, WrongOutputsAreNotTimed) {
  EXPECT_EQ(run(pair("--wrong", "--invocations 1")).code, kParityFailed);
  const auto found = results();
  const auto& row = *found.cases[0].find("new");
  EXPECT_EQ(row.status, Status::invalid);
  EXPECT_TRUE(row.invocations.empty());
  EXPECT_EQ(row.speedup.verdict, "INVALID");
  EXPECT_FALSE(found.cases[0].find("old")->invocations.empty());
}

TEST_F(Compare, OutputsThatCannotBeComparedAreSaid) {
  EXPECT_EQ(run(pair("", "--invocations 1", "--fail error@write")).code, kOk);
  const auto found = results();
  EXPECT_FALSE(found.cases[0].find("new")->parity.has_value());
  EXPECT_EQ(found.cases[0].find("new")->status, Status::ok);
  EXPECT_TRUE(std::any_of(found.warnings.begin(), found.warnings.end(),
                          [](const Warning& w) { return w.code == "unchecked"; }));
}

struct Failure {
  const char* option;
  const char* reason;
};

class CompareFailure : public Compare, public testing::WithParamInterface<Failure> {};

TEST_P(CompareFailure, CostsItsOwnRow) {
  const auto outcome =
      run(pair(std::string("--fail ") + GetParam().option, "--worker-timeout 1 --invocations 2"));
  EXPECT_EQ(outcome.code, kCaseFailed) << outcome.err;
  const auto found = results();
  EXPECT_TRUE(found.complete);
  const auto& row = *found.cases[0].find("new");
  EXPECT_EQ(row.status, Status::failed);
  EXPECT_NE(row.reason.find(GetParam().reason), std::string::npos) << row.reason;
  EXPECT_EQ(row.reason.find('\n'), std::string::npos);
  EXPECT_EQ(found.cases[0].find("old")->status, Status::ok);
  EXPECT_EQ(found.cases[0].find("old")->invocations.size(), 2u);
  EXPECT_EQ(found.cases[0].find("old#2")->invocations.size(), 2u);
}

INSTANTIATE_TEST_SUITE_P(
    Each, CompareFailure,
    testing::Values(
        Failure{"die@run:3",
                "exit code 3; its last words: fake: first line | fake: something is wrong"},
        Failure{"killed@run:2", "killed by signal 9 (Killed), perhaps out of memory"},
        Failure{"hang@run:3", "did not answer in time"}, Failure{"error@load", "failed as asked"},
        Failure{"garbage@first", "expected one line of JSON"},
        Failure{"die@start", "cannot start"}));

TEST_F(Compare, AFailureOfTheReferenceIsSaidInEachRow) {
  EXPECT_EQ(run(pair("", "--invocations 1", "--fail error@load")).code, kCaseFailed);
  const auto found = results();
  EXPECT_EQ(found.cases[0].find("new")->status, Status::failed);
  EXPECT_NE(found.cases[0].find("new")->reason.find("the reference old: failed as asked"),
            std::string::npos);
}

TEST_F(Compare, AWorkerThatDiesInOneCaseServesTheOthers) {
  // Invocation 1: dies in toy_train, so toy_inference lacks one invocation of it.
  const auto outcome = run(pair("--fail die@run:3", "--cases toy_inference"));
  EXPECT_EQ(outcome.code, kCaseFailed);
  const auto found = results();
  const auto& train = *found.cases[0].find("new");
  const auto& inference = *found.cases[1].find("new");
  EXPECT_EQ(train.status, Status::failed);
  EXPECT_EQ(found.cases[0].find("old")->invocations.size(), 4u);
  EXPECT_LT(inference.invocations.size(), 4u);
}

TEST_F(Compare, SkippedOnesAreNoFailure) {
  EXPECT_EQ(run(pair("--fail skip@load", "--invocations 1")).code, kOk);
  EXPECT_EQ(results().cases[0].find("new")->status, Status::skipped);
  EXPECT_EQ(run(pair("", "--invocations 1", "--fail skip@load")).code, kSkipped);
  EXPECT_EQ(results().cases[0].find("new")->reason, "the reference old: no such device here");
}

TEST_F(Compare, TooLittleMemoryMeansPairs) {
  EXPECT_EQ(run(pair("--peak-mb 1000000000")).code, kOk);
  const auto found = results();
  EXPECT_TRUE(found.plan.pairs);
  EXPECT_TRUE(std::any_of(found.warnings.begin(), found.warnings.end(),
                          [](const Warning& w) { return w.code == "pairs"; }));
  const auto& c = found.cases[0];
  for (size_t g = 0; g < 4; ++g) {
    EXPECT_EQ(c.find("old")->invocations[g].rounds.size(), 6u);  // with each of two
    EXPECT_EQ(c.find("new")->invocations[g].rounds.size(), 3u);
  }
  EXPECT_EQ(c.find("old#2")->invocations.size(), 4u);
  EXPECT_TRUE(c.noise_floor.bounded());
}

TEST_F(Compare, SettingsAndEnvironmentReachTheWorkers) {
  const auto log = folder / "log";
  EXPECT_EQ(run(pair("--torch 9.9 --log " + log.string(),
                     "--threads 1 --allocator tuned --seed 5 --dtype bfloat16 --invocations 1"))
                .code,
            kOk);
  const auto text = text_of(log);
  EXPECT_NE(text.find("dtype=bfloat16"), std::string::npos);
  EXPECT_NE(text.find("seed=5"), std::string::npos);
  EXPECT_NE(text.find("threads=1"), std::string::npos);
  const auto found = results();
  for (const char* name : {"old", "new"}) {
    const auto& environment = found.cases[0].find(name)->environment;
    EXPECT_EQ(environment["threads"], "1");
    EXPECT_EQ(environment["hash_seed"], "0");
    EXPECT_EQ(environment["mmap_threshold"], "33554432");
  }
  EXPECT_EQ(std::count_if(found.warnings.begin(), found.warnings.end(),
                          [](const Warning& w) { return w.code == "unequal-torch"; }),
            1);
}

TEST_F(Compare, CtrlCKeepsWhatWasMeasuredAndResumeCompletes) {
  const auto log = folder / "log";
  const auto arguments = pair("--sleep-ms 20 --log " + log.string(), "--rounds 8");
  fs::create_directories(folder / "tmp");
  Process process({{"sh", "-c", "exec '" + program() + "' " + arguments + " 2>&1"},
                   {{"TMPDIR", folder / "tmp"}}});
  for (std::string line; line.find("invocation 3/4: toy_train") == std::string::npos;) {
    line = process.read_line(in_seconds(60));
  }
  ::kill(process.pid(), SIGINT);
  EXPECT_EQ(process.wait(in_seconds(60)), "exit code 130");
  EXPECT_TRUE(fs::is_empty(folder / "tmp")) << "what the workers unpacked is left";
  const auto kept = results();
  EXPECT_FALSE(kept.complete);
  EXPECT_GE(kept.cases[0].find("new")->invocations.size(), 2u);
  EXPECT_LT(kept.cases[0].find("new")->invocations.size(), 4u);
  EXPECT_TRUE(fs::exists(report() / "report.md"));

  fs::remove(log);
  EXPECT_EQ(run(arguments + " --resume").code, kOk);
  const auto whole = results();
  EXPECT_TRUE(whole.complete);
  EXPECT_EQ(whole.cases[0].find("new")->invocations.size(), 4u);
  const auto first_invocation = [](Results r) {
    auto& first = r.cases[0].runtimes[0].invocations[0];
    for (Round& round : first.rounds) round.excluded = false;  // decided from all invocations
    return to_json(r)["cases"][0]["runtimes"][0]["invocations"][0].dump();
  };
  EXPECT_EQ(first_invocation(whole), first_invocation(kept));
  EXPECT_EQ(text_of(log).find(" check "), std::string::npos);  // the preflight was not passed again

  const auto other = run(arguments + " --resume --seed 3");
  EXPECT_EQ(other.code, kBadInput);
  EXPECT_NE(other.err.find("seed 0, now it is 3"), std::string::npos) << other.err;
}

TEST_F(Compare, ACommandThatThereIsNot) {
  const auto outcome = run("comapre");
  EXPECT_EQ(outcome.code, kBadInput);
  EXPECT_NE(outcome.err.find("expected a command, found 'comapre'; did you mean compare"),
            std::string::npos)
      << outcome.err;
}

TEST_F(Compare, StreamsThatTakeNothing) {
  const auto err = folder / "stderr";
  const auto code = [](const std::string& line) { return WEXITSTATUS(std::system(line.c_str())); };
  const auto report = "'" + program() + "' report " TORCHPACE_FIXTURES "/results.json";
  EXPECT_EQ(code(report + " >/dev/full 2>'" + err.string() + "'"), kCaseFailed);
  EXPECT_NE(text_of(err).find("standard output: expected"), std::string::npos) << text_of(err);
  EXPECT_EQ(code("'" + program() + "' list --json >/dev/full 2>'" + err.string() + "'"),
            kCaseFailed);
  EXPECT_NE(text_of(err).find("standard output: expected"), std::string::npos) << text_of(err);
  EXPECT_EQ(code(report + " >&- 2>'" + err.string() + "'"), kCaseFailed) << "there is none";
  EXPECT_EQ(code("'" + program() + "' report /nowhere 2>/dev/full"), kBadInput);
}

TEST_F(Compare, AReaderThatHasEnoughIsNoError) {
  const auto err = folder / "stderr", code = folder / "code";
  for (const std::string command :
       {"report " TORCHPACE_FIXTURES "/results.json", "list", "list --json", "--help"}) {
    const auto line = "{ sleep 0.2; '" + program() + "' " + command + " 2>'" + err.string() +
                      "'; echo $? >'" + code.string() + "'; } | true";
    ASSERT_EQ(std::system(line.c_str()), 0);
    EXPECT_EQ(text_of(code), "0\n") << command;
    EXPECT_EQ(text_of(err), "") << command;
  }
}

TEST_F(Compare, TheTimeIsKept) {
  const auto begin = Clock::now();
  EXPECT_EQ(run("compare --no-html --cases toy_train --invocations 3 --max-seconds 3 --output '" +
                report().string() + "' --worker 'a=" + fake() +
                " --sleep-ms 5' --worker 'b=" + fake() + " --sleep-ms 5'")
                .code,
            kOk);
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(30));
  const auto measured = results();
  for (const auto& row : measured.cases[0].runtimes) {
    for (const auto& invocation : row.invocations) EXPECT_GE(invocation.rounds.size(), 3u);
  }
}

TEST_F(Compare, AFullDiskLeavesTheOldFileWhole) {
  ASSERT_EQ(run(pair("", "--invocations 1")).code, kOk);
  const auto before = text_of(report() / "results.json");
  const auto outcome =
      run(pair("", "--seed 1 --invocations 1"), "ulimit -f 4; ");  // the limit of a file's size
  EXPECT_EQ(outcome.code, kCaseFailed);                            // a lost write
  EXPECT_NE(outcome.err.find("results.json: cannot be written"), std::string::npos) << outcome.err;
  EXPECT_EQ(text_of(report() / "results.json"), before);
  EXPECT_FALSE(fs::exists(report() / "results.json.tmp"));
}

TEST_F(Compare, ExplainSaysWhereTheTimeGoes) {
  const auto worker = [&](const std::string& name, const std::string& options) {
    return " --worker '" + name + "=" + fake() + " --runtime " + name + " --cases toy_train " +
           options + "'";
  };
  const auto arguments =
      "explain toy_train old new --no-html --device cpu --threads 2 "
      "--invocations 6 --rounds 3 --output '" +
      report().string() + "'" + worker("old", "--step-ms 4") +
      worker("new", "--step-ms 2 --fail error@parts:*");
  const auto outcome = run(arguments);
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  const auto found = results();
  const auto& result = found.cases[0];
  ASSERT_TRUE(result.explanation.has_value());
  EXPECT_EQ(result.find("old@threads:1")->environment["threads"], "1");
  EXPECT_EQ(result.find("old@allocator:system")->environment["mmap_threshold"], "");
  EXPECT_EQ(result.find("old")->environment["mmap_threshold"], "33554432");
  std::map<std::string, double> bars;
  for (const auto& bar : result.explanation->bars) bars[bar.name] = bar.ns.median;
  // Half of each step is a product, but for what the profiler says of 10 calls.
  EXPECT_NEAR(bars.at("matrix products"), 1e6, 1);
  EXPECT_NEAR(bars.at("dispatch"), 0, 1);
  EXPECT_NEAR(bars.at("host code between operators"), 1e6, 1);
  EXPECT_NEAR(bars.at("unexplained") + bars["allocator"], 0, 2e4);
  EXPECT_EQ(result.explanation->notes.back(), "new does not answer parts: failed as asked");
  const auto reported = run("report '" + report().string() + "'");
  EXPECT_EQ(reported.out, outcome.out);
}

TEST_F(Compare, AWorkerThatAProbeKillsKeepsItsRow) {
  const auto outcome =
      run("explain toy_train old new --no-html --device cpu --threads 1 "
          "--invocations 2 --rounds 3 --output '" +
          report().string() + "' --worker 'old=" + fake() + " --cases toy_train' --worker 'new=" +
          fake() + " --cases toy_train --fail die@dispatch'");
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  const auto found = results();
  EXPECT_EQ(found.cases[0].find("new")->status, Status::ok);
  EXPECT_EQ(found.cases[0].find("new")->invocations.size(), 2u);
  const auto& notes = found.cases[0].explanation->notes;
  EXPECT_TRUE(std::any_of(notes.begin(), notes.end(), [](const std::string& note) {
    return note.starts_with("new does not answer dispatch: ");
  }));
}

TEST_F(Compare, ExplainRefusesWhatIsNotOneCaseAndTwoRuntimes) {
  const auto fails = [&](const std::string& arguments, int code, const std::string& part) {
    const auto outcome = run("explain " + arguments + " --no-html --output '" + report().string() +
                             "' --worker 'old=" + fake() + "' --worker 'new=" + fake() + "'");
    EXPECT_EQ(outcome.code, code) << arguments << outcome.err;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << arguments << ": " << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  };
  fails("toy_train old old", kBadInput, "expected two runtimes, found 'old' twice");
  fails("toy_train old 'n*'", kBadInput, "expected the name of one runtime, found 'n*'");
  fails("toy_trian old new", kBadInput, "did you mean toy_train");
  fails("'toy_*' old new", kBadInput,
        "expected one case, found 2 for 'toy_*': toy_train, toy_inference");
  fails("'resnet*' old new", kNothingMatched, "matches nothing");
  fails("toy_train old", kBadInput, "B is required (torchpace explain --help)");
}

TEST_F(Compare, BadInputIsOneLineAndExitCode2) {
  std::ofstream(folder / "file") << "x";
  const auto fails = [&](const std::string& arguments, int code, const std::string& part) {
    const auto outcome = run(arguments);
    EXPECT_EQ(outcome.code, code) << arguments << outcome.err;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << arguments << ": " << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_TRUE(outcome.out.empty()) << outcome.out;
  };
  fails(pair("", "--threads 0"), kBadInput, "--threads: expected at least 1, found '0'");
  fails(pair("", "--threads two"), kBadInput, "--threads");
  fails(pair("", "--device gpu"), kBadInput,
        "--device: expected auto, cpu, cuda or cuda:N, found 'gpu'");
  fails(pair("", "--dtype int8"), kBadInput, "--dtype");
  fails(pair("", "--preset qick"), kBadInput, "did you mean quick");
  fails(pair("", "--reference odl"), kBadInput, "did you mean old");
  fails(pair("", "--fail-on 'time<3'"), kBadInput, "--fail-on");
  fails(pair("", "--cases toy_trian"), kBadInput, "did you mean toy_train");
  fails(pair("", "--cases 'resnet*'"), kNothingMatched, "matches nothing");
  fails(pair("", "--worker old=false"), kBadInput, "a name that no other runtime has");
  fails(pair("", "--worker old"), kBadInput, "NAME=COMMAND");
  fails(pair("", "--set batch=3"), kBadInput, "--set");
  fails(pair("", "--text /no/such/file"), kBadInput, "--text");
  fails(pair("", "--frobnicate"), kBadInput, "--frobnicate");
  fails(pair("", "--compile-timeout 0"), kBadInput, "--compile-timeout");
  fails("compare --torch 1.13.1", kBadInput, "--torch: expected 2.11 or later, found 1.13.1");
  fails("compare --torch new", kBadInput, "such as 2.11.0,2.15.0, found 'new'");
  fails("compare --torch 2.11.0,2.11.0", kBadInput, "each version once");
  fails("compare --input 1x3", kBadInput, "--input: expected a --model beside it");
  fails("compare --model resnet18", kBadInput, "--model: expected module:factory");
  fails("compare --model m:f --input 3x:float", kBadInput, "--input: expected sizes");
  fails("compare --model ./zoo/my_model.py:make", kBadInput,
        "--model: expected module:factory, not a file: my_model:make, with its folder as the "
        "current one");
  fails("compare --load-library /no/such.so", kBadInput,
        "--load-library: expected a shared library (.so) that can be read, found '/no/such.so'");
  fails(pair("", "--export-timeout 0"), kBadInput, "--export-timeout: expected a number above 0");
  fails(pair("", "--output '" + (folder / "file" / "x").string() + "'"), kBadInput,
        "cannot be written");
  fails("", kBadInput, "subcommand");
  fails("report /no/such/file", kBadInput, "cannot be read");
}

TEST_F(Compare, ADeviceThatIsNotHereIsOneLineBeforeAnythingStarts) {
  std::ofstream(folder / "torch.py") << "class cuda:\n"
                                        "    is_available = staticmethod(lambda: True)\n"
                                        "    device_count = staticmethod(lambda: 1)\n";
  const auto outcome =
      run_package("--runtimes py-eager --device cuda:1", "PYTHONPATH='" + folder.string() + "' ");
  EXPECT_EQ(outcome.code, kSkipped) << outcome.err;
  EXPECT_NE(outcome.err.find("--device cuda:1: this machine and the torch of python3 offer 1 CUDA"),
            std::string::npos)
      << outcome.err;
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  EXPECT_TRUE(outcome.out.empty()) << outcome.out;
  EXPECT_TRUE(logged("export", "").empty());
  EXPECT_FALSE(fs::exists(report()));
}

TEST_F(Compare, ArtifactsAreMadeOncePerKind) {
  const auto outcome = run_package(
      "--runtimes py-eager,py-one,py-two,py-broken --cases dnn_deep_inference "
      "--compile-timeout 33");
  EXPECT_EQ(outcome.code, kCaseFailed) << outcome.err;
  const auto asked = logged("export", "make=shared");
  ASSERT_EQ(asked.size(), 1u);
  for (const char* word : {"compile_timeout=33", "state=/state.pt", "batch=7", "model=dnn"}) {
    EXPECT_NE(asked[0].find(word), std::string::npos) << word << " in " << asked[0];
  }
  EXPECT_NE(outcome.err.find("artifact shared of dnn_deep_inference/size:smoke, 33 s at most"),
            std::string::npos)
      << outcome.err;
  for (const char* name : {"py-one", "py-two"}) {
    EXPECT_FALSE(logged(name, "artifact=/artifacts/shared").empty()) << name;
  }
  EXPECT_TRUE(logged("py-eager", "artifact=").empty());
  EXPECT_TRUE(logged("py-broken", "").empty());  // never started
  const auto found = results();
  const auto& c = found.cases[0];
  EXPECT_EQ(c.memory_bytes.at("gradients"), 100);
  EXPECT_EQ(c.find("py-broken")->reason, "cannot compile: a construct stopped it");
  EXPECT_EQ(c.find("py-broken")->artifact, "broken");
  const auto& one = *c.find("py-one");
  EXPECT_EQ(one.status, Status::ok);
  EXPECT_EQ(one.artifact, "shared");
  EXPECT_EQ(one.compile_s, 7.5);
  EXPECT_TRUE(one.compile_cached);
  EXPECT_EQ(one.cold_s.at("compile"), 0.5);
  EXPECT_DOUBLE_EQ(one.cold_s.at("tenth_step"), 0.01);
  EXPECT_EQ(one.peak_bytes.at("device_driver"), 3);
  EXPECT_GT(one.break_even_steps, 7000);
  EXPECT_EQ(c.find("py-two")->break_even_steps, INFINITY);
  EXPECT_NE(outcome.out.find("never"), std::string::npos) << outcome.out;
}

TEST_F(Compare, TheTimeThatFilesTakeIsNotTakenFromTheRounds) {
  // One case and one artifact, a second each.
  const auto outcome =
      run_package("--runtimes py-eager,py-one --cases dnn_deep_inference --max-seconds 5",
                  "FAKE_EXPORT_SECONDS=1 ");
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  const auto found = results();
  EXPECT_GE(found.plan.max_seconds, 5 + 2);
  EXPECT_LT(found.plan.max_seconds, 5 + 2 + 2);
}

TEST_F(Compare, AWorkerOfOursStartsOnceForTheGate) {
  ASSERT_EQ(run_package("--runtimes py-eager,py-one --cases 'dnn_*'").code, kOk);
  std::set<std::string> pids;
  for (const auto& line : logged("py-one", "")) {
    pids.insert(line.substr(7, line.find(' ', 7) - 7));
  }
  EXPECT_EQ(pids.size(), 3u);  // the preflight's and one an invocation, for six cases
}

TEST_F(Compare, ThePresetNamesItsRuntimesAndAllTakesAll) {
  run_package("--cases dnn_deep_latency");  // a cpp-eager that is built takes part, and fails
  auto plan = results().plan;
  EXPECT_EQ(std::count(plan.runtimes.begin(), plan.runtimes.end(), "py-one"), 0);
  EXPECT_EQ(std::count(plan.runtimes.begin(), plan.runtimes.end(), "py-eager"), 1);
  const double of_two = 45;
  EXPECT_EQ(run_package("--runtimes 'py-*' --cases dnn_deep_latency").code, kParityFailed);
  plan = results().plan;
  EXPECT_EQ(plan.runtimes.size(), 9u);
  EXPECT_GE(plan.max_seconds, of_two + 6 * 10);
}

TEST_F(Compare, ARowThatIsNowhereIsSaidOnce) {
  const auto outcome = run_package("--runtimes py-eager,py-skipped --cases 'dnn_*'");
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  const std::string line = "py-skipped: skipped on all 6 cases: no such device here";
  EXPECT_NE(outcome.out.find(line), std::string::npos) << outcome.out;
  const auto first = outcome.out.find("py-skipped");
  EXPECT_EQ(outcome.out.find("py-skipped", first + 1), std::string::npos) << outcome.out;
  EXPECT_NE(text_of(report() / "report.md").find("skipped on all 6 cases"), std::string::npos);
}

TEST_F(Compare, ARuntimeThatIsNotInstalledIsSkippedAndCostsNothing) {
  const auto outcome = run_package("--runtimes py-eager,py-one,py-absent --cases dnn_deep_latency");
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  EXPECT_NE(outcome.out.find("skipped: pip install it"), std::string::npos) << outcome.out;
  EXPECT_TRUE(logged("export", "make=absent").empty());
  EXPECT_TRUE(logged("py-absent", "").empty());
  EXPECT_LT(results().plan.max_seconds, 50);  // 45 for two runtimes, 10 more with a third
}

TEST_F(Compare, AnApproximateRuntimeIsMeasuredAndNotJudged) {
  const auto outcome = run_package(
      "--runtimes py-coarse,py-eager,py-skipped --cases dnn_deep_latency --fail-on 'speedup<9'");
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  const auto found = results();
  EXPECT_EQ(found.plan.reference, "py-eager");
  const auto& row = *found.cases[0].find("py-coarse");
  EXPECT_TRUE(row.approximate);
  EXPECT_EQ(row.speedup.verdict, "APPROXIMATE");
  EXPECT_GT(row.speedup.ratio.median, 1.5);
  EXPECT_FALSE(found.cases[0].fastest);
  EXPECT_NE(outcome.out.find("cos 0.9995, top-1 75.0 %"), std::string::npos) << outcome.out;
}

TEST_F(Compare, AnApproximateRuntimeIsNoReference) {
  for (const std::string more : {"--reference py-coarse", ""}) {
    const auto outcome = run_package("--cases dnn_deep_latency --runtimes py-coarse " + more);
    EXPECT_EQ(outcome.code, kBadInput);
    EXPECT_NE(outcome.err.find("approximate"), std::string::npos) << outcome.err;
  }
}

TEST_F(Compare, AModelOfYourOwnIsTheCases) {
  const auto outcome = run_package(
      "--runtimes py-eager,py-one --model zoo.small:resnet18 --input 1x3x8x8:float32 "
      "--input 4:int64 --set memory_format=channels_last");
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  const auto found = results();
  ASSERT_EQ(found.cases.size(), 2u);  // no loss: its training is left out
  EXPECT_EQ(found.cases[0].name, "resnet18_inference/memory_format:channels_last");
  EXPECT_EQ(found.cases[1].name, "resnet18_latency/memory_format:channels_last");
  EXPECT_NE(outcome.err.find("resnet18_train/memory_format:channels_last is left out: export: the "
                             "factory gives no loss"),
            std::string::npos)
      << outcome.err;
  const auto& settings = found.cases[0].settings;
  EXPECT_EQ(settings.at("model"), "imported");
  EXPECT_EQ(settings.at("factory"), "zoo.small:resnet18");
  EXPECT_EQ(settings.at("input"), "1x3x8x8:float32;4:int64");
  EXPECT_EQ(settings.at("path"), fs::current_path());
  EXPECT_EQ(run_package("--runtimes py-eager,py-one --model zoo.small:resnet18 "
                        "--cases resnet18_train")
                .code,
            kSkipped);
}

TEST_F(Compare, AReferenceFarFromItsFloat64RunMakesItsCaseInvalid) {
  const auto outcome = run_package(
      "--runtimes py-eager,py-off --reference py-off --cases dnn_deep_inference,dnn_deep_latency");
  EXPECT_EQ(outcome.code, kParityFailed) << outcome.err;
  const auto found = results();
  const std::string why =
      "farther from its own float64 run than rounding explains: batch0.output by 0.25 in the root "
      "mean square, allowed 1e-06; likely causes: random numbers outside parameters and buffers, a "
      "source file that changed, an operation that loses precision";
  for (const auto& c : found.cases) {
    EXPECT_EQ(c.find("py-off")->status, Status::invalid);
    EXPECT_EQ(c.find("py-off")->reason, "the reference is " + why);
    EXPECT_EQ(c.find("py-off")->speedup.verdict, "INVALID");
    EXPECT_EQ(c.find("py-eager")->status, Status::invalid);
    EXPECT_EQ(c.find("py-eager")->reason, "the reference py-off is " + why);
    for (const auto& row : c.runtimes) EXPECT_TRUE(row.invocations.empty()) << row.runtime;
  }
  // The same worker where it is not the reference: it is bound by the float64 run too.
  EXPECT_EQ(run_package("--runtimes py-eager,py-off --cases dnn_deep_inference").code,
            kParityFailed);
  EXPECT_EQ(results().cases[0].find("py-eager")->status, Status::ok);
  EXPECT_EQ(logged("py-eager", "check ").size(), 1u) << "the reference too is checked";
}

TEST_F(Compare, WithoutAFloat64RunTheReportSaysWhatBoundsTheOutputs) {
  const auto outcome =
      run_package("--runtimes py-eager,py-one --model m:quantized --cases quantized_inference");
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  const auto checks = logged("py-one", "check ");
  ASSERT_EQ(checks.size(), 1u);
  EXPECT_EQ(std::count(checks[0].begin(), checks[0].end(), ' '), 3) << checks[0];  // one path
  EXPECT_TRUE(logged("py-eager", "check ").empty());
  const auto found = results();
  EXPECT_TRUE(std::any_of(found.warnings.begin(), found.warnings.end(), [](const Warning& w) {
    return w.case_name == "quantized_inference" &&
           w.text ==
               "checked against the reference to sqrt(eps): no float64 run (quantized weights)";
  }));
}

struct Death {
  const char* factory;
  const char* reason;
};

class CompareModel : public Compare, public testing::WithParamInterface<Death> {};

TEST_P(CompareModel, FailsAlone) {
  const auto outcome =
      run_package(std::string("--runtimes py-eager,py-one --export-timeout 5 ") +
                  "--cases '*_inference' --model m:" + GetParam().factory + " --model m:good");
  EXPECT_EQ(outcome.code, kCaseFailed) << outcome.err;
  const auto found = results();
  EXPECT_TRUE(found.complete);
  ASSERT_EQ(found.cases.size(), 2u);
  for (const char* runtime : {"py-eager", "py-one"}) {
    const auto& row = *found.cases[0].find(runtime);
    EXPECT_EQ(row.status, Status::failed);
    EXPECT_EQ(row.reason, GetParam().reason);
    EXPECT_EQ(found.cases[1].find(runtime)->invocations.size(), 2u);
  }
  std::set<std::string> exporters;
  for (const auto& line : logged("export", "pid=")) {
    exporters.insert(line.substr(line.rfind('=')));
  }
  EXPECT_EQ(exporters.size(), 2u) << "the next model has a new one";
}

INSTANTIATE_TEST_SUITE_P(
    Each, CompareModel,
    testing::Values(Death{"dies",
                          "export: killed by signal 11 (Segmentation fault) at exporter.py:17: "
                          "os.kill(os.getpid(), signal.SIGSEGV)"},
                    Death{"hangs",
                          "export: did not answer in time (--export-timeout 5) at exporter.py:21: "
                          "time.sleep(1000)"},
                    Death{"ends", "export: ended with exit code 0 before it answered"}));

TEST_F(Compare, WhatTheUserCanMendIsBadInputWhereNothingElseIsMeasured) {
  const auto alone = run_package("--runtimes py-eager --model m:raises --cases '*_inference'");
  EXPECT_EQ(alone.code, kBadInput) << alone.err;
  EXPECT_EQ(results().cases[0].find("py-eager")->reason,
            "export: expected a factory that returns a module, found a list");
  EXPECT_EQ(run_package("--runtimes py-eager --model m:raises --model m:good "
                        "--cases '*_inference'")
                .code,
            kCaseFailed);
}

TEST_F(Compare, ACaseThatNobodyNamedKeepsTheReasonOfItsExport) {
  const auto outcome = run_package("--runtimes py-eager,py-one --model m:untrained");
  EXPECT_EQ(outcome.code, kCaseFailed) << outcome.err;
  const auto found = results();
  ASSERT_EQ(found.cases.size(), 3u);
  EXPECT_EQ(found.cases[0].name, "untrained_train");
  for (const auto& row : found.cases[0].runtimes) {
    EXPECT_EQ(row.status, Status::failed);
    EXPECT_EQ(row.reason, "export: expected a factory that returns a module, found a list");
  }
  EXPECT_EQ(found.cases[1].find("py-one")->status, Status::ok);
}

TEST_F(Compare, TheWordsOfAMakerThatDiedAreItsRowsReason) {
  EXPECT_EQ(run_package("--runtimes py-eager,py-dead --cases dnn_deep_inference").code,
            kCaseFailed);
  EXPECT_EQ(results().cases[0].find("py-dead")->reason,
            "make=dead: the process that compiled died; its last words: compiler: no space left");
}

TEST_F(Compare, VariablesThatChangeWhatIsCompiledReachNoWorker) {
  const auto outcome = run_package("--runtimes py-eager --cases dnn_deep_inference",
                                   "TORCHDYNAMO_DISABLE=1 PYTHONWARNINGS=error MKL_CBWR=COMPATIBLE "
                                   "OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 ");
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  const auto found = results();
  EXPECT_EQ(found.cases[0].find("py-eager")->environment["variables"],
            "MKL_CBWR=COMPATIBLE TORCHINDUCTOR_COMPILE_THREADS=1");
  EXPECT_EQ(found.environment["variables"]["MKL_CBWR"], "COMPATIBLE");
  EXPECT_EQ(found.plan.threads, 1);
  for (const std::string text :
       {"removed for all workers: PYTHONWARNINGS=error, TORCHDYNAMO_DISABLE=1; they would change "
        "what is compiled or how it runs",
        "in force for all workers: MKL_CBWR=COMPATIBLE",
        "threads: 1, as OMP_NUM_THREADS says; --threads for another number"}) {
    EXPECT_EQ(std::count_if(found.warnings.begin(), found.warnings.end(),
                            [&](const Warning& w) { return w.text == text; }),
              1)
        << text;
  }
  EXPECT_NE(outcome.out.find("in force for all workers"), std::string::npos) << outcome.out;
}

TEST_F(Compare, LibrariesOfOperatorsReachEveryCase) {
  std::ofstream(folder / "ops.so") << "x";
  const auto library = (folder / "ops.so").string();
  EXPECT_EQ(
      run_package("--runtimes py-eager --cases dnn_deep_inference --load-library '" + library + "'")
          .code,
      kOk);
  EXPECT_FALSE(logged("export", "libraries=" + library).empty());
  EXPECT_FALSE(logged("py-eager", "libraries=" + library).empty());
}

TEST_F(Compare, CtrlCLetsTheExporterPutAwayWhatItHasBegun) {
  const auto package = fs::absolute(TORCHPACE_SOURCE_DIR) / "tests/tools/fake_package";
  fs::create_directories(folder / "tmp");
  Process process({{"sh", "-c",
                    "exec '" + program() +
                        "' compare --no-html --python python3 --device cpu --runtimes py-eager "
                        "--model m:hangs --output '" +
                        report().string() + "' 2>&1"},
                   {{"TMPDIR", folder / "tmp"},
                    {"FAKE_LOG", folder / "log"},
                    {"TORCHPACE_PYTHON_PATH", package}}});
  const auto deadline = in_seconds(30);
  while (logged("export", "hangs").empty() && Clock::now() < deadline) usleep(10000);
  ::kill(process.pid(), SIGINT);
  EXPECT_EQ(process.wait(in_seconds(30)), "exit code 130");
  EXPECT_EQ(logged("export put away", "").size(), 1u);
  EXPECT_TRUE(fs::is_empty(folder / "tmp"));
}

TEST_F(Compare, ARowFasterThanTheMachineIsMarkedAndDoesNotCount) {
  // 1 GFLOP in a microsecond, where products reach 2 TFLOP/s.
  const auto outcome = run(pair("--step-ms 0.001", "--device cpu --fail-on 'speedup<1e9'"));
  EXPECT_EQ(outcome.code, kOk) << outcome.err;
  EXPECT_NE(outcome.out.find("new: implausible: 500 times the rate of matrix products"),
            std::string::npos)
      << outcome.out;
  EXPECT_NE(outcome.err.find("new is implausible, so --fail-on does not judge it"),
            std::string::npos)
      << outcome.err;
  const auto found = results();
  EXPECT_EQ(found.cases[0].find("new")->status, Status::ok);
  EXPECT_EQ(found.cases[0].find("new")->speedup.verdict, "IMPLAUSIBLE");
  EXPECT_FALSE(found.cases[0].fastest);
  ASSERT_TRUE(found.limits);
  EXPECT_GT(found.limits->flops_per_s("float32"), 0);
}

TEST_F(Compare, UnfairPairsAreMarkedWhereverTheyAreShown) {
  const auto outcome = run(pair("--step-ms 1 --optimizer adam-fused", "", "--optimizer adam"));
  EXPECT_EQ(outcome.code, kOk);
  EXPECT_NE(outcome.out.find("FASTER*"), std::string::npos) << outcome.out;
  EXPECT_NE(text_of(report() / "report.md").find("**FASTER**\\*"), std::string::npos);
  EXPECT_EQ(results().cases[0].find("new")->differs, std::vector<std::string>{"optimizer"});
}

TEST_F(Compare, AWorkerThatIgnoresTheTenStepsLeavesThemUnknown) {
  ASSERT_EQ(run(pair("--first-only", "--invocations 1")).code, kOk);
  const auto found = results();
  EXPECT_EQ(found.cases[0].find("new")->cold_s.count("tenth_step"), 0u);
  EXPECT_EQ(found.cases[0].find("old")->cold_s.count("tenth_step"), 1u);
}

TEST_F(Compare, RoundsOnMigratedVcpusAreExcluded) {
  std::ofstream(folder / "ns") << "60 60 270 60";
  const auto outcome = run(pair("--step-ms 1.6", "--invocations 2 --rounds 6", "", ""),
                           "TORCHPACE_CORE_LATENCY_NS='" + (folder / "ns").string() + "' ");
  ASSERT_EQ(outcome.code, kOk) << outcome.err;
  const auto found = results();
  EXPECT_TRUE(found.complete);
  EXPECT_EQ(found.cores.usual_ns, 60);
  EXPECT_EQ(found.cores.migrated_ns, 270);
  EXPECT_DOUBLE_EQ(found.cases[0].excluded_share, 1 / 12.0);
}

TEST_F(Compare, SaysItsVersionAndHelp) {
  EXPECT_NE(run("--version").out.find("torchpace "), std::string::npos);
  const auto help = run("compare --help");
  EXPECT_EQ(help.code, kOk);
  for (const char* option :
       {"--cases", "--set", "--runtimes", "--worker", "--resume", "--fail-on"}) {
    EXPECT_NE(help.out.find(option), std::string::npos) << option;
  }
}

}  // namespace
}  // namespace torchpace::cli
