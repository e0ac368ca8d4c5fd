// The worker of cpp-openvino.
#include <torchpace/runtimes/openvino.hpp>

#include "worker/run_worker.hpp"

int main(int argc, char** argv) {
  return torchpace::run_worker(argc, argv, torchpace::openvino_runtimes());
}
