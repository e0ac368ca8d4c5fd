// Calls a TorchScript file as a program of one's own does, in one of the ways that reports of slow
// C++ have in common. causes.py compiles and drives it; docs/guides/cpp-slower-than-python.md says
// what each way costs.
//
//   caller FILE SHAPE[,SHAPE...] [key=value ...]   then lines `N` on standard input: N calls, whose
//                                                  times in ns are the answer, in one line
//
// guard=none|no_grad|inference   whether something is recorded for a backward that never comes
// caller=same|new                calls come from one thread, or each from a thread that is new
// executor=on|off                off: what old advice against slow first calls turns off
// threads=N                      of one operator
// flush=0|1                      numbers below 1e-38 count as 0
// input=normal|denormal          what the model is given
// own=none|busy|loops            what else the program does: a thread that is always busy, or loops
//                                that prepare an image before each call
#include <ATen/Parallel.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/script.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Values = std::vector<torch::jit::IValue>;

/// 1x3x224x224 as a tensor of normal numbers.
at::Tensor drawn(const std::string& shape) {
  std::vector<int64_t> sizes;
  std::istringstream text(shape);
  for (std::string size; std::getline(text, size, 'x');) sizes.push_back(std::stoll(size));
  return at::randn(sizes);
}

/// What a program does with a frame before the model sees it: bytes [H, W, 3] become floats
/// [3, H, W], in loops that only the compiler can make fast.
void prepare(at::Tensor x) {
  static const auto kFrame = at::randint(256, {x.size(2), x.size(3), 3}, at::kByte);
  const auto frame = kFrame.accessor<uint8_t, 3>();
  auto image = x.accessor<float, 4>();
  for (int64_t c = 0; c < image.size(1); ++c) {
    for (int64_t i = 0; i < image.size(2); ++i) {
      for (int64_t j = 0; j < image.size(3); ++j)
        image[0][c][i][j] = (static_cast<float>(frame[i][j][c % 3]) / 255.0F - 0.45F) / 0.22F;
    }
  }
}

void forward(torch::jit::Module& module, const Values& inputs, const std::string& guard) {
  if (guard == "inference") {
    c10::InferenceMode inference;
    module.forward(inputs);
  } else if (guard == "no_grad") {
    at::NoGradGuard no_grad;
    module.forward(inputs);
  } else {
    module.forward(inputs);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::cerr << "caller FILE SHAPE[,SHAPE...] [key=value ...]\n", 2;
  std::map<std::string, std::string> options;
  for (int i = 3; i < argc; ++i) {
    const std::string word = argv[i];
    options[word.substr(0, word.find('='))] = word.substr(word.find('=') + 1);
  }
  if (options["flush"] == "1") at::globalContext().setFlushDenormal(true);
  if (!options["threads"].empty()) at::set_num_threads(std::stoi(options["threads"]));
  if (options["executor"] == "off") {
    torch::jit::getProfilingMode() = false;
    torch::jit::setGraphExecutorOptimize(false);
  }
  if (options["own"] == "busy") {
    std::thread([] {
      for (volatile uint64_t count = 0;;) count = count + 1;
    }).detach();
  }
  auto module = torch::jit::load(argv[1]);
  module.eval();
  std::vector<at::Tensor> batches;
  std::istringstream shapes(argv[2]);
  for (std::string shape; std::getline(shapes, shape, ',');) batches.push_back(drawn(shape));
  if (options["input"] == "denormal") {
    for (auto& x : batches) x = x.mul(1e-39);
  }

  std::size_t next = 0;
  const auto call = [&] {
    const auto& x = batches[next++ % batches.size()];
    if (options["own"] == "loops") prepare(x);
    forward(module, {x}, options["guard"]);
  };
  for (int count = 0; std::cin >> count;) {
    for (int i = 0; i < count; ++i) {
      const auto begin = Clock::now();
      if (options["caller"] == "new") {
        std::thread(call).join();
      } else {
        call();
      }
      std::cout << std::chrono::nanoseconds(Clock::now() - begin).count() << ' ';
    }
    std::cout << std::endl;
  }
  std::cout.flush();
  std::_Exit(0);  // a busy thread never ends
}
