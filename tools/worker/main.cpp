// The C++ worker: one runtime, any case of torchpace, under the control of `torchpace compare`.
#include <iostream>
#include <string>
#include <torchpace/detail/standard_output.hpp>
#include <torchpace/worker.hpp>
#include <vector>

#include "registry/registry.hpp"

namespace {

int list_runtimes() {
  std::vector<std::string> runtimes;
  for (const auto& runtime : torchpace::all_runtimes()) {
    runtimes.push_back(torchpace::JsonObject()
                           .add("name", runtime.name)
                           .add("description", runtime.description)
                           .add("artifact", runtime.artifact)
                           .str());
  }
  std::cout << torchpace::JsonObject().raw("runtimes", torchpace::json_array(runtimes)).str()
            << '\n';
  if (!torchpace::output_is_lost()) return 0;
  std::cerr << "torchpace_worker: " << torchpace::kLostOutput << '\n';
  return 1;
}

int usage(const std::string& problem) {
  std::cerr << "torchpace_worker: " << problem
            << "; usage: torchpace_worker --list | --runtime NAME [--slow FRACTION]\n";
  return 2;
}

}  // namespace

int main(int argc, char** argv) try {
  torchpace::WorkerOptions options{.runtime = "", .cases = {"*"}};
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--list") return list_runtimes();
    if (i + 1 == argc) return usage("expected a value after '" + word + "'");
    const std::string value = argv[++i];
    if (word == "--runtime") {
      options.runtime = value;
    } else if (word == "--slow") {
      options.slow = torchpace::Settings{{"slow", value}}.require<double>("slow");
    } else {
      return usage("unknown option '" + word + "'");
    }
  }
  for (const auto& runtime : torchpace::all_runtimes()) {
    if (runtime.name != options.runtime) continue;
    return torchpace::serve_worker(options, [runtime](const torchpace::Settings& settings) {
      return runtime.load(settings,
                          torchpace::make_model(settings.require<std::string>("model"), settings));
    });
  }
  return usage("unknown runtime '" + options.runtime + "'");
} catch (const torchpace::SettingsError& error) {
  return usage(error.what());
}
