#include "commands/explain.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "commands/command.hpp"
#include "commands/compare.hpp"
#include "commands/measuring_options.hpp"
#include "support/error.hpp"
#include "support/strings.hpp"

namespace torchpace::cli {
namespace {

constexpr double kShareOfPreset = 0.5;  // of the time that a comparison takes
constexpr int kInvocations = 6;         // the fewest whose intervals are order statistics

/// A name without its version means the first version's.
const WorkerSpec& named(const std::vector<WorkerSpec>& specs, const std::string& name) {
  const auto found = std::find_if(specs.begin(), specs.end(), [&](const WorkerSpec& spec) {
    return spec.runtime == name || spec.runtime.starts_with(name + "@");
  });
  if (found != specs.end()) return *found;
  std::vector<std::string> names;
  for (const auto& spec : specs) names.push_back(spec.runtime);
  throw Error(fmt::format("unknown runtime '{}'{}", name, did_you_mean(name, names)));
}

void check_names(const ExplainOptions& options) {
  for (const auto& name : {options.from, options.to}) {
    if (is_pattern(name) || name.find(',') != std::string::npos) {
      throw Error(fmt::format("expected the name of one runtime, found '{}'", name));
    }
  }
  if (options.from == options.to) {
    throw Error(fmt::format("expected two runtimes, found '{}' twice", options.from));
  }
}

/// Those of torchpace's own among the two, without their versions.
std::vector<std::string> our_runtimes(const ExplainOptions& options) {
  std::vector<std::string> names;
  for (const auto& name : {options.from, options.to}) {
    const bool own =
        std::any_of(options.how.workers.begin(), options.how.workers.end(),
                    [&](const std::string& worker) { return worker.starts_with(name + "="); });
    if (!own) names.push_back(name.substr(0, name.find('@')));
  }
  return names;
}

/// The options of `compare` that the arguments stand for are not what the user has written.
std::string in_words_of_explain(std::string text) {
  for (const char* option : {"--cases: ", "--runtimes: ", "--reference: "}) {
    if (text.starts_with(option)) text.erase(0, std::string(option).size());
  }
  return text;
}

WorkerSpec condition_of(const WorkerSpec& spec, const std::string& condition) {
  auto variant = spec;
  variant.runtime = spec.runtime + "@" + condition;
  variant.condition_of = spec.runtime;
  return variant;
}

WorkerSpec with_allocator(const WorkerSpec& spec, const std::string& now,
                          const std::string& allocator) {
  auto variant = condition_of(spec, "allocator:" + allocator);
  auto& environment = variant.command.environment;
  for (const auto& [name, value] : allocator_environment(now)) environment.erase(name);
  environment.merge(allocator_environment(allocator));
  return variant;
}

WorkerSpec with_one_thread(const WorkerSpec& spec) {
  auto variant = condition_of(spec, "threads:1");
  for (const char* name : {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}) {
    variant.command.environment[name] = "1";
  }
  variant.settings.set("threads", "1");
  return variant;
}

void log_left_out(ExperimentOptions& experiment, const std::string& text) {
  experiment.warnings.push_back({"left-out", "info", text, "", ""});
}

void add_allocators(ExperimentOptions& experiment, const std::vector<WorkerSpec>& two) {
  const auto& now = experiment.plan.allocator;
  for (const std::string allocator : {"tuned", "system", "jemalloc"}) {
    if (allocator == now) continue;
    try {
      for (const auto& spec : two) {
        experiment.runtimes.push_back(with_allocator(spec, now, allocator));
        experiment.probed.insert(experiment.runtimes.back().runtime);
      }
    } catch (const Error& error) {
      log_left_out(experiment, fmt::format("no condition with {}: {}", allocator, error.what()));
    }
  }
}

void add_one_thread(ExperimentOptions& experiment, const std::vector<WorkerSpec>& two) {
  if (experiment.plan.threads < 2) return;
  for (const auto& spec : two) {
    if (spec.artifact.empty()) continue;
    log_left_out(experiment, fmt::format("no condition with one thread: {} is compiled for {}",
                                         spec.runtime, experiment.plan.threads));
    return;
  }
  for (const auto& spec : two) experiment.runtimes.push_back(with_one_thread(spec));
}

}  // namespace

void plan_explanation(const ExplainOptions& options, ExperimentOptions& experiment) {
  if (experiment.cases.size() != 1) {
    std::vector<std::string> names;
    for (const auto& item : experiment.cases) names.push_back(item.name);
    throw Error(fmt::format("expected one case, found {} for '{}': {}", names.size(),
                            options.case_name, fmt::join(names, ", ")));
  }
  auto& plan = experiment.plan;
  const std::vector<WorkerSpec> two{named(experiment.runtimes, plan.reference),
                                    named(experiment.runtimes, options.to)};
  if (two[0].runtime == two[1].runtime) {
    throw Error(fmt::format("expected two runtimes, found '{}' twice", two[0].runtime));
  }
  experiment.runtimes = two;
  experiment.explanation = Explanation(two[0].runtime, two[1].runtime);
  experiment.probed = {two[0].runtime, two[1].runtime};
  if (is_cuda(plan.device)) {
    log_left_out(experiment,
                 "no conditions: on a GPU the host's allocator and threads wait for it");
  } else {
    add_allocators(experiment, two);
    add_one_thread(experiment, two);
  }
  plan.runtimes.clear();
  for (const auto& spec : experiment.runtimes) plan.runtimes.push_back(spec.runtime);
  if (!options.how.invocations) {
    plan.invocations = plan.invocations_asked = std::min(plan.invocations, kInvocations);
  }
  if (!options.how.max_seconds) plan.max_seconds *= kShareOfPreset;
  experiment.curves.clear();
}

int explain(const ExplainOptions& options) {
  check_names(options);
  auto how = options.how;
  how.cases = {options.case_name};
  how.runtimes = our_runtimes(options);
  how.reference = options.from;
  try {
    return compare(how,
                   [&](ExperimentOptions& experiment) { plan_explanation(options, experiment); });
  } catch (const Error& error) {
    throw Error(in_words_of_explain(error.what()), error.exit_code());
  }
}

void register_explain(CLI::App& app, CommandLine& line) {
  auto& command =
      *app.add_subcommand("explain", "Say where the time goes between two runtimes on one case");
  const auto o = std::make_shared<ExplainOptions>();
  o->how.arguments = line.arguments;
  add_measuring_options(
      command, o->how,
      {.invocations = "of the preset, at most 6", .max_seconds = "half of the preset's"});
  command.add_option("CASE", o->case_name, "Case, such as gptlite_train/size:quick")->required();
  command.add_option("A", o->from, "Runtime that the waterfall begins with")->required();
  command.add_option("B", o->to, "Runtime that it ends with")->required();
  command.callback([o, &line] { line.action = [o] { return explain(*o); }; });
}

}  // namespace torchpace::cli
