#include "gate.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace torchpace::cli {
namespace {

std::string truth_of(const Settings& settings) { return settings.get("truth", ""); }

class Gate {
 public:
  Gate(CaseResult& result, std::vector<Warning>& warnings, const GateRequest& request)
      : result_(result), warnings_(warnings), request_(request) {}

  RuntimeResult reference(const WorkerSpec& spec) {
    return pass(spec, [&](WorkerClient& worker, RuntimeResult&, double step_s) {
      try {
        worker.write(request_.values, step_s);
        written_ = true;
      } catch (const WorkerFailure& failure) {
        // A worker of the user's own may have no values to compare.
        if (!failure.alive || !request_.item.own()) throw;
        warn("unchecked", "warning", spec.runtime,
             fmt::format("outputs are not checked: {}", failure.what()));
      }
    });
  }

  RuntimeResult other(const WorkerSpec& spec) {
    return pass(spec, [&](WorkerClient& worker, RuntimeResult& row, double step_s) {
      if (!written_) return;
      row.parity = worker.check(request_.values, truth_of(request_.settings), step_s);
      if (row.parity->passed) return;
      row.status = Status::invalid;
      row.reason =
          fmt::format("outputs differ from the reference's: {} by {:.3g}, allowed {:.3g}{}{}",
                      row.parity->worst, row.parity->max_abs_error, row.parity->tolerance,
                      row.parity->note.empty() ? "" : "; ", row.parity->note);
    });
  }

 private:
  template <class Compare>
  RuntimeResult pass(const WorkerSpec& spec, const Compare& compare) {
    RuntimeResult row;
    row.runtime = spec.runtime;
    try {
      WorkerClient worker(spec, request_.patience_s);
      worker.await_greeting();
      row.cold_s["start"] = worker.start_s();
      if (!worker.offers(request_.item.name, request_.item.own())) {
        throw WorkerFailure(
            fmt::format("this worker offers only {}", fmt::join(worker.cases(), ", ")),
            Status::skipped, true);
      }
      load(worker, row);
      const double step_s = row.cold_s["first_step"] = worker.first();
      // Before the comparison of outputs, which takes memory of its own.
      row.peak_bytes = worker.peaks();
      row.environment = worker.environment();
      compare(worker, row, step_s);
      if (request_.curve_steps > 0 && row.status == Status::ok) {
        result_.curves[spec.runtime] = worker.losses(request_.curve_steps, step_s);
      }
      worker.quit();
    } catch (const WorkerFailure& failure) {
      row.status = failure.status;
      row.reason = failure.what();
    }
    return row;
  }

  void load(WorkerClient& worker, RuntimeResult& row) {
    const auto answer = worker.load(request_.settings.line());
    row.cold_s["load"] = answer.load_s;
    if (!answer.note.empty()) warn("note", "info", row.runtime, answer.note);
    if (row.runtime != result_.reference) return;
    result_.flops = answer.flops;
    result_.items = answer.items;
    result_.item = answer.item;
    result_.parameter_bytes = answer.parameter_bytes;
    result_.minimum_bytes = answer.minimum_bytes;
  }

  void warn(const std::string& code, const std::string& severity, const std::string& runtime,
            const std::string& text) {
    warnings_.push_back({code, severity, text, request_.item.name, runtime});
  }

  CaseResult& result_;
  std::vector<Warning>& warnings_;
  const GateRequest& request_;
  bool written_ = false;
};

/// Rows of the others where the reference gives nothing to compare with.
RuntimeResult without_reference(const std::string& runtime, const RuntimeResult& reference) {
  RuntimeResult row;
  row.runtime = runtime;
  row.status = reference.status;
  row.reason = fmt::format("the reference {}: {}", reference.runtime, reference.reason);
  return row;
}

/// The row of the second copy: it is judged like the reference and measured in the generations.
RuntimeResult copy_of(const RuntimeResult& reference) {
  RuntimeResult copy;
  copy.runtime = copy_name(reference.runtime);
  copy.copy_of = reference.runtime;
  copy.status = reference.status;
  copy.reason = reference.reason;
  copy.environment = reference.environment;
  return copy;
}

void sort_as_planned(CaseResult& result, const std::vector<WorkerSpec>& runtimes) {
  const auto place = [&](const RuntimeResult& row) {
    const auto same = [&](const WorkerSpec& spec) { return spec.runtime == row.runtime; };
    return std::find_if(runtimes.begin(), runtimes.end(), same) - runtimes.begin();
  };
  std::stable_sort(result.runtimes.begin(), result.runtimes.end(),
                   [&](const auto& a, const auto& b) { return place(a) < place(b); });
}

}  // namespace

void pass_gate(CaseResult& result, std::vector<Warning>& warnings, const GateRequest& request,
               const std::function<void(const std::string&)>& before) {
  const auto missing = [&](const std::string& runtime) { return result.find(runtime) == nullptr; };
  const auto is_reference = [&](const WorkerSpec& s) { return s.runtime == result.reference; };
  const auto& runtimes = request.runtimes;
  const auto& spec = *std::find_if(runtimes.begin(), runtimes.end(), is_reference);
  const bool others_missing = std::any_of(runtimes.begin(), runtimes.end(), [&](const auto& s) {
    return !is_reference(s) && missing(s.runtime);
  });

  Gate gate(result, warnings, request);
  RuntimeResult reference;
  if (const auto* known = result.find(spec.runtime)) reference = *known;
  // Also when its row is there from an earlier run: the others need its values again.
  if (missing(spec.runtime) || (others_missing && reference.status == Status::ok)) {
    before(spec.runtime);
    reference = gate.reference(spec);
    if (missing(spec.runtime)) result.runtimes.push_back(reference);
  }
  for (const auto& other : runtimes) {
    if (!missing(other.runtime)) continue;
    if (reference.status != Status::ok) {
      result.runtimes.push_back(without_reference(other.runtime, reference));
      continue;
    }
    before(other.runtime);
    result.runtimes.push_back(gate.other(other));
  }
  if (missing(copy_name(spec.runtime))) result.runtimes.push_back(copy_of(reference));
  sort_as_planned(result, runtimes);
}

}  // namespace torchpace::cli
