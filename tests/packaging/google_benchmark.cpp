// A benchmark program of a user's own.
#include <torchpace/google_benchmark.hpp>

int main() {
  torch::nn::Linear model(4, 4);
  benchmark::DoNotOptimize(model->forward(torch::ones({1, 4})));
}
