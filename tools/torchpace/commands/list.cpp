#include "commands/list.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "cases_json.hpp"
#include "commands/command.hpp"
#include "plan/runtime_discovery.hpp"
#include "plan/sweep.hpp"
#include "support/error.hpp"
#include "torchpace/case_phase.hpp"

namespace torchpace::cli {
namespace {

std::string settings_text(const Json& values) {
  std::string text;
  for (const auto& [key, value] : values.items()) {
    text += fmt::format("{}{}={}", text.empty() ? "" : " ", key,
                        value.is_string() ? value.get<std::string>() : value.dump());
  }
  return text;
}

void print_cases(const Json& json) {
  fmt::print("Cases are named FAMILY_PHASE/size:SIZE; phases: {}\n\n",
             fmt::join(case_phase_names(), ", "));
  for (const auto& [family, entry] : json.at("families").items()) {
    fmt::print("{}  {}\n", family, settings_text(entry.at("settings")));
    for (const auto& [size, values] : entry.at("sizes").items()) {
      fmt::print("  size:{:<8}{}\n", size, settings_text(values));
    }
  }
  fmt::print("\nPresets\n");
  for (const auto& [name, entry] : json.at("presets").items()) {
    fmt::print(
        "  {:<8} size {}, {} invocations, two runtimes in at most {} s, {} s with each more\n",
        name, entry.at("size").get<std::string>(), entry.at("invocations").get<int>(),
        entry.at("max_seconds").get<double>(), entry.at("seconds_per_runtime").get<double>());
  }
}

void print_runtimes(const std::vector<WorkerSpec>& runtimes,
                    const std::vector<std::string>& problems) {
  fmt::print("\nRuntimes\n");
  size_t width = 0;
  for (const auto& spec : runtimes) width = std::max(width, spec.runtime.size());
  for (const auto& spec : runtimes) {
    const auto absent = spec.absent.empty() ? "" : fmt::format(" (absent: {})", spec.absent);
    fmt::print("  {:<{}}  {}{}\n", spec.runtime, width, spec.description, absent);
  }
  for (const auto& problem : problems) fmt::print("  {}\n", problem);
}

}  // namespace

int list(const std::string& python, bool as_json) {
  auto json = Catalog(kCasesJson).json();
  if (!as_json) {
    print_cases(json);
    std::fflush(stdout);  // the workers that know the runtimes take seconds to start
  }
  std::vector<std::string> problems;
  const auto runtimes = discover_runtimes(find_installation(python), problems);
  if (!as_json) {
    print_runtimes(runtimes, problems);
    return kOk;
  }
  json["runtimes"] = Json::array();
  for (const auto& spec : runtimes) {
    json["runtimes"].push_back(
        {{"name", spec.runtime}, {"description", spec.description}, {"absent", spec.absent}});
  }
  json["problems"] = problems;
  fmt::print("{}\n", json.dump(1));
  return kOk;
}

void register_list(CLI::App& app, CommandLine& line) {
  struct Options {
    std::string python;
    bool json = false;
  };
  auto& command = *app.add_subcommand("list", "List families, sizes, phases, presets and runtimes");
  const auto o = std::make_shared<Options>();
  command.add_flag("--json", o->json, "Print JSON");
  command
      .add_option("--python", o->python,
                  "Python interpreter (default: TORCHPACE_PYTHON, .venv, python3)")
      ->type_name("PATH");
  command.callback([o, &line] { line.action = [o] { return list(o->python, o->json); }; });
}

}  // namespace torchpace::cli
