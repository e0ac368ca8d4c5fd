#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <limits>
#include <torchpace/aot/compiled_training.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

using testing::error_of;
using testing::read_file;
using testing::TemporaryFolder;
using testing::write_file;

constexpr double kRate = 1e-2;
constexpr int64_t kSteps = 20, kHalf = 10, kSeed = 3;

/// What tests/fixtures/make_training_package.py wrote.
class CompiledTrainingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (access(kPackage.c_str(), R_OK) != 0)
      GTEST_SKIP() << "no package at " << kPackage << "; a Python with torch makes it";
    at::set_num_threads(1);
    const auto content = read_tensors(kFolder + "/expected.pt");
    x_ = content.at("input").unbind();
    y_ = content.at("target").unbind();
    losses_ = content.at("losses");
  }

  std::vector<torch::Tensor> run(CompiledTraining& training, int64_t begin, int64_t end) const {
    std::vector<torch::Tensor> found;
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i)
      found.push_back(training.step(x_[i], y_[i], kRate));
    return found;
  }
  static void expect(const std::function<void()>& action, const std::string& part) {
    const auto text = error_of(action);
    EXPECT_NE(text.find(part), std::string::npos)
        << "expected '" << part << "' in '" << text << "'";
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
  static bool same(const TensorDict& a, const TensorDict& b) {
    bool equal = a.size() == b.size();
    for (const auto& [name, tensor] : a)
      equal = equal && b.contains(name) && torch::equal(tensor, b.at(name));
    return equal;
  }

  const std::string kFolder = TORCHPACE_TRAINING_FIXTURE, kPackage = kFolder + "/step.pt2";
  std::vector<torch::Tensor> x_, y_;
  torch::Tensor losses_;
};

TEST_F(CompiledTrainingTest, TrainsBitForBitAsFromPython) {
  CompiledTraining training(kPackage);
  torch::manual_seed(kSeed);
  EXPECT_TRUE(torch::equal(torch::stack(run(training, 0, kSteps)), losses_));
  EXPECT_FALSE(at::globalContext().deterministicAlgorithms());

  auto own = training.parameters();
  own.merge(training.buffers());
  EXPECT_TRUE(same(own, read_dictionary(kFolder + "/model.pt")));
  EXPECT_EQ(own.at("1.num_batches_tracked").item<int64_t>(), kSteps);
}

TEST_F(CompiledTrainingTest, AutocastIsThatOfEager) {
  CompiledTraining training(kFolder + "/autocast.pt2");
  EXPECT_EQ(training.package().autocast, "bfloat16");
  const auto content = read_tensors(kFolder + "/autocast.pt");
  const auto x = content.at("input"), y = content.at("target");
  std::vector<torch::Tensor> losses;
  for (int64_t i = 0; i < x.size(0); ++i) losses.push_back(training.step(x[i], y[i], kRate));
  const auto own = torch::stack(losses).to(torch::kFloat32);
  const auto farthest = [](const torch::Tensor& a, const torch::Tensor& b) {
    return (a - b).abs().max().item<double>();
  };
  // Rounding to bfloat16 moves the losses; the compiler rounds in fewer places than eager torch.
  const auto rounding = farthest(content.at("bfloat16"), content.at("float32"));
  EXPECT_LT(farthest(own, content.at("bfloat16")), 2 * rounding);
  EXPECT_GT(farthest(own, content.at("float32")), rounding / 4);
}

TEST_F(CompiledTrainingTest, ResumesWhatPythonSaved) {
  CompiledTraining training(kPackage);
  EXPECT_EQ(training.resume(kFolder + "/half.pt"), kHalf);
  const auto rest = torch::stack(run(training, kHalf, kSteps));
  EXPECT_TRUE(torch::equal(rest, losses_.slice(0, kHalf)));
}

TEST_F(CompiledTrainingTest, ResumesWhatAKilledProcessSaved) {
  const TemporaryFolder folder;
  const auto path = folder.file("run.pt");
  const auto child = fork();
  if (child == 0) {
    CompiledTraining training(kPackage);
    torch::manual_seed(kSeed);
    run(training, 0, kHalf);
    training.save_checkpoint(path, kHalf);
    run(training, kHalf, kHalf + 3);
    raise(SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  CompiledTraining training(kPackage);
  EXPECT_EQ(training.resume(path), kHalf);
  const auto rest = torch::stack(run(training, kHalf, kSteps));
  EXPECT_TRUE(torch::equal(rest, losses_.slice(0, kHalf)));
}

TEST_F(CompiledTrainingTest, SharesItsStateWithAModule) {
  CompiledTraining training(kPackage);
  torch::nn::Sequential module(torch::nn::Conv2d(3, 5, 3), torch::nn::BatchNorm2d(5),
                               torch::nn::ReLU(), torch::nn::Dropout(0.3), torch::nn::Flatten(),
                               torch::nn::Linear(80, 7));
  training.share_with(*module);
  const auto before = module->parameters().back().clone();
  run(training, 0, 1);
  EXPECT_FALSE(torch::equal(module->parameters().back(), before));
  EXPECT_EQ(module->parameters().back().data_ptr(), training.parameters().at("5.bias").data_ptr());
  training.restart();
  EXPECT_TRUE(torch::equal(module->parameters().back(), before));

  torch::nn::Sequential other(torch::nn::Conv2d(3, 5, 3));
  expect([&] { training.share_with(*other); }, "expected 1.bias 5:float32");
}

TEST_F(CompiledTrainingTest, SavesAndLoadsAPlainDictionary) {
  const TemporaryFolder folder;
  CompiledTraining training(kPackage);
  run(training, 0, 2);
  training.save(folder.file("model.pt"));
  const auto saved = read_dictionary(folder.file("model.pt"));
  EXPECT_FALSE(saved.contains(kTensorFormatKey));
  training.restart();
  EXPECT_FALSE(torch::equal(training.parameters().at("5.bias"), saved.at("5.bias")));
  training.load(folder.file("model.pt"));
  for (const auto& [name, p] : training.parameters()) EXPECT_TRUE(torch::equal(p, saved.at(name)));
  expect([&] { training.save("/nowhere/model.pt"); }, "could not be written");
}

TEST_F(CompiledTrainingTest, CopiesStrangeTensors) {
  CompiledTraining training(kPackage);
  const auto step = [&](const torch::Tensor& x) {
    training.restart();
    torch::manual_seed(kSeed);
    return training.step(x, y_[0], kRate);
  };
  const auto expected = step(x_[0]);
  EXPECT_TRUE(torch::equal(step(x_[0].contiguous(torch::MemoryFormat::ChannelsLast)), expected));
  const auto odd = torch::cat({torch::zeros(1), x_[0].flatten()}).slice(0, 1).view(x_[0].sizes());
  EXPECT_TRUE(torch::equal(step(odd), expected));
}

TEST_F(CompiledTrainingTest, RefusesWrongInputsAndStaysAsItWas) {
  CompiledTraining training(kPackage);
  const auto &x = x_[0], &y = y_[0];
  const auto nan = std::numeric_limits<double>::quiet_NaN();
  expect([&] { training.step(x.slice(0, 1), y, kRate); },
         "step: input 0: expected 4x3x6x6:float32 on cpu, got 3x3x6x6:float32");
  expect([&] { training.step(x.to(torch::kFloat64), y, kRate); }, "got 4x3x6x6:float64");
  expect([&] { training.step(x, y.to(torch::kInt32), kRate); }, "target 0: expected 4:int64");
  expect([&] { training.step(x.to(torch::kMeta), y, kRate); }, "on meta");
  expect([&] { training.step(torch::Tensor(), y, kRate); }, "got an undefined tensor");
  expect([&] { training.step({x, x}, y, kRate); }, "expected 1 inputs, got 2");
  for (const double rate : {nan, std::numeric_limits<double>::infinity(), -kRate})
    expect([&] { training.step(x, y, rate); }, "expected a finite number of 0 or more");
  EXPECT_TRUE(same(training.parameters(), CompiledTraining(kPackage).parameters()));
}

TEST_F(CompiledTrainingTest, RefusesWrongPackages) {
  const TemporaryFolder folder;
  const auto whole = read_file(kPackage), path = folder.file("x.pt2");
  const auto refuse = [&](const std::string& bytes, const std::string& part) {
    write_file(path, bytes);
    expect([&] { CompiledTraining{path}; }, part);
  };
  refuse("", "empty file");
  refuse(whole.substr(0, whole.size() / 2), "truncated");
  auto flipped = whole;
  flipped[whole.size() / 2] = static_cast<char>(flipped[whole.size() / 2] ^ 1);
  refuse(flipped, "CRC-32");
  expect([&] { CompiledTraining{folder.file("none.pt2")}; }, "cannot be opened");
  expect([&] { CompiledTraining{kFolder + "/half.pt"}; }, "expected an AOTInductor package");
  at::set_num_threads(2);
  expect([&] { CompiledTraining{kPackage}; }, "threads");
  at::set_num_threads(1);
  if (!torch::cuda::is_available()) {
    EXPECT_THROW(CompiledTraining(kPackage, torch::kCUDA), DeviceUnavailable);
  }
}

TEST_F(CompiledTrainingTest, RefusesForeignCheckpoints) {
  const TemporaryFolder folder;
  const auto path = folder.file("run.pt");
  CompiledTraining training(kPackage);
  auto content = read_tensors(kFolder + "/half.pt");
  content.erase("first_moment.5.bias");
  write_tensors(path, content);
  expect([&] { training.resume(path); }, "expected first_moment.5.bias 7:float32");
  content.erase("optimizer");
  write_tensors(path, content);
  expect([&] { training.resume(path); }, "found no optimizer");
  write_file(path, read_file(kFolder + "/half.pt").substr(0, 500));
  expect([&] { training.resume(path); }, path);
  EXPECT_TRUE(same(training.parameters(), CompiledTraining(kPackage).parameters()));
}

TEST_F(CompiledTrainingTest, KillsWhileSavingLeaveAWholeCheckpoint) {
  const TemporaryFolder folder;
  const auto path = folder.file("run.pt");
  CompiledTraining training(kPackage);
  training.save_checkpoint(path, 0);
  int64_t last = 0;
  for (int kill_ = 0; kill_ < 100; ++kill_) {
    const auto child = fork();
    if (child == 0) {
      for (auto position = last;; ++position) training.save_checkpoint(path, position);
    }
    usleep(static_cast<useconds_t>(500 + 97 * kill_));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const auto position = training.resume(path);  // throws on a damaged or half-new one
    ASSERT_GE(position, last);
    last = position;
  }
  EXPECT_GT(last, 0);
}

}  // namespace
}  // namespace torchpace
