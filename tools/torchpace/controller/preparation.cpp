#include "controller/preparation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "controller/preflight.hpp"
#include "torchpace/case_phase.hpp"

namespace torchpace::cli {
namespace {

namespace fs = std::filesystem;

constexpr double kValuesAtOnce = 1 << 30;  // bytes of values that wait for all runtimes' checks

void add_row(CaseResult& result, const WorkerSpec& spec, Status status, const std::string& reason,
             const std::string& artifact = "") {
  if (result.find(spec.runtime) != nullptr) return;
  RuntimeResult row;
  row.runtime = spec.runtime;
  row.approximate = spec.approximate;
  row.status = status;
  row.reason = reason;
  row.artifact = artifact;
  result.runtimes.push_back(std::move(row));
}

}  // namespace

void Preparation::give_folders() {
  const auto give = [&](Command& command, const std::string& name) {
    const auto folder = run_.folder.path() / name;
    fs::create_directory(folder);
    command.environment["TMPDIR"] = folder;
  };
  for (size_t i = 0; i < run_.options.runtimes.size(); ++i) {
    give(run_.options.runtimes[i].command, fmt::format("worker-{}", i));
  }
  for (size_t i = 0; i < run_.options.exporters.size(); ++i) {
    give(run_.options.exporters[i], fmt::format("export-{}", i));
  }
}

void Preparation::export_all() {
  std::vector<Exporter> exporters;
  for (const auto& command : run_.options.exporters) {
    exporters.emplace_back(command, run_.options.export_timeout_s);
  }
  export_cases(exporters);
  make_artifacts(exporters);
  run_.budget.exclude([&] { exporters.clear(); });
}

void Preparation::export_cases(std::vector<Exporter>& exporters) {
  std::set<std::string> notes;  // said once, also where many cases have it
  std::vector<size_t> dropped;
  for (size_t i = 0; i < run_.options.cases.size(); ++i) {
    auto& files = run_.files.emplace_back();
    files.settings = run_.options.cases[i].settings;
    if (!run_.options.cases[i].is_external()) {
      run_.budget.exclude([&] { export_case(i, exporters.front(), notes); });
    }
    for (const auto& spec : run_.options.runtimes) {
      files.own[spec.runtime] = spec.settings;
      if (spec.absent.empty()) continue;
      add_row(run_.results.cases[i], spec, Status::skipped, spec.absent);
    }
    if (run_.options.cases[i].optional && files.status == Status::skipped) dropped.push_back(i);
  }
  drop(dropped);
}

void Preparation::export_case(size_t index, Exporter& exporter, std::set<std::string>& notes) {
  const auto& item = run_.options.cases[index];
  auto& result = run_.results.cases[index];
  run_.progress.status(fmt::format("weights and inputs of {}", item.name),
                       run_.budget.estimated_left_s());
  auto& files = run_.files[index] = exporter.export_case(item);
  result.memory_bytes = files.memory_bytes;
  if (!files.note.empty()) {
    if (notes.insert(files.note).second) run_.progress.log(files.note);
    run_.results.warn({"export", "info", files.note, item.name, ""});
  }
  if (files.status == Status::ok) return;
  if (files.status == Status::skipped && item.optional) return;  // will be dropped
  for (const auto& spec : run_.options.runtimes) {
    add_row(result, spec, files.status, files.reason);
  }
}

/// Cases that cannot be had and that the user did not name.
void Preparation::drop(const std::vector<size_t>& indices) {
  for (auto index = indices.rbegin(); index != indices.rend(); ++index) {
    const auto at = static_cast<long>(*index);
    const auto text = fmt::format("{} is left out: {}", run_.options.cases[*index].name,
                                  run_.files[*index].reason);
    run_.progress.log(text);
    run_.results.warn({"left-out", "info", text, "", ""});
    run_.options.cases.erase(run_.options.cases.begin() + at);
    run_.files.erase(run_.files.begin() + at);
    run_.results.cases.erase(run_.results.cases.begin() + at);
  }
}

bool Preparation::needs_artifact(const CaseResult& result, const WorkerSpec& spec) const {
  const auto* row = result.find(spec.runtime);
  return !spec.artifact.empty() && (row == nullptr || row->status == Status::ok);
}

/// Each kind once for a case and an installation, whichever runtimes share it.
void Preparation::make_artifacts(std::vector<Exporter>& exporters) {
  for (size_t i = 0; i < run_.options.cases.size(); ++i) {
    for (const auto& spec : run_.options.runtimes) {
      if (run_.options.cases[i].is_external() || !needs_artifact(run_.results.cases[i], spec))
        continue;
      run_.budget.exclude([&] { make_artifact(i, spec, exporters.at(spec.exporter)); });
    }
  }
}

void Preparation::make_artifact(size_t index, const WorkerSpec& spec, Exporter& exporter) {
  auto& files = run_.files[index];
  const auto shared = std::find_if(
      run_.options.runtimes.begin(), run_.options.runtimes.end(), [&](const WorkerSpec& s) {
        return s.artifact == spec.artifact && s.exporter == spec.exporter &&
               s.settings.values() == spec.settings.values() && files.artifacts.contains(s.runtime);
      });
  if (shared != run_.options.runtimes.end()) {
    files.artifacts[spec.runtime] = files.artifacts[shared->runtime];
  } else {
    const auto limit_s = run_.options.plan.compile_timeout;
    run_.progress.status(fmt::format("artifact {} of {}, {:g} s at most", spec.artifact,
                                     run_.options.cases[index].name, limit_s),
                         run_.budget.estimated_left_s());
    files.artifacts[spec.runtime] =
        exporter.make_artifact(files.settings_of(spec.runtime), spec.artifact, limit_s);
  }
  const auto& artifact = files.artifacts[spec.runtime];
  if (!artifact.note.empty()) {
    run_.results.warn(
        {"artifact", "info", artifact.note, run_.options.cases[index].name, spec.runtime});
  }
  if (artifact.status == Status::ok) return;
  add_row(run_.results.cases[index], spec, artifact.status, artifact.reason, artifact.kind);
}

void Preparation::run_preflight() {
  size_t first = 0;
  double bytes = 0;
  for (size_t i = 0; i < run_.files.size(); ++i) {
    std::error_code ignored;
    const auto size = fs::file_size(run_.files[i].settings.get("golden", ""), ignored);
    bytes += ignored ? 0 : static_cast<double>(size);  // values are about as large
    if (bytes < kValuesAtOnce && i + 1 < run_.files.size()) continue;
    run_preflight(first, i + 1);
    first = i + 1;
    bytes = 0;
  }
}

/// Of some cases, whose values lie in the temporary folder meanwhile.
void Preparation::run_preflight(size_t first, size_t end) {
  std::vector<PreflightCase> cases;
  for (size_t i = first; i < end; ++i) {
    const auto& item = run_.options.cases[i];
    const auto curve = run_.options.curves.find(item.family);
    cases.push_back(
        {.item = item,
         .result = run_.results.cases[i],
         .files = run_.files[i],
         .values = run_.folder.path() / fmt::format("{}.pt", i),
         .curve_steps = case_phase_named(item.phase).trains && curve != run_.options.curves.end()
                            ? curve->second
                            : 0});
  }
  Preflight preflight({.runtimes = run_.options.runtimes,
                       .worker_timeout_s = run_.options.worker_timeout_s,
                       .compile_timeout_s = run_.options.plan.compile_timeout,
                       .before =
                           [&](const PreflightCase& preflight_case, const std::string& runtime) {
                             run_.progress.status(fmt::format("preflight: {} in {}",
                                                              preflight_case.item.name, runtime),
                                                  run_.budget.estimated_left_s());
                           },
                       .after = [&] { run_.save(); },
                       .warn = [&](Warning warning) { run_.results.warn(std::move(warning)); }});
  preflight.pass(cases);
  for (const auto& preflight_case : cases) {
    std::error_code ignored;
    fs::remove(preflight_case.values, ignored);
  }
}

}  // namespace torchpace::cli
