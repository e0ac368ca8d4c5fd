// What a user writes first: time a model.
#include <iostream>
#include <torchpace/torchpace.hpp>

int main() {
  torchpace::Gptlite model(
      torchpace::GptliteOptions{.layers = 1, .width = 16, .heads = 2, .context = 8});
  const auto tokens = torch::randint(65, {1, 8});
  std::cout << torchpace::benchmark_inference(model, tokens) << '\n';
}
