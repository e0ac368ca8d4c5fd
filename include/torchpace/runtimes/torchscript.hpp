// cpp-torchscript: a TorchScript file that Python scripted or traced, frozen at load. Deprecated
// upstream since 2.9. Twin: python/torchpace/runtimes/torchscript.py, which makes the files.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/codegen/fuser/interface.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/torch.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "torchpace/detail/error.hpp"
#include "torchpace/detail/operator_libraries.hpp"
#include "torchpace/io/zip_archive.hpp"
#include "torchpace/runtimes/detail/inference_workload.hpp"

namespace torchpace {

/// A checked TorchScript module on the device, in eval mode. `mode`: freeze, plain or optimize
/// (optimize_for_inference). Throws ArchiveError on a damaged file or one that is no TorchScript.
inline torch::jit::Module load_torchscript(const std::string& path, const torch::Device& device,
                                           const std::string& mode) {
  const Archive archive(path);
  if (!archive.has_folder("code") || archive.find("/constants.pkl") == nullptr) {
    archive.fail(std::string("expected a TorchScript file (torch.jit.save), found ") +
                 (archive.has_folder("aotinductor") ? "an AOTInductor package; name it .pt2"
                  : archive.has_folder("models")
                      ? "a program of torch.export.save, which is not compiled; torchpace compare "
                        "--model FILE.pt2 makes and times what can be made from it"
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
    const auto reason = one_line_of(error), operators = operators_advice(reason);
    archive.fail("the file does not load: " + reason + "; " +
                 (operators.empty() ? "save it again with this torch" : operators));
  }
}

/// Its forward. Throws c10::Error, from `outputs`, where something that it returns may hide
/// tensors.
inline CompiledForward torchscript_forward(torch::jit::Module module) {
  auto shared = std::make_shared<torch::jit::Module>(std::move(module));
  auto method = std::make_shared<torch::jit::Method>(shared->get_method("forward"));
  const auto call = [method](const Tensors& inputs) {
    return (*method)(std::vector<c10::IValue>(inputs.begin(), inputs.end()));
  };
  const auto state = [shared] {
    TensorDict tensors;
    for (const auto& attribute : shared->named_attributes(/*recurse=*/true)) {
      if (attribute.value.isTensor() && attribute.value.toTensor().defined())
        tensors[attribute.name] = attribute.value.toTensor();
    }
    return tensors;
  };
  return {.call = call,
          .outputs = [call](const Tensors& inputs) { return tensors_of(call(inputs)); },
          .state = state};
}

inline std::vector<Runtime> torchscript_runtimes() {
  const auto load = [](const Settings& s, const Model& model) {
    const auto phase =
        inference_phase(s, "TorchScript files hold a forward pass for inference; cpp-eager trains");
    const auto device = choose_device(s.get("device", "cpu"));
    const auto execution = ExecutionOptions::from(s);
    const auto forward = torchscript_forward(
        load_torchscript(s.require<std::string>("artifact"), device,
                         s.one_of("torchscript", {"freeze", "plain", "optimize"})));
    const auto under_autocast = [execution, device](const auto& function) {
      return [function, execution, device](const Tensors& inputs) {
        AutocastScope scope(execution, device);
        return function(inputs);
      };
    };
    const CompiledForward cast{under_autocast(forward.call), under_autocast(forward.outputs),
                               forward.state};
    const bool fuses = device.is_cpu() ? torch::jit::canFuseOnCPU() : torch::jit::canFuseOnGPU();
    return inference_workload(cast, load_batches(s, device), model.cost, s, phase, fuses);
  };
  return {{.name = "cpp-torchscript",
           .description = "a TorchScript file of Python, in C++; deprecated upstream",
           .load = load,
           .artifact = "torchscript"}};
}

}  // namespace torchpace
