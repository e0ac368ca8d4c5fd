// The program of a C++ worker: one runtime, any case of torchpace, under the control of `torchpace
// compare`. Runtimes that need another engine have a program each, so that no other worker loads
// its libraries.
#pragma once

#include <iostream>
#include <string>
#include <torchpace/detail/standard_output.hpp>
#include <torchpace/worker.hpp>
#include <vector>

#include "registry/registry.hpp"

namespace torchpace {

inline int list_runtimes(const std::vector<Runtime>& runtimes) {
  std::vector<std::string> entries;
  for (const auto& runtime : runtimes) {
    entries.push_back(JsonObject()
                          .add("name", runtime.name)
                          .add("description", runtime.description)
                          .add("artifact", runtime.artifact)
                          .add("approximate", runtime.approximate)
                          .str());
  }
  std::cout << JsonObject().raw("runtimes", json_array(entries)).str() << '\n';
  if (!output_is_lost()) return 0;
  std::cerr << "torchpace_worker: " << kLostOutput << '\n';
  return 1;
}

inline int worker_usage(const std::string& problem) {
  std::cerr << "torchpace_worker: " << problem
            << "; usage: torchpace_worker --list | --runtime NAME [--slow FRACTION]\n";
  return 2;
}

/// main() of a worker of these runtimes. Returns the exit code.
inline int run_worker(int argc, char** argv, const std::vector<Runtime>& runtimes) try {
  WorkerOptions options{.runtime = "", .cases = {"*"}};
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--list") return list_runtimes(runtimes);
    if (i + 1 == argc) return worker_usage("expected a value after '" + word + "'");
    const std::string value = argv[++i];
    if (word == "--runtime") {
      options.runtime = value;
    } else if (word == "--slow") {
      options.slow = Settings{{"slow", value}}.require<double>("slow");
    } else {
      return worker_usage("unknown option '" + word + "'");
    }
  }
  for (const auto& runtime : runtimes) {
    if (runtime.name != options.runtime) continue;
    options.approximate = runtime.approximate;
    return serve_worker(options, [runtime](const Settings& settings) {
      return runtime.load(settings, make_model(settings.require<std::string>("model"), settings));
    });
  }
  return worker_usage("unknown runtime '" + options.runtime + "'");
} catch (const SettingsError& error) {
  return worker_usage(error.what());
}

}  // namespace torchpace
