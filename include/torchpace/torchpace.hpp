// What a program that measures needs: benchmark_train, benchmark_inference, compare, the models and
// the optimizers. Runtimes, workers, compiled training (aot/), data and Google Benchmark are
// included one by one: they would double what this header adds to the compile time of
// <torch/torch.h>.
#pragma once

#include <torchpace/benchmark.hpp>
#include <torchpace/case_phase.hpp>
#include <torchpace/comparison.hpp>
#include <torchpace/device.hpp>
#include <torchpace/environment.hpp>
#include <torchpace/measurement.hpp>
#include <torchpace/model.hpp>
#include <torchpace/models/dnn.hpp>
#include <torchpace/models/file.hpp>
#include <torchpace/models/gptlite.hpp>
#include <torchpace/models/imported.hpp>
#include <torchpace/optim/algorithms.hpp>
#include <torchpace/optim/factory.hpp>
#include <torchpace/optim/multi_tensor.hpp>
#include <torchpace/optim/optimizer.hpp>
#include <torchpace/outputs.hpp>
#include <torchpace/parity.hpp>
#include <torchpace/settings.hpp>
#include <torchpace/statistics.hpp>
#include <torchpace/stopping_criterion.hpp>
#include <torchpace/timing.hpp>
