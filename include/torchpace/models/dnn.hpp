// Plain deep or wide network: y = W_L relu(... relu(W_1 x + b_1) ...) + b_L, all layers square.
// Source: He et al. 2015, arXiv:1502.01852, for the initialization.
// Twin: python/torchpace/models/dnn.py.
// Dimensions: B batch, W width, L layers.
#pragma once

#include <torch/torch.h>

#include "torchpace/model.hpp"

namespace torchpace {

struct DnnOptions {
  int64_t layers = 64;  // L
  int64_t width = 64;   // W, also of the input and the output
};

struct DnnImpl : torch::nn::Module {
  explicit DnnImpl(DnnOptions o = {}) : options(o) {
    TORCH_CHECK(o.layers > 0 && o.width > 0, "Dnn: expected layers and width above 0, got ",
                o.layers, " and ", o.width);
    register_module("layers", layers);
    for (int64_t i = 0; i < o.layers; ++i) {
      torch::nn::Linear layer(o.width, o.width);
      // PyTorch's default shrinks the signal by sqrt(6) a layer: 64 layers deep, every gradient is
      // zero.
      torch::nn::init::kaiming_uniform_(layer->weight, /*a=*/0, torch::kFanIn, torch::kReLU);
      torch::nn::init::zeros_(layer->bias);
      layers->push_back(layer);
    }
  }

  /// x: [B, W]. Returns logits [B, W] (no ReLU after the last layer). Throws c10::Error unless x is
  /// [B, W].
  torch::Tensor forward(const torch::Tensor& x) {
    TORCH_CHECK(x.dim() == 2 && x.size(1) == options.width, "Dnn: expected x [B, ", options.width,
                "], got ", x.sizes());
    auto y = x;
    for (int64_t i = 0; i < options.layers; ++i) {
      y = layers[static_cast<std::size_t>(i)]->as<torch::nn::Linear>()->forward(y);
      if (i + 1 < options.layers) y = torch::relu(y);
    }
    return y;
  }

  /// Forward 2 B L W^2; backward twice that, less the gradient of the input, which nobody asks for.
  Cost cost(int64_t batch, int64_t element_bytes = 4) const {
    const auto b = static_cast<double>(batch), l = static_cast<double>(options.layers),
               w = static_cast<double>(options.width), e = static_cast<double>(element_bytes);
    const double layer_flops = 2 * b * w * w;
    const double parameter_bytes = e * l * (w * w + w);
    return {.forward_flops = l * layer_flops,
            .training_flops = 3 * l * layer_flops - layer_flops,
            .parameter_bytes = parameter_bytes,
            .forward_minimum_bytes = parameter_bytes + 2 * e * b * w,
            .training_minimum_bytes = 6 * parameter_bytes + e * b * w + 8 * b,
            .items = b,
            .item = "samples"};
  }

  DnnOptions options;
  torch::nn::ModuleList layers;  // L x Linear, weight [W, W], bias [W]
};
TORCH_MODULE(Dnn);

/// Settings: layers, width, batch; dtype.
inline Model make_dnn(const Settings& s) {
  Dnn dnn(DnnOptions{.layers = s.require<int64_t>("layers"), .width = s.require<int64_t>("width")});
  return {.module = dnn.ptr(),
          .forward = [dnn](const torch::Tensor& x) mutable { return dnn->forward(x); },
          .loss =
              [](const torch::Tensor& y, const torch::Tensor& target) {
                return torch::nn::functional::cross_entropy(y, target);
              },
          .cost = dnn->cost(s.require<int64_t>("batch"), element_bytes(s))};
}

}  // namespace torchpace
