// Deep and wide DNN as Google Benchmark cases: dnn_train/layers:64/width:64/batch:32.
// With --training_package=FILE also the compiled step of that package.
#include <torchpace/google_benchmark.hpp>
#include <torchpace/models/dnn.hpp>
#include <torchpace/runtimes/eager.hpp>

#include "training_case.hpp"

namespace {

using torchpace::Workload;

torchpace::Model dnn(int64_t layers, int64_t width, int64_t batch) {
  torch::manual_seed(0);
  auto model = torchpace::make_dnn({{"layers", std::to_string(layers)},
                                    {"width", std::to_string(width)},
                                    {"batch", std::to_string(batch)}});
  model.module->to(torchpace::benchmark_device());
  return model;
}

torchpace::Batches random_samples(int64_t width, int64_t batch) {
  const auto device = torchpace::benchmark_device();
  return {.all_inputs = {{torch::randn({batch, width}, device)}},
          .targets = {
              torch::randint(width, {batch}, torch::TensorOptions(torch::kInt64).device(device))}};
}

Workload dnn_train(int64_t layers, int64_t width, int64_t batch) {
  return torchpace::eager_training(dnn(layers, width, batch), random_samples(width, batch),
                                   torchpace::benchmark_settings());
}

/// Of the size that --training_package was made for.
Workload dnn_compiled_train() {
  using torchpace::CompiledTraining, torchpace::TensorSpec;
  const auto samples = [](const TensorSpec& spec) { return torch::randn(spec.sizes, spec.dtype); };
  const auto classes = [](const TensorSpec& spec) {
    return torch::zeros(spec.sizes, torch::kInt64);  // as costly as any
  };
  return torchpace::bench::training_case(samples, classes, [](const CompiledTraining& training) {
    const auto width = torchpace::bench::sizes_of(training, "layers.0.weight")[1];
    const auto layers = torchpace::bench::count_layers(training, "layers.", ".weight");
    return dnn(layers, width, training.package().inputs.at(0).sizes[0]).cost;
  });
}

Workload dnn_inference(int64_t layers, int64_t width, int64_t batch) {
  return torchpace::eager_inference(dnn(layers, width, batch), random_samples(width, batch),
                                    torchpace::Phase::kThroughput, torchpace::benchmark_settings());
}

Workload dnn_latency(int64_t layers, int64_t width) {
  return torchpace::eager_inference(dnn(layers, width, 1), random_samples(width, 1),
                                    torchpace::Phase::kLatency, torchpace::benchmark_settings());
}

// Deep and wide, each in smoke, quick and paper size.
void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"layers", "width", "batch"});
  b->Args({8, 32, 4})->Args({64, 64, 32})->Args({2048, 256, 2048});
  b->Args({2, 64, 4})->Args({3, 1024, 256})->Args({3, 8192, 2048});
}

}  // namespace

TORCHPACE_BENCHMARK(dnn_train)->Apply(sizes);
TORCHPACE_BENCHMARK(dnn_compiled_train);
TORCHPACE_BENCHMARK(dnn_inference)->Apply(sizes);
TORCHPACE_BENCHMARK(dnn_latency)
    ->ArgNames({"layers", "width"})
    ->Args({8, 32})
    ->Args({64, 64})
    ->Args({2, 64})
    ->Args({3, 1024});
TORCHPACE_BENCHMARK_MAIN()
