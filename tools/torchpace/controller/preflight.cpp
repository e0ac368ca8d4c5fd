#include "controller/preflight.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace torchpace::cli {
namespace {

constexpr int kColdSteps = 10;  // the time to the tenth step is told beside the first's
const std::string kReferenceIs = "the reference is ";  // begins a reason that is of all rows

/// Rows of the others where the reference gives nothing to compare with.
RuntimeResult without_reference(const WorkerSpec& spec, const RuntimeResult& reference) {
  RuntimeResult row;
  row.runtime = spec.runtime;
  row.approximate = spec.approximate;
  row.status = reference.status;
  row.reason = reference.reason.starts_with(kReferenceIs)
                   ? fmt::format("the reference {} is {}", reference.runtime,
                                 reference.reason.substr(kReferenceIs.size()))
                   : fmt::format("the reference {}: {}", reference.runtime, reference.reason);
  return row;
}

/// By how much the tensor that is farthest off differs, in the norm that is not within its bound.
std::string difference(const Parity& parity) {
  const bool by_peak = !(parity.max_abs_error <= parity.tolerance);
  const double error = by_peak ? parity.max_abs_error : parity.rms_error;
  const double bound = by_peak ? parity.tolerance : parity.rms_tolerance;
  if (std::isnan(error) || std::isnan(bound)) return parity.note;
  return fmt::format("{} by {:.3g}{}, allowed {:.3g}{}{}", parity.worst, error,
                     by_peak ? "" : " in the root mean square", bound,
                     parity.note.empty() ? "" : "; ", parity.note);
}

/// The row of the second copy: it is judged like the reference and measured in the invocations.
RuntimeResult copy_of(const RuntimeResult& reference) {
  RuntimeResult copy;
  copy.runtime = copy_name(reference.runtime);
  copy.copy_of = reference.runtime;
  copy.status = reference.status;
  copy.reason = reference.reason;
  copy.environment = reference.environment;
  return copy;
}

}  // namespace

void sort_as_planned(CaseResult& result, const std::vector<WorkerSpec>& runtimes) {
  const auto place = [&](const RuntimeResult& row) {
    const auto same = [&](const WorkerSpec& spec) { return spec.runtime == row.runtime; };
    return std::find_if(runtimes.begin(), runtimes.end(), same) - runtimes.begin();
  };
  std::stable_sort(result.runtimes.begin(), result.runtimes.end(),
                   [&](const auto& a, const auto& b) { return place(a) < place(b); });
}

void Preflight::pass(std::vector<PreflightCase>& cases) {
  auto runtimes = options_.runtimes;
  std::stable_partition(runtimes.begin(), runtimes.end(), [&](const WorkerSpec& spec) {
    return !cases.empty() && spec.runtime == cases.front().result.reference;
  });
  for (const auto& spec : runtimes) {
    for (auto& preflight_case : cases) {
      if (!is_needed(preflight_case, spec)) continue;
      pass_one(preflight_case, spec);
      options_.after();
    }
    if (worker_) worker_->quit();
    worker_.reset();
  }
}

/// The reference also when its row is there from an earlier run: others need its values again.
bool Preflight::is_needed(const PreflightCase& preflight_case, const WorkerSpec& spec) const {
  const auto& result = preflight_case.result;
  const auto* row = result.find(spec.runtime);
  if (row == nullptr) return true;
  return spec.runtime == result.reference && row->status == Status::ok && !preflight_case.written &&
         std::any_of(options_.runtimes.begin(), options_.runtimes.end(),
                     [&](const WorkerSpec& s) { return result.find(s.runtime) == nullptr; });
}

void Preflight::pass_one(PreflightCase& preflight_case, const WorkerSpec& spec) {
  auto& result = preflight_case.result;
  const bool is_reference = spec.runtime == result.reference;
  const auto* reference = result.find(result.reference);
  if (!is_reference && reference->status != Status::ok) {
    result.runtimes.push_back(without_reference(spec, *reference));
  } else {
    options_.before(preflight_case, spec.runtime);
    auto row = row_of(preflight_case, spec);
    if (auto* known = result.find(spec.runtime)) {
      if (row.status != Status::ok) *known = std::move(row);
    } else {
      result.runtimes.push_back(std::move(row));
    }
  }
  if (is_reference && result.find(copy_name(spec.runtime)) == nullptr) {
    result.runtimes.push_back(copy_of(*result.find(spec.runtime)));
  }
  sort_as_planned(result, options_.runtimes);
}

RuntimeResult Preflight::row_of(PreflightCase& preflight_case, const WorkerSpec& spec) {
  RuntimeResult row;
  row.runtime = spec.runtime;
  row.condition_of = spec.condition_of;
  row.approximate = spec.approximate;
  const auto artifact = preflight_case.files.artifacts.find(spec.runtime);
  if (artifact != preflight_case.files.artifacts.end()) {
    row.artifact = artifact->second.kind;
    row.compile_s = artifact->second.compile_s;
    row.compile_cached = artifact->second.cached;
  }
  try {
    serve(preflight_case, spec, row);
    if (!spec.is_external) return row;
    worker_->quit();
    worker_.reset();
  } catch (const WorkerFailure& failure) {
    row.status = failure.status;
    row.reason = failure.what();
    if (!failure.alive || spec.is_external) worker_.reset();
  }
  return row;
}

void Preflight::serve(PreflightCase& preflight_case, const WorkerSpec& spec, RuntimeResult& row) {
  if (!worker_) {
    worker_.emplace(spec, options_.worker_timeout_s);
    worker_->await_greeting();
  }
  row.cold_s["start"] = worker_->start_s();
  if (!worker_->offers(preflight_case.item.name, preflight_case.item.is_external())) {
    throw WorkerFailure(
        fmt::format("this worker offers only {}", fmt::join(worker_->cases(), ", ")),
        Status::skipped, true);
  }
  load(preflight_case, row);
  const auto first = worker_->first(kColdSteps);
  row.cold_s["first_step"] = first.first_step_s;
  if (!std::isnan(first.steps_s)) row.cold_s["tenth_step"] = first.steps_s;
  // Before the comparison of outputs, which takes memory of its own.
  row.peak_bytes = worker_->peaks();
  row.environment = worker_->environment();
  if (spec.runtime == preflight_case.result.reference) {
    write_values(preflight_case, first.first_step_s);
    check_reference(preflight_case, row, first.first_step_s);
  } else if (preflight_case.written) {
    check_values(preflight_case, row, first.first_step_s);
  }
  if (preflight_case.curve_steps > 0 && row.status == Status::ok) {
    preflight_case.result.curves[spec.runtime] =
        worker_->losses(preflight_case.curve_steps, first.first_step_s);
  }
}

void Preflight::load(PreflightCase& preflight_case, RuntimeResult& row) {
  const auto settings = preflight_case.files.settings_of(row.runtime);
  const auto answer = worker_->load(settings.line(), options_.compile_timeout_s);
  row.cold_s["load"] = answer.load_s;
  row.cold_s["compile"] = answer.compile_s;
  if (!answer.note.empty()) warn(preflight_case, "note", "info", row.runtime, answer.note);
  auto& result = preflight_case.result;
  if (row.runtime != result.reference) return;
  result.flops = answer.flops;
  result.items = answer.items;
  result.item = answer.item;
  result.parameter_bytes = answer.parameter_bytes;
  result.minimum_bytes = answer.minimum_bytes;
}

void Preflight::write_values(PreflightCase& preflight_case, double step_s) {
  try {
    worker_->write(preflight_case.values, step_s);
    preflight_case.written = true;
  } catch (const WorkerFailure& failure) {
    // A worker of the user's own may have no values to compare.
    if (!failure.alive || !preflight_case.item.is_external()) throw;
    warn(preflight_case, "unchecked", "warning", preflight_case.result.reference,
         fmt::format("outputs are not checked: {}", failure.what()));
  }
}

/// Against the float64 run, in which nothing but rounding differs: what the reference gives is not
/// right because it is the reference.
void Preflight::check_reference(PreflightCase& preflight_case, RuntimeResult& row, double step_s) {
  if (!preflight_case.written || preflight_case.item.is_external()) return;
  const auto golden = preflight_case.files.settings.get("golden", "");
  if (golden.empty()) {
    const auto& why = preflight_case.files.no_golden;
    warn(preflight_case, "no-golden", "warning", "",
         fmt::format("checked against the reference to sqrt(eps): no float64 run{}",
                     why.empty() ? "" : fmt::format(" ({})", why)));
    return;
  }
  row.parity = worker_->check(preflight_case.values, golden, step_s);
  if (row.parity->passed) return;
  row.status = Status::invalid;
  row.reason = fmt::format(
      "{}farther from its own float64 run than rounding explains: {}; likely causes: random "
      "numbers outside parameters and buffers, a source file that changed, an operation that loses "
      "precision",
      kReferenceIs, difference(*row.parity));
}

void Preflight::check_values(PreflightCase& preflight_case, RuntimeResult& row, double step_s) {
  const auto golden = preflight_case.files.settings.get("golden", "");
  row.parity = worker_->check(preflight_case.values, golden, step_s);
  if (row.parity->passed) return;
  row.status = Status::invalid;
  row.reason = fmt::format("outputs differ from {}: {}",
                           golden.empty() ? "the reference's" : "those of the float64 run",
                           difference(*row.parity));
}

void Preflight::warn(const PreflightCase& preflight_case, const std::string& code,
                     const std::string& severity, const std::string& runtime,
                     const std::string& text) {
  options_.warn({code, severity, text, preflight_case.item.name, runtime});
}

}  // namespace torchpace::cli
