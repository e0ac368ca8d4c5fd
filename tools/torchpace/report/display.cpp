#include "report/display.hpp"

#include <fmt/format.h>

#include <cmath>

#include "report/console_report.hpp"
#include "report/headline.hpp"
#include "report/number_format.hpp"
#include "report/text_table.hpp"

namespace torchpace::cli {
namespace {

std::string percentile(const RuntimeResult& row, const char* name) {
  const auto found = row.percentiles_ns.find(name);
  return found == row.percentiles_ns.end() ? "n/a" : show_seconds(found->second / 1e9);
}

/// `2.4e-07 of 3.1e-06`: the error and what is allowed.
std::string error_text(const RuntimeResult& row) {
  if (!row.parity) return "n/a";
  if (const auto text = approximation_text(row); !text.empty()) return text;
  const auto& [error, tolerance] = std::pair(row.parity->max_abs_error, row.parity->tolerance);
  if (std::isnan(error) && std::isnan(tolerance)) return row.parity->passed ? "agrees" : "differs";
  return fmt::format("{} of {}", show_error(error), show_error(tolerance));
}

std::string break_even_text(const RuntimeResult& row) {
  if (std::isnan(row.break_even_steps)) return "";
  if (std::isinf(row.break_even_steps)) return "never earned back";
  if (row.break_even_steps == 0) return "earned back at once";
  return fmt::format("earned back after {:.0f} steps", row.break_even_steps);
}

Json row_text(const CaseResult& result, const RuntimeResult& row) {
  const bool is_reference = row.runtime == result.reference && row.status == Status::ok;
  Json cold = Json::object(), peaks = Json::object();
  for (const auto& [stage, seconds] : row.cold_s) cold[stage] = show_seconds(seconds);
  cold["ready"] = show_seconds(row.cold_total_s);
  if (!std::isnan(row.compile_s)) cold["compile_s"] = show_seconds(row.compile_s);
  if (const auto text = break_even_text(row); !text.empty()) cold["break_even"] = text;
  for (const auto& [kind, bytes] : row.peak_bytes) peaks[kind] = show_bytes(bytes);
  return {{"speedup", is_reference ? "1" : speedup_text(row)},
          {"step", show_duration(row.step_ns).both()},
          {"p90", percentile(row, "p90")},
          {"p99", percentile(row, "p99")},
          {"items", show_rate(result.items, row.step_ns).both()},
          {"flops", show_rate(result.flops, row.step_ns, "FLOP/s").both()},
          {"gemm_peak", show_share(row.gemm_peak_share)},
          {"fma_peak", show_share(row.fma_peak_share)},
          {"bandwidth", show_share(row.bandwidth_share)},
          {"limit", show_share(row.limit_share)},
          {"error", error_text(row)},
          {"faults", show_number(row.page_faults_per_step)},
          {"device", device_text(row)},
          {"samples", row.samples > 0 ? std::to_string(row.samples) : "n/a"},
          {"cold", cold},
          {"peaks", peaks}};
}

/// `-0.50 ms [-0.51, -0.49]`: how the step changes from the first runtime to the second.
std::string change_text(const Interval& saved) {
  const Interval change{
      .median = -saved.median, .low = -saved.high, .high = -saved.low, .confidence = 0};
  const auto text = show_duration(change).both();
  return text.starts_with('-') || change.median == 0 ? text : "+" + text;
}

Json explanation_text(const Explanation& explanation) {
  Json bars = Json::array();
  for (const auto& bar : explanation.bars) bars.push_back(change_text(bar.ns));
  return {{"from", show_duration(explanation.from_ns).both()},
          {"to", show_duration(explanation.to_ns).both()},
          {"bars", bars}};
}

/// What a case lacks: its skipped rows, and those that failed or are invalid, with their reasons.
std::vector<std::string> missing_lines(const CaseResult& result,
                                       const std::vector<Folded>& folded) {
  auto lines = skipped_lines(result, folded);
  for (const auto& row : result.runtimes) {
    if (row.is_copy() || (row.status != Status::failed && row.status != Status::invalid)) continue;
    if (is_folded(folded, row.runtime)) continue;
    lines.push_back(fmt::format("{} {}: {}", row.runtime, to_string(row.status), row.reason));
  }
  return lines;
}

std::string counted_sum(const CaseResult& result) {
  double sum = 0;
  for (const auto& [part, bytes] : result.memory_bytes) sum += bytes;
  return sum > 0 ? show_bytes(sum) : "";
}

Json case_text(const Results& results, const CaseResult& result,
               const std::vector<Folded>& folded) {
  const auto& [leader, sentence, others] = headline(result, results.plan.delta);
  Json rows = Json::array(), ranked = Json::array();
  for (const auto& row : result.runtimes) rows.push_back(row_text(result, row));
  for (const auto* row : ranking(result)) ranked.push_back(row->runtime);
  auto below = result.notes;
  if (const auto text = excluded_text(result); !text.empty()) below.push_back(text);
  Json json = {{"about", about_text(result)},
               {"bound", bound_text(result)},
               {"noise", show_ratio(result.noise_floor).both()},
               {"leader", leader},
               {"sentence", sentence},
               {"others", others},
               {"ranking", ranked},
               {"skipped", skipped_lines(result, folded)},
               {"below", below},
               {"missing", missing_lines(result, folded)},
               {"counted", counted_bytes(result)},
               {"counted_sum", counted_sum(result)},
               {"rows", rows}};
  if (result.explanation) json["explanation"] = explanation_text(*result.explanation);
  return json;
}

}  // namespace

Json display(const Results& results) {
  Json verdicts = Json::object(), left_out = Json::array(), cases = Json::array();
  for (const auto& [word, count] : tally(results)) verdicts[word] = count;
  const auto folded = folded_rows(results);
  for (const auto& each : folded) left_out.push_back(each.runtime + ": " + each.text);
  for (const auto& result : results.cases) cases.push_back(case_text(results, result, folded));
  Json warnings = Json::array();
  for (const auto& line : grouped_warnings(results)) {
    warnings.push_back({{"severity", line.severity}, {"text", line.text}});
  }
  return {{"summary", summary_lines(results)},
          {"took", show_seconds(results.elapsed_s)},
          {"warnings", warnings},
          {"tally", verdicts},
          {"footnotes", footnotes(results)},
          {"left_out", left_out},
          {"cases", cases}};
}

Json to_json_with_display(const Results& results) {
  auto json = to_json(results);
  json["display"] = display(results);
  return json;
}

}  // namespace torchpace::cli
