#include "analysis/plausibility.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <set>
#include <thread>

#include "analysis/analyze.hpp"
#include "analysis/step_limit.hpp"
#include "report/number_format.hpp"

namespace torchpace::cli {
namespace {

constexpr double kPeakMargin = 1.1;  // FLOP/s above the FMA peak that measuring may explain
// Where the products run on other units than the loop (tensor cores, AMX), and a convolution may
// need fewer of them than it is counted with (Winograd).
constexpr double kGemmMargin = 2;
constexpr double kReadMargin = 0.8;  // of the time to read that measuring may explain
// Spread over some seconds: as long as a host keeps the cores of a virtual machine far apart.
constexpr int kConfirmations = 12;
constexpr std::chrono::milliseconds kBetweenConfirmations{250};
constexpr const char* kMeaning = "the row does less work than the case; it does not count";

/// The highest rate that a step can have, with its name.
struct Peak {
  double flops_per_s = kUnknown;
  double margin = kPeakMargin;
  const char* name = "FMA peak";
};

Peak peak_of(const Results& results, const CaseResult& result) {
  const double gemm = result.gemm_peak_flops_per_s;
  if (!is_measurable(results, result)) {
    const Peak products{gemm, kGemmMargin, "rate of matrix products"};
    if (!is_on_cpu(results, result)) return products;
    // Without units of its own a dtype of 16 bits is computed in float32, and a product of it may
    // be slower than the rest of a step.
    const double fma = results.limits ? results.limits->flops_per_s("float32") : kUnknown;
    if (std::isnan(gemm) || std::isnan(fma)) return {};
    const Peak loop{fma, kPeakMargin, "FMA peak of float32"};
    return products.margin * gemm > loop.margin * fma ? products : loop;
  }
  if (!results.limits) return {};
  const double fma = results.limits->flops_per_s(dtype_of(results, result));
  // Products that are faster than the loop show what the loop missed.
  if (gemm > fma) return {gemm, kPeakMargin, "rate of matrix products"};
  return {fma, kPeakMargin, "FMA peak"};
}

std::string above_peak(const Peak& peak, double flops_per_s) {
  if (!(flops_per_s > peak.margin * peak.flops_per_s)) return "";
  return fmt::format("{} times the {} ({} where {} were measured): {}",
                     show_number(flops_per_s / peak.flops_per_s), peak.name,
                     show_amount(flops_per_s, "FLOP/s"), show_amount(peak.flops_per_s, "FLOP/s"),
                     kMeaning);
}

std::string below_read(const Results& results, const CaseResult& result, double step_s) {
  if (!results.limits || !(result.minimum_bytes > 0) || !is_on_cpu(results, result)) return "";
  const double read_s = results.limits->read_s(result.minimum_bytes, working_set(result));
  if (!(step_s < kReadMargin * read_s)) return "";
  return fmt::format("a step of {}, where reading its {} takes {}: {}", show_seconds(step_s),
                     show_bytes(result.minimum_bytes), show_seconds(read_s), kMeaning);
}

/// Measures what `wanted` cases need, each limit once.
void measure_for(Results& results, const std::function<bool(const CaseResult&)>& wanted,
                 bool again) {
  std::set<std::string> dtypes;
  std::set<double> sizes;
  for (const auto& result : results.cases) {
    if (!is_on_cpu(results, result) || !wanted(result)) continue;
    if (result.flops > 0) {
      dtypes.insert(is_measurable(results, result) ? dtype_of(results, result) : "float32");
    }
    if (result.minimum_bytes > 0) sizes.insert(measured_size(working_set(result)));
  }
  if (dtypes.empty() && sizes.empty()) return;
  if (!results.limits) results.limits.emplace().threads = std::max(1, results.plan.threads);
  auto& limits = *results.limits;
  const auto trials = results.plan.preset == "smoke" ? Trials{2, 0.01} : Trials{};
  for (const auto& dtype : dtypes) {
    if (again || std::isnan(limits.flops_per_s(dtype))) measure_fma(limits, dtype, trials);
  }
  for (const double size : sizes) {
    if (again || std::isnan(limits.read_s(size, size))) measure_read(limits, size, trials);
  }
}

bool has_row(const CaseResult& result, const std::function<bool(const RuntimeResult&)>& is_so) {
  return std::any_of(result.runtimes.begin(), result.runtimes.end(), is_so);
}

bool has_implausible(const CaseResult& result) {
  return has_row(result, [](const RuntimeResult& row) { return !row.implausible.empty(); });
}

/// Products of a library cannot do more than the loop, unless others ran while it was measured.
bool has_faster_products(const CaseResult& result) {
  return result.limit && result.gemm_peak_flops_per_s > result.limit->flops_per_s;
}

}  // namespace

std::string implausible(const Results& results, const CaseResult& result,
                        const RuntimeResult& row) {
  const double step_s = row.step_ns.median * 1e-9;
  if (row.status != Status::ok || row.is_copy() || !(step_s > 0)) return "";
  if (is_incomparable(results, row)) return "";
  const auto text = above_peak(peak_of(results, result), result.flops / step_s);
  return text.empty() ? below_read(results, result, step_s) : text;
}

void measure_limits(Results& results) {
  measure_for(
      results,
      [](const CaseResult& result) {
        return has_row(result, [](const RuntimeResult& row) { return row.status == Status::ok; });
      },
      false);
}

void confirm_implausible(Results& results) {
  analyze(results);
  if (std::any_of(results.cases.begin(), results.cases.end(), has_faster_products)) {
    measure_for(results, has_faster_products, true);
    analyze(results);
  }
  for (int i = 0; i < kConfirmations; ++i) {
    if (std::none_of(results.cases.begin(), results.cases.end(), has_implausible)) return;
    if (i > 0) std::this_thread::sleep_for(kBetweenConfirmations);
    measure_for(results, has_implausible, true);
    analyze(results);
  }
}

}  // namespace torchpace::cli
