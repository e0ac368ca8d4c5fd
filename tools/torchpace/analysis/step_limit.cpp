#include "analysis/step_limit.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "torchpace/case_phase.hpp"

namespace torchpace::cli {
namespace {

std::string setting(const CaseResult& result, const char* key, const std::string& otherwise) {
  const auto found = result.settings.find(key);
  return found == result.settings.end() ? otherwise : found->second;
}

/// The bytes of a training step are counted with the moments of Adam; SGD has one or none.
bool has_counted_bytes(const CaseResult& result) {
  return result.minimum_bytes > 0 && !(case_phase_named(result.phase).trains &&
                                       setting(result, "optimizer", "adam").starts_with("sgd"));
}

}  // namespace

std::string dtype_of(const Results& results, const CaseResult& result) {
  return setting(result, "dtype", results.plan.dtype);
}

bool is_on_cpu(const Results& results, const CaseResult& result) {
  return !is_cuda(setting(result, "device", results.plan.device));
}

bool is_measurable(const Results& results, const CaseResult& result) {
  const auto dtype = dtype_of(results, result);
  return is_on_cpu(results, result) && setting(result, "autocast", "none") == "none" &&
         (dtype == "float32" || dtype == "float64");
}

double working_set(const CaseResult& result) {
  return case_phase_named(result.phase).trains ? result.minimum_bytes / 2 : result.minimum_bytes;
}

bool is_incomparable(const Results& results, const RuntimeResult& row) {
  if (row.approximate) return true;
  for (const char* key : {"dtype", "autocast", "tf32"}) {
    if (std::find(row.differs.begin(), row.differs.end(), key) != row.differs.end()) return true;
  }
  const auto found = row.environment.find("threads");
  if (found == row.environment.end()) return false;
  const auto text = found->is_string() ? found->get<std::string>() : found->dump();
  return std::atoi(text.c_str()) > results.plan.threads;
}

std::optional<StepLimit> step_limit(const Results& results, const CaseResult& result) {
  if (!results.limits || !is_on_cpu(results, result)) return std::nullopt;
  StepLimit limit;
  if (result.flops > 0 && is_measurable(results, result)) {
    limit.flops_per_s = results.limits->flops_per_s(dtype_of(results, result));
    limit.compute_ns = result.flops / limit.flops_per_s * 1e9;
  }
  if (has_counted_bytes(result)) {
    limit.memory_ns = results.limits->read_s(result.minimum_bytes, working_set(result)) * 1e9;
    limit.bytes_per_s = result.minimum_bytes / limit.memory_ns * 1e9;
  }
  const bool has_compute = limit.compute_ns > 0, has_memory = limit.memory_ns > 0;
  if (!has_compute && !has_memory) return std::nullopt;
  if (has_compute && has_memory) {
    limit.bound = limit.compute_ns >= limit.memory_ns ? "compute" : "memory";
  }
  return limit;
}

void analyze_shares(const Results& results, const CaseResult& result, RuntimeResult& row) {
  row.fma_peak_share = row.bandwidth_share = row.limit_share = kUnknown;
  if (!result.limit || is_incomparable(results, row)) return;
  row.fma_peak_share = result.limit->compute_ns / row.step_ns.median;
  row.bandwidth_share = result.limit->memory_ns / row.step_ns.median;
  if (result.limit->bound.empty()) return;
  row.limit_share = std::max(row.fma_peak_share, row.bandwidth_share);
}

}  // namespace torchpace::cli
