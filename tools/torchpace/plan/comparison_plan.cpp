#include "plan/comparison_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "cases_json.hpp"
#include "controller/core_latency.hpp"
#include "doctor/host_info.hpp"
#include "doctor/usable_resources.hpp"
#include "plan/file_rows.hpp"
#include "plan/torch_versions.hpp"
#include "support/console.hpp"
#include "support/error.hpp"
#include "support/strings.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kExportTimeout_s = 3600, kExportTimeoutOfModel_s = 600;

void require(bool holds, const std::string& option, const std::string& expected,
             const std::string& found) {
  if (!holds) throw Error(fmt::format("{}: expected {}, found '{}'", option, expected, found));
}

void require_word(const std::string& option, const std::string& word,
                  const std::vector<std::string>& words) {
  require(std::find(words.begin(), words.end(), word) != words.end(), option,
          fmt::format("one of {}", fmt::join(words, ", ")), word);
}

bool is_device(const std::string& word) {
  if (word == "auto" || word == "cpu" || word == "cuda") return true;
  const std::string start = "cuda:";
  return word.starts_with(start) && word.size() > start.size() && word.size() < start.size() + 4 &&
         std::all_of(word.begin() + static_cast<long>(start.size()), word.end(),
                     [](unsigned char c) { return std::isdigit(c) != 0; });
}

/// CUDA devices that the interpreter's torch can use; nullopt where it cannot be asked.
std::optional<int> cuda_devices(const Installation& installation) {
  const std::string code =
      "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)";
  try {
    return std::stoi(run_to_end({{installation.python, "-c", code}, {}}, 300));
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

/// `auto` is CUDA where there is a device that torch can use.
std::string chosen_device(const std::string& option, const Installation& installation) {
  if (option == "cuda") return "cuda:0";
  if (option != "auto") return option;
  return has_nvidia_device() && cuda_devices(installation).value_or(0) > 0 ? "cuda:0" : "cpu";
}

/// Throws Error, to skip, where torchpace's own runtimes would all find out that the device is not
/// here.
void check_device(const std::string& device, const Installation& installation) {
  if (!is_cuda(device)) return;
  const auto count = cuda_devices(installation);
  const int index = std::stoi(device.substr(device.find(':') + 1));
  if (!count || index < *count) return;
  throw Error(
      fmt::format("--device {}: this machine and the torch of {} offer {} CUDA devices; use "
                  "--device cpu, or a CUDA build of torch on a machine with a GPU",
                  device, installation.python, *count),
      kSkipped);
}

/// Where torch is: the installation itself, or one for each version of --torch.
struct Version {
  std::string torch;  // empty without --torch
  Installation installation;
};

std::vector<Version> chosen_versions(const CompareOptions& options,
                                     const Installation& installation) {
  if (options.torch.empty()) return {{"", installation}};
  std::vector<Version> versions;
  Progress progress;
  for (const auto& torch : options.torch) {
    const auto log = [&](const std::string& line) {
      progress.update(fmt::format("torch {}: {}", torch, line), -1);
    };
    progress.status(
        fmt::format("torch {}: looking for its environment and build, else making them", torch));
    versions.push_back({torch, installation_of_version(torch, installation, log)});
  }
  return versions;
}

bool has_runtime(const std::vector<WorkerSpec>& specs, const std::string& name) {
  return std::any_of(specs.begin(), specs.end(),
                     [&](const WorkerSpec& s) { return s.runtime == name; });
}

bool only_own(const std::vector<WorkerSpec>& specs) {
  return std::all_of(specs.begin(), specs.end(), [](const WorkerSpec& s) { return s.is_external; });
}

/// The name that a user may give to a runtime of any version.
std::string base_of(const std::string& runtime) { return runtime.substr(0, runtime.find('@')); }

/// torchpace's own runtimes that `patterns` choose, of every version.
std::vector<WorkerSpec> chosen_of_ours(const CompareOptions& options,
                                       std::vector<std::string> patterns,
                                       const std::vector<Version>& versions,
                                       const ValueCheck& check) {
  if (patterns.empty()) patterns.emplace_back("all");
  std::vector<WorkerSpec> chosen;
  for (size_t i = 0; i < versions.size(); ++i) {
    std::vector<std::string> problems;
    const auto known = discover_runtimes(versions[i].installation, problems);
    auto of_version = choose_runtimes(known, patterns, problems, check);
    const auto reference = base_of(options.reference);
    if (!has_runtime(of_version, options.reference) && !has_runtime(of_version, reference) &&
        has_runtime(known, reference)) {
      const auto more = choose_runtimes(known, {reference}, problems, check);
      of_version.insert(of_version.begin(), more.begin(), more.end());
    }
    if (options.runtimes.empty()) {
      for (const auto& problem : problems) log(problem);
    }
    for (auto& spec : of_version) {
      if (!versions[i].torch.empty()) spec.runtime += "@" + versions[i].torch;
      spec.exporter = i;
      chosen.push_back(std::move(spec));
    }
  }
  return chosen;
}

/// The runtimes that take part, the user's own among them.
std::vector<WorkerSpec> chosen_runtimes(const CompareOptions& options, const Preset& preset,
                                        const std::vector<Version>& versions,
                                        const ValueCheck& check) {
  std::vector<WorkerSpec> own;
  for (const auto& text : options.workers) own.push_back(own_worker(text));
  std::vector<WorkerSpec> chosen;
  if (own.empty() || !options.runtimes.empty()) {
    chosen = chosen_of_ours(options, options.runtimes.empty() ? preset.runtimes : options.runtimes,
                            versions, check);
  }
  for (auto& spec : own) {
    require(!has_runtime(chosen, spec.runtime), "--worker", "a name that no other runtime has",
            spec.runtime);
    chosen.push_back(std::move(spec));
  }
  return chosen;
}

/// The files of --model; none where it names factories. Throws Error.
std::vector<ModelFile> model_files(const CompareOptions& options) {
  const auto& models = options.models;
  const auto file = std::find_if(models.begin(), models.end(), names_file);
  if (file == models.end()) return {};
  const auto factory = std::find_if_not(models.begin(), models.end(), names_file);
  if (factory != models.end()) {
    throw Error(fmt::format(
        "--model: expected files or factories, found both, {} and {}; files given together are "
        "taken for one model: compare the factory in a run of its own",
        *file, *factory));
  }
  return read_model_files(models);
}

/// The modes of TorchScript, which are rows of a file and not cases: those of --set, else all.
std::vector<std::string> take_modes(std::vector<Axis>& axes) {
  const std::vector<std::string> known = {"plain", "freeze", "optimize"};
  const auto found = std::find_if(axes.begin(), axes.end(),
                                  [](const Axis& axis) { return axis.key == "torchscript"; });
  if (found == axes.end()) return known;
  const auto modes = found->values;
  for (const auto& mode : modes) require_word("--set: torchscript", mode, known);
  axes.erase(found);
  return modes;
}

/// The rows of the files of --model.
std::vector<WorkerSpec> rows_of(const CompareOptions& options, const std::vector<ModelFile>& files,
                                const std::vector<std::string>& modes,
                                const std::vector<Version>& versions, const ValueCheck& check) {
  const auto known = chosen_of_ours(options, runtimes_of(files, options.runtimes), versions, check);
  return file_rows(files, known, modes, options.runtimes);
}

/// With several versions a name without one means the first version's. Throws Error where it would
/// be an approximate runtime: speedups over one that does less work say nothing.
std::string chosen_reference(const std::string& option, const std::vector<WorkerSpec>& runtimes) {
  const auto wanted = option.empty() ? "py-eager" : option;
  std::vector<std::string> names;
  for (const auto& spec : runtimes) {
    if (spec.approximate) {
      require(spec.runtime != option && base_of(spec.runtime) != option, "--reference",
              "a runtime that is not approximate", option);
      continue;
    }
    if (spec.runtime == wanted || base_of(spec.runtime) == wanted) return spec.runtime;
    names.push_back(spec.runtime);
  }
  if (names.empty()) {
    throw Error(
        "--runtimes: expected one that is not approximate, as the reference, found only "
        "approximate ones; add py-eager");
  }
  if (!option.empty()) {
    throw Error(fmt::format("--reference: '{}' is not among the runtimes{}", option,
                            did_you_mean(option, names)));
  }
  return names.back();  // of `--worker new=... --worker old=...` the old one
}

/// What the user's own workers say that they can load.
std::vector<std::string> offered_cases(const std::vector<WorkerSpec>& runtimes,
                                       double worker_timeout_s) {
  std::vector<std::string> offered;
  for (const auto& spec : runtimes) {
    try {
      WorkerClient worker(spec, worker_timeout_s);
      worker.await_greeting();
      for (const auto& name : worker.cases()) {
        if (std::find(offered.begin(), offered.end(), name) == offered.end())
          offered.push_back(name);
      }
      worker.quit();
    } catch (const WorkerFailure& failure) {
      log(fmt::format("{}: {}", spec.runtime, failure.what()));
    }
  }
  if (offered.empty())
    throw Error("--worker: no worker offers a case (docs/worker-protocol.md, greeting)");
  return offered;
}

std::vector<Case> chosen_cases(const CompareOptions& options, const Catalog& catalog,
                               const Preset& preset, const std::vector<WorkerSpec>& runtimes,
                               const std::vector<Axis>& axes, const Settings& common) {
  if (only_own(runtimes)) {
    const auto offered = offered_cases(runtimes, options.worker_timeout_s);
    if (std::find(offered.begin(), offered.end(), "*") == offered.end()) {
      require(options.set.empty(), "--set", "cases of torchpace", "only workers of your own");
      return own_cases(offered, options.cases, common);
    }
  }
  auto trained = common;
  for (const auto& [key, value] :
       {std::pair{"optimizer", "adam"}, {"lr", "2e-4"}, {"eps", "1e-8"}}) {
    trained.set(key, value);
  }
  return catalog.expand(options.cases, preset.size, axes, trained);
}

/// How to measure the core-to-core latency. Tests name a file with the answers in
/// TORCHPACE_CORE_LATENCY_NS, of which the last is given again and again.
std::function<double()> core_latency_source(const PlanRecord& plan) {
  if (const auto name = variable("TORCHPACE_CORE_LATENCY_NS"); !name.empty()) {
    return [file = std::make_shared<std::ifstream>(name), ns = kUnknown]() mutable {
      double next = 0;
      return *file >> next ? ns = next : ns;
    };
  }
  // Where the device does the work, the place of the host's cores decides little.
  if (is_cuda(plan.device)) return {};
  return [threads = plan.threads] { return core_latency_ns(threads); };
}

PlanRecord plan_record(const CompareOptions& options, const Preset& preset,
                       const std::vector<ModelFile>& files, const std::vector<WorkerSpec>& runtimes,
                       const Json& host) {
  PlanRecord plan;
  plan.arguments = options.arguments;
  plan.preset = preset.name;
  plan.reference = files.empty() ? chosen_reference(options.reference, runtimes)
                                 : file_reference(options.reference, files, runtimes);
  for (const auto& spec : runtimes) plan.runtimes.push_back(spec.runtime);
  plan.invocations = options.invocations.value_or(preset.invocations);
  plan.invocations_asked = plan.invocations;
  plan.rounds = options.rounds.value_or(0);
  const auto present = std::count_if(runtimes.begin(), runtimes.end(),
                                     [](const WorkerSpec& spec) { return spec.absent.empty(); });
  const auto further = static_cast<double>(std::max<std::ptrdiff_t>(2, present) - 2);
  plan.max_seconds =
      options.max_seconds.value_or(preset.max_seconds + further * preset.seconds_per_runtime);
  plan.compile_timeout = options.compile_timeout.value_or(preset.compile_timeout);
  plan.threads = options.threads.value_or(threads_of_environment().value_or(usable_cores(host)));
  plan.dtype = options.dtype;
  plan.allocator = options.allocator;
  plan.seed = options.seed;
  plan.delta = options.delta;
  plan.confidence = options.confidence;
  plan.text = options.text.empty() ? "" : fs::absolute(options.text).string();
  return plan;
}

}  // namespace

void check_values(const CompareOptions& o) {
  require(is_device(o.device), "--device", "auto, cpu, cuda or cuda:N", o.device);
  require_word("--dtype", o.dtype, {"float32", "bfloat16", "float16", "float64"});
  require_word("--allocator", o.allocator, {"system", "tuned", "jemalloc"});
  const auto at_least_1 = [](const char* option, const std::optional<int>& value) {
    if (value) require(*value >= 1, option, "at least 1", std::to_string(*value));
  };
  at_least_1("--threads", o.threads);
  at_least_1("--rounds", o.rounds);
  at_least_1("--invocations", o.invocations);
  if (o.max_seconds) {
    require(*o.max_seconds > 0 && std::isfinite(*o.max_seconds), "--max-seconds",
            "a number above 0", fmt::format("{}", *o.max_seconds));
  }
  if (o.compile_timeout) {
    require(*o.compile_timeout > 0 && std::isfinite(*o.compile_timeout), "--compile-timeout",
            "a number above 0", fmt::format("{}", *o.compile_timeout));
  }
  if (o.export_timeout) {
    require(*o.export_timeout > 0 && std::isfinite(*o.export_timeout), "--export-timeout",
            "a number above 0", fmt::format("{}", *o.export_timeout));
  }
  require(o.inputs.empty() || !o.models.empty(), "--input", "a --model beside it", "none");
  if (!o.below.empty()) {
    const bool counts = o.below.find_first_not_of("0123456789") == std::string::npos;
    require(counts && o.below.size() < 19 && o.below != "0", "--below", "an integer above 0",
            o.below);
    require(std::any_of(o.models.begin(), o.models.end(), names_file), "--below",
            "a --model FILE beside it", "none");
  }
  require(o.models.empty() || o.workers.empty(), "--model", "no --worker beside it",
          "both: a worker of your own brings its own cases");
  check_versions(o.torch);
  require(o.delta > 0 && o.delta < 1, "--delta", "a number between 0 and 1",
          fmt::format("{}", o.delta));
  require(o.confidence >= 0.5 && o.confidence < 1, "--confidence",
          "a number from 0.5 to below 1, such as 0.99", fmt::format("{}", o.confidence));
  require(o.seed >= 0, "--seed", "at least 0", std::to_string(o.seed));
  require(o.worker_timeout_s > 0 && std::isfinite(o.worker_timeout_s), "--worker-timeout",
          "a number above 0", fmt::format("{}", o.worker_timeout_s));
  if (!o.text.empty()) {
    require(std::ifstream(o.text).good(), "--text", "a file that can be read", o.text);
  }
}

ExperimentOptions planned(const CompareOptions& options, const Installation& current,
                          const Json& host) {
  const auto libraries = paths_of_libraries(options.libraries);
  Catalog catalog(kCasesJson);
  const auto preset = catalog.preset(options.preset);
  auto axes = parse_axes(options.set);
  const auto files = model_files(options);
  std::vector<std::string> modes;
  if (!files.empty()) {
    modes = take_modes(axes);
    catalog.import_files(files, options.inputs, options.below, axes);
  } else if (!options.models.empty()) {
    catalog.import_models(options.models, fs::current_path(), options.inputs);
  }
  ExperimentOptions experiment;
  const auto versions = chosen_versions(options, current);
  const auto& installation = versions.front().installation;
  const auto check = [&](const std::string& key, const std::string& value) {
    catalog.check_row_setting(key, value);
  };
  experiment.runtimes = files.empty() ? chosen_runtimes(options, preset, versions, check)
                                      : rows_of(options, files, modes, versions, check);
  experiment.adapts_invocations = !options.invocations && !options.rounds;
  experiment.plan = plan_record(options, preset, files, experiment.runtimes, host);
  auto& plan = experiment.plan;
  plan.device = chosen_device(options.device, installation);
  if (options.device != "auto" && !only_own(experiment.runtimes))
    check_device(plan.device, installation);
  for (auto& spec : experiment.runtimes) {
    spec.command.environment.merge(common_environment({.threads = plan.threads,
                                                       .allocator = plan.allocator,
                                                       .binds_threads = !is_cuda(plan.device)},
                                                      installation));
  }
  if (const auto named = variable("OMP_NUM_THREADS"); !options.threads && !named.empty()) {
    const auto text =
        threads_of_environment()
            ? fmt::format("threads: {}, as OMP_NUM_THREADS says; --threads for another number",
                          plan.threads)
            : fmt::format(
                  "threads: {}: OMP_NUM_THREADS is ignored, expected a number above 0, "
                  "found '{}'",
                  plan.threads, named);
    experiment.warnings.push_back({"threads", "info", text, "", ""});
  }
  Settings common{{"dtype", plan.dtype},
                  {"threads", std::to_string(plan.threads)},
                  {"seed", std::to_string(plan.seed)}};
  if (!libraries.empty()) common.set("libraries", libraries);
  experiment.cases = chosen_cases(options, catalog, preset, experiment.runtimes, axes, common);
  experiment.output = options.output;
  prepare_output(experiment.output);
  for (auto& item : experiment.cases) item.settings.set("device", plan.device);
  experiment.curves = preset.curves;
  experiment.core_latency_ns = core_latency_source(plan);
  experiment.worker_timeout_s = options.worker_timeout_s;
  // A family of ours may have a golden run of an hour; a model of the user's may hang.
  experiment.export_timeout_s = options.export_timeout.value_or(
      options.models.empty() ? kExportTimeout_s : kExportTimeoutOfModel_s);
  std::vector<std::string> words{"--cache", cache_folder(options.cache)};
  if (!plan.text.empty()) words.insert(words.end(), {"--text", plan.text});
  for (const auto& version : versions) {
    experiment.exporters.push_back(
        python_command(version.installation, "torchpace.exporter", words));
  }
  return experiment;
}

fs::path cache_folder(const std::string& option) {
  if (!option.empty()) return fs::absolute(option);
  if (const auto named = variable("TORCHPACE_CACHE"); !named.empty()) return fs::absolute(named);
  if (const auto base = variable("XDG_CACHE_HOME"); !base.empty())
    return fs::path(base) / "torchpace";
  const auto home = variable("HOME");
  return fs::path(home.empty() ? "/tmp" : home) / ".cache" / "torchpace";
}

}  // namespace torchpace::cli
