// cpp-torchscript: a TorchScript file that Python scripted or traced, frozen at load. Deprecated
// upstream since 2.9. Twin: python/torchpace/runtimes/torchscript.py, which makes the files.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/codegen/fuser/interface.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/torch.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/runtimes/aot_package.hpp"
#include "torchpace/runtimes/artifact.hpp"

namespace torchpace {

/// The first floating tensor of an output that may be nested; none if there is none.
inline std::optional<torch::Tensor> first_floating_tensor(const c10::IValue& value) {
  const auto search = [](const auto& all) -> std::optional<torch::Tensor> {
    for (const auto& each : all) {
      if (auto found = first_floating_tensor(each)) return found;
    }
    return std::nullopt;
  };
  if (value.isTensor() && value.toTensor().is_floating_point()) return value.toTensor();
  if (value.isTuple()) return search(value.toTupleRef().elements());
  if (value.isList()) return search(value.toListRef());
  if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) {
      if (auto found = first_floating_tensor(entry.value())) return found;
    }
  }
  return std::nullopt;
}

/// A checked TorchScript module on the device, in eval mode. `mode`: freeze, plain or optimize
/// (optimize_for_inference). Throws ArchiveError on a damaged file or one that is no TorchScript.
inline torch::jit::Module load_torchscript(const std::string& path, const torch::Device& device,
                                           const std::string& mode) {
  const Archive archive(path);
  if (!archive.has_folder("code") || archive.find("/constants.pkl") == nullptr) {
    archive.fail(std::string("expected a TorchScript file (torch.jit.save), found ") +
                 (archive.has_folder("aotinductor") ? "an AOTInductor package; name it .pt2"
                  : archive.has_folder("models")
                      ? "a program of torch.export.save; compile it to a package"
                      : "a dictionary of torch.save, which has no code; save the module with "
                        "torch.jit.script(module).save(path)"));
  }
  try {
    auto module = torch::jit::load(path, device);
    module.eval();
    const bool frozen = !module.hasattr("training");  // by who saved it
    if (mode == "optimize") return torch::jit::optimize_for_inference(module);
    return mode == "plain" || frozen ? module : torch::jit::freeze(module);
  } catch (const std::exception& error) {
    archive.fail("the file does not load: " + one_line_of(error) +
                 "; save it again with this torch");
  }
}

/// Its forward, the first floating tensor of the output. Throws c10::Error where it has none.
inline TensorFunction torchscript_forward(torch::jit::Module module) {
  auto shared = std::make_shared<torch::jit::Module>(std::move(module));
  auto method = std::make_shared<torch::jit::Method>(shared->get_method("forward"));
  return [shared, method](const std::vector<torch::Tensor>& inputs) {
    const auto output = (*method)(std::vector<c10::IValue>(inputs.begin(), inputs.end()));
    if (output.isTensor()) return output.toTensor();
    const auto tensor = first_floating_tensor(output);
    TORCH_CHECK(tensor, "forward: expected an output with a floating tensor, found ",
                output.tagKind());
    return *tensor;
  };
}

inline std::vector<Runtime> torchscript_runtimes() {
  const auto load = [](const Settings& s, const Model& model) {
    const auto phase =
        inference_phase(s, "TorchScript files hold a forward pass for inference; cpp-eager trains");
    const auto device = choose_device(s.get("device", "cpu"));
    const auto axes = Axes::from(s);
    const auto forward = torchscript_forward(
        load_torchscript(s.require<std::string>("artifact"), device,
                         s.one_of("torchscript", {"freeze", "plain", "optimize"})));
    const auto cast = [forward, axes, device](const std::vector<torch::Tensor>& inputs) {
      AutocastScope scope(axes, device);
      return forward(inputs);
    };
    const bool fuses = device.is_cpu() ? torch::jit::canFuseOnCPU() : torch::jit::canFuseOnGPU();
    return inference_workload(cast, load_batches(s, device), model.cost, s, phase, fuses);
  };
  return {{.name = "cpp-torchscript",
           .description = "a TorchScript file of Python, in C++; deprecated upstream",
           .load = load,
           .artifact = "torchscript"}};
}

}  // namespace torchpace
