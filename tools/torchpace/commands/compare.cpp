#include "commands/compare.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <iostream>
#include <memory>
#include <set>

#include "analysis/regression_check.hpp"
#include "commands/command.hpp"
#include "commands/doctor.hpp"
#include "commands/measuring_options.hpp"
#include "doctor/host_info.hpp"
#include "doctor/usable_resources.hpp"
#include "report/console_report.hpp"
#include "support/console.hpp"
#include "support/error.hpp"
#include "support/signals.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

/// The beginnings of what libraries of kernels and of threads read.
constexpr const char* kMathVariables[] = {"MKL_",
                                          "DNNL_",
                                          "ONEDNN_",
                                          "OPENBLAS_",
                                          "BLIS_",
                                          "KMP_",
                                          "GOMP_",
                                          "OMP_",
                                          "ATEN_",
                                          "CUBLAS_",
                                          "NVIDIA_TF32_OVERRIDE",
                                          "CUDA_LAUNCH_BLOCKING"};

std::string now_utc() {
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
}

/// What an earlier run left in the output folder, where --resume asks for it. Cases that it left
/// out are taken from `cases`.
Results resumed(const CompareOptions& options, Results fresh, std::vector<Case>& cases) {
  const auto file = fs::path(options.output) / "results.json";
  if (!options.resume || !fs::exists(file)) return fresh;
  auto earlier = load_results(file);
  // What could not be had was left out there, and is left out again.
  std::vector<std::string> names;
  for (const auto& result : earlier.cases) names.push_back(result.name);
  const auto is_gone = [&](const std::string& name) {
    return std::find(names.begin(), names.end(), name) == names.end();
  };
  std::erase_if(cases, [&](const Case& c) { return c.optional && is_gone(c.name); });
  std::erase_if(fresh.cases, [&](const CaseResult& c) {
    return is_gone(c.name) && std::none_of(cases.begin(), cases.end(),
                                           [&](const Case& other) { return other.name == c.name; });
  });
  check_same_plan(earlier, fresh, file.string());
  fresh.plan.invocations = earlier.plan.invocations;
  fresh.plan.max_seconds = std::max(fresh.plan.max_seconds, earlier.plan.max_seconds);
  fresh.plan.pairs = earlier.plan.pairs;
  fresh.created = earlier.created;
  fresh.elapsed_s = earlier.elapsed_s;
  for (auto& warning : earlier.warnings) fresh.warn(std::move(warning));
  fresh.cases = std::move(earlier.cases);
  return fresh;
}

/// False where the page could not be written.
bool report(const Results& results, const CompareOptions& options,
            const Installation& installation) {
  const fs::path folder = options.output;
  print_report(results, std::cout, isatty(STDOUT_FILENO) == 1);
  std::cout.flush();
  write_markdown(results, folder / "report.md");
  log(fmt::format("wrote {} and report.md", (folder / "results.json").string()));
  if (options.no_html) return true;
  const auto page = make_html(installation, folder / "results.json", folder);
  log(page.message);
  return page.outcome != HtmlPage::Outcome::failed;
}

int verdict_of(const Results& results, const std::optional<FailOn>& fail_on) {
  if (fail_on) {
    const auto regressions = find_regressions(results, *fail_on);
    for (const auto& line : regressions.found) log("regression: " + line);
    for (const auto& line : regressions.not_judged) log(line);
  }
  return exit_code(results, fail_on);
}

/// What the doctor finds about the machine as it is now.
void warn_of_machine(Results& results) {
  const std::set<std::string> topics = {"threads", "governor",     "load", "memory",
                                        "swap",    "BLAS, OpenMP", "GPU"};
  MachineTrial trial;
  watch_processors(trial);
  for (const auto& finding : examine(results.environment, trial)) {
    if (finding.level != "warn" || !topics.contains(finding.topic)) continue;
    const auto advice = finding.advice.empty() ? "" : "; " + finding.advice;
    results.warn({"machine", "warning",
                  fmt::format("{}: {}{}", finding.topic, finding.text, advice), "", ""});
  }
  const int cores = usable_cores(results.environment);
  if (results.plan.threads <= cores) return;
  results.warn(
      {"threads", "warning",
       fmt::format("{} threads share {} physical cores: steps wait for each other; --threads {}",
                   results.plan.threads, cores, cores),
       "", ""});
}

Results fresh_results(const ExperimentOptions& experiment, const Json& host) {
  Results results;
  results.torchpace = TORCHPACE_VERSION;
  results.created = now_utc();
  results.plan = experiment.plan;
  results.environment = host;
  for (const auto& item : experiment.cases) {
    results.cases.push_back(empty_result(item, experiment.plan.reference));
    results.cases.back().explanation = experiment.explanation;
  }
  for (const auto& warning : experiment.warnings) results.warn(warning);
  warn_of_machine(results);
  return results;
}

/// Returns kInterrupted when the user stopped it, kBadInput where nothing could be measured because
/// of what the user has given.
int run_experiment(ExperimentOptions options, Results& results) {
  Progress progress;
  try {
    Experiment experiment(std::move(options), results, progress);
    experiment.run();
    return experiment.met_bad_input_only() ? kBadInput : kOk;
  } catch (const Interrupted&) {
    clear_interrupt();
    progress.log("interrupted: what was measured is kept, --resume continues");
    return kInterrupted;
  }
}

/// Of the environment that all workers get.
std::vector<Warning> warn_of_variables(const std::vector<std::string>& removed, const Json& host) {
  std::vector<Warning> warnings;
  const auto add = [&](const std::string& text) {
    log(text);
    warnings.push_back({"environment", "warning", text, "", ""});
  };
  if (!removed.empty()) {
    add(fmt::format("removed for all workers: {}; {} would change what is compiled or how it runs",
                    fmt::join(removed, ", "), removed.size() == 1 ? "it" : "they"));
  }
  std::vector<std::string> inherited;
  const auto variables = host.value("variables", Json::object());  // outlives its items
  for (const auto& [name, value] : variables.items()) {
    const auto begins = [&name = name](const char* prefix) { return name.starts_with(prefix); };
    const bool is_ours = name == "OMP_NUM_THREADS" || name == "MKL_NUM_THREADS";
    if (is_ours || std::none_of(std::begin(kMathVariables), std::end(kMathVariables), begins))
      continue;
    inherited.push_back(fmt::format("{}={}", name, value.get<std::string>()));
  }
  if (!inherited.empty())
    add(fmt::format("in force for all workers: {}", fmt::join(inherited, ", ")));
  return warnings;
}

}  // namespace

int compare(const CompareOptions& options, const std::function<void(ExperimentOptions&)>& change) {
  check_values(options);
  std::optional<FailOn> fail_on;
  if (!options.fail_on.empty()) fail_on = parse_fail_on(options.fail_on);
  const auto removed = remove_compile_variables();
  const auto installation = find_installation(options.python);
  const auto host = host_environment();
  auto experiment = planned(options, installation, host);
  for (auto& warning : warn_of_variables(removed, host)) {
    experiment.warnings.push_back(std::move(warning));
  }
  change(experiment);
  auto results = resumed(options, fresh_results(experiment, host), experiment.cases);
  const int ending = run_experiment(std::move(experiment), results);
  const bool is_written = report(results, options, installation);
  if (ending != kOk) return ending;
  const int verdict = verdict_of(results, fail_on);
  return verdict == kOk && !is_written ? kCaseFailed : verdict;
}

int compare(const CompareOptions& options) {
  return compare(options, [](ExperimentOptions&) {});
}

void register_compare(CLI::App& app, CommandLine& line) {
  auto& command = *app.add_subcommand("compare", "Measure runtimes side by side and judge them");
  const auto o = std::make_shared<CompareOptions>();
  o->arguments = line.arguments;
  add_measuring_options(command, *o,
                        {.invocations = "of the preset",
                         .max_seconds = "of the preset, and more for each further runtime"});
  add_list(command, "--cases", o->cases, "NAMES",
           "Cases, names or patterns: gptlite_train,dnn_*/size:smoke (default: all)");
  add_repeated(command, "--set", o->set, "KEY=VALUES",
               "Values of a setting: layers=64, batch=1:64*2; lists and ranges multiply out");
  add_list(
      command, "--runtimes", o->runtimes, "NAMES",
      "Runtimes, names or patterns: all, cpp-eager, py-*; RUNTIME@KEY:VALUE for a row with a "
      "setting of its own, cpp-aot@gemm:torchpace (default: *-eager; of the preset paper: all)");
  command
      .add_option("--reference", o->reference,
                  "Baseline for speedups (default: py-eager, else the last worker)")
      ->type_name("NAME");
  command
      .add_option("--fail-on", o->fail_on,
                  "Exit with code 5 where a whole interval is below X: speedup<X")
      ->type_name("RULE");
  command.callback([o, &line] { line.action = [o] { return compare(*o); }; });
}

}  // namespace torchpace::cli
