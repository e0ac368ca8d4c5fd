#include <torchpace/runtimes/torchscript.hpp>

#include "testing.hpp"

namespace torchpace {
namespace {

using testing::error_of;
using testing::TemporaryFolder;

/// y = x + w for a 4-D, a 2-D or any x, as a file.
class TorchScript : public ::testing::Test {
 protected:
  TorchScript() { save(path_, "return {'sum': (y, [x + self.w])}"); }

  /// A module with the parameter w [4], the buffer count and such a forward of x and y.
  static void save(const std::string& path, const std::string& body) {
    torch::jit::Module module("Adder");
    module.register_parameter("w", torch::arange(4, torch::kFloat32), false);
    module.register_buffer("count", torch::zeros({1}));
    module.register_attribute("training", c10::BoolType::get(), true);
    module.define("def forward(self, x, y):\n  " + body + "\n");
    module.save(path);
  }
  Tensors outputs_of(const std::string& body, const std::string& mode = "freeze") {
    const auto path = folder_.file("other.pt");
    save(path, body);
    return torchscript_forward(load_torchscript(path, torch::kCPU, mode)).outputs(inputs_);
  }
  Workload workload_of(const std::string& path, const Settings& more = {}) {
    write_tensors(folder_.file("state.pt"), {{"input", torch::ones({3, 2, 4})},
                                             {"input.1", torch::ones({3, 1}, torch::kInt64)}});
    Settings settings{
        {"phase", "inference"}, {"state", folder_.file("state.pt")}, {"artifact", path}};
    for (const auto& [key, value] : more.values()) settings.set(key, value);
    return torchscript_runtimes().at(0).load(settings, {});
  }

  TemporaryFolder folder_;
  std::string path_ = folder_.file("adder.pt");
  std::vector<torch::Tensor> inputs_{torch::ones({2, 4}), torch::ones({1}, torch::kInt64)};
};

TEST_F(TorchScript, RunsInEveryMode) {
  for (const auto* mode : {"freeze", "plain", "optimize"}) {
    const auto module = load_torchscript(path_, torch::kCPU, mode);
    EXPECT_EQ(module.hasattr("w"), mode == std::string("plain")) << mode;
    const auto outputs = torchscript_forward(module).outputs(inputs_);
    ASSERT_EQ(outputs.size(), 2u) << mode;
    EXPECT_TRUE(torch::equal(outputs[0], inputs_[1])) << mode;
    EXPECT_TRUE(torch::equal(outputs[1], torch::ones({2, 4}) + torch::arange(4))) << mode;
  }
}

TEST_F(TorchScript, AFrozenFileRunsInEveryMode) {
  auto module = torch::jit::load(path_);
  module.eval();
  const auto frozen = folder_.file("frozen.pt");
  torch::jit::freeze(module).save(frozen);
  for (const auto* mode : {"freeze", "plain", "optimize"}) {
    const auto loaded = load_torchscript(frozen, torch::kCPU, mode);
    EXPECT_EQ(torchscript_forward(loaded).outputs(inputs_).size(), 2u) << mode;
  }
}

TEST_F(TorchScript, EveryTensorOfAnOutputIsThere) {
  EXPECT_EQ(outputs_of("return x").size(), 1u);
  EXPECT_EQ(outputs_of("return (x, None, 3, 'text', [x, y], {'b': x, 'a': y})").size(), 5u);
  const auto ordered = outputs_of("return {'b': x, 'a': y}");
  ASSERT_EQ(ordered.size(), 2u);
  EXPECT_TRUE(torch::equal(ordered[0], inputs_[0])) << "dictionaries in the order of insertion";
  EXPECT_EQ(outputs_of("return 3").size(), 0u);
  EXPECT_NE(error_of([&] { outputs_of("return (x, x.device)"); }).find("found Device"),
            std::string::npos);
}

TEST_F(TorchScript, RefusesOtherFilesInOneLine) {
  const auto load = [&](const std::string& name) {
    return error_of([&] { load_torchscript(folder_.file(name), torch::kCPU, "freeze"); });
  };
  write_tensors(folder_.file("state.pt"), {{"w", torch::ones({1})}});
  EXPECT_NE(load("state.pt").find("found a dictionary of torch.save"), std::string::npos);
  auto bytes = testing::read_file(path_);
  auto& byte = bytes[Archive(path_).find("/constants.pkl")->offset];
  byte = static_cast<char>(byte ^ 1);
  testing::write_file(folder_.file("flipped.pt"), bytes);
  const auto flipped = load("flipped.pt");
  EXPECT_NE(flipped, "");
  EXPECT_EQ(flipped.find('\n'), std::string::npos) << flipped;
  EXPECT_NE(load("missing.pt").find("cannot be opened"), std::string::npos);
}

TEST_F(TorchScript, LoadsACaseAndWarmsUp) {
  auto workload = workload_of(path_);
  workload.warm_up();
  workload.restore();
  workload.step();
  const auto values = workload.values();
  EXPECT_EQ(values.size(), 6u) << "both outputs of all three batches";
  for (const auto* batch : {"batch0", "batch1", "batch2"}) {
    EXPECT_TRUE(torch::equal(values.at(batch + std::string(".output.1")),
                             torch::ones({2, 4}) + torch::arange(4)));
  }
  EXPECT_THROW(torchscript_runtimes().at(0).load({{"phase", "train"}}, {}), DeviceUnavailable);
}

TEST_F(TorchScript, OutputsHaveTheNamesOfTheCaseWhereTheyAreAsMany) {
  const auto named = workload_of(path_, {{"outputs", "output.y,output.sum.0"}}).values();
  EXPECT_TRUE(named.contains("batch2.output.sum.0"));
  const auto fewer = workload_of(path_, {{"outputs", "output"}}).values();
  EXPECT_TRUE(fewer.contains("batch0.output.0") && !fewer.contains("batch0.output"));
}

TEST_F(TorchScript, AModelThatChangesItsInputOrItsBuffersIsRefused) {
  const auto error = [&](const std::string& body, const std::string& mode) {
    save(folder_.file("changes.pt"), body);
    return error_of([&] {
      workload_of(folder_.file("changes.pt"), {{"torchscript", mode}}).values();
    });
  };
  EXPECT_EQ(error("return x.add_(1)", "freeze"),
            "the model changes its input 0 in place, so every step would see another one; clone it "
            "first (x = x.clone())");
  EXPECT_NE(error("y.mul_(1)\n  return x", "plain").find("changes its input 1"), std::string::npos);
  EXPECT_NE(error("self.count.add_(1)\n  return x", "plain").find("changes its buffer count"),
            std::string::npos);
  EXPECT_NE(error("self.count = self.count + 1\n  return x", "plain").find("its buffer count"),
            std::string::npos);
  EXPECT_EQ(error("return x.clone().add_(self.count)", "plain"), "");
}

TEST_F(TorchScript, RunsWhatNeedsAutogradInside) {
  const auto path = folder_.file("forces.pt");
  save(path,
       "z = x.detach().requires_grad_()\n  e = (z * self.w).sum()\n  "
       "return torch.autograd.grad([e], [z])");
  EXPECT_NE(error_of([&] { workload_of(path, {{"torchscript", "plain"}}).values(); }), "");
  auto workload = workload_of(path, {{"torchscript", "plain"}, {"grad_mode", "enable_grad"}});
  EXPECT_TRUE(
      torch::equal(workload.values().at("batch1.output")[0], torch::arange(4, torch::kFloat32)));
  EXPECT_NE(workload.note.find("enable_grad"), std::string::npos);
}

TEST(WarmUp, StopsWhereStepsAreSteadyAndAfterFifty) {
  int steps = 0;
  warm_up_steps([&] { ++steps; }, torch::kCPU);
  EXPECT_GE(steps, 10);
  EXPECT_LE(steps, 50);
}

}  // namespace
}  // namespace torchpace
