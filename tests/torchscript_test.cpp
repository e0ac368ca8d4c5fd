#include <torchpace/runtimes/torchscript.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

using testing::error_of;
using testing::TemporaryFolder;

/// y = x + w for a 4-D, a 2-D or any x, as a file.
class TorchScript : public ::testing::Test {
 protected:
  TorchScript() {
    torch::jit::Module module("Adder");
    module.register_parameter("w", torch::arange(4, torch::kFloat32), false);
    module.register_attribute("training", c10::BoolType::get(), true);
    module.define("def forward(self, x, y):\n  return {'sum': (y, [x + self.w])}\n");
    module.save(path_);
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.file("adder.pt");
  std::vector<torch::Tensor> inputs_{torch::ones({2, 4}), torch::ones({1}, torch::kInt64)};
};

TEST_F(TorchScript, RunsInEveryMode) {
  for (const auto* mode : {"freeze", "plain", "optimize"}) {
    const auto module = load_torchscript(path_, torch::kCPU, mode);
    EXPECT_EQ(module.hasattr("w"), mode == std::string("plain")) << mode;
    EXPECT_TRUE(
        torch::equal(torchscript_forward(module)(inputs_), torch::ones({2, 4}) + torch::arange(4)))
        << "the first floating tensor of the nested output, " << mode;
  }
}

TEST_F(TorchScript, RefusesOtherFilesInOneLine) {
  const auto load = [&](const std::string& name) {
    return error_of([&] { load_torchscript(folder_.file(name), torch::kCPU, "freeze"); });
  };
  write_tensors(folder_.file("state.pt"), {{"w", torch::ones({1})}});
  EXPECT_NE(load("state.pt").find("found a dictionary of torch.save"), std::string::npos);
  auto bytes = testing::read_file(path_);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  testing::write_file(folder_.file("flipped.pt"), bytes);
  const auto flipped = load("flipped.pt");
  EXPECT_NE(flipped, "");
  EXPECT_EQ(flipped.find('\n'), std::string::npos) << flipped;
  EXPECT_NE(load("missing.pt").find("cannot be opened"), std::string::npos);
}

TEST_F(TorchScript, LoadsACaseAndSettles) {
  write_tensors(folder_.file("state.pt"), {{"input", torch::ones({3, 2, 4})},
                                           {"input.1", torch::ones({3, 1}, torch::kInt64)}});
  Settings settings{
      {"phase", "inference"}, {"state", folder_.file("state.pt")}, {"artifact", path_}};
  const auto runtime = torchscript_runtimes().at(0);
  auto workload = runtime.load(settings, {});
  workload.settle();
  workload.restore();
  workload.step();
  EXPECT_TRUE(torch::equal(workload.values().at("output"), torch::ones({2, 4}) + torch::arange(4)));
  settings.set("phase", "train");
  EXPECT_THROW(runtime.load(settings, {}), DeviceUnavailable);
}

TEST(Settle, StopsWhereStepsAreSteadyAndAfterFifty) {
  int steps = 0;
  settle_steps([&] { ++steps; }, torch::kCPU);
  EXPECT_GE(steps, 10);
  EXPECT_LE(steps, 50);
}

}  // namespace
}  // namespace torchpace
