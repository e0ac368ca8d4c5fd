// The worker of cpp-onnxruntime.
#include <torchpace/runtimes/onnxruntime.hpp>

#include "worker/run_worker.hpp"

int main(int argc, char** argv) {
  return torchpace::run_worker(argc, argv, torchpace::onnxruntime_runtimes());
}
