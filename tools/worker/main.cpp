// The worker of the runtimes that need LibTorch alone.
#include "worker/run_worker.hpp"

int main(int argc, char** argv) {
  return torchpace::run_worker(argc, argv, torchpace::all_runtimes());
}
