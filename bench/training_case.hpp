// The step of a compiled training package as a Google Benchmark case: `--training_package=FILE`,
// which `torchpace export-training` made.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <torchpace/aot/compiled_training.hpp>
#include <torchpace/google_benchmark.hpp>
#include <utility>
#include <vector>

namespace torchpace::bench {

using Draw = std::function<torch::Tensor(const TensorSpec&)>;

/// Shape of a parameter. Throws c10::Error where the package is of another model.
inline std::vector<int64_t> sizes_of(const CompiledTraining& training, const std::string& name) {
  const auto parameters = training.parameters();
  const auto found = parameters.find(name);
  TORCH_CHECK(found != parameters.end(), "--training_package: expected a package of this model, ",
              "which has ", name, ", found another");
  return found->second.sizes().vec();
}

/// How many of "blocks.0.norm1.weight", "blocks.1.norm1.weight", ... there are.
inline int64_t count_layers(const CompiledTraining& training, const std::string& before,
                            const std::string& after) {
  const auto parameters = training.parameters();
  int64_t layers = 0;
  while (parameters.contains(before + std::to_string(layers) + after)) ++layers;
  return layers;
}

/// One batch of drawn tensors, again and again. `cost` is asked of the loaded package. Throws
/// DeviceUnavailable, which skips the case, where no package is named.
inline Workload training_case(const Draw& input, const Draw& target,
                              const std::function<Cost(const CompiledTraining&)>& cost) {
  const auto path = benchmark_settings().get("training_package", "");
  if (path.empty()) {
    throw DeviceUnavailable(
        "expected --training_package=FILE, which torchpace export-training makes, found none");
  }
  const auto training = std::make_shared<CompiledTraining>(path, benchmark_device());
  const auto counted = cost(*training);
  torch::manual_seed(0);
  std::vector<torch::Tensor> inputs;
  for (const auto& spec : training->package().inputs)
    inputs.push_back(input(spec).to(training->device()));
  const auto y = target(training->package().target).to(training->device());
  const auto lr = benchmark_settings().get("lr", kLearningRate);
  return {.step = [=] { training->step(inputs, y, lr); },
          .restore = [=] { training->restart(); },
          .device = training->device(),
          .optimizer = training->package().kind() + " compiled",
          .flops = counted.training_flops,
          .items = counted.items,
          .item = counted.item};
}

}  // namespace torchpace::bench
