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
}

}  // namespace
}  // namespace torchpace
