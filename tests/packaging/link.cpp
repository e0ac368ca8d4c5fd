// Links LibTorch and runs one operator, with few headers: what is tested is how LibTorch is found
// and linked.
#include <ATen/ops/ones.h>
#include <torch/version.h>
#include <unistd.h>

#include <filesystem>
#include <iostream>
#include <string>
#include <torchpace/statistics.hpp>

int main() {
  // Crashes where the program binds to LibTorch's own copy of std::filesystem.
  const auto folder =
      std::filesystem::temp_directory_path() / ("torchpace_link_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder / "inner");
  std::filesystem::remove_all(folder);

  std::cout << "LibTorch " << TORCH_VERSION << ", sum " << at::ones({2, 3}).sum().item<float>()
            << '\n';
}
