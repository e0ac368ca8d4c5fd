#include "controller/experiment.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "analysis/analyze.hpp"
#include "analysis/plausibility.hpp"
#include "controller/invocation_runner.hpp"
#include "controller/preparation.hpp"
#include "report/display.hpp"
#include "support/error.hpp"
#include "support/signals.hpp"

namespace torchpace::cli {

namespace fs = std::filesystem;

CaseResult empty_result(const Case& item, const std::string& reference) {
  CaseResult result;
  result.name = item.name;
  result.family = item.family;
  result.phase = item.phase;
  result.settings = item.settings.values();
  result.reference = reference;
  return result;
}

void prepare_output(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  const auto probe = folder / ".torchpace-probe";
  const int file = error ? -1 : open(probe.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) {
    throw Error(fmt::format("--output {}: cannot be written: {}; choose another folder",
                            folder.string(), error ? error.message() : std::strerror(errno)));
  }
  close(file);
  unlink(probe.c_str());
}

void check_same_plan(const Results& earlier, const Results& now, const std::string& file) {
  const auto differ = [&](const std::string& what, const std::string& a, const std::string& b) {
    if (a == b) return;
    throw Error(fmt::format(
        "--resume: {} was measured with {} {}, now it is {}; use the same or another --output",
        file, what, a.empty() ? "none" : a, b.empty() ? "none" : b));
  };
  const auto &a = earlier.plan, &b = now.plan;
  differ("preset", a.preset, b.preset);
  differ("reference", a.reference, b.reference);
  differ("runtimes", fmt::format("{}", fmt::join(a.runtimes, ",")),
         fmt::format("{}", fmt::join(b.runtimes, ",")));
  differ("invocations", std::to_string(a.invocations_asked), std::to_string(b.invocations_asked));
  differ("rounds", std::to_string(a.rounds), std::to_string(b.rounds));
  differ("threads", std::to_string(a.threads), std::to_string(b.threads));
  differ("device", a.device, b.device);
  differ("dtype", a.dtype, b.dtype);
  differ("allocator", a.allocator, b.allocator);
  differ("seed", std::to_string(a.seed), std::to_string(b.seed));
  differ("text", a.text, b.text);
  const auto names = [](const Results& results) {
    std::string text;
    for (const auto& result : results.cases) text += (text.empty() ? "" : ",") + result.name;
    return text;
  };
  differ("cases", names(earlier), names(now));
  for (size_t i = 0; i < now.cases.size(); ++i) {
    differ("settings of " + now.cases[i].name, Json(earlier.cases[i].settings).dump(),
           Json(now.cases[i].settings).dump());
  }
}

ExperimentState::ExperimentState(ExperimentOptions given, Results& into, Progress& shown)
    : options(std::move(given)),
      results(into),
      progress(shown),
      budget(into.plan, into.elapsed_s) {}

void ExperimentState::save() {
  results.elapsed_s = budget.elapsed_s();
  analyze(results);
  std::error_code ignored;  // removed while we measured: no reason to lose what there is
  fs::create_directories(options.output, ignored);
  save_json(to_json_with_display(results), options.output / "results.json");
}

void Experiment::run() {
  run_.results.complete = false;
  Preparation preparation(run_);
  preparation.give_folders();
  try {
    preparation.export_all();
    preparation.run_preflight();
    run_.budget.exclude([&] { measure_limits(run_.results); });
    InvocationRunner(run_).run();
    confirm_implausible(run_.results);
  } catch (const Interrupted&) {
    run_.save();
    throw;
  }
  run_.results.complete = true;
  run_.save();
}

bool Experiment::met_bad_input_only() const {
  return !run_.files.empty() &&
         std::all_of(run_.files.begin(), run_.files.end(), [](const Exported& files) {
           return files.status == Status::failed && files.mendable;
         });
}

}  // namespace torchpace::cli
