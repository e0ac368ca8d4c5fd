// Every model of the registry against its Python twin: outputs, losses, every gradient and
// parameter by name, and mutations that must fail. A new model is covered by writing
// tests/fixtures/<model>.{pt,txt}.
#include <torchpace/models/dnn.hpp>
#include <torchpace/models/gptlite.hpp>
#include <torchpace/parity.hpp>
#include <torchpace/runtimes/eager.hpp>

#include "registry/registry.hpp"
#include "testing.hpp"

namespace torchpace {
namespace {

using testing::error_of;
using testing::fixture_settings;

/// The fixture's tensors under a prefix.
TensorDict part(const TensorDict& all, const std::string& prefix) {
  TensorDict result;
  for (const auto& [name, tensor] : all) {
    if (name.starts_with(prefix)) result[name.substr(prefix.size())] = tensor;
  }
  return result;
}

Parity check(const std::string& model, const std::string& phase, const Settings& changes = {}) {
  auto settings = fixture_settings(model);
  settings.set("phase", phase);
  for (const auto& [key, value] : changes.values()) settings.set(key, value);
  const auto fixture = read_tensors(settings.require<std::string>("state"));
  const auto reference = part(fixture, phase + ".reference.");
  const auto golden = part(fixture, phase + ".golden.");
  auto workload = eager_runtimes().front().load(settings, make_model(model, settings));
  return check_parity(workload.values(), reference, &golden,
                      workload.execution.precision(workload.dtype));
}

class ParityOfModels : public ::testing::TestWithParam<std::string> {};

TEST_P(ParityOfModels, OutputsMatchPython) {
  const auto parity = check(GetParam(), "inference");
  EXPECT_TRUE(parity.passed) << parity.worst << ' ' << parity.max_abs_error << " > "
                             << parity.tolerance << parity.note;
}

TEST_P(ParityOfModels, LossesGradientsAndParametersOfTenStepsMatchPython) {
  const auto parity = check(GetParam(), "train");
  EXPECT_TRUE(parity.passed) << parity.worst << ' ' << parity.max_abs_error << " > "
                             << parity.tolerance << parity.note;
  auto settings = fixture_settings(GetParam());
  const auto parameters = make_model(GetParam(), settings).module->named_parameters().size();
  EXPECT_EQ(parity.compared, static_cast<int64_t>(1 + 3 * parameters));
}

TEST_P(ParityOfModels, AnAdamEpsilonOf1e6Fails) {
  EXPECT_FALSE(check(GetParam(), "train", {{"eps", "1e-6"}}).passed);
}

TEST_P(ParityOfModels, EverySwappedPairOfWeightsFails) {
  auto settings = fixture_settings(GetParam());
  const auto model = make_model(GetParam(), settings);
  const auto parameters = model.module->named_parameters();
  int swaps = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    for (std::size_t j = i + 1; j < parameters.size(); ++j) {
      const auto &a = parameters[i], &b = parameters[j];
      // Weights of one kind; biases and norms start equal, so exchanging them is no mutation.
      if (a.value().dim() < 2 || a.value().sizes() != b.value().sizes()) continue;
      ++swaps;
      EXPECT_FALSE(check(GetParam(), "inference", {{"swap", a.key() + "," + b.key()}}).passed)
          << a.key() << b.key();
    }
  }
  EXPECT_GE(swaps, 2);
}

/// All but those that have no module in C++.
std::vector<std::string> models_of_both_languages() {
  auto names = model_names();
  std::erase_if(names, [](const auto& name) { return name == "imported" || name == "file"; });
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, ParityOfModels, ::testing::ValuesIn(models_of_both_languages()),
                         [](const auto& instance) { return instance.param; });

TEST(ParityOfGptlite, ExplicitAttentionEqualsSdpa) {
  EXPECT_TRUE(check("gptlite", "inference", {{"attention", "explicit"}}).passed);
  EXPECT_TRUE(check("gptlite", "train", {{"attention", "explicit"}}).passed);
}

TEST(ParityOfGptlite, NoMaskAndAWrongScaleFail) {
  for (const char* attention : {"sdpa", "explicit"}) {
    EXPECT_FALSE(check("gptlite", "inference", {{"causal", "0"}, {"attention", attention}}).passed);
    EXPECT_FALSE(check("gptlite", "train", {{"causal", "0"}, {"attention", attention}}).passed);
    // C^-0.5 in place of D^-0.5: the mistake of a published comparison.
    EXPECT_FALSE(
        check("gptlite", "inference", {{"scale", "0.25"}, {"attention", attention}}).passed);
    EXPECT_FALSE(check("gptlite", "train", {{"scale", "0.25"}, {"attention", attention}}).passed);
  }
}

TEST(Gptlite, PaperSizeHasThePublishedParameterCount) {
  const auto model = make_gptlite(
      {{"layers", "12"}, {"width", "768"}, {"heads", "12"}, {"context", "2048"}, {"batch", "1"}});
  int64_t count = 0;
  for (const auto& p : model.module->parameters()) count += p.numel();
  EXPECT_EQ(count, 86'701'121);
  EXPECT_EQ(model.cost.parameter_bytes, 4.0 * 86'701'121);
}

// By hand, 2 layers x 16, 2 heads, context 8, batch 2, vocabulary 65: B T = 16 tokens.
TEST(Gptlite, FlopsMatchAHandCount) {
  Gptlite model(GptliteOptions{.layers = 2, .width = 16, .heads = 2, .context = 8});
  const double qkv = 2.0 * 16 * 16 * 48, projection = 2.0 * 16 * 16 * 16,
               feed_forward = 2 * 2.0 * 16 * 16 * 64, scores = 2.0 * 2 * 2 * 8 * 8 * 8,
               head = 2.0 * 16 * 16 * 65;
  const auto cost = model->cost(2, 8);
  EXPECT_EQ(cost.forward_flops, 2 * (qkv + projection + feed_forward + 2 * scores) + head);
  EXPECT_EQ(cost.training_flops, 3 * cost.forward_flops);
  EXPECT_EQ(cost.items, 16);
  double parameters = 0;
  for (const auto& p : model->parameters()) parameters += static_cast<double>(p.numel());
  EXPECT_EQ(cost.parameter_bytes, 4 * parameters);
}

TEST(Dnn, FlopsMatchAHandCount) {
  Dnn model(DnnOptions{.layers = 3, .width = 8});
  const auto cost = model->cost(4);
  const double layer = 2.0 * 4 * 8 * 8;
  EXPECT_EQ(cost.forward_flops, 3 * layer);
  EXPECT_EQ(cost.training_flops, 3 * layer + 3 * layer + 2 * layer) << "no gradient of the input";
  EXPECT_EQ(cost.parameter_bytes, 4 * 3 * (64 + 8));
}

TEST(Dnn, EveryLayerLearnsAtEverySize) {
  struct Size {
    int64_t layers, width, batch;
  };
  for (const auto& size :
       {Size{8, 32, 4}, Size{64, 64, 32}, Size{2, 64, 4}, Size{3, 1024, 16}, Size{2048, 256, 4}}) {
    torch::manual_seed(0);
    Dnn model(DnnOptions{.layers = size.layers, .width = size.width});
    const auto loss =
        torch::nn::functional::cross_entropy(model->forward(torch::randn({size.batch, size.width})),
                                             torch::randint(size.width, {size.batch}));
    loss.backward();
    const double first =
        model->layers[0]->as<torch::nn::Linear>()->weight.grad().abs().max().item<double>();
    EXPECT_GT(first, 1e-8) << size.layers << " x " << size.width;
    EXPECT_TRUE(std::isfinite(first)) << size.layers << " x " << size.width;
  }
}

TEST(Models, BadShapesAndOptionsAreOneClearLine) {
  Gptlite gptlite(GptliteOptions{.layers = 1, .width = 8, .heads = 2, .context = 4});
  EXPECT_EQ(error_of([&] {
              gptlite->forward(torch::zeros({1, 5}, torch::kInt64));
            }),
            "Gptlite: expected tokens [B, T <= 4], got [1, 5]");
  Dnn dnn(DnnOptions{.layers = 1, .width = 8});
  EXPECT_EQ(error_of([&] {
              dnn->forward(torch::zeros({1, 5}));
            }),
            "Dnn: expected x [B, 8], got [1, 5]");
  EXPECT_NE(error_of([] {
              Gptlite(GptliteOptions{.width = 10, .heads = 3});
            }).find("a width that 3 heads divide, got 10"),
            std::string::npos);
  EXPECT_NE(
      error_of([] { make_model("nosuch", {}); }).find("unknown model 'nosuch': expected one of"),
      std::string::npos);
  EXPECT_NE(error_of([] {
              make_gptlite({{"layers", "1"},
                            {"width", "8"},
                            {"heads", "2"},
                            {"context", "4"},
                            {"batch", "1"},
                            {"attention", "flash"}});
            }).find("expected sdpa or explicit, got 'flash'"),
            std::string::npos);
}

TEST(State, MissingExtraAndWrongShapedParametersAreNamed) {
  testing::TemporaryFolder folder;
  auto settings = fixture_settings("dnn");
  const auto fixture = read_tensors(settings.require<std::string>("state"));
  const auto attempt = [&](const std::function<void(TensorDict&)>& change) {
    auto state = fixture;
    change(state);
    write_tensors(folder.file("state.pt"), state);
    auto changed = settings;
    changed.set("state", folder.file("state.pt"));
    return error_of([&] { load_state(changed, make_model("dnn", changed)); });
  };
  EXPECT_EQ(attempt([](TensorDict&) {}), "");
  EXPECT_NE(attempt([](auto& s) {
              s.erase("parameter.layers.1.weight");
            }).find("expected parameter.layers.1.weight [8, 8], found none"),
            std::string::npos);
  EXPECT_NE(attempt([](auto& s) {
              s["parameter.extra"] = torch::ones({1});
            }).find("the model has no parameter.extra"),
            std::string::npos);
  EXPECT_NE(attempt([](auto& s) {
              s["parameter.layers.0.bias"] = torch::ones({9});
            }).find("parameter.layers.0.bias: expected shape [8], found [9]"),
            std::string::npos);
  EXPECT_NE(
      attempt([](auto& s) { s.erase("target"); }).find("expected target [N, ...], found none"),
      std::string::npos);
  settings.set("swap", "layers.0.weight,nosuch");
  EXPECT_NE(error_of([&] {
              load_state(settings, make_model("dnn", settings));
            }).find("swap: expected two parameters"),
            std::string::npos);
  settings.set("device", "cuda:77");
  EXPECT_THROW(load_state(settings, make_model("dnn", settings)), DeviceUnavailable);
}

TEST(State, HasSeveralInputsAndNoTargetForAModelOfPython) {
  testing::TemporaryFolder folder;
  const auto path = folder.file("state.pt");
  TensorDict state{{"input", torch::arange(6).reshape({2, 3})},
                   {"input.1", torch::ones({2, 1, 2}, torch::kFloat64)},
                   {"parameter.anything", torch::ones({1})}};
  const auto load = [&] {
    write_tensors(path, state);
    const Settings settings{{"state", path}, {"model", "imported"}};
    return load_state(settings, make_model("imported", settings));
  };
  const auto batches = load();
  ASSERT_EQ(batches.inputs(3).size(), 2u);
  EXPECT_TRUE(torch::equal(batches.input(3), state.at("input")[1]));
  EXPECT_EQ(batches.inputs(0)[1].scalar_type(), torch::kFloat32);
  EXPECT_EQ(batches.inputs(0)[1].sizes(), (std::vector<int64_t>{1, 2}));
  EXPECT_TRUE(batches.targets.empty());
  state["target"] = torch::zeros({2, 3});
  EXPECT_EQ(load().targets.size(), 2u);
  state["input.1"] = torch::ones({3, 1});
  EXPECT_NE(error_of(load).find("as many batches of input.1 as inputs, found 3 and 2"),
            std::string::npos);
}

TEST(Imported, IsKnownThroughArtifactsAlone) {
  const Settings settings{{"model", "imported"},     {"flops", "1e9"},       {"items", "8"},
                          {"parameter_bytes", "64"}, {"phase", "inference"}, {"state", "/none"}};
  const auto model = make_model("imported", settings);
  EXPECT_EQ(model.module, nullptr);
  EXPECT_EQ(model.cost.forward_flops, 1e9);
  EXPECT_EQ(model.cost.items, 8);
  EXPECT_EQ(model.cost.parameter_bytes, 64);
  EXPECT_THROW(model.forward(torch::ones({1})), DeviceUnavailable);
  EXPECT_EQ(error_of([&] { eager_runtimes().front().load(settings, model); }), model.absent);
  EXPECT_THROW(eager_runtimes().front().load(settings, model), DeviceUnavailable);
}

TEST(Eager, EveryTurnStartsFromTheSameState) {
  auto settings = fixture_settings("gptlite");
  auto workload = eager_runtimes().front().load(settings, make_model("gptlite", settings));
  const auto before = workload.values();
  for (int i = 0; i < 5; ++i) workload.step();
  workload.restore();
  const auto after = workload.values();
  for (const auto& [name, value] : before) EXPECT_TRUE(torch::equal(value, after.at(name))) << name;
  const auto losses = workload.losses(10);
  EXPECT_EQ(losses.size(), 10u);
  EXPECT_NEAR(losses[0], before.at("losses")[0].item<double>(), 1e-6);
}

}  // namespace
}  // namespace torchpace
