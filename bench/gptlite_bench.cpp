// GPTlite as Google Benchmark cases: gptlite_train/layers:4/width:128/heads:4/context:64/batch:8.
// With --training_package=FILE also the compiled step of that package.
#include <torchpace/google_benchmark.hpp>
#include <torchpace/models/gptlite.hpp>
#include <torchpace/runtimes/eager.hpp>

#include "training_case.hpp"

namespace {

using torchpace::Workload;

torchpace::Model gptlite(int64_t layers, int64_t width, int64_t heads, int64_t context,
                         int64_t batch) {
  torch::manual_seed(0);
  const auto text = [](int64_t value) { return std::to_string(value); };
  auto model = torchpace::make_gptlite({{"layers", text(layers)},
                                        {"width", text(width)},
                                        {"heads", text(heads)},
                                        {"context", text(context)},
                                        {"batch", text(batch)}});
  model.module->to(torchpace::benchmark_device());
  return model;
}

torchpace::Batches random_tokens(int64_t batch, int64_t context) {
  const auto options = torch::TensorOptions(torch::kInt64).device(torchpace::benchmark_device());
  return {.all_inputs = {{torch::randint(65, {batch, context}, options)}},
          .targets = {torch::randint(65, {batch, context}, options)}};
}

Workload gptlite_train(int64_t layers, int64_t width, int64_t heads, int64_t context,
                       int64_t batch) {
  return torchpace::eager_training(gptlite(layers, width, heads, context, batch),
                                   random_tokens(batch, context), torchpace::benchmark_settings());
}

/// Of the size that --training_package was made for.
Workload gptlite_compiled_train() {
  using torchpace::CompiledTraining, torchpace::TensorSpec;
  const auto draw = [](const TensorSpec& spec) {
    return torch::randint(65, spec.sizes, torch::kInt64);
  };
  return torchpace::bench::training_case(draw, draw, [](const CompiledTraining& training) {
    const auto width = torchpace::bench::sizes_of(training, "token_embedding.weight")[1];
    const auto layers = torchpace::bench::count_layers(training, "blocks.", ".norm1.weight");
    const auto& shape = training.package().inputs.at(0).sizes;            // B, T
    return gptlite(layers, width, /*heads=*/1, shape[1], shape[0]).cost;  // heads cost nothing
  });
}

Workload gptlite_inference(int64_t layers, int64_t width, int64_t heads, int64_t context,
                           int64_t batch) {
  return torchpace::eager_inference(gptlite(layers, width, heads, context, batch),
                                    random_tokens(batch, context), torchpace::Phase::kThroughput,
                                    torchpace::benchmark_settings());
}

Workload gptlite_latency(int64_t layers, int64_t width, int64_t heads, int64_t context) {
  return torchpace::eager_inference(gptlite(layers, width, heads, context, 1),
                                    random_tokens(1, context), torchpace::Phase::kLatency,
                                    torchpace::benchmark_settings());
}

// Smoke, quick and paper size.
void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"layers", "width", "heads", "context", "batch"});
  b->Args({2, 64, 4, 16, 1})->Args({4, 128, 4, 64, 8})->Args({12, 768, 12, 2048, 1});
}

}  // namespace

TORCHPACE_BENCHMARK(gptlite_train)->Apply(sizes);
TORCHPACE_BENCHMARK(gptlite_compiled_train);
TORCHPACE_BENCHMARK(gptlite_inference)->Apply(sizes);
TORCHPACE_BENCHMARK(gptlite_latency)
    ->ArgNames({"layers", "width", "heads", "context"})
    ->Args({2, 64, 4, 16})
    ->Args({4, 128, 4, 64})
    ->Args({12, 768, 12, 2048});
TORCHPACE_BENCHMARK_MAIN()
