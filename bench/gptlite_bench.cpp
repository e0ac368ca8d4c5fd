// GPTlite as Google Benchmark cases: gptlite_train/layers:4/width:128/heads:4/context:64/batch:8.
#include <torchpace/google_benchmark.hpp>
#include <torchpace/models/gptlite.hpp>
#include <torchpace/runtimes/eager.hpp>

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
TORCHPACE_BENCHMARK(gptlite_inference)->Apply(sizes);
TORCHPACE_BENCHMARK(gptlite_latency)
    ->ArgNames({"layers", "width", "heads", "context"})
    ->Args({2, 64, 4, 16})
    ->Args({4, 128, 4, 64})
    ->Args({12, 768, 12, 2048});
TORCHPACE_BENCHMARK_MAIN()
