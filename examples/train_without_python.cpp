// Trains GPTlite on a text and writes like it, with no Python in the process.
//
//   torchpace export-training gptlite --optimizer adamw --out gptlite.pt2      # once, with Python
//   train_without_python gptlite.pt2 plays.txt --steps 2000 --model model.pt
//
// TEXT is a text file, or a *.pt that `python -m torchpace.data.text` wrote. After a crash, the
// same command with --resume goes on from the last checkpoint.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <numbers>
#include <set>
#include <string>
#include <torchpace/aot/compiled_training.hpp>
#include <torchpace/data/text.hpp>
#include <torchpace/detail/standard_output.hpp>
#include <torchpace/models/gptlite.hpp>
#include <vector>

namespace {

constexpr const char* kUsage =
    "usage: train_without_python PACKAGE TEXT [options]\n"
    "  --steps N          of training in all (2000)\n"
    "  --lr X             highest learning rate (1e-3)\n"
    "  --warmup N         steps until it is reached; then it falls as a cosine to a tenth (100)\n"
    "  --seed N           of the batches, the dropout and the sample (0)\n"
    "  --report N         steps between two lines (100)\n"
    "  --losses FILE      every loss, a line each\n"
    "  --model FILE       the trained parameters; Python: load_state_dict(torch.load(FILE))\n"
    "  --checkpoint FILE  all that a run needs to go on\n"
    "  --every N          steps between two checkpoints (500)\n"
    "  --until N          stops after this step, as if interrupted\n"
    "  --resume           goes on from the checkpoint\n"
    "  --sample N         characters to write at the end (300)\n"
    "  --temperature X    of the sample (0.8)\n"
    "  --heads N          of the package's attention: no shape tells it (4)\n";

/// PACKAGE, TEXT and --name value as settings.
torchpace::Settings parse(int argc, char** argv) {
  static const std::set<std::string> kNames = {
      "steps",      "lr",    "warmup", "seed",   "report",      "losses", "model",
      "checkpoint", "every", "until",  "sample", "temperature", "heads"};
  torchpace::Settings settings;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (!word.starts_with("--")) {
      files.push_back(word);
      continue;
    }
    const auto name = word.substr(2);
    if (name == "resume") {
      settings.set(name, "1");
    } else if (kNames.contains(name) && i + 1 < argc) {
      settings.set(name, argv[++i]);
    } else {
      throw torchpace::SettingsError("expected an option and its value, got '" + word + "'");
    }
  }
  if (files.size() != 2) throw torchpace::SettingsError("expected PACKAGE and TEXT");
  if (settings.has("resume") && !settings.has("checkpoint"))
    throw torchpace::SettingsError("--resume: expected --checkpoint FILE, found none");
  settings.set("package", files[0]);
  settings.set("text", files[1]);
  return settings;
}

torch::Tensor tokens_of(const std::string& path) {
  if (path.ends_with(".pt")) return torchpace::read_tokens(path);
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK(file.good(), path, ": expected a text, found no file that can be read");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return torchpace::encode_text(text);
}

/// Linear warm-up, then half a cosine from `highest` to a tenth of it.
double learning_rate(int64_t step, int64_t warmup, int64_t steps, double highest) {
  if (step < warmup) return highest * static_cast<double>(step + 1) / static_cast<double>(warmup);
  const double done = static_cast<double>(step - warmup) /
                      static_cast<double>(std::max<int64_t>(1, steps - warmup));
  return highest * (0.1 + 0.9 * (1 + std::cos(std::numbers::pi * done)) / 2);
}

/// The threads of a CPU package are compiled in; torch must be told before it is loaded.
torchpace::CompiledTraining load(const std::string& path) {
  const auto threads = torchpace::AotPackage(path).get("torchpace.threads");
  if (!threads.empty())
    at::set_num_threads(torchpace::Settings{{"threads", threads}}.require<int>("threads"));
  return torchpace::CompiledTraining(path);
}

class Run {
 public:
  explicit Run(const torchpace::Settings& s)
      : settings_(s),
        training_(load(s.require<std::string>("package"))),
        shape_(training_.package().inputs.at(0).sizes),
        batches_(tokens_of(s.require<std::string>("text")), shape_.at(0), shape_.at(1), seed()) {}

  void train() {
    const auto steps = settings_.get<int64_t>("steps", 2000);
    const auto warmup = settings_.get<int64_t>("warmup", 100);
    const auto report = settings_.get<int64_t>("report", 100);
    const auto every = settings_.get<int64_t>("every", 500);
    const auto highest = settings_.get("lr", 1e-3);
    const auto end = std::min(steps, settings_.get("until", steps));
    const auto checkpoint = settings_.get("checkpoint", "");
    TORCH_CHECK(report > 0 && every > 0, "expected --report and --every above 0, got ", report,
                " and ", every);
    torch::manual_seed(static_cast<uint64_t>(seed()));
    auto step = settings_.has("resume") ? training_.resume(checkpoint) : 0;
    const auto first = step;
    const auto begin = std::chrono::steady_clock::now();
    while (step < end) {
      const auto [x, y] = batches_(step);
      losses_.push_back(training_.step(x.to(training_.device()), y.to(training_.device()),
                                       learning_rate(step, warmup, steps, highest)));
      ++step;
      if (step % report == 0 || step == end)
        std::printf("step %6ld  loss %.4f\n", step, losses_.back().item<double>());
      if (!checkpoint.empty() && (step % every == 0 || step == end))
        training_.save_checkpoint(checkpoint, step);
    }
    if (step == first) {
      std::printf("nothing to do: the checkpoint is of step %ld\n", step);
      return;
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    const auto count = static_cast<double>(step - first);
    std::printf("%.0f steps in %.2f s: %.2f ms a step, %.0f characters/s\n", count, elapsed.count(),
                1e3 * elapsed.count() / count,
                count * static_cast<double>(shape_[0] * shape_[1]) / elapsed.count());
  }

  void write_files() const {
    if (settings_.has("model")) training_.save(settings_.require<std::string>("model"));
    if (!settings_.has("losses")) return;
    const auto path = settings_.require<std::string>("losses");
    std::ofstream file(path);
    file.precision(9);
    for (const auto& loss : losses_) file << loss.item<float>() << '\n';
    TORCH_CHECK(file.flush().good(), path, ": could not be written");
  }

  /// Text of the trained parameters: each character from a forward of all that fits the context.
  std::string sample() const {
    const auto count = settings_.get<int64_t>("sample", 300);
    const auto temperature = settings_.get("temperature", 0.8);
    auto model = share_parameters();
    model->eval();
    const torch::NoGradGuard no_grad;
    auto text = torchpace::encode_text("\n").to(training_.device(), torch::kInt64).unsqueeze(0);
    for (int64_t i = 0; i < count; ++i) {
      const auto seen = text.slice(1, std::max<int64_t>(0, text.size(1) - shape_[1]));  // [1, T]
      const auto logits = model->forward(seen).select(1, -1) / temperature;             // [1, V]
      text = torch::cat({text, torch::multinomial(torch::softmax(logits, -1), 1)}, 1);
    }
    return torchpace::decode_text(text.slice(1, 1));
  }

 private:
  /// A model whose parameters are the trained ones themselves: nothing is copied.
  torchpace::Gptlite share_parameters() const {
    const auto parameters = training_.parameters();
    const auto& tokens = parameters.at("token_embedding.weight");  // [V, C]
    int64_t layers = 0;
    while (parameters.contains("blocks." + std::to_string(layers) + ".norm1.weight")) ++layers;
    torchpace::Gptlite model(
        torchpace::GptliteOptions{.layers = layers,
                                  .width = tokens.size(1),
                                  .heads = settings_.get<int64_t>("heads", 4),
                                  .context = parameters.at("position_embedding.weight").size(0),
                                  .vocabulary = tokens.size(0)});
    training_.share_with(*model);
    return model;
  }

  int64_t seed() const { return settings_.get<int64_t>("seed", 0); }

  torchpace::Settings settings_;
  torchpace::CompiledTraining training_;
  std::vector<int64_t> shape_;  // B, T
  torchpace::TextBatches batches_;
  std::vector<torch::Tensor> losses_;
};

}  // namespace

int main(int argc, char** argv) {
  try {
    Run run(parse(argc, argv));
    run.train();
    run.write_files();
    std::cout << run.sample() << '\n';
    if (!torchpace::output_is_lost()) return 0;
    std::cerr << "train_without_python: " << torchpace::kLostOutput << '\n';
    return 1;
  } catch (const torchpace::SettingsError& error) {
    std::cerr << "train_without_python: " << error.what() << '\n' << kUsage;
    return 2;
  } catch (const c10::Error& error) {
    std::cerr << "train_without_python: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "train_without_python: " << error.what() << '\n';
  }
  return 2;
}
