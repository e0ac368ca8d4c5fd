#include "compare.hpp"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <iostream>
#include <set>

#include "doctor.hpp"
#include "error.hpp"
#include "host.hpp"
#include "interrupt.hpp"
#include "machine.hpp"
#include "report.hpp"
#include "terminal.hpp"
#include "verdict.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

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
  fresh.plan.generations = earlier.plan.generations;
  fresh.plan.max_seconds = std::max(fresh.plan.max_seconds, earlier.plan.max_seconds);
  fresh.plan.pairs = earlier.plan.pairs;
  fresh.created = earlier.created;
  fresh.elapsed_s = earlier.elapsed_s;
  fresh.waited_s = earlier.waited_s;
  for (auto& warning : earlier.warnings) fresh.warn(std::move(warning));
  fresh.cases = std::move(earlier.cases);
  return fresh;
}

void report(const Results& results, const CompareOptions& options,
            const Installation& installation) {
  const fs::path folder = options.output;
  print_report(results, std::cout, isatty(STDOUT_FILENO) == 1);
  std::cout.flush();
  write_markdown(results, folder / "report.md");
  say(fmt::format("wrote {} and report.md", (folder / "results.json").string()));
  if (options.no_html) return;
  const auto page = make_html(installation, folder / "results.json", folder);
  say(page.message);
}

int verdict_of(const Results& results, const std::optional<FailOn>& fail_on) {
  if (fail_on) {
    const auto regressions = find_regressions(results, *fail_on);
    for (const auto& line : regressions.found) say("regression: " + line);
    for (const auto& line : regressions.not_judged) say(line);
  }
  return exit_code(results, fail_on);
}

/// What the doctor finds about the machine as it is now.
void warn_of_machine(Results& results) {
  const std::set<std::string> topics = {"threads", "governor",     "load", "memory",
                                        "swap",    "BLAS, OpenMP", "GPU"};
  Probe probe;
  watch_processors(probe);
  for (const auto& finding : examine(results.environment, probe)) {
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

/// False when the user stopped it.
bool run_experiment(ExperimentOptions experiment, Results& results) {
  Progress progress;
  try {
    Experiment(std::move(experiment), results, progress).run();
    return true;
  } catch (const Interrupted&) {
    clear_interrupt();
    progress.say("interrupted: what was measured is kept, --resume continues");
    return false;
  }
}

}  // namespace

int compare(const CompareOptions& options, const std::function<void(ExperimentOptions&)>& change) {
  check_values(options);
  std::optional<FailOn> fail_on;
  if (!options.fail_on.empty()) fail_on = parse_fail_on(options.fail_on);
  const auto installation = find_installation(options.python);
  const auto host = host_environment();
  auto experiment = planned(options, installation, host);
  change(experiment);
  auto results = resumed(options, fresh_results(experiment, host), experiment.cases);
  const bool finished = run_experiment(std::move(experiment), results);
  report(results, options, installation);
  return finished ? verdict_of(results, fail_on) : kInterrupted;
}

int compare(const CompareOptions& options) {
  return compare(options, [](ExperimentOptions&) {});
}

}  // namespace torchpace::cli
