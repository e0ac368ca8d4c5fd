// Choices that every case has beside its model: autocast, TF32 and the memory format.
// Table: docs/worker-protocol.md. Twin: python/torchpace/execution_options.py.
#pragma once

#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "torchpace/device.hpp"
#include "torchpace/settings.hpp"

namespace torchpace {

struct ExecutionOptions {
  std::optional<torch::ScalarType> autocast = {};  // of forward and loss; none: no autocast
  bool tf32 = false;                               // of matrix products and convolutions on CUDA
  bool channels_last = false;                      // 4-D tensors: [N, C, H, W] stored as N, H, W, C

  /// Throws SettingsError on an unknown value and DeviceUnavailable for TF32 without CUDA.
  static ExecutionOptions from(const Settings& settings) {
    const auto device = settings.get("device", "cpu");
    ExecutionOptions execution;
    if (settings.one_of("autocast", {"none", "bfloat16"}) == "bfloat16")
      execution.autocast = torch::kBFloat16;
    execution.tf32 = settings.get("tf32", false);
    execution.channels_last =
        settings.one_of("memory_format", {"contiguous", "channels_last"}) == "channels_last";
    if (execution.tf32 && !device.starts_with("cuda")) {
      throw DeviceUnavailable("tf32=1: TF32 is a mode of CUDA devices, the case is for " + device);
    }
    return execution;
  }

  /// Sets both TF32 switches of this process, so that 0 means IEEE float32 everywhere: by default
  /// torch has them off for matrix products and on for convolutions.
  void apply() const {
    at::globalContext().setAllowTF32CuBLAS(tf32);
    at::globalContext().setAllowTF32CuDNN(tf32);
  }

  /// The dtype whose rounding parity must allow, where parameters are in `dtype`.
  torch::ScalarType precision(torch::ScalarType dtype) const { return autocast.value_or(dtype); }

  /// A 4-D tensor in the memory format, any other as it is.
  torch::Tensor place(const torch::Tensor& tensor) const {
    return channels_last && tensor.dim() == 4 ? tensor.contiguous(torch::MemoryFormat::ChannelsLast)
                                              : tensor;
  }

  /// Parameters and buffers of `module` in the memory format, in place.
  void place(torch::nn::Module& module) const {
    if (!channels_last) return;
    torch::NoGradGuard no_grad;
    for (auto& p : module.parameters()) p.set_data(place(p.tensor_data()));
    for (auto& b : module.buffers()) b.set_data(place(b.tensor_data()));
  }

  /// Throws SettingsError where the memory format means nothing for these inputs.
  void check_inputs(const std::vector<torch::Tensor>& inputs) const {
    if (!channels_last ||
        std::any_of(inputs.begin(), inputs.end(), [](const auto& x) { return x.dim() == 4; })) {
      return;
    }
    std::string shapes;
    for (const auto& x : inputs) shapes += (shapes.empty() ? "" : ", ") + c10::str(x.sizes());
    throw SettingsError("memory_format=channels_last: expected a case with a 4-D input, found " +
                        shapes + "; take memory_format=contiguous");
  }

  std::string autocast_name() const { return autocast ? "bfloat16" : "none"; }
  std::string memory_format_name() const { return channels_last ? "channels_last" : "contiguous"; }
};

/// Autocast of `execution` for the time of the scope; nothing where they have none. May be nested;
/// the cache of cast weights goes with the outermost scope. For forward and loss, not for backward.
class AutocastScope {
 public:
  AutocastScope(const ExecutionOptions& execution, const torch::Device& device)
      : active_(execution.autocast.has_value()), device_(device.type()) {
    if (!active_) return;
    enabled_ = at::autocast::is_autocast_enabled(device_);
    dtype_ = at::autocast::get_autocast_dtype(device_);
    at::autocast::set_autocast_dtype(device_, *execution.autocast);
    at::autocast::set_autocast_enabled(device_, true);
    at::autocast::increment_nesting();
  }
  ~AutocastScope() {
    if (!active_) return;
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device_, enabled_);
    at::autocast::set_autocast_dtype(device_, dtype_);
  }
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  bool active_;
  torch::DeviceType device_;
  bool enabled_ = false;
  torch::ScalarType dtype_ = torch::kFloat32;
};

}  // namespace torchpace
