// Links LibTorch and runs one operator, with few headers: what is tested is how LibTorch is found.
#include <ATen/ops/ones.h>
#include <torch/version.h>
#include <torchpace/statistics.hpp>

#include <iostream>

int main() {
  std::cout << "LibTorch " << TORCH_VERSION << ", sum " << at::ones({2, 3}).sum().item<float>() << '\n';
}
