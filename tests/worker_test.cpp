#include <torchpace/runtimes/eager.hpp>
#include <torchpace/worker.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

using testing::TemporaryFolder;

Workload counting(int& steps) {
  return {.step = [&steps] { ++steps; },
          .restore = [&steps] { steps = 0; },
          .values =
              [] {
                return TensorDict{{"output", torch::ones({3})}};
              },
          .flops = 10,
          .items = 3};
}

detail::Worker worker_of(std::function<Workload(const Settings&)> load) {
  return {{.runtime = "test"}, std::move(load)};
}

TEST(Worker, GreetsAndObeys) {
  int steps = 0;
  auto worker = worker_of([&](const Settings&) { return counting(steps); });
  EXPECT_EQ(worker.greeting(), R"({"protocol": 1, "runtime": "test", "cases": ["default"]})");
  EXPECT_NE(worker.answer("run 3 2").find("expected a load command first"), std::string::npos);
  EXPECT_NE(worker.answer("load case=default").find(R"("flops": 10)"), std::string::npos);
  EXPECT_NE(worker.answer("first").find("first_step_s"), std::string::npos);
  EXPECT_NE(worker.answer("run 3 2 4").find("step_ns"), std::string::npos);
  EXPECT_EQ(steps, 2 + 3 * 4) << "restored, then 2 unrecorded steps and 3 samples of 4";
  EXPECT_NE(worker.answer("memory").find("resident_peak_bytes"), std::string::npos);
  EXPECT_NE(worker.answer("environment").find(R"("language": "C++")"), std::string::npos);
}

std::string field(const std::string& answer, const std::string& key) {
  const auto begin = answer.find('"' + key + "\": ");
  if (begin == std::string::npos) return "";
  const auto value = answer.substr(begin + key.size() + 4);
  return value.substr(0, value.find_first_of(",}"));
}

TEST(Worker, FirstTimesUpToTheStepAskedFor) {
  int steps = 0;
  auto worker = worker_of([&](const Settings&) {
    auto w = counting(steps);
    w.compile_s = 1.5;
    return w;
  });
  EXPECT_EQ(field(worker.answer("load case=default"), "compile_s"), "1.5");
  EXPECT_EQ(field(worker.answer("first"), "steps_s"), "");
  EXPECT_EQ(steps, 1);
  const auto answer = worker.answer("first 10");
  EXPECT_EQ(steps, 11);
  EXPECT_GE(std::stod(field(answer, "steps_s")), std::stod(field(answer, "first_step_s")));
  EXPECT_TRUE(worker.answer("first 0").starts_with(R"({"error": )"));
}

TEST(Worker, SettlesOnceBeforeTheFirstTurn) {
  int steps = 0, warmed_up = 0;
  auto worker = worker_of([&](const Settings&) {
    auto w = counting(steps);
    w.warm_up = [&] {
      ++warmed_up;
      steps = 100;  // what warming up does, the restore before the turn undoes
    };
    return w;
  });
  worker.answer("load case=default");
  worker.answer("first 10");
  EXPECT_EQ(warmed_up, 0);
  worker.answer("run 2 0");
  worker.answer("run 2 0");
  EXPECT_EQ(warmed_up, 1);
  EXPECT_EQ(steps, 2);
  worker.answer("load case=default");
  worker.answer("run 2 0");
  EXPECT_EQ(warmed_up, 2);
}

TEST(Worker, SaysWhichAxesAreInForce) {
  int steps = 0;
  auto worker = worker_of([&](const Settings& s) {
    auto w = counting(steps);
    w.execution = ExecutionOptions::from(s);
    w.optimizer = "adam fused";
    return w;
  });
  worker.answer("load case=default autocast=bfloat16 threads=1");
  const auto environment = worker.answer("environment");
  EXPECT_EQ(field(environment, "autocast"), R"("bfloat16")");
  EXPECT_EQ(field(environment, "memory_format"), R"("contiguous")");
  EXPECT_EQ(field(environment, "optimizer"), R"("adam fused")");
  EXPECT_EQ(field(environment, "dtype"), R"("float32")");
  EXPECT_EQ(field(environment, "threads"), "1");
  EXPECT_NE(environment.find(R"("tf32": "matmul )"), std::string::npos);
  EXPECT_EQ(field(worker.answer("memory"), "device_driver_bytes"), "0");
  EXPECT_EQ(worker.answer("load tf32=1").find(R"({"skipped": "tf32=1)"), 0u);
}

/// A command that the case serves, then the end of input: what was loaded must be destroyed.
TEST(Worker, AForkDestroysWhatItLoaded) {
  TemporaryFolder folder;
  const auto marker = folder.file("loaded");
  int commands[2];
  ASSERT_EQ(pipe(commands), 0);
  const std::string rest = "run 1 0\nquit\n";
  ASSERT_EQ(write(commands[1], rest.data(), rest.size()), static_cast<ssize_t>(rest.size()));
  close(commands[1]);
  const int input = dup(STDIN_FILENO);
  dup2(commands[0], STDIN_FILENO);
  auto worker = worker_of([&](const Settings&) {
    testing::write_file(marker, "");
    const std::shared_ptr<void> owner(nullptr, [&](void*) { std::remove(marker.c_str()); });
    return Workload{.step = [owner] {}};
  });
  int answers = 0;
  const auto next = detail::serve_case(
      "load case=default",
      [&](const std::string& line) { return !worker.answer(line).empty() && ++answers > 0; },
      [&] {
        if (folder.entries() == 1) worker.unload();
      });
  dup2(input, STDIN_FILENO);
  close(input);
  close(commands[0]);
  EXPECT_EQ(next, "quit");
  EXPECT_EQ(answers, 0) << "they were given in the fork";
  EXPECT_EQ(folder.entries(), 0u) << "the fork's workload still owned its file";
}

TEST(Worker, AnswersBadCommandsInOneLineAndLivesOn) {
  int steps = 0;
  auto worker = worker_of([&](const Settings& s) {
    if (s.has("fail")) TORCH_CHECK(false, "first line\nsecond line");
    if (s.has("skip")) throw DeviceUnavailable("no such device");
    return counting(steps);
  });
  for (const char* bad : {"dance", "load layers", "load fail=1", "run 0 0", "run x", "run 1 -1",
                          "losses 5", "check"}) {
    const auto answer = worker.answer(bad);
    EXPECT_TRUE(answer.starts_with(R"({"error": )")) << bad << ": " << answer;
    EXPECT_EQ(answer.find('\n'), std::string::npos);
  }
  EXPECT_EQ(worker.answer("load skip=1"), R"({"skipped": "no such device"})");
  EXPECT_EQ(worker.answer("load fail=1"), R"({"error": "first line"})");
  EXPECT_NE(worker.answer("load a=1").find("load_s"), std::string::npos);
}

#ifdef __GLIBC__
TEST(Worker, LargeWeightsAreMappedWhereStepsKeepTheHeap) {
  const auto maps_blocks = [] {
    const auto before = mallinfo2().hblks;
    std::vector<torch::Tensor> blocks;  // more than what other tests left free
    for (int i = 0; i < 20; ++i) blocks.push_back(torch::empty({6 << 20}));
    return mallinfo2().hblks > before;
  };
  bool mapped = false;
  auto worker = worker_of([&](const Settings&) {
    mapped = maps_blocks();
    return Workload{.step = [] {}};
  });
  setenv("MALLOC_MMAP_THRESHOLD_", "33554432", 1);
  worker.answer("load case=default");
  unsetenv("MALLOC_MMAP_THRESHOLD_");
  EXPECT_TRUE(mapped);
  EXPECT_FALSE(maps_blocks());  // of a step
  worker.answer("load case=default");
  EXPECT_FALSE(mapped) << "changed without having been asked to";
  mallopt(M_MMAP_THRESHOLD, 128 << 10);
}
#endif

TEST(Worker, LoadsTheLibrariesOfACaseFirst) {
  int steps = 0;
  bool loaded = false;
  auto worker = worker_of([&](const Settings&) {
    loaded = true;
    return counting(steps);
  });
  const auto answer = worker.answer("load case=default libraries=/none/first.so,/none/second.so");
  EXPECT_NE(
      answer.find("--load-library /none/first.so: expected a library of operators that loads"),
      std::string::npos)
      << answer;
  EXPECT_NE(answer.find("cannot open shared object file"), std::string::npos) << answer;
  EXPECT_FALSE(loaded);
  worker.answer("load case=default libraries=libc.so.6");
  EXPECT_TRUE(loaded);
}

TEST(Worker, WhatOnlyChecksIsNoPartOfALoad) {
  int steps = 0;
  auto worker = worker_of([&](const Settings&) {
    auto w = counting(steps);
    w.check_s = 1e6;
    return w;
  });
  EXPECT_EQ(field(worker.answer("load case=default"), "load_s"), "0");
}

TEST(Worker, WritesAndChecksValues) {
  TemporaryFolder folder;
  int steps = 0;
  double offset = 0;
  auto worker = worker_of([&](const Settings&) {
    auto w = counting(steps);
    w.values = [&] { return TensorDict{{"output", torch::ones({3}) + offset}}; };
    return w;
  });
  worker.answer("load case=default");
  const auto path = folder.file("with space.pt");
  EXPECT_EQ(worker.answer("write " + Settings::encode(path)), R"({"written": 1})");
  EXPECT_NE(worker.answer("check " + Settings::encode(path)).find(R"("passed": true)"),
            std::string::npos);
  offset = 0.01;
  EXPECT_NE(worker.answer("check " + Settings::encode(path)).find(R"("passed": false)"),
            std::string::npos);
  // The controller asks the reference the same: its own values, and the golden run.
  worker.answer("write " + Settings::encode(path));
  const auto golden = folder.file("golden.pt");
  write_tensors(golden, {{"output", torch::ones({3}, torch::kFloat64)}});
  const auto answer =
      worker.answer("check " + Settings::encode(path) + ' ' + Settings::encode(golden));
  EXPECT_NE(answer.find(R"("passed": false)"), std::string::npos) << answer;
  EXPECT_EQ(field(answer, "worst"), R"("output")");
}

TEST(Worker, AnApproximateRuntimeTellsItsErrors) {
  TemporaryFolder folder;
  int steps = 0;
  const auto path = folder.file("reference.pt");
  write_tensors(path, {{"output", torch::ones({3}) * 2}});
  detail::Worker worker({.runtime = "test", .approximate = true},
                        [&](const Settings&) { return counting(steps); });
  worker.answer("load case=default");
  const auto answer = worker.answer("check " + Settings::encode(path));
  EXPECT_EQ(field(answer, "passed"), "true") << answer;
  EXPECT_EQ(field(answer, "max_abs_error"), "1");
  EXPECT_EQ(field(answer, "tolerance"), "null");
  EXPECT_NEAR(std::stod(field(answer, "cosine")), 1, 1e-12);
  EXPECT_EQ(field(answer, "top1"), "1");
}

}  // namespace
}  // namespace torchpace
